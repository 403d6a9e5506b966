//! Which adapter lies in which slot of a [`Generator`], and who still needs it.
//!
//! A running sequence pins its slot, so that its answer is of one version from start to end, however
//! often another is put in place meanwhile. What is pinned, and what is served now, is never replaced.

use std::fmt;

use super::{Generator, LearnError, TensorSet};
use crate::ids::{Name, Version};

/// Names an adapter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterId {
    /// One of the federation; 0 is untrained.
    Version(Version),
    /// One that the node's owner put beside it.
    Name(Name),
}

/// See the module.
#[derive(Debug)]
pub struct AdapterSlots {
    /// By number.
    slots: Vec<Slot>,
    /// The slot that answers whoever asks for no adapter.
    current: u32,
    uses: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// What lies in it; none when it is free, or replaced and still pinned.
    id: Option<AdapterId>,
    pins: u32,
    last_use: u64,
}

impl AdapterSlots {
    /// Slots for adapters beside the bare base, which is slot 0 and version 0.
    ///
    /// For swaps never to wait it takes two more than sequences run at once, and one for each name.
    pub fn new(adapters: u32) -> Self {
        Self::with_named(adapters, Vec::new())
    }

    /// The same, and in front of them those that a generator holds from the start ([`Generator::named`]).
    pub fn with_named(adapters: u32, named: Vec<Name>) -> Self {
        let base = AdapterId::Version(0);
        let held = [base].into_iter().chain(named.into_iter().map(AdapterId::Name));
        let mut slots: Vec<Slot> =
            held.map(|id| Slot { id: Some(id), ..Slot::default() }).collect();
        slots.extend((0..adapters).map(|_| Slot::default()));
        Self { slots, current: 0, uses: 0 }
    }

    /// Puts an adapter in place; a version is served from now on to whoever asks for none.
    ///
    /// # Errors
    /// [`LearnError`] when it doesn't fit the base, or each slot is needed; all stays as it was then.
    pub fn load(
        &mut self,
        id: AdapterId,
        adapter: &TensorSet,
        generator: &mut dyn Generator,
    ) -> Result<(), LearnError> {
        let slot = self.replaceable().ok_or_else(|| LearnError::OutOfRange {
            what: "adapter slots",
            expected: "one that nothing needs".to_owned(),
            actual: format!("{} in use", self.slots.len().saturating_sub(1)),
        })?;
        generator.load(slot, adapter)?;
        for other in &mut self.slots {
            if other.id.as_ref() == Some(&id) {
                other.id = None;
            }
        }
        if matches!(id, AdapterId::Version(_)) {
            self.current = slot;
        }
        self.touch(slot, |at| at.id = Some(id));
        Ok(())
    }

    /// Takes an adapter for a sequence, the current one without a wish; give the slot back with
    /// [`release`](Self::release). `None` when it isn't here.
    pub fn pin(&mut self, wanted: Option<&AdapterId>) -> Option<(u32, AdapterId)> {
        let slot = match wanted {
            None => self.current,
            Some(id) => self.slot_of(id)?,
        };
        let id = self.slots.get(usize::try_from(slot).ok()?)?.id.clone()?;
        self.touch(slot, |at| at.pins += 1);
        Some((slot, id))
    }

    /// A sequence that had this slot has ended.
    pub fn release(&mut self, slot: u32) {
        self.touch(slot, |at| at.pins = at.pins.saturating_sub(1));
    }

    /// Whether an adapter is here.
    pub fn has(&self, id: &AdapterId) -> bool {
        self.slot_of(id).is_some()
    }

    /// The adapters that are here, in order.
    pub fn held(&self) -> Vec<&AdapterId> {
        let mut all: Vec<&AdapterId> = self.slots.iter().filter_map(|at| at.id.as_ref()).collect();
        all.sort_unstable();
        all
    }

    fn slot_of(&self, id: &AdapterId) -> Option<u32> {
        (0..).zip(&self.slots).find(|(_, at)| at.id.as_ref() == Some(id)).map(|(slot, _)| slot)
    }

    /// A free slot, else that of the version that was used longest ago and nobody needs.
    fn replaceable(&self) -> Option<u32> {
        let may_go = |(slot, at): &(u32, &Slot)| {
            let named = matches!(at.id, Some(AdapterId::Name(_)));
            *slot != 0 && *slot != self.current && at.pins == 0 && !named
        };
        let key = |(slot, at): &(u32, &Slot)| (at.id.is_some(), at.last_use, *slot);
        (0..).zip(&self.slots).filter(may_go).min_by_key(key).map(|(slot, _)| slot)
    }

