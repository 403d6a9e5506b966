//! Labels that come late: the inferencer's book of answers, and what they come to.
//!
//! Everything here is volatile and stays in the site's zone, as windows do.

use super::figures::Figures;
use super::inferencer::Source;
use crate::ids::{Name, NodeId};
use crate::scada::answer_book::{AnswerBook, BookLimits, Given, GivenTo, Labelled};
use crate::scada::command::CommandPolicy;
use crate::scada::feedback::{self, FeedbackError};
use crate::scada::telegram::{Inference, Reply};
use crate::time::Wall;

/// See the module.
#[derive(Debug)]
pub(super) struct Labels {
    me: NodeId,
    model: Name,
    names: Vec<String>,
    policy: CommandPolicy,
    book: AnswerBook,
}

/// A label that was taken: what it did, and the class that it names.
pub(super) struct Taken {
    pub(super) labelled: Labelled,
    pub(super) class: usize,
    pub(super) reply: Reply,
}

impl Labels {
    pub(super) fn new(
        me: NodeId,
        model: Name,
        names: Vec<String>,
        policy: CommandPolicy,
        limits: BookLimits,
    ) -> Self {
        Self { me, model, names, policy, book: AnswerBook::new(limits) }
    }

    /// Writes down an answer that may get a label later, where labels are taken. Gives its number, if it is this node's own.
    pub(super) fn gave(&mut self, to: &Source, answer: &Inference, now: Wall) -> Option<u64> {
        if !self.policy.allows_feedback() {
            return None;
        }
        let name = answer.label.as_deref()?;
        let class = self.names.iter().position(|known| known == name)?;
        let to = match to {
            Source::Request(id) => GivenTo::Request(id.clone()?),
            Source::Tag { source, began, .. } => GivenTo::Tag { source: *source, began: *began },
        };
        let is_own = answer.cascade.as_ref().is_none_or(|from| from.node == self.me);
        let version = is_own.then_some(answer.model_version);
        let confidence = answer.confidence.unwrap_or_default();
        let number = self.book.give(Given { to, version, class, confidence, at: now });
        is_own.then_some(number)
    }

    /// Takes a label.
    pub(super) fn take(
        &mut self,
        model: &Name,
        payload: &[u8],
        retained: bool,
        now: Wall,
        figures: &Figures,
    ) -> Result<Taken, FeedbackError> {
        let label = feedback::parse(payload, retained, now, &self.policy)?;
        let id = label.id();
        if *model != self.model {
            return Err(FeedbackError::unknown_model(id, model));
        }
        let class = label.class(&self.names)?;
        let labelled = self.book.label(now, &label.about, class, &self.names);
        let labelled = labelled.map_err(|fault| FeedbackError { id: id.clone(), fault })?;
        let Labelled { labelled: fresh, repeated, contradicted } = &labelled;
        for (kind, times) in
            [("feedback_repeated", *repeated), ("feedback_contradicts", *contradicted)]
        {
            (0..times).for_each(|_| figures.count(kind));
        }
        figures.update(|view| {
            view.labels += fresh.len() as u64;
            view.online.clone_from(self.book.online());
        });
        let reply = feedback::taken(id, fresh.len(), *repeated, *contradicted);
        Ok(Taken { labelled, class, reply })
    }
}
