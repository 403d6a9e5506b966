//! What the store's outbox holds, in memory: which message is due again, on which link.
//!
//! A message waits until its machine settles it by a receipt. Till then it is sent verbatim, at once
//! when its link comes up, later with back-off and full jitter. A retained value has no receipt: the
//! newest of each topic is published at each connection, and when its machine asks for it.
//!
//! Nothing is published here: the runner does that with what it is given.

use std::collections::{BTreeMap, BTreeSet};

use crate::bus::{Priority, Publish};
use crate::ids::Side;
use crate::rng::Stream;
use crate::store::{Batch, OutboxItem};
use crate::time::Mono;

/// See the module.
pub(super) struct Outbox {
    waiting: BTreeMap<String, Waiting>,
    latest: BTreeMap<String, OutboxItem>,
    jitter: Stream,
    republished_at: Option<Mono>,
    up: BTreeSet<Side>,
}

/// An item that waits for its receipt.
struct Waiting {
    item: OutboxItem,
    attempts: u32,
    due: Mono,
}

impl Outbox {
    const BACKOFF_MS: std::ops::RangeInclusive<u64> = 1_000..=60_000;
    const REPUBLISH_MIN_MS: u64 = 500;

    /// Takes up what the store holds; all of it is due.
    pub(super) fn new(items: Vec<OutboxItem>, seed: u64) -> Self {
        let mut outbox = Self {
            waiting: BTreeMap::new(),
            latest: BTreeMap::new(),
            jitter: Stream::new(seed, "outbox"),
            republished_at: None,
            up: BTreeSet::new(),
        };
        for item in items {
            outbox.put(item, Mono(0));
        }
        outbox
    }

    /// Mirrors what a transaction did to it.
    pub(super) fn mirror(&mut self, batch: Batch, now: Mono) {
        for key in batch.outbox_delete {
            self.waiting.remove(&key);
        }
        for item in batch.outbox_put {
            let pause = if item.retain { 0 } else { backoff_ms(&mut self.jitter, 0) };
            self.put(item, Mono(now.0 + pause));
        }
    }

    /// The link is up: what has to go out on it now.
    pub(super) fn link_up(&mut self, side: Side, now: Mono) -> Vec<(Side, Publish)> {
        self.up.insert(side);
        let mut out = self.latest(side);
        out.extend(self.again(now, |waiting| waiting.item.side == side));
        out
    }

    /// The link is down: nothing is due on it.
    pub(super) fn link_down(&mut self, side: Side) {
        self.up.remove(&side);
    }

    /// What has waited long enough without a receipt.
    pub(super) fn due(&mut self, now: Mono) -> Vec<(Side, Publish)> {
        self.again(now, |waiting| waiting.due <= now)
    }

    /// The retained values for the children, unless they went out a moment ago.
    pub(super) fn republish(&mut self, now: Mono) -> Vec<(Side, Publish)> {
        let soon = |at: Mono| now.0.saturating_sub(at.0) < Self::REPUBLISH_MIN_MS;
        if self.republished_at.is_some_and(soon) {
            return Vec::new();
        }
        self.republished_at = Some(now);
        self.latest(Side::Down)
    }

    /// Messages that wait for a receipt.
    pub(super) fn waiting(&self) -> impl ExactSizeIterator<Item = &OutboxItem> {
        self.waiting.values().map(|waiting| &waiting.item)
    }

    fn put(&mut self, item: OutboxItem, due: Mono) {
        let key = item.key.clone();
        if item.retain {
            self.latest.insert(key, item);
        } else {
            self.waiting.insert(key, Waiting { item, attempts: 0, due });
        }
    }

    fn latest(&self, side: Side) -> Vec<(Side, Publish)> {
        let here = self.latest.values().filter(|item| item.side == side);
        here.map(|item| (side, publish_of(item, Priority::Control))).collect()
    }

