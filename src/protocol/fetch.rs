//! Getting big blobs in chunks: a window of requests, checked pieces, retries, bounds.
//!
//! Volatile: a node that stops begins again, and its machines ask for what they still need. Chunks
//! are unsigned and believed by the digest that the signed manifest gives each of them.
//!
//! Called by the runner, which feeds chunks and hands complete blobs to the store first and to the
//! machine that wanted them second.

use std::collections::BTreeMap;

use crate::ids::{Digest, NodeId, Side};
use crate::time::Mono;
use crate::wire::{Chunk, Manifest, Wanted};

/// Blobs that are being fetched. See the module.
#[derive(Debug, Default)]
pub struct Fetches {
    open: BTreeMap<Digest, Fetch>,
}

#[derive(Debug)]
struct Fetch {
    from: NodeId,
    side: Side,
    manifest: Manifest,
    /// One place a chunk; filled as they come.
    chunks: Vec<Option<Vec<u8>>>,
    /// Places that are still empty.
    missing: usize,
    /// Chunks from here on were never asked for.
    asked: usize,
    asked_at: Mono,
    /// Times that it was asked for since the last new chunk.
    tries: u32,
}

/// Ask this neighbour for these chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub from: NodeId,
    /// On which link.
    pub side: Side,
    /// What.
    pub wanted: Wanted,
}

impl Fetches {
    /// Blobs at a time; more are refused and asked for again by their machines.
    pub const MAX_OPEN: usize = 64;
    /// Blobs of one neighbour at a time: nobody can take the places of the others.
    pub const MAX_EACH: usize = 4;
    /// Missing chunks are asked for again after this long without a new one.
    pub const RETRY_MS: u64 = 2_000;
    /// Requests without an answer after which a fetch makes room for others.
    pub const MAX_TRIES: u32 = 16;

    /// Begins and gives the first request, or nothing if it is under way. From above it goes on with whoever wants it
    /// fetched last: of two owners the first one may be gone. Those below could take each other's so.
    ///
    /// # Errors
    /// A word for the counter when all places are taken, or all of this neighbour.
    pub fn begin(
        &mut self,
        now: Mono,
        from: NodeId,
        side: Side,
        manifest: Manifest,
    ) -> Result<Option<Ask>, &'static str> {
        if let Some(fetch) = self.open.get_mut(&manifest.sha256) {
            if fetch.from == from || (fetch.side, side) != (Side::Up, Side::Up) {
                return Ok(None);
            }
            (fetch.from, fetch.asked_at, fetch.tries) = (from, now, 0);
            return Ok(Some(fetch.ask(0)));
        }
        let of_theirs = self.open.values().filter(|fetch| fetch.from == from).count();
        if of_theirs >= Self::MAX_EACH {
            return Err("fetches_of_one_neighbour");
        }
        if self.open.len() >= Self::MAX_OPEN {
            return Err("fetches_full");
        }
        let (name, missing) = (manifest.sha256, manifest.chunks.len());
        let chunks = vec![None; missing];
        let (asked, asked_at, tries) = (0, now, 0);
        let fetch = Fetch { from, side, manifest, chunks, missing, asked, asked_at, tries };
        Ok(self.open.entry(name).or_insert(fetch).next_window())
    }

    /// Takes a chunk: the next request, or the whole blob when it was the last one.
    ///
    /// # Errors
    /// A word for the counter when nobody asked for it or it isn't what the manifest says.
    pub fn chunk(&mut self, now: Mono, chunk: Chunk) -> Result<Taken, &'static str> {
        let fetch = self.open.get_mut(&chunk.sha256).ok_or("chunk_not_asked_for")?;
        let index = usize::try_from(chunk.index).map_err(|_| "chunk_out_of_range")?;
        let expected = fetch.manifest.chunks.get(index).ok_or("chunk_out_of_range")?;
        if Digest::of(&chunk.data) != *expected {
            return Err("chunk_digest_mismatch");
        }
        if fetch.manifest.chunk_len(chunk.index) != Some(chunk.data.len() as u64) {
            return Err("chunk_length_lies"); // the manifest's sizes and digests disagree
        }
        let place = fetch.chunks.get_mut(index).ok_or("chunk_out_of_range")?;
        if place.replace(chunk.data).is_some() {
            return Ok(Taken::More(None)); // a repeat
        }
        (fetch.asked_at, fetch.tries) = (now, 0);
        fetch.missing -= 1;
        if fetch.missing > 0 {
            // The next window is asked for when half of this one is in: the wire is never idle.
            let arrived = fetch.chunks.len() - fetch.missing;
            let is_due = fetch.asked.saturating_sub(arrived) <= Wanted::MAX_CHUNKS / 2;
            return Ok(Taken::More(is_due.then(|| fetch.next_window()).flatten()));
        }
        let parts: Vec<Vec<u8>> = fetch.chunks.iter_mut().filter_map(Option::take).collect();
        self.open.remove(&chunk.sha256);
        let bytes = parts.concat();
        if Digest::of(&bytes) == chunk.sha256 {
            Ok(Taken::Complete(chunk.sha256, bytes))
        } else {
            Err("blob_digest_mismatch")
        }
    }

    /// Nobody wants this blob any more.
    pub fn forget(&mut self, digest: &Digest) {
        self.open.remove(digest);
    }

    /// What to ask for again, each no more often than every [`Fetches::RETRY_MS`]. What nobody answers
    /// is given up: the machine that wants it asks again.
    pub fn overdue(&mut self, now: Mono) -> Vec<Ask> {
        self.open.retain(|_, fetch| fetch.tries < Self::MAX_TRIES);
        let late = |fetch: &&mut Fetch| now.0.saturating_sub(fetch.asked_at.0) >= Self::RETRY_MS;
        let again = |fetch: &mut Fetch| {
            (fetch.asked_at, fetch.tries) = (now, fetch.tries + 1);
            fetch.ask(0)
        };
        self.open.values_mut().filter(late).map(again).collect()
    }

    /// Blobs under way.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl Fetch {
    /// Asks for chunks that nobody was asked for yet; `None` when there is none.
    fn next_window(&mut self) -> Option<Ask> {
        if self.asked >= self.chunks.len() {
            return None;
        }
        let ask = self.ask(self.asked);
        self.asked += Wanted::MAX_CHUNKS;
        Some(ask)
    }

    /// Asks for the first chunks that are missing from place `from` on.
    fn ask(&self, from: usize) -> Ask {
        let empty = |(i, c): (usize, &Option<Vec<u8>>)| c.is_none().then_some(i);
        let missing = self.chunks.iter().enumerate().skip(from).filter_map(empty);
        let indices: Vec<u32> =
            missing.filter_map(|i| u32::try_from(i).ok()).take(Wanted::MAX_CHUNKS).collect();
        let wanted = Wanted::Chunks { sha256: self.manifest.sha256, indices };
        Ask { from: self.from.clone(), side: self.side, wanted }
    }
}

