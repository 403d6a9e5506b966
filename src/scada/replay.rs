//! Remembers the ids of the last commands, so that one is carried out once.
//!
//! Plain commands only: signed ones carry a sequence number. A broker repeats `QoS` 1 messages after
//! a lost connection, and people press keys twice.

use std::collections::{BTreeSet, VecDeque};

use crate::scada::command::{Command, CommandError, CommandFault};
use crate::scada::request_id::RequestId;

/// Ids of the last [`ReplayWindow::CAPACITY`] commands of one node.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    order: VecDeque<RequestId>,
    seen: BTreeSet<RequestId>,
}

impl ReplayWindow {
    /// Ids that are remembered; the oldest goes first.
    pub const CAPACITY: usize = 1_024;

    /// Takes note of a command. One without an id is always let through.
    ///
    /// # Errors
    /// [`CommandFault::Repeated`] when a command with this id came before.
    pub fn admit(&mut self, command: &Command) -> Result<(), CommandError> {
        let Some(id) = &command.id else { return Ok(()) };
        if !self.seen.insert(id.clone()) {
            let fault = CommandFault::Repeated { id: id.to_string() };
            return Err(CommandError { id: Some(id.clone()), fault });
        }
        self.order.push_back(id.clone());
        if self.order.len() > Self::CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scada::command::Action;

    fn command(id: Option<&str>) -> Command {
        Command { id: id.map(|id| RequestId::new(id).unwrap()), action: Action::RoundStart }
    }

    #[test]
    fn a_command_with_a_known_id_is_refused_and_one_with_a_new_id_is_not() {
        let mut window = ReplayWindow::default();
        assert!(window.admit(&command(Some("1"))).is_ok());
        let again = window.admit(&command(Some("1"))).unwrap_err();
        assert_eq!((again.kind(), again.id), ("repeated", command(Some("1")).id));
        assert!(window.admit(&command(Some("2"))).is_ok());
        assert!(window.admit(&command(None)).is_ok());
        assert!(window.admit(&command(None)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_id_goes_first() {
        let mut window = ReplayWindow::default();
        for number in 0..ReplayWindow::CAPACITY + 10 {
            window.admit(&command(Some(&number.to_string()))).unwrap();
        }
        assert_eq!(window.seen.len(), ReplayWindow::CAPACITY);
        assert_eq!(window.order.len(), ReplayWindow::CAPACITY);
        assert!(window.admit(&command(Some("0"))).is_ok());
        assert!(window.admit(&command(Some("100"))).is_err());
    }
}
