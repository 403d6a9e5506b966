//! The versions that a federation comes to, each with what is judged of it.
//!
//! Where all nodes share a model it is the cloud's. In rounds of knowledge each device has its own and the
//! cloud has none: a version is there once all devices have it, and is judged by what each had learned
//! until then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::actors::Served;

/// Follows what some nodes serve.
pub(super) struct Versions {
    nodes: Vec<Arc<Mutex<Seen>>>,
    last: u64,
}

/// The first adapter that a node served of each version.
type Seen = BTreeMap<u64, Arc<Vec<u8>>>;

impl Versions {
    /// Follows these nodes on the current actix arbiter. With `own` models, what a node that goes on serves
    /// at first is left out unless it is of version `last`: it may have learned more since.
    pub(super) fn follow(served: Vec<watch::Receiver<Served>>, own: bool, last: u64) -> Self {
        let follow = |mut served: watch::Receiver<Served>| {
            let seen = Arc::new(Mutex::new(Seen::new()));
            let into = Arc::clone(&seen);
            actix::spawn(async move {
                let mut first = true;
                while served.changed().await.is_ok() {
                    let (version, adapter) = served.borrow_and_update().clone();
                    let unsure = own && first && (1..last).contains(&version);
                    first = false;
                    if !unsure {
                        lock(&into).entry(version).or_insert(adapter);
                    }
                }
            });
            seen
        };
        Self { nodes: served.into_iter().map(follow).collect(), last: 0 }
    }

    /// The next version that all of them have, with the packed adapter of each; each version once.
    pub(super) fn next(&mut self) -> Option<(u64, Vec<Arc<Vec<u8>>>)> {
        let mut nodes: Vec<_> = self.nodes.iter().map(|seen| lock(seen)).collect();
        let after = self.last + 1;
        let mut candidates = nodes.first()?.range(after..).map(|(version, _)| *version);
        let version =
            candidates.find(|version| nodes.iter().all(|seen| seen.contains_key(version)))?;
        let adapters = nodes.iter().filter_map(|seen| seen.get(&version).cloned()).collect();
        for seen in &mut nodes {
            seen.retain(|other, _| *other > version);
        }
        self.last = version;
        Some((version, adapters))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(versions: &mut Versions) -> Vec<(u64, Vec<u8>)> {
        let first = |all: Vec<Arc<Vec<u8>>>| all.iter().map(|adapter| adapter[0]).collect();
        std::iter::from_fn(|| versions.next()).map(|(version, all)| (version, first(all))).collect()
    }

    /// What some nodes serve, one after the other, and what is told of it.
    fn after(own: bool, steps: &[(usize, u64, u8)]) -> Vec<(u64, Vec<u8>)> {
        actix::System::new().block_on(async {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..2).map(|_| watch::channel((0, Arc::new(vec![0])))).unzip();
            let mut versions = Versions::follow(receivers, own, 9);
            for (node, version, adapter) in steps {
                tokio::task::yield_now().await;
                senders[*node].send((*version, Arc::new(vec![*adapter]))).unwrap();
                tokio::task::yield_now().await;
            }
            told(&mut versions)
        })
    }

    #[test]
    fn a_version_is_told_once_all_have_it_with_what_each_had_then() {
        let steps = [(0, 0, 1), (1, 0, 1), (0, 1, 3), (0, 1, 4), (1, 1, 5), (0, 2, 4)];
        assert_eq!(after(true, &steps), [(1, vec![3, 5])], "4 is learned in the round after");
        let rest = [(1, 2, 5), (1, 3, 6), (0, 3, 7)];
        let all = after(true, &[&steps[..], &rest].concat());
        assert_eq!(all, [(1, vec![3, 5]), (2, vec![4, 5]), (3, vec![7, 6])]);
    }

    #[test]
    fn what_a_node_with_a_model_of_its_own_serves_at_first_is_left_out_unless_nothing_follows() {
        let again = [(0, 4, 1), (1, 4, 1), (0, 5, 2), (1, 5, 2)];
        assert_eq!(after(true, &again), [(5, vec![2, 2])]);
        assert_eq!(after(false, &again), [(4, vec![1, 1]), (5, vec![2, 2])]);
        assert_eq!(after(true, &[(0, 9, 1), (1, 9, 1)]), [(9, vec![1, 1])]);
    }
}
