//! What will happen, by time. What is due in the same millisecond happens in the order in which it was planned.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Events to come.
#[derive(Debug)]
pub(super) struct Queue<E> {
    heap: BinaryHeap<Reverse<Planned<E>>>,
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
    /// Nothing is planned.
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), planned: 0 }
    }

    /// Plans an event.
    pub(super) fn push(&mut self, at_ms: u64, event: E) {
        self.heap.push(Reverse(Planned { at_ms, number: self.planned, event }));
        self.planned += 1;
    }

    /// Takes the next one and its time.
    pub(super) fn pop(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(next)| (next.at_ms, next.event))
    }

    /// The time of the next one.
    #[cfg(test)]
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(next)| next.at_ms)
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
    use super::*;

    #[test]
    fn events_come_by_time_and_those_of_one_moment_as_they_were_planned() {
        let mut queue = Queue::new();
        for (at_ms, event) in [(5, 'c'), (2, 'a'), (5, 'd'), (9, 'f'), (2, 'b')] {
            queue.push(at_ms, event);
        }
        assert_eq!(queue.next_ms(), Some(2));
        assert_eq!(queue.pop(), Some((2, 'a')));
        queue.push(5, 'e');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, [(2, 'b'), (5, 'c'), (5, 'd'), (5, 'e'), (9, 'f')]);
    }
}
