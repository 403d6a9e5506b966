//! A node that serves what its edge assigns, and says what it sees of a version that is rolled out.
//!
//! ```text
//!   m/assignment --> the version for me: here? --no--> fetch --.
//!                                          | yes               v
//!                                          '--> SlotOrder::Assigned, Watch --> to/{edge}/evidence
//! ```
//! The highest serial holds and is on disk before it is acted upon: an old assignment that comes again changes
//! nothing, also after a restart. What a node has seen is counted in a life of it and said whole each time, so that
//! nothing depends on what gets lost. A candidate that its checks took away is told to the edge until that says what
//! to do, and so is one in whose shadow start after start ended soon, without an answer: it may be what ends the process.
//!
//! Called by [`super::Rollouts`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::effect::{Effect, Timer, Watch};
use super::round::put;
use super::sense;
use super::slots::{SlotOrder, Slots};
use crate::ids::{Digest, Name, NodeId, Side, Version};
use crate::learn::Layout;
use crate::wire::{Assignment, Candidate, Evidence, Manifest, Tally, decode};

/// What a follower has to know.
#[derive(Debug, Clone)]
pub struct FollowerConfig {
    /// Itself.
    pub me: NodeId,
    /// Whose assignments it follows: its edge; an edge follows its own.
    pub steward: NodeId,
    /// Who has the adapters that are assigned: the same, but for an edge whose cloud decides.
    pub source: NodeId,
    /// The model.
    pub model: Name,
    /// Names and shapes of each version of its adapter.
    pub layout: Layout,
}

/// See the module.
#[derive(Debug)]
pub struct Follower {
    config: FollowerConfig,
    state: State,
    /// What was seen of the candidate in this life.
    seen: Tally,
    /// The adapter that answers beside the one that is served: on disk, and checked.
    beside: Option<Digest>,
    /// What was last to be counted.
    watching: Option<Watch>,
    /// What is to be told to the edge.
    says: Option<Evidence>,
    told_given_up: bool,
    /// Ticks in this life.
    ticks: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Counts the starts of this node.
    life: u64,
    assignment: Option<Assignment>,
    /// Starts in a row in which the candidate was to answer in the shadow, and neither gave an answer nor saw a minute.
    #[serde(default)]
    silent_starts: u8,
}

/// A version with its chunks.
type Wanted<'a> = (Version, Option<&'a Manifest>);

impl Follower {
    /// Key of its durable state.
    pub const KEY: &'static str = "serving/assigned";
    const STATE_CAP: usize = 1 << 17;
    /// Starts without an answer after which a candidate in the shadow is given up.
    pub const SILENT_STARTS: u8 = 3;
    const TICKS_A_MINUTE: u32 = 6;
    /// How often it looks again for what is missing, and repeats what it has seen.
    pub const AGAIN_MS: u64 = 10_000;

