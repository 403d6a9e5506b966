//! Which version a node serves: two slots and a pointer, apart from what it learns from.
//!
//! ```text
//!   machine --Apply--> offered --> the slot that isn't proven, or the other one --> Apply
//!                         '-- held after a rollback: kept, not served, until it is released
//!   rollback, three failed checks --> the pointer moves back: one Put, one entry, Apply
//! ```
//! A machine says by [`Effect::Apply`] what it has; what is served is decided here, in the same transaction. The
//! version before stays on disk beside the one in use, so going back needs nothing from outside. A new version
//! takes the place of one that has passed no check yet, so that the last one that has stays within reach.
//!
//! After a rollback nothing newer is served until an operator releases it: what comes next was made from what was
//! given up. What is learned, contributed and passed on doesn't change here.
//!
//! With [`SlotsConfig::follow`] nothing is served but what an assignment names (`follower.rs`): what a machine offers
//! waits. What an operator has rolled back on this node stays held until it is released, also then. A candidate may come and
//! go: what was within reach before it stays so.
//!
//! Called by `actors/role.rs`, for whatever machine it runs, and by `gaisnet rollback` on a stopped node's store.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::effect::Effect;
use super::guard::{self, Guard};
use super::round::put;
use crate::ids::{Digest, Version};
use crate::ledger::{Event, Word};
use crate::wire::decode;

/// What slots have to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotsConfig {
    /// The base that adapters are for: versions of another one are forgotten.
    pub base: Digest,
    /// Blob of the untrained adapter: version 0, which every node has.
    pub untrained: Digest,
    /// Somebody answers here and checks each version; without that, each counts as proven.
    pub checks: bool,
    /// Only what is assigned is served.
    pub follow: bool,
}

/// Which version a node serves. See the module.
#[derive(Debug, Clone)]
pub struct Slots {
    config: SlotsConfig,
    state: State,
    /// What was last said to be served, in this life.
    announced: Option<(Version, Digest)>,
}

/// What of it is on disk, under one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    base: Digest,
    untrained: Digest,
    /// The version in use.
    served: Slot,
    /// The one to go back to; after a rollback the one that was given up.
    other: Option<Slot>,
    /// Where assignments are followed, the one before `other`, for a candidate takes a place and may have to leave it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier: Option<Slot>,
    /// The newest that came while none may be served.
    waiting: Option<Slot>,
    held: Option<Hold>,
    floor: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    version: Version,
    adapter: Digest,
    /// It has passed a check.
    proven: bool,
    /// Failed checks in a row.
    failed: u8,
}

impl State {
    const CAP: usize = 4_096;

    fn read(state: &[(String, Vec<u8>)]) -> Result<Option<Self>, String> {
        let Some((key, value)) = state.iter().find(|(key, _)| key == Slots::KEY) else {
            return Ok(None);
        };
        decode(value, Self::CAP).map(Some).map_err(|error| format!("{key}: {error}"))
    }
}

/// Nothing newer is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Hold {
    /// The version that was given up.
    from: Version,
    /// The least version that may be served again; none yet without a word of an operator.
    least: Option<Version>,
    /// The node gave it up by its own checks; else somebody wanted it.
    #[serde(default)]
    by_checks: bool,
}

/// What changes which version is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotOrder {
    /// Serve an earlier version again.
    Rollback {
        /// Which; the one before if none is named.
        to: Option<Version>,
        /// Who wants it.
        by: RollbackBy,
    },
    /// An operator has signed: this version and newer ones may be served again.
    Release {
        /// The least version.
        least: Version,
    },
    /// An operator has signed: nobody but a signer goes below this version.
    Floor {
        /// The least version.
        least: Version,
    },
    /// The edge has signed that this node serves it, in a rollout or at its end; it is on disk.
    Assigned {
        /// The version.
        version: Version,
        /// Its blob.
        adapter: Digest,
    },
}

/// Who wants a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollbackBy {
    /// An operator, by a signature: the only one who may go below the floor.
    Operator,
    /// Whoever sits at the node's own terminal.
    Local,
    /// The node itself, after failed checks.
    Checks,
}

impl RollbackBy {
    fn reason(self) -> Word {
        Word::new(match self {
            Self::Operator => "operator",
            Self::Local => "local",
            Self::Checks => "failed_checks",
        })
    }
}

