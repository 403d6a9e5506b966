//! What will happen, by time. What is due in the same millisecond happens in the order in which it was planned.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

/// Events to come.
///
/// Only those of the next moments are in order. A heap of all of them, tens of thousands, has its levels in memory that the
/// processor has to wait for.
#[derive(Debug)]
pub(super) struct Queue<E> {
    /// Due before all of `later`.
    soon: BinaryHeap<Reverse<Planned<E>>>,
    /// Number of the last moment whose events are in `soon`; one for an earlier moment goes there, too.
    until: u64,
    /// By numbers of moments, in no order.
    later: BTreeMap<u64, Vec<Reverse<Planned<E>>>>,
    /// Events that were ever planned.
    planned: u64,
}

#[derive(Debug)]
struct Planned<E> {
    at_ms: u64,
    number: u64,
    event: E,
}

impl<E> Queue<E> {
    /// Milliseconds of a moment: ten thousand devices have some hundred events in it, which is little enough to stay near.
    const MOMENT_MS: u64 = 64;

    /// Nothing is planned.
    pub(super) fn new() -> Self {
        Self { soon: BinaryHeap::new(), until: 0, later: BTreeMap::new(), planned: 0 }
    }

    /// Plans an event.
    pub(super) fn push(&mut self, at_ms: u64, event: E) {
        let planned = Reverse(Planned { at_ms, number: self.planned, event });
        self.planned += 1;
        match at_ms / Self::MOMENT_MS {
            moment if moment <= self.until => self.soon.push(planned),
            moment => self.later.entry(moment).or_default().push(planned),
        }
    }

    /// The time of the next one.
    pub(super) fn next_ms(&mut self) -> Option<u64> {
        if self.soon.is_empty()
            && let Some((moment, events)) = self.later.pop_first()
        {
            (self.until, self.soon) = (moment, events.into());
        }
        self.soon.peek().map(|Reverse(next)| next.at_ms)
    }

    /// Takes the next one and its time, if that is no later than this.
    pub(super) fn pop_until(&mut self, ms: u64) -> Option<(u64, E)> {
        self.next_ms().filter(|at| *at <= ms)?;
        self.soon.pop().map(|Reverse(next)| (next.at_ms, next.event))
    }
}

impl<E> Planned<E> {
    fn order(&self) -> (u64, u64) {
        (self.at_ms, self.number)
    }
}

impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<E> Eq for Planned<E> {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_order_is_that_of_a_sorted_set(
            turns in proptest::collection::vec((proptest::bool::weighted(0.6), 0_u64..300), 0..80),
        ) {
            let (mut queue, mut sorted) = (Queue::new(), BTreeSet::new());
            for (number, (plans, ms)) in turns.into_iter().enumerate() {
                if plans {
                    queue.push(ms, number);
                    sorted.insert((ms, number));
                } else {
                    let next = sorted.first().copied();
                    prop_assert_eq!(queue.next_ms(), next.map(|(at_ms, _)| at_ms));
                    let due = next.filter(|(at_ms, _)| *at_ms <= ms);
                    prop_assert_eq!(queue.pop_until(ms), due);
                    if let Some(due) = due {
                        sorted.remove(&due);
                    }
                }
            }
        }
    }

    #[test]
    fn events_come_by_time_and_those_of_one_millisecond_as_they_were_planned() {
        let mut queue = Queue::new();
        for (at_ms, event) in [(5, 'c'), (2, 'a'), (5, 'd'), (700, 'g'), (9, 'f'), (2, 'b')] {
            queue.push(at_ms, event);
        }
        assert_eq!(queue.next_ms(), Some(2));
        assert_eq!(queue.pop_until(u64::MAX), Some((2, 'a')));
        queue.push(5, 'e');
        queue.push(600, 'x');
        queue.push(700, 'h');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_until(u64::MAX)).collect();
        let soon = [(2, 'b'), (5, 'c'), (5, 'd'), (5, 'e'), (9, 'f')];
        assert_eq!(rest, [&soon[..], &[(600, 'x'), (700, 'g'), (700, 'h')]].concat());
        queue.push(1, 'y');
        assert_eq!(queue.pop_until(u64::MAX), Some((1, 'y')));
    }
}
