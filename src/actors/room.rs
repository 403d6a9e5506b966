//! How much a node keeps: when its disk is too full for new work, and what of the outbox goes when
//! too much waits.
//!
//! Updates are never dropped; soft-label summaries are, the oldest first, when they are too old or
//! when all that waits is over its bound. Telemetry and answers never wait on disk.

use std::fmt;
use std::sync::Arc;

use crate::protocol::Member;
use crate::store::OutboxItem;
use crate::time::Wall;

/// Bounds of what a node keeps on its disk.
#[derive(Clone)]
pub struct Bounds {
    /// New work is refused from this fill of the disk or of the store's quota on.
    pub full_percent: u64,
    /// Bytes that may wait for receipts.
    pub outbox_bytes: u64,
    /// Age at which what may be dropped is dropped, in milliseconds.
    pub outbox_ms: u64,
    /// Fill of the disk in percent, where it can be told.
    pub disk: Arc<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl Default for Bounds {
    /// 90 %, 256 MiB, 72 hours, and a disk that tells nothing.
    fn default() -> Self {
        Self {
            full_percent: 90,
            outbox_bytes: 256 << 20,
            outbox_ms: 72 * 3_600_000,
            disk: Arc::new(|| None),
        }
    }
}

impl fmt::Debug for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounds")
            .field("full_percent", &self.full_percent)
            .field("outbox_bytes", &self.outbox_bytes)
            .field("outbox_ms", &self.outbox_ms)
            .finish_non_exhaustive()
    }
}

/// A message that waits for its receipt, as far as bounds need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waits {
    key: String,
    bytes: u64,
    age_ms: u64,
}

impl Waits {
    pub(super) fn of(item: &OutboxItem, now: Wall) -> Self {
        let age_ms = now.0.saturating_sub(item.sealed_at.0);
        Self { key: item.key.clone(), bytes: item.wire.len() as u64, age_ms }
    }

    fn may_go(&self) -> bool {
        self.key.starts_with(Member::SUMMARY)
    }
}

impl Bounds {
    /// Keys of what has to go, and the bytes that still wait then.
    pub(super) fn drop_summaries(&self, waits: impl Iterator<Item = Waits>) -> (Vec<String>, u64) {
        let mut all: Vec<Waits> = waits.collect();
        all.sort_by_key(|item| std::cmp::Reverse(item.age_ms));
        let mut bytes: u64 = all.iter().map(|item| item.bytes).sum();
        let mut dropped = Vec::new();
        for item in all.into_iter().filter(Waits::may_go) {
            if item.age_ms > self.outbox_ms || bytes > self.outbox_bytes {
                bytes = bytes.saturating_sub(item.bytes);
                dropped.push(item.key);
            }
        }
        (dropped, bytes)
    }

    /// Why no new work may be taken, if so.
    pub(super) fn full(&self, quota_percent: u64, outbox_bytes: u64) -> Option<String> {
        let limit = self.full_percent;
        match (self.disk)() {
            Some(disk) if disk >= limit => {
                return Some(format!(
                    "the disk is {disk} % full: free some, or raise limits.disk_full_percent \
                     ({limit})"
                ));
            }
            _ => {}
        }
        if quota_percent >= limit {
            return Some(format!("the store has used {quota_percent} % of its quota for blobs"));
        }
        (outbox_bytes > self.outbox_bytes).then(|| {
            format!(
                "{outbox_bytes} bytes wait for receipts, limits.outbox_bytes is {}: is the parent \
                 there?",
                self.outbox_bytes
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn waits(key: &str, bytes: u64, age_ms: u64) -> Waits {
        Waits { key: key.to_owned(), bytes, age_ms }
    }

    fn bounds(disk: u64) -> Bounds {
        let disk = Arc::new(move || Some(disk));
        Bounds { outbox_bytes: 100, outbox_ms: 72 * HOUR_MS, disk, ..Bounds::default() }
    }

    #[test]
    fn too_much_drops_the_oldest_summaries_and_never_an_update() {
        let all =
            [waits("update-old", 60, 9), waits("summary/new", 30, 1), waits("summary/old", 30, 5)];
        let (dropped, left) = bounds(0).drop_summaries(all.clone().into_iter());
        assert_eq!((dropped, left), (vec!["summary/old".to_owned()], 90));
        let updates = [waits("a", 90, 1), waits("b", 90, 2)];
        let (dropped, left) = bounds(0).drop_summaries(updates.into_iter());
        assert_eq!((dropped.len(), left), (0, 180));
        assert!(bounds(0).full(0, left).unwrap().contains("180 bytes wait"));
        let roomy = Bounds { outbox_bytes: 120, ..bounds(0) };
        assert!(roomy.drop_summaries(all.into_iter()).0.is_empty());
    }

    #[test]
    fn summaries_go_when_they_are_too_old_and_updates_stay() {
        let (young, old) = (72 * HOUR_MS, 72 * HOUR_MS + 1);
        let all = [waits("a", 1, old), waits("summary/a", 1, old), waits("summary/b", 1, young)];
        assert_eq!(bounds(0).drop_summaries(all.into_iter()).0, ["summary/a"]);
    }

    #[test]
    fn from_ninety_percent_of_disk_or_quota_on_there_is_no_room_for_new_work() {
        assert_eq!(bounds(89).full(89, 0), None);
        assert!(bounds(90).full(0, 0).unwrap().contains("the disk is 90 % full"));
        assert!(bounds(0).full(90, 0).unwrap().contains("90 % of its quota"));
    }
}