/// What a look at the served version came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It answers as it should.
    Passed,
    /// It gave no answer, or none that is a probability.
    Failed,
    /// The model can't take its adapter: nothing is gained by trying again.
    Unfit,
}

/// Why an order isn't carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotRefusal {
    /// It isn't here.
    #[error("version {version} isn't on this node; it has {}", list(.have))]
    NeverHad {
        /// What was asked for.
        version: Version,
        /// What could be served.
        have: Vec<Version>,
    },
    /// It is what is served.
    #[error("version {version} is served already")]
    AlreadyServed {
        /// The version.
        version: Version,
    },
    /// It is newer than what is served.
    #[error("version {version} is newer than {served}, which is served: that is no way back")]
    Newer {
        /// What was asked for.
        version: Version,
        /// What is served.
        served: Version,
    },
    /// No version before this one is kept.
    #[error("there is nothing before version {served} on this node; it has {}", list(.have))]
    NothingBefore {
        /// What is served.
        served: Version,
        /// What could be served.
        have: Vec<Version>,
    },
    /// An operator has forbidden it.
    #[error("version {version} is below the floor {floor}")]
    BelowFloor {
        /// What was asked for.
        version: Version,
        /// The least version.
        floor: Version,
    },
    /// Nothing is held back.
    #[error("nothing is held back: newer versions are served as they come")]
    NotHeld,
    /// It is assigned, and an operator holds it back on this node.
    #[error("version {version} is held back on this node until an operator releases it")]
    Held {
        /// The version.
        version: Version,
    },
    /// It is assigned, and this node gave it up.
    #[error("version {version} failed its checks on this node")]
    GivenUp {
        /// The version.
        version: Version,
    },
    /// A floor may neither fall nor lie above what is served.
    #[error("a floor goes up only, and no higher than what is served: {floor} to {served}")]
    FloorOutOfReach {
        /// The floor now.
        floor: Version,
        /// What is served.
        served: Version,
    },
}

impl SlotRefusal {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NeverHad { .. } => "version_never_had",
            Self::AlreadyServed { .. } => "version_already_served",
            Self::Newer { .. } => "version_is_newer",
            Self::NothingBefore { .. } => "nothing_before",
            Self::BelowFloor { .. } => "below_floor",
            Self::NotHeld => "nothing_held",
            Self::Held { .. } => "held_version",
            Self::GivenUp { .. } => "given_up_version",
            Self::FloorOutOfReach { .. } => "floor_out_of_reach",
        }
    }

    /// The way out, for the person who asked.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NeverHad { .. } | Self::NothingBefore { .. } => {
                "name one of those, or pause the node and let the federation make a better one"
            }
            Self::AlreadyServed { .. } => "nothing has to be done",
            Self::Newer { .. } => "version.release lets newer versions be served again",
            Self::BelowFloor { .. } => {
                "only a signed rollback goes there: gaisnet cmd sign rollback ... | mosquitto_pub"
            }
            Self::NotHeld => "nothing has to be done; rollback holds newer versions back",
            Self::Held { .. } => "version.release lets it be served",
            Self::GivenUp { .. } => "let the federation make a better one",
            Self::FloorOutOfReach { .. } => "name a version between the two",
        }
    }
}

/// What may be seen of it from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SlotsView {
    /// The version in use.
    pub served: Version,
    /// What is on disk and could be served, the lowest first.
    pub versions: Vec<Version>,
    /// The version that was given up, while nothing newer is served.
    pub held_since: Option<Version>,
    /// Nobody but a signer goes below it.
    pub floor: Version,
}

impl Slots {
    /// Key of its durable state.
    pub const KEY: &'static str = "serving/slots";
    /// Failed checks in a row after which a node goes back by itself.
    pub const FAILED_CHECKS: u8 = 3;

