//! The state of a round on its way to the standby: what it lacks, numbered, and taken as a whole.
//!
//! A copy carries all values that have changed since the last one that was confirmed, so a lost one costs
//! nothing and none has to be kept. Whoever takes it takes all of it, once every blob that the state names is
//! on disk.

use std::collections::{BTreeMap, BTreeSet};

use serde_bytes::ByteBuf;

use crate::ids::{Digest, Epoch};
use crate::protocol::Round;
use crate::wire::{
    Blob, CodecError, CopyPart, MAX_UPDATE_BYTES, Manifest, StateCopy, decode, encode,
};

/// The leader's side. Begins anew with each epoch.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    number: u64,
    confirmed: u64,
    /// Confirmations up to here are of before everything was to be told again.
    void: u64,
    /// Number of the last change, by key.
    changed: BTreeMap<String, u64>,
    /// The last part that was too big for its message, and the one before.
    parts: [Option<Digest>; 2],
    /// Ticks since something was confirmed.
    ticks: u64,
}

impl Outgoing {
    /// Keys that are noted as changed; with more, everything is told again.
    pub(super) const MOST_CHANGED: usize = 4_096;

    /// These keys are other ones now.
    ///
    /// They are noted from the first copy on, also before anything is confirmed: a confirmation that is on
    /// its way is of what was there when its copy was sent.
    pub(super) fn changed(&mut self, keys: BTreeSet<String>) {
        if self.changed.len() + keys.len() > Self::MOST_CHANGED {
            // Nobody has confirmed for long, and whoever does so now would lack what is forgotten here.
            (self.confirmed, self.void) = (0, self.number);
            self.changed.clear();
        }
        self.touch();
        self.changed.extend(keys.into_iter().map(|key| (key, self.number)));
    }

    /// There is something to tell, if only that nothing has changed.
    pub(super) fn touch(&mut self) {
        if !self.is_waiting() {
            self.ticks = 0;
        }
        self.number += 1;
    }

    /// Everything is to be told again.
    pub(super) fn begin_anew(&mut self) {
        (self.confirmed, self.void) = (0, self.number);
        self.changed.clear();
        self.touch();
    }

    /// The standby has this copy on disk; says if that is new. It was heard of either way.
    pub(super) fn confirm(&mut self, seq: u64) -> bool {
        self.ticks = 0;
        if seq <= self.confirmed.max(self.void) || seq > self.number {
            return false;
        }
        self.confirmed = seq;
        self.changed.retain(|_, number| *number > seq);
        true
    }

    /// Whether something waits to be confirmed for more than so many calls of this.
    pub(super) fn waits_too_long(&mut self, most: u64) -> bool {
        self.ticks += 1;
        self.is_waiting() && self.ticks > most
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.confirmed < self.number
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Keys that are noted as changed.
    #[cfg(test)]
    pub(super) fn noted(&self) -> usize {
        self.changed.len()
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.parts.into_iter().flatten()
    }

    /// The copy to send, and its part where that has to be on disk to be given out in chunks.
    pub(super) fn copy(
        &mut self,
        state: &BTreeMap<String, Vec<u8>>,
        blobs: Vec<Manifest>,
        (basis, told): (Option<Epoch>, u64),
        chunk_bytes: u32,
    ) -> Result<(StateCopy, Option<Vec<u8>>), CodecError> {
        let mut part = CopyPart { blobs, ..CopyPart::default() };
        let all = self.confirmed == 0;
        for (key, value) in state.iter().filter(|(key, _)| all || self.changed.contains_key(*key)) {
            part.puts.push((key.clone(), ByteBuf::from(value.clone())));
        }
        if !all {
            let gone = self.changed.keys().filter(|key| !state.contains_key(*key));
            part.deletes.extend(gone.cloned());
        }
        let bytes = encode(&part)?;
        let part = Blob::of(&bytes, chunk_bytes);
        let saved = matches!(part, Blob::Manifest(_)).then_some(bytes);
        if saved.is_some() && self.parts[1] != Some(part.sha256()) {
            self.parts = [self.parts[1], Some(part.sha256())];
        }
        Ok((StateCopy { seq: self.number, since: self.confirmed, basis, told, part }, saved))
    }
}

/// A copy that comes in.
#[derive(Debug)]
pub(super) struct Incoming {
    epoch: Epoch,
    copy: StateCopy,
    part: Option<Result<CopyPart, &'static str>>,
    /// Blobs of it that were fetched.
    fetched: BTreeSet<Digest>,
}

/// How far a copy is.
pub(super) enum Progress {
    /// This has to be fetched first.
    Lacks(Manifest),
    /// It can't be taken, for this reason.
    Senseless(&'static str),
    /// All of it is on disk.
    Complete,
}

impl Incoming {
    pub(super) fn new(epoch: Epoch, copy: StateCopy) -> Self {
        let part = match &copy.part {
            Blob::Inline(bytes) => Some(read(bytes)),
            Blob::Manifest(_) => None,
        };
        Self { epoch, copy, part, fetched: BTreeSet::new() }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn seq(&self) -> u64 {
        self.copy.seq
    }

    pub(super) fn basis(&self) -> Option<Epoch> {
        self.copy.basis
    }

    pub(super) fn told(&self) -> u64 {
        self.copy.told
    }

    /// Blobs that must be kept while it comes in.
    pub(super) fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep = self.fetched.clone();
        if let Some(Ok(part)) = &self.part {
            keep.extend(part.blobs.iter().map(|blob| blob.sha256));
        }
        keep
    }

