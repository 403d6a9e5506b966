//! Offers: which are taken, which wait, and when work begins.

use super::results::brought;
use super::{Course, Last, Member, Offered};
use crate::ids::{RoundNo, Side};
use crate::ledger::{Event, Word};
use crate::protocol::effect::{Effect, Job, Said, TrainTask};
use crate::protocol::round::put;
use crate::protocol::sense;
use crate::wire::{Blob, KnowledgePlan, Offer};

impl Member {
    pub(super) fn offered(&mut self, offered: Offered, out: &mut Vec<Effect>) {
        let round = offered.offer.round;
        if let Some(last) = &self.last {
            let repeat = last.digest == offered.digest;
            match &last.course {
                _ if round < last.round => return,
                Course::GaveUp(reason) if repeat => {
                    return out.push(self.answer(&offered, false, reason));
                }
                Course::Taken if repeat => return,
                Course::Taken | Course::Declined | Course::GaveUp(_) => {}
            }
        }
        if self.next.as_ref().is_some_and(|next| round < next.offer.round) {
            return;
        }
        if let Err(reason) = sense::check_offer(&offered.offer) {
            return self.refuse_offer(&offered, reason, out);
        }
        if let Err(reason) = self.willing(&offered.offer) {
            return self.turn_down(&offered, reason, out);
        }
        match needed(&offered.offer).cloned() {
            None => {
                self.waits(offered, out);
                self.begin_next(out);
            }
            Some(Blob::Inline(bytes)) => {
                if let Err(reason) = self.fits(&offered.offer, &bytes) {
                    return self.refuse_offer(&offered, reason, out);
                }
                self.waits(offered, out);
                out.push(Effect::SaveBlob(bytes));
                self.begin_next(out);
            }
            Some(Blob::Manifest(manifest)) => {
                self.waits(offered, out);
                out.push(Effect::Fetch { from: self.owner.clone(), side: Side::Up, manifest });
            }
        }
    }

    /// Declines what no parent should ever ask for; counted.
    pub(super) fn refuse_offer(
        &mut self,
        offered: &Offered,
        reason: &'static str,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Count(reason));
        self.turn_down(offered, reason, out);
    }

    /// Declines an offer before any work; recorded once.
    fn turn_down(&mut self, offered: &Offered, reason: &'static str, out: &mut Vec<Effect>) {
        let (round, digest) = (offered.offer.round, offered.digest);
        let last = Some(Last { round, digest, course: Course::Declined });
        if self.last != last {
            self.last = last;
            put(Self::LAST, &self.last, out);
            out.push(Effect::Record(self.decline(round, reason)));
        }
        out.push(self.answer(offered, false, reason));
    }