    fn touch(&mut self, slot: u32, change: impl FnOnce(&mut Slot)) {
        self.uses += 1;
        if let Some(at) = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)) {
            at.last_use = self.uses;
            change(at);
        }
    }
}

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "{version}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::toy_generator::{ToyGenerator, shift_by};

    fn version(v: u64) -> AdapterId {
        AdapterId::Version(v)
    }

    fn load(slots: &mut AdapterSlots, id: AdapterId) -> Result<(), LearnError> {
        slots.load(id, &shift_by(1), &mut ToyGenerator::default())
    }

    fn held(slots: &AdapterSlots) -> Vec<String> {
        slots.held().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_newest_version_is_served_and_others_when_asked_for() {
        let mut slots = AdapterSlots::new(4);
        assert_eq!(slots.pin(None), Some((0, version(0))), "the bare base");
        load(&mut slots, version(1)).unwrap();
        load(&mut slots, version(2)).unwrap();
        let pumps = AdapterId::Name(Name::new("pumps").unwrap());
        load(&mut slots, pumps.clone()).unwrap();
        assert_eq!(slots.pin(None).unwrap().1, version(2), "a named one isn't the current one");
        assert_eq!(slots.pin(Some(&version(1))).unwrap().1, version(1));
        assert_eq!(slots.pin(Some(&pumps)).unwrap().1, pumps);
        assert_eq!(slots.pin(Some(&version(9))), None);
        assert_eq!(held(&slots), ["0", "1", "2", "pumps"]);
    }

    #[test]
    fn adapters_of_the_generator_have_the_first_slots_and_never_make_way() {
        let [pumps, belts] = ["pumps", "belts"].map(|name| Name::new(name).unwrap());
        let mut slots = AdapterSlots::with_named(2, vec![pumps.clone(), belts.clone()]);
        for v in 1..=9 {
            load(&mut slots, version(v)).unwrap();
        }
        assert_eq!(held(&slots), ["0", "8", "9", "belts", "pumps"]);
        assert_eq!(slots.pin(Some(&AdapterId::Name(pumps))).unwrap().0, 1);
        assert_eq!(slots.pin(Some(&AdapterId::Name(belts))).unwrap().0, 2);
        assert_eq!(slots.pin(None).unwrap().1, version(9), "a named one isn't the current one");
    }

    #[test]
    fn what_is_pinned_stays_and_the_least_used_goes() {
        let mut slots = AdapterSlots::new(3);
        load(&mut slots, version(1)).unwrap();
        let (pinned, _) = slots.pin(None).unwrap();
        for v in 2..=9 {
            load(&mut slots, version(v)).unwrap();
            assert!(slots.has(&version(1)), "a sequence still uses it");
        }
        assert_eq!(held(&slots), ["0", "1", "8", "9"]);
        slots.release(pinned);
        for v in 10..=12 {
            load(&mut slots, version(v)).unwrap();
        }
        assert_eq!(held(&slots), ["0", "10", "11", "12"]);
    }

    #[test]
    fn a_swap_needs_a_slot_that_nothing_needs() {
        let mut slots = AdapterSlots::new(2);
        load(&mut slots, version(1)).unwrap();
        let (first, _) = slots.pin(None).unwrap();
        load(&mut slots, version(2)).unwrap();
        assert_eq!(load(&mut slots, version(3)).unwrap_err().kind(), "out_of_range");
        assert_eq!(slots.pin(None).unwrap().1, version(2), "all stays as it was");
        slots.release(first);
        load(&mut slots, version(3)).unwrap();
    }

    #[test]
    fn an_adapter_that_does_not_fit_changes_nothing() {
        let mut slots = AdapterSlots::new(3);
        load(&mut slots, version(1)).unwrap();
        let bad = slots.load(version(2), &TensorSet::default(), &mut ToyGenerator::default());
        assert!(bad.is_err());
        assert_eq!(
            (slots.pin(None).unwrap().1, held(&slots)),
            (version(1), vec!["0".into(), "1".into()])
        );
    }

    #[test]
    fn the_same_version_again_leaves_running_sequences_alone() {
        let mut slots = AdapterSlots::new(3);
        load(&mut slots, version(1)).unwrap();
        let (old, _) = slots.pin(None).unwrap();
        load(&mut slots, version(1)).unwrap();
        let (new, _) = slots.pin(None).unwrap();
        assert_ne!(old, new);
        assert_eq!(held(&slots), ["0", "1"]);
    }
}
