//! An edge in a rollout that its cloud decides about: it passes on who serves what, and says what its site has seen.
//!
//! ```text
//!   m/assignment of the cloud --> the part of this site --> m/assignment (own number) --> devices
//!   to/{cloud}/site_evidence <-- sums, from sixteen answers on <-- devices' signed evidence
//! ```
//! It decides nothing. Devices hear of their own site only, and the cloud of sums over the site's devices in the stage. Its
//! assignments have numbers of their own, so that a site may be decided about by its edge today and by its cloud tomorrow. What the
//! cloud was told is on disk together with what it was made of: whatever starts again, nothing is counted twice and little is
//! said twice.
//!
//! Called by [`super::Rollouts`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::effect::{Delivery, Effect, Timer, To};
use super::kept::{Kept, handed_down};
use super::rollout::{Rollout, Seen};
use super::round::put;
use super::{Steward, sense};
use crate::ids::{Digest, Name, NodeId, Side, Version};
use crate::time::{Mono, Now};
use crate::wire::{
    Assignment, Blob, Body, Candidate, Evidence, Kind, Manifest, SiteEvidence, Tally, Wanted,
    decode, encode,
};

/// What a deputy has to know.
#[derive(Debug, Clone)]
pub struct DeputyConfig {
    /// Whose assignments it passes on.
    pub steward: NodeId,
    /// The model.
    pub model: Name,
    /// The site's nodes that serve it.
    pub members: BTreeSet<NodeId>,
    /// Chunks of the untrained adapter: version 0.
    pub untrained: Manifest,
    /// Bytes a chunk of adapters that travel inside their message otherwise.
    pub chunk_bytes: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Deputy {
    config: DeputyConfig,
    state: State,
    /// What the steward was told last, and what each device had said by then.
    said: Option<Said>,
    /// What devices have said since.
    seen: Seen,
    kept: Kept,
    /// The steward has spoken since this node has been its deputy: what it said before somebody else decided here is a bound
    /// for its numbers, no more.
    heard: bool,
    /// Versions that this node needs when it decides again.
    spared: Vec<Version>,
    /// When the assignment was last sealed.
    told_at: Mono,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Number of the last assignment of this node.
    serial: u64,
    /// What the steward said last.
    told: Option<Assignment>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Said {
    evidence: SiteEvidence,
    of: Seen,
}

impl Deputy {
    const KEY: &'static str = "rollout/deputy";
    const SAID: &'static str = "rollout/said";
    const STATE_CAP: usize = 1 << 22;
    /// Answers between two messages to the steward, and labels; of many a sixteenth, since gates are looked at where their number
    /// has doubled.
    pub const STEP: u64 = 16;
    const MAX_STEP: u64 = 256;
    /// How often it looks again for what is missing, and repeats what it has said.
    pub const AGAIN_MS: u64 = 10_000;

    /// A deputy as `state` left it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: DeputyConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let kept = Kept::new(config.untrained.clone(), config.chunk_bytes, state)?;
        let mut own: State = stored(Self::KEY, state)?.unwrap_or_default();
        let (last, spared) = Rollout::left(state)?.unwrap_or_default();
        let heard = own.told.is_some() && own.serial > last;
        // Devices go by the highest number, whoever gave it.
        own.serial = own.serial.max(last);
        let said: Option<Said> = stored(Self::SAID, state)?;
        let seen = said.as_ref().map(|said| said.of.clone()).unwrap_or_default();
        let told_at = Mono::default();
        Ok(Self { config, state: own, said, seen, kept, heard, spared, told_at })
    }

    /// What a deputy has left in `state`, for a steward after it: the number of its last assignment, and what was served
    /// by it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub(super) fn left(state: &[(String, Vec<u8>)]) -> Result<Option<(u64, Version)>, String> {
        let left = stored::<State>(Self::KEY, state)?;
        Ok(left.and_then(|left| Some((left.serial, left.told?.stable))))
    }

    /// The node starts; `effects` are those of its relay's start.
    pub fn start(&mut self, now: Now, effects: &[Effect]) -> Vec<Effect> {
        let mut out = self.watch(effects);
        self.tell(now, &mut out);
        self.go_on(&mut out);
        out
    }

    /// The steward says who serves what.
    pub fn assigned(&mut self, now: Now, told: &Assignment) -> Vec<Effect> {
        let known = self.state.told.as_ref();
        if let Err(why) = sense::check_assignment(&self.config.model, known, told) {
            return vec![Effect::Count(why)];
        }
        let untrained = self.config.untrained.sha256;
        let stable = told.stable_adapter.as_ref().filter(|_| told.stable == 0);
        if stable.is_some_and(|manifest| manifest.sha256 != untrained) {
            return vec![Effect::Count("foreign_adapter")];
        }
        if !fits(&self.part_of(told)) {
            return vec![Effect::Count("assignment_too_large")];
        }
        let mut out = Vec::new();
        if known != Some(told) || !self.heard {
            if !self.heard || known.is_none_or(|known| told.serial > known.serial) {
                self.state.serial += 1;
                self.seen.clear();
                if self.said.take().is_some() {
                    out.push(Effect::Delete(Self::SAID.into()));
                }
            }
            self.state.told = Some(told.clone());
            self.heard = true;
            put(Self::KEY, &self.state, &mut out);
            self.keep_as_told(&mut out);
            self.tell(now, &mut out);
        }
        self.pursue(&mut out);
        out
    }

