//! A base's file from the parent: a window of chunks, written in order, so that what is on disk is whole up to its
//! end and a later start goes on from there.
//!
//! Unlike a blob of [`super::Fetches`] it never is in memory: at most [`BaseFetch::WINDOW`] chunks wait for one that
//! comes before them. Each chunk is signed by the parent; whether the whole file is the one that the card pins is
//! seen by its digest once the last chunk is in, which is its owner's business, as are files and links.
//!
//! Called by `node/base.rs`, before the node takes part in rounds.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::ids::Digest;
use crate::time::Mono;
use crate::wire::{BaseChunk, BaseFile, Manifest, Wanted};

/// One file on its way. See the module.
#[derive(Debug)]
pub struct BaseFetch {
    sha256: Digest,
    bytes: u64,
    /// Bytes on disk.
    have: u64,
    /// Known from the first chunk on.
    window: Option<Window>,
    asked_at: Mono,
    /// Times that it was asked for since the last new chunk.
    tries: u32,
    absent: bool,
}

#[derive(Debug)]
struct Window {
    /// Into what the parent cuts the file.
    chunk_bytes: u32,
    /// The chunk that is to be written next.
    next: u32,
    /// Chunks from here on were never asked for.
    asked: u32,
    /// Chunks behind one that is missing.
    waiting: BTreeMap<u32, Vec<u8>>,
}

/// What a chunk leads to, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Cut the file to this length, where it is longer.
    pub keep: Option<u64>,
    /// Append these.
    pub append: Vec<Vec<u8>>,
    /// Ask for these chunks.
    pub ask: Vec<u32>,
}

/// How a parent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giving {
    /// It sends chunks, or wasn't asked long ago.
    Chunks,
    /// It said that it hasn't the file.
    Absent,
    /// It hasn't answered for half a minute and more.
    Nothing,
}

impl BaseFetch {
    /// Chunks on their way or in memory at most, from the next one that is written.
    pub const WINDOW: u32 = 16;
    /// Missing chunks are asked for again after this long without a new one, then after twice as long, up to
    /// [`BaseFetch::MAX_PAUSE_MS`].
    pub const RETRY_MS: u64 = 2_000;
    /// Longest pause; a parent that hasn't the file is asked again so often.
    pub const MAX_PAUSE_MS: u64 = 30_000;
    /// Sizes of chunks that are taken.
    const CHUNK_BYTES: RangeInclusive<u32> = *Manifest::CHUNK_BYTES.start()..=64 * 1024;
    /// Requests without a new chunk after which it is asked anew how the file is cut: the parent may have been
    /// started with another size.
    const KNOCK_AFTER: u32 = 3;

    /// A file of `bytes` bytes, of which the first `have` are on disk.
    pub fn new(sha256: Digest, bytes: u64, have: u64) -> Self {
        let (window, asked_at, tries, absent) = (None, Mono(0), 0, false);
        Self { sha256, bytes, have, window, asked_at, tries, absent }
    }

    /// What to ask for at the start, or when the link is up again.
    pub fn ask(&mut self, now: Mono) -> Vec<u32> {
        (self.asked_at, self.tries) = (now, 0);
        self.missing()
    }

    /// What to ask for again, if it is time.
    pub fn overdue(&mut self, now: Mono) -> Vec<u32> {
        let pause = Self::RETRY_MS.saturating_mul(1 << self.tries.min(4)).min(Self::MAX_PAUSE_MS);
        let pause = if self.absent { Self::MAX_PAUSE_MS } else { pause };
        if self.is_complete() || now.0.saturating_sub(self.asked_at.0) < pause {
            return Vec::new();
        }
        (self.asked_at, self.tries) = (now, self.tries.saturating_add(1));
        if self.tries >= Self::KNOCK_AFTER {
            self.window = None;
        }
        self.missing()
    }

