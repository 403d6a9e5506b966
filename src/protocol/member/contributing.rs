//! What becomes of work: through the gate, sealed once, sent until its receipt.

use std::sync::Arc;

use super::{Course, Last, Member, Offered, Own, Sent};
use crate::ids::{Digest, NodeId};
use crate::ledger::{Event, Word};
use crate::protocol::effect::{Delivery, Effect, Work};
use crate::protocol::round::put;
use crate::protocol::update::check_summary;
use crate::trust::update_id;
use crate::wire::{Blob, Body, Contribution, Knowledge, Receipt, Verdict, encode};

impl Member {
    pub(super) fn worked(
        &mut self,
        offer: Digest,
        work: Result<Work, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        let Some(offered) = self.active.take_if(|active| active.digest == offer) else { return };
        put(Self::ACTIVE, &self.active, out);
        let gated = work.and_then(|work| sound(&work).map(|()| work)).and_then(|work| {
            let gate = self.gated(&work);
            if let Err(rule) = gate {
                out.push(Effect::Count(rule));
                out.push(Effect::Record(Event::PrivacyRefusal {
                    message: Word::new("contribution"),
                    reason: Word::new(rule),
                    round: Some(offered.offer.round),
                }));
            }
            gate.map(|()| work)
        });
        match gated {
            Ok(work) => self.contribute(&offered, work, out),
            Err(reason) => {
                let (round, digest) = (offered.offer.round, offered.digest);
                let course = Course::GaveUp(reason.to_owned());
                self.note(&offered, Last { round, digest, course }, out);
                out.push(Effect::Record(self.decline(round, reason)));
                out.push(self.answer(&offered, false, reason));
            }
        }
        self.begin_next_if_there(out);
    }

    fn gated(&self, work: &Work) -> Result<(), &'static str> {
        self.config.gate.allows_update(work.steps, work.num_examples)?;
        let counts = work.class_logits.as_ref().map_or(&[] as &[u64], |summary| &summary.counts);
        self.config.gate.allows_cells(counts)?;
        let counts = work.knowledge.as_ref().map_or(&[] as &[u64], |known| &known.counts);
        self.config.gate.allows_cells(counts)
    }

    fn contribute(&mut self, offered: &Offered, work: Work, out: &mut Vec<Effect>) {
        let summary = work.class_logits.as_ref().and_then(|summary| encode(summary).ok());
        let known = work.knowledge.as_ref().map(|known| &known.bytes);
        let bytes = [work.update.as_ref(), summary.as_ref(), known].into_iter().flatten();
        let bytes = bytes.map(|bytes| bytes.len() as u64).sum();
        let delta = work.update.map(|bytes| {
            let blob = Blob::of(&bytes, self.config.chunk_bytes);
            out.push(Effect::SaveBlob(bytes));
            blob
        });
        let knowledge = work.knowledge.map(|known| {
            let set = Blob::of(&known.bytes, self.config.chunk_bytes);
            out.push(Effect::SaveBlob(known.bytes));
            Knowledge { set, counts: known.counts }
        });
        let is_knowledge = knowledge.is_some();
        let blob = delta.as_ref().or(knowledge.as_ref().map(|knowledge| &knowledge.set));
        let named = blob.map(|blob| (blob.sha256(), self.config.chunk_bytes));
        self.residual = work.residual.map(|bytes| {
            let digest = Digest::of(&bytes);
            out.push(Effect::SaveBlob(bytes));
            digest
        });
        put(Self::RESIDUAL, &self.residual, out);
        if let Some(bytes) = work.own {
            self.own = Some(Own { base: self.config.base, adapter: Digest::of(&bytes) });
            out.push(Effect::SaveBlob(bytes));
            put(Self::OWN, &self.own, out);
            self.apply(out);
        }
        let body = Body::Contribution(Arc::new(Contribution {
            offer: offered.digest,
            version: offered.offer.version,
            num_examples: work.num_examples,
            num_devices: work.num_devices,
            steps: work.steps,
            loss_first: work.loss_first,
            loss_last: work.loss_last,
            risk: work.risk,
            stacked: self.config.relay,
            delta,
            class_logits: work.class_logits,
            knowledge,
        }));
        let digest = match body.to_bytes() {
            Ok(bytes) => Digest::of(&bytes),
            Err(e) => {
                return out.push(Effect::Fatal(format!("a contribution can't be encoded: {e}")));
            }
        };
        let round = offered.offer.round;
        let update = update_id(&self.config.federation, round, &self.config.me, &digest);
        out.push(Effect::Record(Event::Contribute { body: digest, bytes, round, update }));
        let second = offered.second.clone();
        let sent = Sent { round, delta: named, knowledge: is_knowledge, second };
        let key = sent.key(update);
        self.sent.insert(update, sent);
        put(Self::SENT, &self.sent, out);
        let to = self.gives(offered, out);
        out.push(Effect::Send {
            to,
            body,
            round,
            epoch: offered.epoch,
            delivery: Delivery::UntilSettled(key),
        });
    }

    pub(super) fn receipt(&mut self, from: &NodeId, receipt: &Receipt, out: &mut Vec<Effect>) {
        let waits = self.sent.get(&receipt.update);
        let second = self.is_second(from).then_some(from);
        if waits.is_none_or(|sent| sent.second.as_ref() != second) {
            return out.push(Effect::Count("receipt_of_nothing"));
        }
        let Some(sent) = self.sent.remove(&receipt.update) else { return };
        put(Self::SENT, &self.sent, out);
        out.push(Effect::Settle(sent.key(receipt.update)));
        let verdict = match &receipt.verdict {
            Verdict::Accepted => "accepted",
            Verdict::Late => "late",
            Verdict::Refused(_) => "refused",
        };
        out.push(Effect::Record(Event::ReceiptGot {
            from: from.clone(),
            round: sent.round,
            update: receipt.update,
            verdict: Word::new(verdict),
        }));
    }

    /// A summary that waited too long for its receipt is dropped; an update never is.
    pub(super) fn give_up(&mut self, key: &str, out: &mut Vec<Effect>) {
        let waiting = self.sent.iter().find(|(update, sent)| sent.key(**update) == key);
        let Some((update, sent)) = waiting.map(|(update, sent)| (*update, sent.clone())) else {
            return;
        };
        if sent.is_update() {
            return out.push(Effect::Count("updates_are_never_dropped"));
        }
        self.sent.remove(&update);
        put(Self::SENT, &self.sent, out);
        out.push(Effect::Settle(key.to_owned()));
        out.push(Effect::Count("outbox_overflow"));
        out.push(Effect::Record(self.decline(sent.round, "outbox_overflow")));
    }
}

/// Whether the numbers of a work can be sent at all: a training run may have diverged.
fn sound(work: &Work) -> Result<(), &'static str> {
    if !(work.loss_first.is_finite() && work.loss_last.is_finite()) {
        return Err("not_finite");
    }
    let summary = work.class_logits.as_ref();
    summary.map_or(Ok(()), check_summary).map_err(|error| error.kind())
}