    /// What a device says that it has seen.
    pub fn evidence(&mut self, node: &NodeId, evidence: &Evidence) -> Vec<Effect> {
        let Evidence { serial, version, life, tally, gave_up } = *evidence;
        let told = self.state.told.as_ref().filter(|_| self.heard);
        let candidate = told.and_then(|told| told.candidate.as_ref());
        let takes_part = self.config.members.contains(node)
            && candidate.is_some_and(|candidate| {
                let named = candidate.serve.contains(node) || candidate.shadow.contains(node);
                candidate.version == version && named
            });
        if serial != self.state.serial || !takes_part {
            return vec![Effect::Count("evidence_of_another_stage")];
        }
        if !tally.makes_sense() {
            return vec![Effect::Count("no_evidence")];
        }
        self.seen.note(node.clone(), life, tally, u64::from(tally.answers > 0));
        let mut out = Vec::new();
        self.say(version, gave_up, &mut out);
        out
    }

    /// What its relay does: a version that can be assigned may come of it.
    pub fn watch(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let mut out = Vec::new();
        for (version, adapter, _) in handed_down(effects) {
            if self.kept.get(version).is_none_or(|kept| kept.sha256 != adapter.sha256()) {
                self.keep(version, adapter, &mut out);
            }
        }
        if !out.is_empty() {
            self.keep_as_told(&mut out);
        }
        out
    }

    /// A blob is here: it may be what was assigned.
    pub fn fetched(&mut self, digest: Digest) -> Vec<Effect> {
        let mut out = Vec::new();
        let missing = self.missing().into_iter();
        for (version, manifest) in missing.filter(|(_, manifest)| manifest.sha256 == digest) {
            self.keep(version, &Blob::Manifest(manifest), &mut out);
        }
        out
    }

