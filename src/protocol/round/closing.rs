//! From a set that is complete to its outcome: fixed on disk, combined, taught to the owner's own model, committed.

use std::sync::Arc;

use ring::digest::{Context, SHA256};

use super::super::effect::{
    CombineInput, CombineJob, DistilTask, Effect, Job, LocalWork, Said, Weighed, Work,
};
use super::state::{Closing, NORMS, OWN, Open, Own, Phase, Told, accepted, late, put};
use super::{Owner, Round};
use crate::ids::{Digest, RoundNo};
use crate::learn::NORMS_REMEMBERED;
use crate::ledger::{Event, Word};
use crate::wire::{Blob, Knowledge, Offer};

impl Round {
    /// Fixes the contributor set, on disk before anything is computed from it.
    pub(super) fn close(&mut self, open: Open, out: &mut Vec<Effect>) {
        self.remember(&open, out);
        let mut set: Vec<CombineInput> = Vec::new();
        for (sender, mut input) in open.accepted {
            out.push(Effect::Delete(accepted(&sender).into()));
            input.back = self.back_for(&sender, &open.digest).or(input.back);
            set.push(input);
        }
        // Whatever has a receipt counts: how far behind it may be was asked at the door.
        for (update, mut input) in std::mem::take(&mut self.late) {
            out.push(Effect::Delete(late(update).into()));
            input.staleness = open.offer.version.saturating_sub(input.version);
            set.push(input);
        }
        set.sort_by(|a, b| (&a.sender, a.update).cmp(&(&b.sender, b.update)));
        self.fix(open.digest, open.offer, open.whole, set, out);
    }

