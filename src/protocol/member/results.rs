//! Results, and the version that a member has.

use std::sync::Arc;

use super::{Announced, Current, Member};
use crate::ids::{Digest, Side, Version};
use crate::ledger::{Event, Word};
use crate::protocol::effect::Effect;
use crate::protocol::guard::{self, Guard};
use crate::protocol::round::put;
use crate::protocol::sense;
use crate::wire::{Blob, Result as RoundResult};

impl Member {
    pub(super) fn result(&mut self, news: Announced, out: &mut Vec<Effect>) {
        let version = news.result.version;
        if self.current.is_some()
            && version <= self.version()
            && (guard::stands(Guard::Versions) || version == self.version())
        {
            if version < self.version() {
                out.push(Effect::Count("older_version"));
            }
            return;
        }
        if self.result.as_ref().is_some_and(|waiting| waiting.result.version > version) {
            return;
        }
        if let Err(reason) = sense::check_result(&news.result) {
            return self.refuse_result(&news, reason, out);
        }
        if news.result.adapter.is_empty() && self.config.knows.is_none() {
            return self.refuse_result(&news, "no_rounds_of_knowledge", out);
        }
        match brought(&news.result).cloned() {
            None => self.adopt(&news.result, out),
            Some(Blob::Inline(bytes)) => match self.can_use(&news.result, &bytes) {
                Ok(()) => {
                    out.push(Effect::SaveBlob(bytes));
                    self.adopt(&news.result, out);
                }
                Err(reason) => self.refuse_result(&news, reason, out),
            },
            Some(Blob::Manifest(manifest)) => {
                let before = self.result.replace(news);
                self.forget(before.as_ref().and_then(|before| brought(&before.result)), out);
                let from = self.owner.clone();
                out.push(Effect::Fetch { from, side: Side::Up, manifest });
            }
        }
    }

    /// What isn't an adapter of our model is never served nor passed on.
    pub(super) fn refuse_result(
        &mut self,
        news: &Announced,
        reason: &'static str,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Count(reason));
        if self.refused.replace(news.body) != Some(news.body) {
            out.push(Effect::Record(Event::Refusal {
                message: news.body,
                reason: Word::new(reason),
                sender: Some(self.owner.clone()),
            }));
        }
    }

    /// Whether what a result brings can be used here; knowledge is checked by whoever learns from it.
    pub(super) fn can_use(&self, result: &RoundResult, bytes: &[u8]) -> Result<(), &'static str> {
        if result.adapter.is_empty() {
            return sense::check_packed(bytes);
        }
        sense::check_adapter(bytes, &self.config.layout)
    }

    pub(super) fn adopt(&mut self, result: &Arc<RoundResult>, out: &mut Vec<Effect>) {
        let adapter = result.adapter.sha256();
        out.push(Effect::Record(Event::ResultApplied {
            result: brought(result).map_or(adapter, Blob::sha256),
            round: self.round(),
            version: result.version,
        }));
        if result.adapter.is_empty() {
            self.take_knowledge(result.version, out);
        } else {
            self.take(result.version, adapter, out);
        }
        if self.config.relay {
            out.push(Effect::PassOn(result.clone()));
        }
    }

    /// The version is ours now; equal versions with the same adapter change nothing.
    pub(super) fn take(&mut self, version: Version, adapter: Digest, out: &mut Vec<Effect>) {
        self.set_current(Current { version, adapter, knowledge: false }, out);
    }

    /// A version of what is known is ours now: nothing else changes, since each node has its own model.
    pub(super) fn take_knowledge(&mut self, version: Version, out: &mut Vec<Effect>) {
        let Some(knows) = &self.config.knows else { return };
        let adapter = knows.untrained;
        self.set_current(Current { version, adapter, knowledge: true }, out);
    }

    fn set_current(&mut self, current: Current, out: &mut Vec<Effect>) {
        let version = current.version;
        let goes_back = version < self.version() && guard::stands(Guard::Versions);
        if self.current.as_ref() == Some(&current) || goes_back {
            return;
        }
        self.current = Some(current);
        put(Self::CURRENT, &self.current, out);
        self.apply(out);
    }
}

/// What a result brings: an adapter, or what is known now.
pub(super) fn brought(result: &RoundResult) -> Option<&Blob> {
    if result.adapter.is_empty() {
        result.knowledge.as_ref().map(|knowledge| &knowledge.set)
    } else {
        Some(&result.adapter)
    }
}