    /// Slots as `state` left them.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub fn new(config: SlotsConfig, state: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let fresh = State {
            base: config.base,
            untrained: config.untrained,
            served: Slot { version: 0, adapter: config.untrained, proven: true, failed: 0 },
            other: None,
            earlier: None,
            waiting: None,
            held: None,
            floor: 0,
        };
        let stored = State::read(state)?.filter(|state| state.base == config.base);
        Ok(Self { config, state: stored.unwrap_or(fresh), announced: None })
    }

    /// Slots of a node that doesn't run, if it ever served more than the untrained adapter.
    ///
    /// # Errors
    /// As [`Slots::new`].
    pub fn at_rest(state: &[(String, Vec<u8>)]) -> Result<Option<Self>, String> {
        Ok(State::read(state)?.map(|state| {
            let State { base, untrained, .. } = state;
            let config = SlotsConfig { base, untrained, checks: true, follow: false };
            Self { config, state, announced: None }
        }))
    }

    /// The node starts; `effects` are its machine's. A version that never passed a check, in start after start, is
    /// given up before it is served once more: it may be what ends the process.
    pub fn start(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.config.checks && !self.state.served.proven {
            self.failed_once(&mut out);
        }
        out.extend(self.take(effects));
        let Slot { version, adapter, .. } = self.state.served;
        // Who answers beside it has to know what to go back to.
        if version > 0 || adapter != self.config.untrained || self.config.follow {
            self.announce(&mut out);
        }
        out
    }

    /// What comes of a machine's effects: each [`Effect::Apply`] is an offer of a version.
    pub fn take(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        if !effects.iter().any(|effect| matches!(effect, Effect::Apply { .. })) {
            return effects;
        }
        let mut out = Vec::with_capacity(effects.len());
        for effect in effects {
            match effect {
                Effect::Apply { version, adapter } => self.offered(version, adapter, &mut out),
                other => out.push(other),
            }
        }
        out
    }

    /// Carries an order out.
    ///
    /// # Errors
    /// [`SlotRefusal`]; nothing has changed then.
    pub fn order(&mut self, order: SlotOrder) -> Result<Vec<Effect>, SlotRefusal> {
        let mut out = Vec::new();
        match order {
            SlotOrder::Rollback { to, by } => self.roll_back(to, by, &mut out)?,
            SlotOrder::Release { least } => self.release(least, &mut out)?,
            SlotOrder::Floor { least } => {
                let (floor, served) = (self.state.floor, self.state.served.version);
                if least < floor || least > served {
                    return Err(SlotRefusal::FloorOutOfReach { floor, served });
                }
                self.state.floor = least;
                self.put(&mut out);
            }
            SlotOrder::Assigned { version, adapter } => {
                self.assigned(version, adapter, &mut out)?;
            }
        }
        Ok(out)
    }

    /// A look at the served version ended; what is said of another one, or of another adapter of it, is old news.
    pub fn checked(&mut self, version: Version, adapter: Digest, check: Check) -> Vec<Effect> {
        let mut out = Vec::new();
        let Slot { version: served, adapter: by, .. } = self.state.served;
        if (version, adapter) != (served, by) || !self.config.checks {
            return out;
        }
        match check {
            Check::Passed => {
                let slot = &mut self.state.served;
                let news = !slot.proven || slot.failed > 0;
                (slot.proven, slot.failed) = (true, 0);
                if news {
                    self.put(&mut out);
                }
            }
            Check::Failed => self.failed_once(&mut out),
            Check::Unfit => {
                self.state.served.failed = Self::FAILED_CHECKS - 1;
                self.failed_once(&mut out);
            }
        }
        out
    }

    /// Blobs that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let mut keep: BTreeSet<Digest> = self.others().map(|slot| slot.adapter).collect();
        keep.extend([self.state.served.adapter, self.config.untrained]);
        keep
    }

    /// What may be seen from outside.
    pub fn view(&self) -> SlotsView {
        SlotsView {
            served: self.state.served.version,
            versions: self.have(),
            held_since: self.held().map(|hold| hold.from),
            floor: self.state.floor,
        }
    }

    /// The version that is served.
    pub fn served(&self) -> Version {
        self.state.served.version
    }

    /// The version that is served, and its blob.
    pub fn in_use(&self) -> (Version, Digest) {
        (self.state.served.version, self.state.served.adapter)
    }

    /// Blob of a version that could be served at once.
    pub fn adapter_of(&self, version: Version) -> Option<Digest> {
        let mut all = self.others().chain([&self.state.served]);
        let known = all.find(|slot| slot.version == version).map(|slot| slot.adapter);
        known.or_else(|| (version == 0).then_some(self.config.untrained))
    }

    /// The version that this node gave up by its own checks, as long as nothing else is served for it.
    pub fn given_up(&self) -> Option<Version> {
        self.state.held.filter(|hold| hold.by_checks).map(|hold| hold.from)
    }

    /// What is held back, while nothing newer is served.
    fn held(&self) -> Option<Hold> {
        self.state.held.filter(|hold| hold.from > self.state.served.version)
    }

    /// What is on disk beside the version in use.
    fn others(&self) -> impl Iterator<Item = &Slot> {
        self.state.other.iter().chain(&self.state.earlier).chain(&self.state.waiting)
    }

    fn have(&self) -> Vec<Version> {
        let mut have: BTreeSet<Version> = self.others().map(|slot| slot.version).collect();
        have.insert(self.state.served.version);
        have.into_iter().collect()
    }

    fn offered(&mut self, version: Version, adapter: Digest, out: &mut Vec<Effect>) {
        let served = self.state.served;
        if version < served.version && guard::stands(Guard::Versions) {
            // Only a rollback goes back; another half of this node may be behind.
            return out.push(Effect::Count("older_version"));
        }
        if version != served.version {
            let slot = Slot { version, adapter, proven: !self.config.checks, failed: 0 };
            if self.is_held(version) {
                return self.keep_waiting(slot, out);
            }
            self.serve(slot, out);
        } else if adapter != served.adapter {
            if self.config.follow && guard::stands(Guard::Assigned) {
                return out.push(Effect::Count("held_version"));
            }
            // What a device trains for itself goes by the version of the round that asked for it.
            let proven = !self.config.checks;
            self.state.served = Slot { version, adapter, proven, failed: 0 };
            self.put(out);
            out.push(Effect::Record(Event::Rollout { adapter, version }));
        }
        self.announce(out);
    }

    fn is_held(&self, version: Version) -> bool {
        if self.config.follow && guard::stands(Guard::Assigned) {
            return true;
        }
        let held = |hold: &Hold| hold.least.is_none_or(|least| version < least);
        self.state.held.as_ref().is_some_and(held) && guard::stands(Guard::Hold)
    }

    fn keep_waiting(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let same = |known: &Slot| (known.version, known.adapter) == (slot.version, slot.adapter);
        let newer = |known: &Slot| known.version > slot.version;
        let known = |slot: &Slot| same(slot) || newer(slot);
        if self.state.other.as_ref().is_some_and(same)
            || self.state.waiting.as_ref().is_some_and(known)
        {
            return;
        }
        self.state.waiting = Some(slot);
        self.put(out);
        out.push(Effect::Count("held_version"));
    }

    /// Moves the pointer to a newer version.
    fn serve(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.state.served, slot);
        // The one before stays within reach if it has passed a check, or if nothing older is there.
        let older = self.state.other.filter(|other| other.version < before.version);
        if before.proven || !self.config.checks || older.is_none() {
            self.state.other = Some(before);
            if self.config.follow {
                self.state.earlier = older.or(self.state.earlier);
            }
        }
        // What is assigned may come back to what is held: that needs the operator's word then, too.
        if !self.config.follow || !guard::stands(Guard::Hold) {
            self.state.held = None;
        }
        self.state.waiting.take_if(|waiting| waiting.version <= slot.version);
        self.put(out);
        let Slot { version, adapter, .. } = slot;
        out.push(Effect::Record(Event::Rollout { adapter, version }));
    }

    fn roll_back(
        &mut self,
        to: Option<Version>,
        by: RollbackBy,
        out: &mut Vec<Effect>,
    ) -> Result<(), SlotRefusal> {
        let (served, have) = (self.state.served, self.have());
        if let Some(version) = to {
            if version == served.version {
                return Err(SlotRefusal::AlreadyServed { version });
            }
            if !have.contains(&version) {
                return Err(SlotRefusal::NeverHad { version, have });
            }
            if version > served.version {
                return Err(SlotRefusal::Newer { version, served: served.version });
            }
        }
        let before = self.state.other.iter().chain(&self.state.earlier).copied();
        let older = before.filter(|slot| slot.version < served.version);
        let Some(target) = older
            .filter(|slot| to.is_none_or(|version| version == slot.version))
            .max_by_key(|slot| slot.version)
        else {
            return Err(SlotRefusal::NothingBefore { served: served.version, have });
        };
        if by != RollbackBy::Operator && target.version < self.state.floor {
            let (version, floor) = (target.version, self.state.floor);
            return Err(SlotRefusal::BelowFloor { version, floor });
        }
        self.state.served = Slot { failed: 0, ..target };
        self.state.other = Some(served);
        self.state.earlier.take_if(|earlier| earlier.version >= target.version);
        let by_checks = by == RollbackBy::Checks;
        self.state.held = Some(Hold { from: served.version, least: None, by_checks });
        self.put(out);
        let (from, to) = (served.version, target.version);
        out.push(Effect::Record(Event::Rollback { from, reason: by.reason(), to }));
        self.announce(out);
        Ok(())
    }

    fn release(&mut self, least: Version, out: &mut Vec<Effect>) -> Result<(), SlotRefusal> {
        let Some(hold) = &mut self.state.held else { return Err(SlotRefusal::NotHeld) };
        hold.least = Some(least);
        if self.config.follow {
            // What is assigned is looked for again; nothing else is served.
            self.put(out);
            return Ok(());
        }
        // Of two of one version what waits is the newer: the other one was given up.
        let at_hand = [self.state.other, self.state.waiting].into_iter().flatten();
        let floor = least.max(self.state.served.version + 1);
        let newest = at_hand.filter(|slot| slot.version >= floor).max_by_key(|slot| slot.version);
        match newest {
            Some(slot) => {
                self.serve(Slot { proven: !self.config.checks, failed: 0, ..slot }, out);
                self.announce(out);
            }
            None => self.put(out),
        }
        Ok(())
    }

    /// Serves what the edge has assigned, whichever way that is.
    fn assigned(
        &mut self,
        version: Version,
        adapter: Digest,
        out: &mut Vec<Effect>,
    ) -> Result<(), SlotRefusal> {
        let served = self.state.served;
        if (version, adapter) == (served.version, served.adapter) {
            return Ok(());
        }
        if let Some(Hold { from, least, by_checks }) = self.state.held {
            if by_checks && version == from {
                return Err(SlotRefusal::GivenUp { version });
            }
            let released = least.is_some_and(|least| version >= least);
            // Nothing newer than what it went back to, and never what was taken away.
            let held = version == from || (version > served.version && served.version < from);
            if !by_checks && held && !released {
                return Err(SlotRefusal::Held { version });
            }
        }
        let fresh = Slot { version, adapter, proven: !self.config.checks, failed: 0 };
        if version == served.version {
            // Another adapter by the same number, as of an edge that lost its store.
            self.state.served = fresh;
            self.put(out);
            out.push(Effect::Record(Event::Rollout { adapter, version }));
            self.announce(out);
            return Ok(());
        }
        if version > served.version {
            self.serve(fresh, out);
        } else {
            let floor = self.state.floor;
            if version < floor {
                return Err(SlotRefusal::BelowFloor { version, floor });
            }
            let same = |other: &Slot| (other.version, other.adapter) == (version, adapter);
            let known = self.others().find(|slot| same(slot)).copied();
            self.state.served = known.map_or(fresh, |slot| Slot { failed: 0, ..slot });
            self.state.other = Some(served);
            self.state.earlier.take_if(|earlier| earlier.version >= version);
            self.put(out);
            let (from, reason) = (served.version, Word::new("assigned"));
            out.push(Effect::Record(Event::Rollback { from, reason, to: version }));
        }
        self.announce(out);
        Ok(())
    }

    /// One more failed check in a row; the third takes the version away, if there is one to go back to.
    fn failed_once(&mut self, out: &mut Vec<Effect>) {
        let slot = &mut self.state.served;
        if slot.failed >= Self::FAILED_CHECKS {
            return out.push(Effect::Count("nothing_to_go_back_to"));
        }
        slot.failed += 1;
        if slot.failed >= Self::FAILED_CHECKS
            && self.roll_back(None, RollbackBy::Checks, out).is_ok()
        {
            return;
        }
        self.put(out);
    }

    /// Says what is served, once.
    fn announce(&mut self, out: &mut Vec<Effect>) {
        let Slot { version, adapter, .. } = self.state.served;
        if self.announced.replace((version, adapter)) != Some((version, adapter)) {
            out.push(Effect::Apply { version, adapter });
        }
    }

    fn put(&self, out: &mut Vec<Effect>) {
        put(Self::KEY, &self.state, out);
    }
}

fn list(versions: &[Version]) -> String {
    let texts: Vec<String> = versions.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