    /// Takes what the parent has.
    ///
    /// # Errors
    /// A word for the counter when it is another file, wasn't asked for, or isn't as long as its place says.
    pub fn take(&mut self, now: Mono, file: BaseFile) -> Result<Step, &'static str> {
        if file.sha256 != self.sha256 || self.is_complete() {
            return Err("base_not_asked_for");
        }
        let Some(BaseChunk { index, chunk_bytes, data }) = file.chunk else {
            (self.absent, self.asked_at) = (true, now);
            return Ok(Step::default());
        };
        if !Self::CHUNK_BYTES.contains(&chunk_bytes) {
            return Err("base_chunk_size");
        }
        let from = u64::from(index) * u64::from(chunk_bytes);
        let left = self.bytes.checked_sub(from).filter(|left| *left > 0);
        let expected = left.ok_or("base_chunk_out_of_range")?.min(u64::from(chunk_bytes));
        if data.len() as u64 != expected {
            return Err("base_chunk_length");
        }
        let (window, keep) = match &mut self.window {
            Some(window) if window.chunk_bytes != chunk_bytes => return Err("base_chunk_size"),
            Some(window) => (window, None),
            None if index != 0 => return Err("base_chunk_not_asked_for"),
            None => {
                // What is behind the last whole chunk was being written when we were stopped.
                let next = u32::try_from(self.have / u64::from(chunk_bytes))
                    .map_err(|_| "base_chunk_out_of_range")?;
                self.have = u64::from(next) * u64::from(chunk_bytes);
                let (asked, waiting) = (next.max(1), BTreeMap::new());
                let window = Window { chunk_bytes, next, asked, waiting };
                (self.window.insert(window), Some(self.have))
            }
        };
        if index >= window.asked {
            return Err("base_chunk_not_asked_for");
        }
        let known = index < window.next || window.waiting.contains_key(&index);
        if known && keep.is_none() {
            return Ok(Step::default()); // a repeat
        }
        (self.asked_at, self.tries, self.absent) = (now, 0, false);
        if !known {
            window.waiting.insert(index, data);
        }
        let mut append = Vec::new();
        while let Some(data) = window.waiting.remove(&window.next) {
            self.have += data.len() as u64;
            window.next += 1;
            append.push(data);
        }
        let ask = window.next_ask(self.bytes);
        Ok(Step { keep, append, ask })
    }

    /// Bytes on disk.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Whether all bytes are on disk.
    pub fn is_complete(&self) -> bool {
        self.have >= self.bytes
    }

    /// Bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.window.iter().flat_map(|window| window.waiting.values()).map(Vec::len).sum()
    }

    /// How the parent does.
    pub fn giving(&self) -> Giving {
        match (self.absent, self.tries) {
            (true, _) => Giving::Absent,
            (false, 4..) => Giving::Nothing,
            (false, _) => Giving::Chunks,
        }
    }

    /// What was asked for and isn't here. The first chunk tells how the file is cut, so it is asked for alone.
    fn missing(&self) -> Vec<u32> {
        match &self.window {
            _ if self.is_complete() => Vec::new(),
            None => vec![0],
            Some(window) => {
                let missing = |index: &u32| !window.waiting.contains_key(index);
                (window.next..window.asked).filter(missing).take(Wanted::MAX_CHUNKS).collect()
            }
        }
    }
}

impl Window {
    /// The next chunks, when half of those before are in: the wire is never idle.
    fn next_ask(&mut self, bytes: u64) -> Vec<u32> {
        let on_their_way = (self.next..self.asked).len().saturating_sub(self.waiting.len());
        if on_their_way > Wanted::MAX_CHUNKS / 2 {
            return Vec::new();
        }
        let chunks = bytes.div_ceil(u64::from(self.chunk_bytes));
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        let most = self.next.saturating_add(BaseFetch::WINDOW).min(chunks);
        let ask: Vec<u32> = (self.asked..most).take(Wanted::MAX_CHUNKS).collect();
        self.asked = ask.last().map_or(self.asked, |last| last + 1);
        ask
    }
}

#[cfg(test)]
mod tests;
