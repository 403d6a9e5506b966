//! Remembers the ids of the last commands, so that one is carried out once.
//!
//! Also after a restart: what changes something is noted in the store with the command's entry in the
//! ledger. A broker repeats `QoS` 1 messages after a lost connection, and people press keys twice.
//! Signed commands carry a sequence number besides.

use std::collections::{BTreeSet, VecDeque};

use crate::scada::command::{Command, CommandError, CommandFault};
use crate::scada::request_id::RequestId;

/// Ids of the last [`ReplayWindow::CAPACITY`] commands of one node.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    order: VecDeque<RequestId>,
    seen: BTreeSet<RequestId>,
    /// Ids noted in the store so far: the next one takes the place of the oldest.
    noted: u64,
}

impl ReplayWindow {
    /// Ids that are remembered; the oldest goes first.
    pub const CAPACITY: usize = 1_024;
    /// Key prefix of its durable state.
    pub const PREFIX: &str = "command-id/";

    /// What `state` says: values are `{number} {id}`, one a place.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn from_state(state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let mut noted = Vec::new();
        for (key, value) in state.iter().filter(|(key, _)| key.starts_with(Self::PREFIX)) {
            noted.push(read(value).ok_or_else(|| format!("{key}: not the id of a command"))?);
        }
        noted.sort();
        let mut window = Self::default();
        for (number, id) in noted {
            window.noted = number + 1;
            window.insert(id);
        }
        Ok(window)
    }

    /// Takes note of a command. One without an id is always let through. Gives the key and value
    /// that have to be on disk before it is carried out, for one that changes something.
    ///
    /// # Errors
    /// [`CommandFault::Repeated`] when a command with this id came before.
    pub fn admit(&mut self, command: &Command) -> Result<Option<(String, Vec<u8>)>, CommandError> {
        let Some(id) = &command.id else { return Ok(None) };
        if !self.insert(id.clone()) {
            let fault = CommandFault::Repeated { id: id.to_string() };
            return Err(CommandError { id: Some(id.clone()), fault });
        }
        if command.action.only_asks() {
            return Ok(None);
        }
        let (number, place) = (self.noted, self.noted % Self::CAPACITY as u64);
        self.noted += 1;
        let key = format!("{}{place:04}", Self::PREFIX);
        Ok(Some((key, format!("{number} {id}").into_bytes())))
    }

    fn insert(&mut self, id: RequestId) -> bool {
        if !self.seen.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > Self::CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

fn read(value: &[u8]) -> Option<(u64, RequestId)> {
    let (number, id) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some((number.parse().ok()?, RequestId::new(id).ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
    fn an_id_that_changed_something_is_known_after_a_restart_too() {
        let (mut window, mut state) = (ReplayWindow::default(), BTreeMap::new());
        for number in 0..ReplayWindow::CAPACITY + 3 {
            let noted = window.admit(&command(Some(&number.to_string()))).unwrap();
            state.extend(noted);
        }
        assert_eq!(state.len(), ReplayWindow::CAPACITY);
        let mut after = ReplayWindow::from_state(&state.into_iter().collect::<Vec<_>>()).unwrap();
        assert!(after.admit(&command(Some("1026"))).is_err());
        assert!(after.admit(&command(Some("3"))).is_err());
        assert!(after.admit(&command(Some("1"))).is_ok(), "the oldest made room");
        let (key, _) = after.admit(&command(Some("new"))).unwrap().unwrap();
        assert_eq!(key, "command-id/0004");
        let asks = Command { action: Action::Status, ..command(Some("q")) };
        assert_eq!(after.admit(&asks), Ok(None), "asking again harms nobody");
        let damaged = [("command-id/0001".to_owned(), b"x".to_vec())];
        assert!(ReplayWindow::from_state(&damaged).unwrap_err().starts_with("command-id/0001"));
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
