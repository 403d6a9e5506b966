//! A store in memory, for tests and the simulator: what was committed survives a "crash".
//!
//! Every clone is a handle to the same memory. A test crashes a node by dropping it and gives a
//! clone to the next start: exactly what was committed is there. Failpoints make commits fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::Digest;
use crate::store::compact::Compact;
use crate::store::{Batch, BlobReader, MAX_KPIS, OutboxItem, Store, StoreError, sha256};
use crate::time::Wall;

/// What a failpoint lets a commit fail with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// [`StoreError::Full`]: the node carries on and tries again.
    Full,
    /// [`StoreError::Io`]: the process has to end.
    Io,
}

/// A handle to a store in memory; clones share what is in it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Compact,
    entries: Vec<Vec<u8>>,
    outbox: Vec<OutboxItem>,
    checkpoints: BTreeMap<usize, Vec<u8>>,
    kpis: VecDeque<(String, Wall, f64)>,
    /// Sorted: a device has two or three.
    blobs: Vec<(Digest, Vec<u8>)>,
    attempts: u64,
    commits: u64,
    failpoints: BTreeMap<u64, Failure>,
    full: bool,
    fill_percent: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the `n`-th commit from now fail, 1 being the next; those after it succeed again.
    pub fn fail_commit(&self, n: u64, failure: Failure) {
        let mut shared = self.lock();
        let attempt = shared.attempts.saturating_add(n);
        shared.failpoints.insert(attempt, failure);
    }

    /// Fills the disk, or frees it: commits and new blobs fail with [`StoreError::Full`].
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Sets how much of its quota is used; it still takes everything.
    pub fn set_fill(&self, percent: u64) {
        self.lock().fill_percent = percent;
    }

    /// Commits that succeeded, over all handles.
    pub fn num_commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let mut shared = self.lock();
        shared.attempts += 1;
        let attempt = shared.attempts;
        let planned = shared.failpoints.remove(&attempt);
        match planned.or(shared.full.then_some(Failure::Full)) {
            Some(Failure::Full) => return Err(full()),
            Some(Failure::Io) => {
                return Err(StoreError::Io { path: PATH.into(), message: "failpoint".into() });
            }
            None => {}
        }
        for batch in batches {
            shared.apply(batch);
        }
        shared.commits += 1;
        Ok(())
    }

    fn state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        Ok(self.lock().state.with_prefix(prefix))
    }

    fn outbox(&self) -> Result<Vec<OutboxItem>, StoreError> {
        Ok(self.lock().outbox.clone())
    }

    fn num_entries(&self) -> Result<u64, StoreError> {
        Ok(self.lock().entries.len() as u64)
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let count = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        Ok(self.lock().entries.iter().skip(skipped).take(count).cloned().collect())
    }

    fn checkpoints(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.lock().checkpoints.values().cloned().collect())
    }

    fn kpis(&self, name: &str) -> Result<Vec<(Wall, f64)>, StoreError> {
        let shared = self.lock();
        let matching = shared.kpis.iter().filter(|(sample, ..)| sample == name);
        Ok(matching.map(|(_, at, value)| (*at, *value)).collect())
    }

    fn put_blob(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = sha256(bytes);
        self.put_checked_blob(&digest, bytes)?;
        Ok(digest)
    }

    fn put_checked_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let mut shared = self.lock();
        let Err(index) = shared.find_blob(digest) else { return Ok(()) };
        if shared.full {
            return Err(full());
        }
        shared.blobs.insert(index, (*digest, bytes.to_vec()));
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let shared = self.lock();
        let found = shared.find_blob(digest).ok().and_then(|index| shared.blobs.get(index));
        Ok(found.map(|(_, bytes)| bytes.clone()))
    }

    fn fill_percent(&self) -> u64 {
        let shared = self.lock();
        if shared.full { 100 } else { shared.fill_percent }
    }

    fn blob_reader(&self) -> Box<dyn BlobReader> {
        Box::new(self.clone())
    }

    fn retain_blobs(&mut self, keep: &BTreeSet<Digest>) -> Result<(), StoreError> {
        self.lock().blobs.retain(|(digest, _)| keep.contains(digest));
        Ok(())
    }
}

impl BlobReader for MemoryStore {
    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Store::blob(self, digest)
    }
}

impl Shared {
    /// Where a blob is, or else where it would go.
    fn find_blob(&self, digest: &Digest) -> Result<usize, usize> {
        self.blobs.binary_search_by_key(digest, |(blob, _)| *blob)
    }

    fn apply(&mut self, batch: &Batch) {
        for (key, value) in &batch.state {
            match value {
                Some(value) => self.state.put(key, value),
                None => self.state.remove(key),
            }
        }
        self.entries.extend_from_slice(&batch.entries);
        self.outbox.retain(|item| !batch.outbox_delete.contains(&item.key));
        for item in &batch.outbox_put {
            self.outbox.retain(|old| old.key != item.key);
            self.outbox.push(item.clone());
        }
        if let Some(checkpoint) = &batch.checkpoint {
            self.checkpoints.insert(self.entries.len(), checkpoint.clone());
        }
        for (name, value) in &batch.kpis {
            self.kpis.push_back((name.clone(), batch.at, *value));
        }
        let surplus = self.kpis.len().saturating_sub(MAX_KPIS);
        self.kpis.drain(..surplus);
    }
}

fn full() -> StoreError {
    StoreError::Full { path: PATH.into() }
}

/// Stands where a file's name would.
const PATH: &str = "memory";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    fn entry(byte: u8) -> Batch {
        Batch { entries: vec![vec![byte]], ..Batch::default() }
    }

    #[test]
    fn memory_store_conforms() {
        let store = MemoryStore::new();
        conformance::check(&mut || Box::new(store.clone()));
    }

    #[test]
    fn a_second_handle_sees_what_was_committed_when_the_first_crashed() {
        let mut before = MemoryStore::new();
        let next_start = before.clone();
        before.commit(&[entry(1)]).unwrap();
        before.fail_commit(1, Failure::Io);
        assert_eq!(before.commit(&[entry(2)]).unwrap_err().kind(), "store_io");
        drop(before);
        assert_eq!(next_start.entries(0, 9).unwrap(), [[1]]);
        assert_eq!(next_start.num_commits(), 1);
    }

    #[test]
    fn failpoints_hit_the_nth_commit_only_and_nothing_of_it_is_applied() {
        let mut store = MemoryStore::new();
        store.commit(&[entry(1)]).unwrap();
        store.fail_commit(2, Failure::Full);
        store.commit(&[entry(2)]).unwrap();
        assert_eq!(store.commit(&[entry(3), entry(4)]).unwrap_err().kind(), "store_full");
        store.commit(&[entry(5)]).unwrap();
        assert_eq!(store.entries(0, 9).unwrap(), [[1], [2], [5]]);
        assert_eq!(store.num_commits(), 3);
    }

    #[test]
    fn full_store_recovers_by_itself() {
        let mut store = MemoryStore::new();
        let known = store.put_blob(b"known").unwrap();
        store.set_full(true);
        assert_eq!(store.commit(&[entry(1)]).unwrap_err().kind(), "store_full");
        assert_eq!(store.put_blob(b"new").unwrap_err().kind(), "store_full");
        assert_eq!(store.put_blob(b"known").unwrap(), known);
        store.set_full(false);
        store.commit(&[entry(1)]).unwrap();
    }
}