    /// What is to be done next, where these blobs are on disk. One blob at a time.
    pub(super) fn progress(&self, here: &BTreeMap<Digest, Manifest>) -> Progress {
        let part = match (&self.part, &self.copy.part) {
            (None, Blob::Manifest(manifest)) if self.copy.part.is_sound() => {
                return Progress::Lacks(manifest.clone());
            }
            (None, _) => return Progress::Senseless("unsound_blob"),
            (Some(Err(reason)), _) => return Progress::Senseless(reason),
            (Some(Ok(part)), _) => part,
        };
        let lacks = |blob: &&Manifest| {
            !here.contains_key(&blob.sha256) && !self.fetched.contains(&blob.sha256)
        };
        match part.blobs.iter().find(lacks) {
            Some(blob) => Progress::Lacks(blob.clone()),
            None => Progress::Complete,
        }
    }

    /// The blob that is being fetched for it.
    pub(super) fn wants(&self, here: &BTreeMap<Digest, Manifest>) -> Option<Digest> {
        match self.progress(here) {
            Progress::Lacks(manifest) => Some(manifest.sha256),
            Progress::Senseless(_) | Progress::Complete => None,
        }
    }

    /// A blob is complete, checked and on disk.
    pub(super) fn fetched(&mut self, digest: Digest, bytes: &[u8]) {
        if self.part.is_none() && self.copy.part.sha256() == digest {
            self.part = Some(read(bytes));
        } else {
            self.fetched.insert(digest);
        }
    }

    /// The whole state behind it.
    pub(super) fn applied_to(
        &self,
        state: &BTreeMap<String, Vec<u8>>,
    ) -> BTreeMap<String, Vec<u8>> {
        let mut next = if self.copy.since == 0 { BTreeMap::new() } else { state.clone() };
        if let Some(Ok(part)) = &self.part {
            for key in &part.deletes {
                next.remove(key);
            }
            let puts = part.puts.iter();
            next.extend(puts.map(|(key, value)| (key.clone(), value.to_vec())));
        }
        next
    }

    /// Every blob that the whole state needs.
    pub(super) fn into_blobs(self) -> BTreeMap<Digest, Manifest> {
        let blobs = self.part.and_then(Result::ok).map(|part| part.blobs).unwrap_or_default();
        blobs.into_iter().map(|blob| (blob.sha256, blob)).collect()
    }
}

fn read(bytes: &[u8]) -> Result<CopyPart, &'static str> {
    let cap = usize::try_from(MAX_UPDATE_BYTES).unwrap_or(usize::MAX);
    let part: CopyPart = decode(bytes, cap).map_err(|_| "senseless_copy")?;
    let own = |key: &String| key.starts_with(Round::PREFIX);
    let keys = part.puts.iter().map(|(key, _)| key).chain(&part.deletes);
    if !keys.into_iter().all(own) {
        return Err("senseless_copy"); // nothing else in our store is its business
    }
    let sound = |blob: &Manifest| Blob::Manifest(blob.clone()).is_sound();
    if part.blobs.iter().all(sound) { Ok(part) } else { Err("unsound_blob") }
}