    fn again(&mut self, now: Mono, is_wanted: impl Fn(&Waiting) -> bool) -> Vec<(Side, Publish)> {
        let mut out = Vec::new();
        for waiting in self.waiting.values_mut() {
            if self.up.contains(&waiting.item.side) && is_wanted(waiting) {
                waiting.attempts += 1;
                waiting.due = Mono(now.0 + backoff_ms(&mut self.jitter, waiting.attempts));
                out.push((waiting.item.side, publish_of(&waiting.item, Priority::Update)));
            }
        }
        out
    }
}

/// Full jitter: uniform up to a bound that doubles, but never under a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^16")]
#[expect(clippy::cast_precision_loss, reason = "below 2^16")]
fn backoff_ms(jitter: &mut Stream, attempts: u32) -> u64 {
    let (least, most) = (*Outbox::BACKOFF_MS.start(), *Outbox::BACKOFF_MS.end());
    let bound = least.saturating_mul(1 << attempts.min(10)).clamp(least, most);
    least + jitter.range(0.0, bound as f64) as u64
}

/// An item as it is published, byte by byte the same each time.
fn publish_of(item: &OutboxItem, priority: Priority) -> Publish {
    Publish {
        topic: item.topic.clone(),
        payload: item.wire.clone(),
        at_least_once: true,
        retain: item.retain,
        priority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Wall;

    fn item(key: &str, side: Side, retain: bool) -> OutboxItem {
        let (topic, wire) = (format!("t/{key}"), key.as_bytes().to_vec());
        OutboxItem { key: key.into(), side, topic, wire, retain, sealed_at: Wall(0) }
    }

    fn topics(out: &[(Side, Publish)]) -> Vec<&str> {
        out.iter().map(|(_, message)| message.topic.as_str()).collect()
    }

    #[test]
    fn what_waits_goes_out_when_its_link_comes_up_and_again_until_it_is_settled() {
        let items = vec![item("up", Side::Up, false), item("down", Side::Down, false)];
        let mut outbox = Outbox::new(items, 1);
        assert!(outbox.due(Mono(0)).is_empty(), "no link is up");
        assert_eq!(topics(&outbox.link_up(Side::Up, Mono(0))), ["t/up"]);
        assert!(outbox.due(Mono(999)).is_empty(), "never under a second");
        assert_eq!(topics(&outbox.due(Mono(200_000))), ["t/up"]);
        outbox.link_down(Side::Up);
        assert!(outbox.due(Mono(400_000)).is_empty());
        let settled = Batch { outbox_delete: vec!["up".into()], ..Batch::default() };
        outbox.mirror(settled, Mono(400_000));
        assert!(outbox.link_up(Side::Up, Mono(400_000)).is_empty());
        assert_eq!(outbox.waiting().len(), 1);
    }

    #[test]
    fn pauses_grow_to_a_minute_and_are_never_under_a_second() {
        let mut outbox = Outbox::new(vec![item("x", Side::Up, false)], 1);
        outbox.link_up(Side::Up, Mono(0));
        let mut longest = 0;
        let (mut now, mut last) = (0, 0);
        while now < 3_600_000 {
            now += 10;
            if !outbox.due(Mono(now)).is_empty() {
                assert!(now - last >= 1_000, "{last} {now}");
                longest = longest.max(now - last);
                last = now;
            }
        }
        assert!((30_000..=61_010).contains(&longest), "{longest}");
    }

    #[test]
    fn of_a_retained_topic_the_newest_goes_out_and_not_twice_in_a_moment() {
        let mut outbox = Outbox::new(vec![item("offer", Side::Down, true)], 1);
        let newer = OutboxItem { wire: b"newer".to_vec(), ..item("offer", Side::Down, true) };
        outbox.mirror(Batch { outbox_put: vec![newer], ..Batch::default() }, Mono(0));
        let out = outbox.republish(Mono(1_000));
        assert_eq!((topics(&out), out[0].1.payload.as_slice()), (vec!["t/offer"], &b"newer"[..]));
        assert!(outbox.republish(Mono(1_499)).is_empty());
        assert_eq!(outbox.republish(Mono(1_500)).len(), 1);
        assert_eq!(outbox.waiting().len(), 0, "it waits for no receipt");
    }
}
