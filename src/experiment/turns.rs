//! Whose turn it is to train: several parties share a computer, and only so many work at a time.
//!
//! Who has most to do goes first, so that at the end of a round nobody works alone for long.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Turns of so many at a time.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    /// By work, then in order of arrival.
    waiting: BTreeSet<(Reverse<u64>, u64)>,
}

/// A turn; it ends when this goes.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        let state = State { free: at_once.max(1), next: 0, waiting: BTreeSet::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Blocks until it is the turn of somebody with so much work.
    pub(super) fn take(&self, work: u64) -> Turn<'_> {
        let mut state = self.lock();
        let mine = (Reverse(work), state.next);
        state.next += 1;
        state.waiting.insert(mine);
        while state.free == 0 || state.waiting.first() != Some(&mine) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.remove(&mine);
        state.free -= 1;
        drop(state);
        // With another place free the next one may go, too.
        self.changed.notify_all();
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().free += 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_so_many_work_at_a_time_and_all_get_their_turn() {
        let (turns, busy, most) = (Turns::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for work in 0..8 {
                let (turns, busy, most, done) = (&turns, &busy, &most, &done);
                scope.spawn(move || {
                    let _turn = turns.take(work);
                    most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    busy.fetch_sub(1, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(done.into_inner(), 8);
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn who_has_most_to_do_goes_first() {
        let (turns, order) = (Arc::new(Turns::new(1)), Arc::new(Mutex::new(Vec::new())));
        let first = turns.take(1);
        let threads: Vec<_> = [3, 9, 5]
            .map(|work| {
                let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
                std::thread::spawn(move || {
                    let _turn = turns.take(work);
                    order.lock().unwrap().push(work);
                })
            })
            .into();
        while turns.lock().waiting.len() < 3 {
            std::thread::yield_now();
        }
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [9, 5, 3]);
    }
}