/// What a chunk led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// There is more to come; maybe the next request.
    More(Option<Ask>),
    /// All bytes, checked.
    Complete(Digest, Vec<u8>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
    }

    fn piece(bytes: &[u8], manifest: &Manifest, index: u32) -> Chunk {
        let size = manifest.chunk_bytes as usize;
        let data = bytes.chunks(size).nth(index as usize).unwrap().to_vec();
        Chunk { sha256: manifest.sha256, index, data }
    }

    #[test]
    fn a_blob_comes_in_windows_whatever_is_lost_or_repeated() {
        let bytes = blob(20 * 4096 + 7);
        let manifest = Manifest::of(&bytes, 4096);
        let mut fetches = Fetches::default();
        let node = NodeId::new("p1").unwrap();
        let mut ask = fetches.begin(Mono(0), node, Side::Down, manifest.clone()).unwrap();
        let mut now = 0;
        for turn in 0.. {
            assert!(turn < 100, "does not end");
            let Some(Ask { wanted: Wanted::Chunks { indices, .. }, .. }) = ask.take() else {
                now += Fetches::RETRY_MS;
                ask = fetches.overdue(Mono(now)).pop();
                continue;
            };
            assert!(indices.len() <= Wanted::MAX_CHUNKS);
            for index in indices.into_iter().filter(|i| (i + turn) % 3 != 0) {
                for _ in 0..2 {
                    match fetches.chunk(Mono(now), piece(&bytes, &manifest, index)) {
                        Ok(Taken::Complete(digest, all)) => {
                            assert_eq!((digest, all), (manifest.sha256, bytes));
                            assert!(fetches.is_empty());
                            return;
                        }
                        Ok(Taken::More(more)) => ask = more.or(ask),
                        Err(word) => panic!("{word}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_next_window_is_asked_for_before_the_last_one_is_in() {
        let bytes = blob(40 * 4096);
        let manifest = Manifest::of(&bytes, 4096);
        let mut fetches = Fetches::default();
        let node = NodeId::new("p1").unwrap();
        let mut asked: Vec<u32> = Vec::new();
        let mut wanted = |ask: Option<Ask>| {
            if let Some(Ask { wanted: Wanted::Chunks { indices, .. }, .. }) = ask {
                asked.extend(indices);
            }
            asked.len()
        };
        assert_eq!(wanted(fetches.begin(Mono(0), node, Side::Down, manifest.clone()).unwrap()), 8);
        for index in 0..39 {
            let Ok(Taken::More(ask)) = fetches.chunk(Mono(1), piece(&bytes, &manifest, index))
            else {
                panic!("chunk {index}")
            };
            let outstanding = wanted(ask) - (index as usize + 1);
            assert!((1..=12).contains(&outstanding) || index == 38, "{outstanding} after {index}");
        }
        assert_eq!(asked, (0..40).collect::<Vec<u32>>(), "each is asked for once");
    }

    #[test]
    fn forged_and_foreign_chunks_are_refused_and_the_true_one_is_taken() {
        let bytes = blob(40_000);
        let manifest = Manifest::of(&bytes, 32_768);
        let mut fetches = Fetches::default();
        let node = NodeId::new("p1").unwrap();
        fetches.begin(Mono(0), node, Side::Down, manifest.clone()).unwrap();
        let good = piece(&bytes, &manifest, 0);
        let forged = Chunk { data: vec![0; 32_768], ..good.clone() };
        let beyond = Chunk { index: 9, ..good.clone() };
        let foreign = Chunk { sha256: Digest([1; 32]), ..good.clone() };
        assert_eq!(fetches.chunk(Mono(1), forged), Err("chunk_digest_mismatch"));
        assert_eq!(fetches.chunk(Mono(1), beyond), Err("chunk_out_of_range"));
        assert_eq!(fetches.chunk(Mono(1), foreign), Err("chunk_not_asked_for"));
        assert_eq!(fetches.chunk(Mono(1), good), Ok(Taken::More(None)));
    }

    #[test]
    fn a_neighbour_fills_its_own_places_only() {
        let mut fetches = Fetches::default();
        let mut begin = |node: &str, n: u8| {
            let manifest = Manifest::of(&vec![n; 40_000], 32_768);
            fetches.begin(Mono(0), NodeId::new(node).unwrap(), Side::Down, manifest)
        };
        for n in 0..4 {
            assert!(matches!(begin("greedy", n), Ok(Some(_))));
        }
        assert_eq!(begin("greedy", 4), Err("fetches_of_one_neighbour"));
        assert!(matches!(begin("other", 5), Ok(Some(_))));
    }

    #[test]
    fn a_fetch_from_above_goes_on_with_another_owner_and_nobody_below_takes_one_over() {
        let bytes = blob(3 * 4096);
        let manifest = Manifest::of(&bytes, 4096);
        for (side, taken_over) in [(Side::Up, true), (Side::Down, false)] {
            let mut fetches = Fetches::default();
            let [first, second] = ["one", "two"].map(|name| NodeId::new(name).unwrap());
            let mut begin = |from: &NodeId, now| {
                fetches.begin(Mono(now), from.clone(), side, manifest.clone()).unwrap()
            };
            assert!(begin(&first, 0).is_some() && begin(&first, 1).is_none());
            let again = begin(&second, 2);
            assert_eq!(again.map(|ask| ask.from), taken_over.then(|| second.clone()));
            let chunk = piece(&bytes, &manifest, 0);
            assert!(matches!(fetches.chunk(Mono(3), chunk), Ok(Taken::More(_))));
            let asked = fetches.overdue(Mono(3 + Fetches::RETRY_MS));
            let from = if taken_over { second } else { first };
            assert!(asked.len() == 1 && asked[0].from == from, "{side:?}");
        }
    }

    #[test]
    fn what_nobody_wants_any_more_makes_room_at_once() {
        let node = NodeId::new("cloud").unwrap();
        let of = |number: u8| Manifest::of(&[number; 2 * 4096], 4096);
        let mut fetches = Fetches::default();
        let begin = |fetches: &mut Fetches, number| {
            fetches.begin(Mono(0), node.clone(), Side::Up, of(number)).map(|ask| ask.is_some())
        };
        for number in 0..4 {
            assert_eq!(begin(&mut fetches, number), Ok(true));
        }
        assert_eq!(begin(&mut fetches, 4), Err("fetches_of_one_neighbour"));
        fetches.forget(&of(2).sha256);
        fetches.forget(&of(9).sha256); // never begun
        assert_eq!(begin(&mut fetches, 4), Ok(true));
        let late = piece(&[2; 2 * 4096], &of(2), 0);
        assert_eq!(fetches.chunk(Mono(1), late), Err("chunk_not_asked_for"));
    }

    #[test]
    fn chunks_that_are_not_as_long_as_the_manifest_says_are_refused() {
        let bytes = blob(40_000);
        let good = Manifest::of(&bytes, 32_768);
        let node = NodeId::new("p1").unwrap();
        for (bytes_said, expected) in [(32_769, Err("chunk_length_lies")), (40_000, Ok(()))] {
            let mut fetches = Fetches::default();
            let manifest = Manifest { bytes: bytes_said, ..good.clone() };
            fetches.begin(Mono(0), node.clone(), Side::Down, manifest).unwrap();
            let last = fetches.chunk(Mono(0), piece(&bytes, &good, 1));
            assert_eq!(last.map(|_| ()), expected);
        }
    }

    #[test]
    fn what_nobody_answers_is_asked_for_every_two_seconds_and_given_up_after_sixteen_times() {
        let mut fetches = Fetches::default();
        let node = NodeId::new("p1").unwrap();
        let manifest = Manifest::of(&blob(40_000), 32_768);
        fetches.begin(Mono(0), node, Side::Down, manifest).unwrap();
        let asked: Vec<u64> = (0..200)
            .map(|tick| tick * 250)
            .filter(|now| !fetches.overdue(Mono(*now)).is_empty())
            .collect();
        let expected: Vec<u64> = (1..=16).map(|n| n * Fetches::RETRY_MS).collect();
        assert_eq!(asked, expected);
        assert!(fetches.is_empty());
    }
}
