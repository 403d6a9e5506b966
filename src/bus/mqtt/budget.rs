//! Bounds the bytes that have arrived and are not done with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the bytes of arrivals until their [`Share`] is dropped.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    freed: Notify,
}

/// One arrival's part of the budget.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Counts an arrival. It is taken even when the budget is used up: it is in memory already.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Share {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Share { budget: Arc::clone(self), bytes }
    }

    /// Whether nothing more should be read.
    pub(super) fn is_used_up(&self) -> bool {
        self.used.load(Ordering::Acquire) >= self.limit
    }

    /// Waits until something was given back.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn share_comes_back_when_dropped() {
        let budget = Budget::new(10);
        let share = budget.take(12);
        assert!(budget.is_used_up());
        drop(share);
        budget.freed().await;
        assert!(!budget.is_used_up());
    }
}
