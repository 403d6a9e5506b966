//! Releases acknowledgements in the order of arrival, however late and however mixed the owner is.
//!
//! Some brokers (rumqttd) disconnect a client that acknowledges out of order. Acknowledgements of
//! an earlier connection are worthless: the broker sends those messages again.

use std::collections::VecDeque;

use rumqttc::ManualAck;

/// Names one arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// Arrivals of this connection that are not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct AckQueue {
    /// Number of the arrival at the queue's front.
    first: u64,
    waiting: VecDeque<(ManualAck, bool)>,
}

impl AckQueue {
    /// Notes an arrival that needs `ack` later.
    pub(super) fn arrived(&mut self, ack: ManualAck) -> Ticket {
        let ticket = Ticket(self.first.wrapping_add(self.waiting.len() as u64));
        self.waiting.push_back((ack, false));
        ticket
    }

    /// The owner is done with it. Ignored when it belongs to an earlier connection.
    pub(super) fn release(&mut self, ticket: Ticket) {
        if let Some((_, released)) = self.entry(ticket) {
            *released = true;
        }
    }

    /// Forgets everything: the connection is gone.
    pub(super) fn reset(&mut self) {
        self.first = self.first.wrapping_add(self.waiting.len() as u64);
        self.waiting.clear();
    }

    /// Takes the front if it was released, once `send` took it.
    pub(super) fn send_next(&mut self, send: impl FnOnce(ManualAck) -> bool) -> bool {
        let Some((ack, true)) = self.waiting.front() else { return false };
        if !send(ack.clone()) {
            return false;
        }
        self.waiting.pop_front();
        self.first = self.first.wrapping_add(1);
        true
    }

    /// Whether the front could be sent now.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.waiting.front(), Some((_, true)))
    }

    /// Whether `ticket` is of this connection and not released.
    pub(super) fn is_open(&mut self, ticket: Ticket) -> bool {
        matches!(self.entry(ticket), Some((_, false)))
    }

    fn entry(&mut self, ticket: Ticket) -> Option<&mut (ManualAck, bool)> {
        let offset = ticket.0.checked_sub(self.first)?;
        self.waiting.get_mut(usize::try_from(offset).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rumqttc::PubAck;

    use super::*;

    fn sent(queue: &mut AckQueue) -> Vec<u16> {
        let mut sent = Vec::new();
        while queue.send_next(|ack| {
            if let ManualAck::PubAck(ack) = ack {
                sent.push(ack.pkid);
            }
            true
        }) {}
        sent
    }

    fn arrive(queue: &mut AckQueue, pkid: u16) -> Ticket {
        queue.arrived(ManualAck::PubAck(PubAck::new(pkid)))
    }

    #[test]
    fn late_front_holds_back_the_ones_behind_it() {
        let mut queue = AckQueue::default();
        let (first, second) = (arrive(&mut queue, 1), arrive(&mut queue, 2));
        queue.release(second);
        assert!(sent(&mut queue).is_empty());
        queue.release(first);
        assert_eq!(sent(&mut queue), [1, 2]);
    }

    #[test]
    fn ack_of_an_earlier_connection_is_ignored() {
        let mut queue = AckQueue::default();
        let old = arrive(&mut queue, 1);
        queue.reset();
        let new = arrive(&mut queue, 1);
        queue.release(old);
        assert!(sent(&mut queue).is_empty() && queue.is_open(new) && !queue.is_open(old));
        queue.release(new);
        assert_eq!(sent(&mut queue), [1]);
    }

    proptest! {
        #[test]
        fn any_order_of_release_sends_in_order_of_arrival(
            order in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let mut queue = AckQueue::default();
            let tickets: Vec<Ticket> = (0..12).map(|pkid| arrive(&mut queue, pkid + 1)).collect();
            let mut all = Vec::new();
            for position in order {
                queue.release(tickets[position]);
                all.extend(sent(&mut queue));
            }
            prop_assert_eq!(all, (1..=12).collect::<Vec<u16>>());
        }
    }
}