    pub(super) fn fix(
        &mut self,
        digest: Digest,
        offer: Arc<Offer>,
        whole: Option<Digest>,
        set: Vec<CombineInput>,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Record(Event::RoundClose {
            contributions: set.len() as u64,
            epoch: self.epoch,
            round: offer.round,
            set: contributor_set(&set),
        }));
        let closing = Closing { digest, offer, set, whole };
        out.push(Effect::Job(self.combine_job(&closing)));
        self.phase = Phase::Closing(closing);
        self.put_phase(out);
    }

    pub(super) fn combine_job(&self, closing: &Closing) -> Job {
        Job::Combine(Box::new(CombineJob {
            offer: closing.digest,
            global: closing.whole.unwrap_or_else(|| closing.offer.adapter.sha256()),
            plan: closing.offer.plan.clone(),
            class_targets: closing.offer.class_targets.clone(),
            inputs: closing.set.clone(),
            relay: self.config.owner == Owner::Relay && closing.offer.island.is_none(),
            // Many rounds' work is longer than what is usual of one.
            norms: if closing.is_own() { Vec::new() } else { self.norms.clone() },
            bounds: self.config.bounds,
            offered: said_above(&closing.offer),
        }))
    }

    /// Has the node's own model learn what was merged, if it has one and is asked to.
    fn distil(&mut self, closing: &Closing, work: &Work, out: &mut Vec<Effect>) -> bool {
        let plan = &closing.offer.plan;
        let Some(how) = self.config.distils.filter(|_| plan.knowledge.is_some()) else {
            return false;
        };
        let spectra = plan.knowledge.as_ref().and_then(|knowledge| knowledge.spectra);
        out.push(Effect::Job(Job::Distil(Box::new(DistilTask {
            offer: closing.digest,
            adapter: self.own.as_ref().map_or(self.untrained, |own| own.adapter),
            plan: plan.clone(),
            how,
            class_targets: work.class_logits.clone(),
            knowledge: work.knowledge.clone(),
            offered: spectra.and_then(|_| said_above(&closing.offer)),
        }))));
        true
    }

    /// What its own model says now goes on instead of what was merged; without it the merged does.
    pub(super) fn distilled(
        &mut self,
        offer: Digest,
        outcome: Result<Work, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        let Some(closing) = self.closing_over(offer).cloned() else { return };
        let Some(mut work) = self.merged.take() else { return };
        match outcome {
            Ok(learned) => {
                if let Some(bytes) = learned.own {
                    let adapter = Digest::of(&bytes);
                    let said = learned.knowledge.as_ref().map(|said| Digest::of(&said.bytes));
                    out.push(Effect::Record(Event::Distil {
                        adapter,
                        knowledge: said.unwrap_or(Digest::of(b"")),
                        round: closing.offer.round,
                        steps: learned.steps,
                    }));
                    out.push(Effect::SaveBlob(bytes));
                    // The version that the round makes, but never one that had another adapter.
                    let before = self.own.as_ref().map_or(0, |own| own.version);
                    let version = (closing.offer.version + 1).max(before + 1);
                    self.own = Some(Own { base: self.config.base, adapter, version });
                    put(OWN, &self.own, out);
                    out.push(Effect::Apply { version, adapter });
                }
                work.knowledge = learned.knowledge.or(work.knowledge);
            }
            Err(reason) => out.push(Effect::Count(reason)),
        }
        self.finish(closing, Ok(work), out);
    }

    /// Whether these are the deltas of another set than the one that is closed over for this offer.
    pub(in crate::protocol) fn closes_over_others(
        &self,
        offer: Digest,
        weighed: &[Weighed],
    ) -> bool {
        let Some(closing) = self.closing_over(offer) else { return false };
        let set = closing.set.iter().filter(|input| input.delta.is_some());
        let other = !set.map(|input| input.update).eq(weighed.iter().map(|weighed| weighed.update));
        other && !weighed.is_empty()
    }

    /// The set that was fixed for this offer, while its outcome isn't there.
    fn closing_over(&self, offer: Digest) -> Option<&Closing> {
        match &self.phase {
            Phase::Closing(closing) if closing.digest == offer => Some(closing),
            _ => None,
        }
    }

    pub(super) fn combined(
        &mut self,
        offer: Digest,
        outcome: Result<Work, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        let Some(closing) = self.closing_over(offer).cloned() else { return };
        if self.merged.is_some() {
            return; // its own model learns it already
        }
        if let Ok(work) = &outcome
            && self.distil(&closing, work, out)
        {
            self.merged = outcome.ok();
            return;
        }
        self.finish(closing, outcome, out);
    }

    /// Ends a round whose outcome is there.
    fn finish(
        &mut self,
        closing: Closing,
        outcome: Result<Work, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        self.phase = Phase::Idle;
        if let Ok(work) = &outcome
            && !closing.is_own()
        {
            self.remember_norms(closing.offer.round, &work.weighed, out);
        }
        match (outcome, closing.offer.outer) {
            (Ok(work), _) if closing.offer.island.is_some() => {
                self.commit_alone(&closing, work, out);
            }
            (Ok(work), None) => self.commit(&closing, work, out),
            (Ok(work), Some(outer)) => {
                out.push(Effect::Record(Event::RoundCommit {
                    epoch: self.epoch,
                    result: digest_of(&work).unwrap_or(Digest::of(b"")),
                    round: closing.offer.round,
                    version: closing.offer.version,
                }));
                out.push(Effect::Contribute { outer, work: Ok(work) });
            }
            (Err(reason), outer) => {
                out.push(Effect::Record(Event::RoundAbandon {
                    epoch: self.epoch,
                    reason: Word::new(reason),
                    round: closing.offer.round,
                }));
                self.wants_again(out);
                self.keep_failed(closing.set, out);
                if let Some(outer) = outer {
                    out.push(Effect::Contribute { outer, work: Err(reason) });
                }
            }
        }
        self.put_phase(out);
        self.schedule_next(out);
    }

    /// Adds the lengths of a combined set to those that later rounds are measured against, and records
    /// what counted in part.
    ///
    /// In the same step as the end of the round, so that a crash combines against the same ones.
    fn remember_norms(&mut self, round: RoundNo, weighed: &[Weighed], out: &mut Vec<Effect>) {
        for Weighed { sender, update, factor, .. } in weighed.iter().filter(|w| w.factor < 1.0) {
            out.push(Effect::Record(Event::Clip {
                kept_ppm: millionths(*factor),
                round,
                sender: sender.clone(),
                update: *update,
            }));
        }
        if weighed.is_empty() {
            return;
        }
        self.norms.extend(weighed.iter().map(|weighed| weighed.norm));
        self.norms.drain(..self.norms.len().saturating_sub(NORMS_REMEMBERED));
        put(NORMS, &self.norms, out);
    }

    fn commit(&mut self, closing: &Closing, work: Work, out: &mut Vec<Effect>) {
        let version = closing.offer.version + 1;
        let knowledge = closing.offer.plan.knowledge.is_some();
        let digest = digest_of(&work);
        let adapter = match work.update {
            Some(bytes) => {
                let blob = Blob::of(&bytes, self.config.chunk_bytes);
                out.push(Effect::SaveBlob(bytes));
                blob
            }
            None if knowledge => self.global.adapter_blob.clone(),
            None => closing.offer.adapter.clone(),
        };
        let result = digest.unwrap_or(adapter.sha256());
        let known = work.knowledge.map(|known| {
            let set = Blob::of(&known.bytes, self.config.chunk_bytes);
            out.push(Effect::SaveBlob(known.bytes));
            Knowledge { set, counts: known.counts }
        });
        self.know(known, closing.offer.plan.knowledge.clone());
        let class_targets = work.class_logits.or_else(|| closing.offer.class_targets.clone());
        let told = Told {
            offer: closing.digest,
            contributors: u32::try_from(closing.set.len()).unwrap_or(u32::MAX),
            contributor_set: contributor_set(&closing.set),
            knowledge,
        };
        self.set_global(version, adapter, None, class_targets, Some(told), out);
        out.push(Effect::Record(Event::RoundCommit {
            epoch: self.epoch,
            result,
            round: closing.offer.round,
            version,
        }));
        self.publish_result(out);
        // Where each node has its own, it is served since it was taught.
        if !knowledge {
            if self.own.take().is_some() {
                put(OWN, &self.own, out);
            }
            out.push(Effect::Apply { version, adapter: result });
        }
    }

    /// The site's next adapter. Its members hear of it by the next offer: a result would be a version.
    fn commit_alone(&mut self, closing: &Closing, work: Work, out: &mut Vec<Effect>) {
        let Some(bytes) = work.update else { return out.push(Effect::Count("nothing_learned")) };
        let version = closing.offer.version;
        let adapter = Blob::of(&bytes, self.config.chunk_bytes);
        out.push(Effect::SaveBlob(bytes));
        out.push(Effect::Record(Event::RoundCommit {
            epoch: self.epoch,
            result: adapter.sha256(),
            round: closing.offer.round,
            version,
        }));
        out.push(Effect::Local(LocalWork {
            version,
            outer: closing.offer.outer,
            from: closing.offer.adapter.clone(),
            adapter,
            class_targets: work.class_logits.or_else(|| closing.offer.class_targets.clone()),
            num_examples: work.num_examples,
            num_devices: work.num_devices,
            steps: work.steps,
            loss_first: work.loss_first,
            loss_last: work.loss_last,
        }));
    }

    /// What was accepted isn't lost when its combination fails: it counts in the next round, unless
    /// it was in several that failed.
    fn keep_failed(&mut self, set: Vec<CombineInput>, out: &mut Vec<Effect>) {
        for mut input in set {
            input.failed += 1;
            if input.failed < Self::MOST_FAILED {
                self.keep_late(input, out);
            } else {
                out.push(Effect::Count("never_combined"));
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
fn millionths(factor: f64) -> u32 {
    (factor.clamp(0.0, 1.0) * 1e6) as u32
}

/// What came out of a round, as one digest.
fn digest_of(work: &Work) -> Option<Digest> {
    let known = work.knowledge.as_ref().map(|known| known.bytes.as_slice());
    work.update.as_deref().or(known).map(Digest::of)
}

/// SHA-256 over the update ids in the order of the set.
fn contributor_set(set: &[CombineInput]) -> Digest {
    let mut hash = Context::new(&SHA256);
    for input in set {
        hash.update(&input.update.0);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    Digest(out)
}

/// What the tiers above said, in a round of knowledge.
fn said_above(offer: &Offer) -> Option<Said> {
    let reference = offer.plan.knowledge.as_ref().and_then(|plan| plan.reference.as_ref());
    offer.knowledge.as_ref().map(|knowledge| Said {
        set: knowledge.set.sha256(),
        counts: knowledge.counts.clone(),
        reference: reference.map(|reference| reference.digest),
    })
}
