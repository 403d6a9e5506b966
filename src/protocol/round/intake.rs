//! How contributions come in: repeat? sound? its bytes here? Then it counts, now or later.

use super::super::effect::Said;
use super::super::effect::{CombineInput, Effect};
use super::super::guard::{self, Guard};
use super::super::update;
use super::super::{heads, knowledge};
use super::Round;
use super::state::{self, Closing, Counted, Open, Phase, Task, put};
use crate::ids::{Digest, NodeId};
use crate::ledger::{Event, Word};
use crate::trust::Verified;
use crate::wire::{Blob, Body, Contribution, KnowledgePlan, Receipt, Verdict};

impl Round {
    pub(super) fn contribution(
        &mut self,
        message: &Verified,
        contribution: &Contribution,
        out: &mut Vec<Effect>,
    ) {
        if self.is_repeat(message, contribution, out) {
            return;
        }
        if let Err(reason) = self.check(message, contribution) {
            self.refuse(message, reason, out);
            return;
        }
        if self.full {
            // No receipt, so that its sender keeps it and sends it again.
            out.push(Effect::Count("disk_full"));
            return;
        }
        match blob_of(contribution) {
            Some(Blob::Manifest(manifest)) => {
                out.push(Effect::Fetch {
                    from: message.sender().clone(),
                    side: crate::ids::Side::Down,
                    manifest: manifest.clone(),
                });
                // One a member, so bounded; what is pushed out here comes again.
                self.waiting.insert(message.sender().clone(), message.clone());
            }
            Some(Blob::Inline(bytes)) => self.accept(message, contribution, Some(bytes), out),
            None => self.accept(message, contribution, None, out),
        }
    }

    pub(super) fn fetched(&mut self, digest: Digest, bytes: &[u8], out: &mut Vec<Effect>) {
        let complete = |message: &&Verified| match message.body() {
            Body::Contribution(c) => blob_of(c).is_some_and(|blob| blob.sha256() == digest),
            _ => false,
        };
        let ready: Vec<Verified> = self.waiting.values().filter(complete).cloned().collect();
        for message in ready {
            self.waiting.remove(message.sender());
            let Body::Contribution(contribution) = message.body() else { continue };
            // Its round may have closed meanwhile, so the whole way again, now with the bytes.
            if self.is_repeat(&message, contribution, out) {
                continue;
            }
            match self.check(&message, contribution) {
                Ok(()) => self.accept(&message, contribution, Some(bytes), out),
                Err(reason) => self.refuse(&message, reason, out),
            }
        }
    }

    /// Answers a contribution of a sender and offer that have one already: the same again gets the
    /// same receipt and changes nothing, another one is equivocation.
    fn is_repeat(
        &self,
        message: &Verified,
        contribution: &Contribution,
        out: &mut Vec<Effect>,
    ) -> bool {
        let (sender, update) = (message.sender(), message.update_id());
        let Some(known) = self.counted(sender, &contribution.offer) else { return false };
        if !guard::stands(Guard::Repeats) {
            return false;
        }
        if known.update == update {
            let verdict = if known.late { Verdict::Late } else { Verdict::Accepted };
            out.push(self.receipt(sender, update, verdict));
        } else {
            out.push(Effect::Record(Event::Equivocation {
                first: known.update,
                round: message.round(),
                second: update,
                sender: sender.clone(),
            }));
            self.refuse(message, "equivocation", out);
        }
        true
    }

    /// Counts it in the open round, or in a later one when its own is closed.
    fn accept(
        &mut self,
        message: &Verified,
        contribution: &Contribution,
        bytes: Option<&[u8]>,
        out: &mut Vec<Effect>,
    ) {
        let Some(task) = self.task(&contribution.offer) else {
            self.refuse(message, "unknown_offer", out);
            return;
        };
        let sound = match (bytes, &task.knowledge) {
            (None, _) => Ok(()),
            (Some(bytes), None) => update::check(bytes, &self.layout, contribution.stacked),
            (Some(bytes), Some(plan)) => {
                let counts = contribution.knowledge.as_ref().map_or(&[][..], |k| &k.counts);
                let said = knowledge::unpack(plan, bytes, counts);
                said.and_then(|said| heads::from_member(&said))
            }
        };
        if let Err(error) = sound {
            self.refuse(message, error.kind(), out);
            return;
        }
        if let Some(Blob::Inline(bytes)) = blob_of(contribution) {
            out.push(Effect::SaveBlob(bytes.clone()));
        }
        let (sender, update) = (message.sender().clone(), message.update_id());
        let input = CombineInput {
            sender: sender.clone(),
            update,
            num_examples: contribution.num_examples,
            num_devices: contribution.num_devices,
            steps: contribution.steps,
            version: task.version,
            staleness: 0,
            failed: 0,
            loss_first: contribution.loss_first,
            loss_last: contribution.loss_last,
            // Nonsense is as good as nothing measured.
            risk: contribution.risk.filter(|risk| (0.0..=1.0).contains(risk)),
            delta: contribution.delta.as_ref().map(Blob::sha256),
            back: self.back(&sender, &contribution.offer),
            stacked: contribution.stacked,
            whole: false,
            base: task.adapter,
            class_logits: contribution.class_logits.clone(),
            knowledge: contribution.knowledge.as_ref().map(|knowledge| Said {
                set: knowledge.set.sha256(),
                counts: knowledge.counts.clone(),
                reference: reference_of(&task),
            }),
        };
        if let Phase::Open(open) = &mut self.phase
            && open.digest == contribution.offer
        {
            out.push(Effect::Record(Event::Accept {
                body: message.body_digest(),
                round: task.round,
                sender: sender.clone(),
                update,
            }));
            put(state::accepted(&sender), &input, out);
            open.declined.remove(&sender);
            if self.config.guests.contains(&sender) {
                open.guests.insert(sender.clone());
            }
            open.accepted.insert(sender.clone(), input);
            out.push(self.receipt(&sender, update, Verdict::Accepted));
            self.close_if_due(out);
            return;
        }
        if self.global.version.saturating_sub(task.version) > self.config.max_staleness {
            self.refuse(message, "too_stale", out);
            return;
        }
        if let Some(recent) = self.recent.iter_mut().find(|r| r.offer == contribution.offer) {
            recent.counted.insert(sender.clone(), Counted { update, late: true });
            recent.put(out);
        }
        self.keep_late(input, out);
        let round = task.round;
        out.push(Effect::Record(Event::Late { round, sender: sender.clone(), update }));
        out.push(self.receipt(&sender, update, Verdict::Late));
    }

