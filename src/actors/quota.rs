//! How much of the ledger others can fill: what anybody can provoke at will is recorded so many times
//! a minute, and only counted beyond. What a round does is never left out.

use crate::ledger::Event;
use crate::time::Mono;

/// See the module. One for a node, whoever provokes.
#[derive(Debug, Default)]
pub(super) struct Quota {
    minute: u64,
    recorded: u32,
}

impl Quota {
    /// Entries a minute.
    const A_MINUTE: u32 = 60;

    /// Whether this event is to be recorded.
    pub(super) fn admits(&mut self, event: &Event, now: Mono) -> bool {
        if !can_be_provoked(event) {
            return true;
        }
        let minute = now.0 / 60_000;
        if self.minute != minute {
            (self.minute, self.recorded) = (minute, 0);
        }
        self.recorded += u32::from(self.recorded <= Self::A_MINUTE);
        self.recorded <= Self::A_MINUTE
    }
}

/// Whether a neighbour, or anybody who may write to the broker, can make it as often as they like.
fn can_be_provoked(event: &Event) -> bool {
    matches!(
        event,
        Event::Refusal { .. }
            | Event::Equivocation { .. }
            | Event::Decline { .. }
            | Event::Move { .. }
            | Event::Command { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::ledger::Word;

    #[test]
    fn a_flood_fills_a_minute_and_no_more_while_rounds_are_always_recorded() {
        let refusal = Event::Refusal {
            message: Digest([1; 32]),
            reason: Word::new("bad_signature"),
            sender: None,
        };
        let open = Event::RoundOpen { epoch: 1, offer: Digest([2; 32]), round: 1 };
        let mut quota = Quota::default();
        let mut recorded =
            |at: u64| (0..1_000).filter(|_| quota.admits(&refusal, Mono(at))).count();
        assert_eq!(recorded(0), 60);
        assert_eq!(recorded(59_999), 0);
        assert_eq!(recorded(60_000), 60);
        assert!((0..1_000).all(|_| quota.admits(&open, Mono(60_000))));
    }
}