    /// A follower as `state` left it.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: FollowerConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let stored = state.iter().find(|(key, _)| key == Self::KEY);
        let stored = stored.map(|(key, value)| {
            decode(value, Self::STATE_CAP).map_err(|error| format!("{key}: {error}"))
        });
        Ok(Self {
            config,
            state: stored.transpose()?.unwrap_or_default(),
            seen: Tally::default(),
            beside: None,
            watching: None,
            says: None,
            told_given_up: false,
            ticks: 0,
        })
    }

    /// The node starts.
    pub fn start(&mut self, slots: &mut Slots) -> Vec<Effect> {
        let mut out = Vec::new();
        self.state.life += 1;
        if self.candidate().is_some_and(|candidate| candidate.shadow.contains(&self.config.me)) {
            self.state.silent_starts = self.state.silent_starts.saturating_add(1);
        }
        put(Self::KEY, &self.state, &mut out);
        self.pursue(slots, &mut out);
        if self.has_given_up(slots) {
            self.say(slots);
        }
        out.push(Effect::Timer { timer: Timer::Follow, after_ms: Self::AGAIN_MS });
        out
    }

    /// The edge says who serves what.
    pub fn assigned(&mut self, slots: &mut Slots, told: &Assignment) -> Vec<Effect> {
        let known = self.state.assignment.as_ref();
        let serial = known.map_or(0, |known| known.serial);
        let news = known != Some(told);
        if let Err(why) = sense::check_assignment(&self.config.model, known, told) {
            return vec![Effect::Count(why)];
        }
        let mut out = Vec::new();
        if news {
            if told.serial > serial {
                (self.seen, self.says, self.told_given_up) = (Tally::default(), None, false);
                self.beside = None;
                self.state.silent_starts = 0;
            }
            self.state.assignment = Some(told.clone());
            put(Self::KEY, &self.state, &mut out);
        }
        self.pursue(slots, &mut out);
        out
    }

    /// A blob is here: it may be what was assigned.
    pub fn fetched(&mut self, slots: &mut Slots, digest: Digest, bytes: &[u8]) -> Vec<Effect> {
        let mut out = Vec::new();
        let is = |wanted: Wanted<'_>| wanted.1.is_some_and(|manifest| manifest.sha256 == digest);
        let Some(assignment) = &self.state.assignment else { return out };
        let (mine, beside) = (self.mine(assignment), self.beside_of(assignment));
        let (is_mine, is_beside) = (is(mine), beside.is_some_and(is));
        if !(is_mine && slots.in_use() != (mine.0, digest) || is_beside && self.beside.is_none()) {
            return out;
        }
        if let Err(reason) = sense::check_adapter(bytes, &self.config.layout) {
            out.push(Effect::Count(reason));
            return out;
        }
        let version = mine.0;
        if is_beside {
            self.beside = Some(digest);
        }
        if is_mine {
            order(slots, version, digest, &mut out);
        }
        self.watch(slots, &mut out);
        out
    }

    /// What was counted of the candidate in this life.
    pub fn seen(&mut self, slots: &Slots, serial: u64, tally: Tally) -> Vec<Effect> {
        let mut out = Vec::new();
        let current = self.state.assignment.as_ref().map(|assignment| assignment.serial);
        if current == Some(serial) && tally.makes_sense() {
            self.seen = self.seen.later(tally);
            if self.seen.answers > 0 {
                self.lives(&mut out);
            }
            self.say(slots);
        }
        out
    }

    /// Something about the served version changed: it may have been given up, or released.
    pub fn look(&mut self, slots: &mut Slots) -> Vec<Effect> {
        let mut out = Vec::new();
        self.pursue(slots, &mut out);
        if self.has_given_up(slots) && !self.told_given_up {
            self.say(slots);
        }
        out
    }

    /// Time for another look.
    pub fn tick(&mut self, slots: &mut Slots) -> Vec<Effect> {
        let mut out = Vec::new();
        self.ticks = self.ticks.saturating_add(1);
        if self.ticks == Self::TICKS_A_MINUTE {
            self.lives(&mut out);
        }
        self.pursue(slots, &mut out);
        if self.seen != Tally::default() || self.has_given_up(slots) {
            self.say(slots);
        }
        out.push(Effect::Timer { timer: Timer::Follow, after_ms: Self::AGAIN_MS });
        out
    }

    /// What is to be told to the edge, once.
    pub fn says(&mut self) -> Option<Evidence> {
        self.says.take()
    }

    /// Whose assignments it follows.
    pub fn steward(&self) -> &NodeId {
        &self.config.steward
    }

    /// Blobs that must be kept: what is assigned, also while it is on its way, and what answers beside it.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let assigned = self.state.assignment.iter();
        let wanted = assigned.flat_map(|told| [Some(self.mine(told)), self.beside_of(told)]);
        let manifests = wanted.flatten().filter_map(|(_, manifest)| manifest);
        manifests.map(|manifest| manifest.sha256).chain(self.beside).collect()
    }

    /// It isn't the candidate that ends the process. Once that was given up, nothing takes it back.
    fn lives(&mut self, out: &mut Vec<Effect>) {
        if (1..Self::SILENT_STARTS).contains(&self.state.silent_starts) {
            self.state.silent_starts = 0;
            put(Self::KEY, &self.state, out);
        }
    }

    /// Goes after the version that is assigned, and the one beside it.
    fn pursue(&mut self, slots: &mut Slots, out: &mut Vec<Effect>) {
        let Some(assignment) = self.state.assignment.clone() else { return };
        let mine = self.mine(&assignment);
        let is_served = match mine.1 {
            Some(manifest) => slots.in_use() == (mine.0, manifest.sha256),
            None => slots.served() == mine.0,
        };
        if !is_served {
            match (here(slots, mine), mine.1) {
                (Some(adapter), _) => order(slots, mine.0, adapter, out),
                (None, Some(manifest)) => out.push(self.fetch(manifest)),
                (None, None) => out.push(Effect::Count("assigned_version_not_here")),
            }
        }
        if self.beside.is_none()
            && !self.has_given_up(slots)
            && let Some(wanted) = self.beside_of(&assignment)
        {
            match (here(slots, wanted), wanted.1) {
                (Some(adapter), _) => self.beside = Some(adapter),
                (None, Some(manifest)) => out.push(self.fetch(manifest)),
                (None, None) => {} // nobody has it any more: nothing is compared
            }
        }
        self.watch(slots, out);
    }

    fn fetch(&self, manifest: &Manifest) -> Effect {
        let from = self.config.source.clone();
        Effect::Fetch { from, side: Side::Up, manifest: manifest.clone() }
    }

    /// What is counted from now on, if that changed.
    fn watch(&mut self, slots: &Slots, out: &mut Vec<Effect>) {
        let watch = self.state.assignment.as_ref().and_then(|assignment| {
            let candidate = assignment.candidate.as_ref()?;
            let shadow = candidate.shadow.contains(&self.config.me);
            let serves = candidate.serve.contains(&self.config.me);
            let ready = if shadow { self.beside.is_some() } else { serves };
            ready.then_some(Watch {
                serial: assignment.serial,
                candidate: candidate.version,
                shadow,
                beside: self.beside,
                slow_ms: candidate.slow_ms,
            })
        });
        let watch = watch.filter(|_| !self.has_given_up(slots));
        if watch != self.watching {
            self.watching.clone_from(&watch);
            out.push(Effect::Watch(watch));
        }
    }

    fn say(&mut self, slots: &Slots) {
        let Some(assignment) = &self.state.assignment else { return };
        let Some(Candidate { version, serve, shadow, .. }) = &assignment.candidate else { return };
        let me = &self.config.me;
        if !(serve.contains(me) || shadow.contains(me)) {
            return;
        }
        let gave_up = self.has_given_up(slots);
        self.told_given_up |= gave_up;
        self.says = Some(Evidence {
            serial: assignment.serial,
            version: *version,
            life: self.state.life,
            tally: self.seen,
            gave_up,
        });
    }

    fn candidate(&self) -> Option<&Candidate> {
        self.state.assignment.as_ref()?.candidate.as_ref()
    }

    fn has_given_up(&self, slots: &Slots) -> bool {
        let me = &self.config.me;
        self.candidate().is_some_and(|candidate| {
            let served =
                candidate.serve.contains(me) && slots.given_up() == Some(candidate.version);
            let silent = self.state.silent_starts >= Self::SILENT_STARTS;
            served || candidate.shadow.contains(me) && silent
        })
    }

    /// What this node serves.
    fn mine<'a>(&self, assignment: &'a Assignment) -> Wanted<'a> {
        match &assignment.candidate {
            Some(candidate) if candidate.serve.contains(&self.config.me) => {
                (candidate.version, Some(&candidate.adapter))
            }
            _ => (assignment.stable, assignment.stable_adapter.as_ref()),
        }
    }

    /// What answers beside it, unseen: the candidate in the shadow, the version before where the candidate is
    /// served, so that both are judged by the same labels.
    fn beside_of<'a>(&self, assignment: &'a Assignment) -> Option<Wanted<'a>> {
        let candidate = assignment.candidate.as_ref()?;
        if candidate.shadow.contains(&self.config.me) {
            return Some((candidate.version, Some(&candidate.adapter)));
        }
        let stable = (assignment.stable, assignment.stable_adapter.as_ref());
        candidate.serve.contains(&self.config.me).then_some(stable)
    }
}

/// Its adapter, if a slot has it: by its digest, where that was told.
fn here(slots: &Slots, (version, manifest): Wanted<'_>) -> Option<Digest> {
    match manifest {
        Some(manifest) => slots.blobs().contains(&manifest.sha256).then_some(manifest.sha256),
        None => slots.adapter_of(version),
    }
}

fn order(slots: &mut Slots, version: Version, adapter: Digest, out: &mut Vec<Effect>) {
    match slots.order(SlotOrder::Assigned { version, adapter }) {
        Ok(effects) => out.extend(effects),
        Err(refusal) => out.push(Effect::Count(refusal.kind())),
    }
}