    /// Time goes by.
    pub fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        if now.mono.0.saturating_sub(self.told_at.0) >= Steward::TELL_AGAIN_MS {
            self.tell(now, &mut out);
        }
        self.go_on(&mut out);
        out
    }

    /// Chunks of a kept adapter, for a device that asks for them.
    pub fn chunks(&self, to: &NodeId, wanted: &Wanted) -> Option<Effect> {
        self.kept.chunks(to, wanted)
    }

    /// Whose assignments it passes on.
    pub fn steward(&self) -> &NodeId {
        &self.config.steward
    }

    /// Blobs that must be kept, also those that are on their way.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let missing = self.missing().into_iter().map(|(_, manifest)| manifest.sha256);
        self.kept.blobs().into_iter().chain(missing).collect()
    }

    /// Who serves what at this site, as its devices are told.
    pub fn assignment(&self) -> Option<Assignment> {
        let told = self.state.told.as_ref().filter(|_| self.heard)?;
        let part = self.part_of(told);
        // Whoever else hasn't the stable version any more, this node may.
        let kept = || self.kept.get(told.stable).cloned();
        let stable_adapter = told.stable_adapter.clone().or_else(kept);
        let more = Assignment { stable_adapter, ..part.clone() };
        Some(if fits(&more) { more } else { part })
    }

    /// The part of an assignment that is about this site.
    fn part_of(&self, told: &Assignment) -> Assignment {
        let here = |nodes: &BTreeSet<NodeId>| nodes & &self.config.members;
        let candidate = told.candidate.as_ref().map(|candidate| Candidate {
            serve: here(&candidate.serve),
            shadow: here(&candidate.shadow),
            ..candidate.clone()
        });
        let candidate = candidate.filter(|one| !(one.serve.is_empty() && one.shadow.is_empty()));
        Assignment { serial: self.state.serial, candidate, ..told.clone() }
    }

    /// What is to be done again and again.
    fn go_on(&mut self, out: &mut Vec<Effect>) {
        self.pursue(out);
        if let Some(said) = self.said.as_ref().filter(|_| self.heard) {
            out.push(to_steward(said.evidence.clone()));
        }
        out.push(Effect::Timer { timer: Timer::Steward, after_ms: Self::AGAIN_MS });
    }

    /// Tells the steward what was seen, if that is enough news.
    fn say(&mut self, version: Version, gave_up: bool, out: &mut Vec<Effect>) {
        let Some(serial) = self.state.told.as_ref().map(|told| told.serial) else { return };
        let said = self.said.as_ref().map(|said| &said.evidence);
        let mut says = said.cloned().unwrap_or(SiteEvidence {
            serial,
            version,
            tally: Tally::default(),
            nodes: 0,
            gave_up: false,
        });
        // No device speaks for more than its share of what can be said.
        let devices = u64::try_from(self.config.members.len()).unwrap_or(u64::MAX).max(1);
        let grown = self.seen.total_within(Tally::MAX_COUNT / devices);
        let is_news = release(&mut says.tally, &grown);
        if !(is_news || gave_up && !says.gave_up) {
            return;
        }
        if is_news {
            says.nodes = self.seen.nodes();
            says.tally.drift = grown.drift;
        }
        says.gave_up |= gave_up; // that is said at once, with the counts of the message before
        let said = Said { evidence: says.clone(), of: self.seen.clone() };
        put(Self::SAID, &said, out);
        self.said = Some(said);
        out.push(to_steward(says));
    }

    /// Goes after adapters that were assigned and aren't here.
    fn pursue(&self, out: &mut Vec<Effect>) {
        for (_, manifest) in self.missing() {
            let from = self.config.steward.clone();
            out.push(Effect::Fetch { from, side: Side::Up, manifest });
        }
    }

    fn missing(&self) -> Vec<(Version, Manifest)> {
        let lacks = |(version, manifest): &(Version, Manifest)| {
            self.kept.get(*version).is_none_or(|kept| kept.sha256 != manifest.sha256)
        };
        self.assigned_adapters().filter(lacks).collect()
    }

    fn assigned_adapters(&self) -> impl Iterator<Item = (Version, Manifest)> {
        let told = self.state.told.iter();
        told.flat_map(|told| {
            let stable = told.stable_adapter.iter().map(|manifest| (told.stable, manifest.clone()));
            let candidate = told.candidate.iter().map(|one| (one.version, one.adapter.clone()));
            stable.chain(candidate)
        })
    }

    /// Chunks are asked for as the steward cuts them.
    fn keep_as_told(&mut self, out: &mut Vec<Effect>) {
        let assigned: Vec<(Version, Manifest)> = self.assigned_adapters().collect();
        for (version, manifest) in assigned {
            let kept = self.kept.get(version);
            if kept.is_some_and(|kept| kept.sha256 == manifest.sha256 && *kept != manifest) {
                self.keep(version, &Blob::Manifest(manifest), out);
            }
        }
    }

    fn keep(&mut self, version: Version, adapter: &Blob, out: &mut Vec<Effect>) {
        let told = self.state.told.as_ref();
        let candidate = told.and_then(|told| told.candidate.as_ref()).map(|one| one.version);
        let stable = told.map(|told| told.stable);
        let needed: Vec<Version> =
            stable.into_iter().chain(candidate).chain(self.spared.iter().copied()).collect();
        self.kept.keep(version, adapter, &needed, out);
    }

    fn tell(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.told_at = now.mono;
        if let Some(assignment) = self.assignment() {
            out.push(Effect::Send {
                to: To::Children,
                body: Body::Assignment(assignment),
                round: 0,
                epoch: 0,
                delivery: Delivery::Latest,
            });
        }
    }
}

/// Takes over what has grown by a step: each rate with its draws, if these have. Whether any has.
fn release(said: &mut Tally, now: &Tally) -> bool {
    let enough = |said: u64, now: u64| {
        now.saturating_sub(said) >= (said / Deputy::STEP).clamp(Deputy::STEP, Deputy::MAX_STEP)
    };
    let mut is_news = false;
    if enough(said.answers, now.answers) {
        (said.answers, said.errors, said.slow) = (now.answers, now.errors, now.slow);
        is_news = true;
    }
    // A part of the answers that the steward knows of.
    if enough(said.judged, now.judged) && now.judged <= said.answers {
        (said.judged, said.wrong) = (now.judged, now.wrong);
        is_news = true;
    }
    if enough(said.compared, now.compared) && now.compared <= said.answers {
        (said.compared, said.disagreed) = (now.compared, now.disagreed);
        is_news = true;
    }
    if enough(said.base_judged, now.base_judged) {
        (said.base_judged, said.base_wrong) = (now.base_judged, now.base_wrong);
        is_news = true;
    }
    is_news
}

/// Whether an assignment fits into a message, with what is around it.
fn fits(told: &Assignment) -> bool {
    let bytes = encode(told).map_or(usize::MAX, |bytes| bytes.len());
    bytes.saturating_add(Steward::AROUND) <= Kind::Assignment.cap_bytes()
}

fn stored<T: for<'de> Deserialize<'de>>(
    key: &str,
    state: &[(String, Vec<u8>)],
) -> Result<Option<T>, String> {
    let stored = state.iter().find(|(stored, _)| stored == key);
    let read =
        |value: &[u8]| decode(value, Deputy::STATE_CAP).map_err(|error| format!("{key}: {error}"));
    stored.map(|(_, value)| read(value)).transpose()
}

fn to_steward(evidence: SiteEvidence) -> Effect {
    Effect::Send {
        to: To::Parent,
        body: Body::SiteEvidence(evidence),
        round: 0,
        epoch: 0,
        delivery: Delivery::Volatile,
    }
}