    /// Checks what can be told without the blob.
    fn check(&self, message: &Verified, contribution: &Contribution) -> Result<(), &'static str> {
        let task = self.task(&contribution.offer).ok_or("unknown_offer")?;
        if message.round() != task.round {
            return Err("wrong_round");
        }
        if contribution.version != task.version {
            return Err("wrong_version");
        }
        if contribution.num_examples == 0 || contribution.num_devices == 0 {
            return Err("no_examples");
        }
        if contribution.num_examples > update::MAX_EXAMPLES {
            return Err("too_many_examples");
        }
        if task.adapter_delta != contribution.delta.is_some()
            || !task.class_logits && contribution.class_logits.is_some()
        {
            return Err("wrong_contribution_kind");
        }
        let wants = task.knowledge.as_ref().is_some_and(KnowledgePlan::asks_for_a_set);
        if wants != contribution.knowledge.is_some() {
            return Err("wrong_contribution_kind");
        }
        if self.config.split.is_some() && self.back(message.sender(), &contribution.offer).is_none()
        {
            return Err("no_back_half");
        }
        if self.config.split.is_some() && contribution.stacked {
            return Err("stacked_front"); // a device has differences only
        }
        if !blob_of(contribution).is_none_or(Blob::is_sound) {
            return Err("unsound_blob");
        }
        if let Some(summary) = &contribution.class_logits {
            update::check_summary(summary).map_err(|error| error.kind())?;
        }
        let Some(plan) = &task.knowledge else { return Ok(()) };
        let counts = contribution.knowledge.as_ref().map(|knowledge| knowledge.counts.as_slice());
        let summary = contribution.class_logits.as_ref();
        knowledge::check_claims(plan, contribution.num_examples, counts, summary)
    }

    /// What an offer asked for, while it is open or remembered.
    fn task(&self, asked: &Digest) -> Option<Task> {
        match &self.phase {
            Phase::Open(Open { digest, offer, whole, .. }) if digest == asked => {
                Some(Task::new(offer, *whole))
            }
            Phase::Idle | Phase::Open(_) | Phase::Closing(Closing { .. }) => {
                self.recent.iter().find(|r| r.offer == *asked).map(|r| r.task.clone())
            }
        }
    }

    /// What already counts for this sender and offer.
    fn counted(&self, sender: &NodeId, offer: &Digest) -> Option<Counted> {
        if let Phase::Open(open) = &self.phase
            && open.digest == *offer
        {
            let update = open.accepted.get(sender)?.update;
            return Some(Counted { update, late: false });
        }
        self.recent.iter().find(|r| r.offer == *offer)?.counted.get(sender).copied()
    }

    fn refuse(&self, message: &Verified, reason: &'static str, out: &mut Vec<Effect>) {
        let (sender, body) = (message.sender(), message.body_digest());
        out.push(Effect::Count(reason));
        out.push(Effect::Record(Event::Refusal {
            message: body,
            reason: Word::new(reason),
            sender: Some(sender.clone()),
        }));
        let verdict = Verdict::Refused(reason.to_owned());
        out.push(self.receipt(sender, message.update_id(), verdict));
    }

    fn receipt(&self, to: &NodeId, update: crate::ids::UpdateId, verdict: Verdict) -> Effect {
        let body = Body::Receipt(Receipt { update, verdict });
        self.send(super::To::Child(to.clone()), body, super::Delivery::Volatile)
    }
}

/// The one blob that a contribution has: a delta, or knowledge.
pub(super) fn blob_of(contribution: &Contribution) -> Option<&Blob> {
    let knowledge = contribution.knowledge.as_ref().map(|knowledge| &knowledge.set);
    contribution.delta.as_ref().or(knowledge)
}

fn reference_of(task: &Task) -> Option<Digest> {
    Some(task.knowledge.as_ref()?.reference.as_ref()?.digest)
}