    fn willing(&self, offer: &Offer) -> Result<(), &'static str> {
        if self.paused {
            return Err("paused");
        }
        if self.full {
            return Err("disk_full");
        }
        if offer.model != self.config.model {
            return Err("unknown_model");
        }
        if let Some(plan) = &offer.plan.knowledge {
            self.understands(plan)?;
        } else if offer.base != self.config.base {
            return Err("base_mismatch");
        }
        if offer.version < self.version() {
            return Err("version_goes_back");
        }
        if self.counts_elsewhere(offer) {
            return Err("counts_elsewhere");
        }
        if self.config.split && offer.plan.final_rate.is_some() {
            return Err("plan_not_for_split");
        }
        if self.config.relay || offer.plan.local_epochs.is_some() {
            // How many steps whole passes are shows when they are done; the gate asks then.
            Ok(())
        } else {
            self.config.gate.allows_plan(offer.plan.local_steps)
        }
    }

    /// Whether it can take part in a round of knowledge: its classes are those of the others, in their order,
    /// and it has the same reference inputs; of models that write, those with its own tokens.
    fn understands(&self, plan: &KnowledgePlan) -> Result<(), &'static str> {
        let knows = self.config.knows.as_ref().ok_or("no_rounds_of_knowledge")?;
        if plan.labels != knows.labels {
            return Err("other_classes");
        }
        match &plan.reference {
            Some(reference) if !knows.references.contains(&reference.digest) => {
                return Err("unknown_reference_digest");
            }
            _ => {}
        }
        match (&plan.top_logits, &knows.top_logits) {
            (Some(theirs), Some(mine)) if !theirs.has_tokens_of(mine) => Err("other_tokenizer"),
            (Some(_), None) => Err("model_does_not_write"),
            (None, Some(_)) => Err("model_only_writes"),
            _ => Ok(()),
        }
    }

    /// Whether what an offer brings can be used here.
    pub(super) fn fits(&self, offer: &Offer, bytes: &[u8]) -> Result<(), &'static str> {
        match (&offer.plan.knowledge, &offer.knowledge) {
            (Some(plan), Some(said)) => sense::check_knowledge(plan, bytes, &said.counts),
            _ => sense::check_adapter(bytes, &self.config.layout),
        }
    }

    pub(super) fn decline(&self, round: RoundNo, reason: &'static str) -> Event {
        Event::Decline { reason: Word::new(reason), round, sender: self.config.me.clone() }
    }

    /// It takes the place of the offer that waited.
    fn waits(&mut self, offered: Offered, out: &mut Vec<Effect>) {
        let before = self.next.replace(offered);
        self.forget(before.as_ref().and_then(|before| needed(&before.offer)), out);
    }

    /// Gives up the fetch of a blob that nothing waits for any more.
    pub(super) fn forget(&self, blob: Option<&Blob>, out: &mut Vec<Effect>) {
        let Some(Blob::Manifest(manifest)) = blob else { return };
        let next = self.next.as_ref().and_then(|next| needed(&next.offer));
        let result = self.result.as_ref().and_then(|waiting| brought(&waiting.result));
        if [next, result].into_iter().flatten().all(|blob| blob.sha256() != manifest.sha256) {
            out.push(Effect::Forget(manifest.sha256));
        }
    }

    /// Begins the waiting offer unless work is under way. Its adapter is on disk.
    pub(super) fn begin_next(&mut self, out: &mut Vec<Effect>) {
        if self.active.is_some() {
            return;
        }
        let Some(offered) = self.next.take() else { return };
        // It may have waited long: a newer version may be here, an operator may have paused us.
        if let Err(reason) = self.willing(&offered.offer) {
            return self.turn_down(&offered, reason, out);
        }
        let (round, digest) = (offered.offer.round, offered.digest);
        self.last = Some(Last { round, digest, course: Course::Taken });
        put(Self::LAST, &self.last, out);
        // Who sends its adapter starts from everybody's again.
        if offered.offer.plan.adapter_delta && self.own.take().is_some() {
            put(Self::OWN, &self.own, out);
            self.apply(out);
        }
        if offered.offer.plan.knowledge.is_some() {
            self.take_knowledge(offered.offer.version, out);
        } else {
            self.take(offered.offer.version, offered.offer.adapter.sha256(), out);
        }
        out.push(self.answer(&offered, true, ""));
        self.work(&offered, out);
        self.active = Some(offered);
        put(Self::ACTIVE, &self.active, out);
    }

    /// After the work under way ended: the offer that waited begins, once its adapter is here.
    pub(super) fn begin_next_if_there(&mut self, out: &mut Vec<Effect>) {
        let Some(offered) = &self.next else { return };
        match needed(&offered.offer) {
            None | Some(Blob::Inline(_)) => self.begin_next(out),
            // Fetching what is on disk already is answered at once.
            Some(Blob::Manifest(manifest)) => out.push(Effect::Fetch {
                from: self.owner.clone(),
                side: Side::Up,
                manifest: manifest.clone(),
            }),
        }
    }

    pub(super) fn work(&self, offered: &Offered, out: &mut Vec<Effect>) {
        if self.config.relay {
            return; // the relay sees `working_on` and opens its inner round
        }
        let Offer { adapter, plan, class_targets, knowledge, .. } = &*offered.offer;
        let start = match (&plan.knowledge, &self.config.knows) {
            (Some(_), Some(knows)) => knows.untrained,
            _ => adapter.sha256(),
        };
        let reference = plan.knowledge.as_ref().and_then(|plan| plan.reference.as_ref());
        out.push(Effect::Job(Job::Train(Box::new(TrainTask {
            offer: offered.digest,
            round: offered.offer.round,
            epoch: offered.epoch,
            adapter: self.own_or(start),
            plan: plan.clone(),
            class_targets: class_targets.clone(),
            residual: self.residual,
            knowledge: knowledge.as_ref().map(|knowledge| Said {
                set: knowledge.set.sha256(),
                counts: knowledge.counts.clone(),
                reference: reference.map(|reference| reference.digest),
            }),
        }))));
    }
}

/// What has to be on disk before an offer is begun: its adapter, or what the tiers above say.
pub(super) fn needed(offer: &Offer) -> Option<&Blob> {
    match &offer.plan.knowledge {
        Some(_) => offer.knowledge.as_ref().map(|knowledge| &knowledge.set),
        None => Some(&offer.adapter),
    }
}
