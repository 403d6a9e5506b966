//! What a member should do in a round, proposed from what was measured of it.
//!
//! ```text
//! whole adapter > split, the latest cut first > logits of reference inputs > mean logits a class > answers only
//! ```
//! Ways are looked at in this order, which is how much a round gets of a member, and the first without an
//! obstacle is taken. Computing and sending each have half of a round's time for themselves: so less of one
//! thing never makes a way possible that more of it didn't. With that, more memory or a quicker processor
//! never gives an earlier cut, and a slower uplink never more bytes.
//!
//! The figures are estimates: of memory and traffic exact to some per cent, of time never compared with a round. A
//! split step also waits for its edge, which isn't in them.
//!
//! Here is no model, no setting and no clock: `cli/plan.rs` measures and reads, and knows the models' sizes.
//!
//! # Source
//! A backward pass costs about twice a forward pass: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.

use super::{ActivationCoding, LearnError};

/// What a part of a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartCost {
    /// Values that it holds.
    pub values: u64,
    /// Values that train in it.
    pub trains: u64,
    /// Floating-point operations of a forward pass of one example.
    pub flops: f64,
    /// Values an example that are kept for the backward pass.
    pub kept: u64,
}

impl PartCost {
    fn and(self, other: &Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            trains: self.trains.saturating_add(other.trains),
            flops: self.flops + other.flops,
            kept: self.kept.saturating_add(other.kept),
        }
    }
}

/// What a model costs, part by part.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCost {
    /// From the input to the first block.
    pub stem: PartCost,
    /// The blocks; the model may be cut behind each but the last.
    pub blocks: Vec<PartCost>,
    /// What is behind the blocks.
    pub head: PartCost,
    /// Tokens an example.
    pub tokens: u64,
    /// Values a token at a cut.
    pub width: u64,
    /// Classes C.
    pub classes: u64,
    /// Bytes of an example in memory.
    pub example_bytes: u64,
    /// Bytes that a process with the model's engine takes before it holds a model.
    pub engine_bytes: u64,
    /// A smaller model that the member may have of its own, in rounds of knowledge.
    pub own: PartCost,
}

/// What a round asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundWork {
    /// Optimiser steps.
    pub steps: u32,
    /// Examples a step.
    pub batch: u32,
    /// Seconds for all of a member's part.
    pub budget_s: f64,
    /// Bits a value of an adapter's delta.
    pub delta_bits: u32,
    /// How activations travel.
    pub coding: ActivationCoding,
    /// Where a model is split, labels stay on the device, and the head with them.
    pub labels_stay: bool,
    /// Reference inputs; 0 where the federation has none.
    pub references: u32,
    /// Fewest steps behind what leaves.
    pub min_steps: u32,
}

/// What is known of a member.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemberFigures {
    /// Floating-point operations a second in a matrix product, > 0.
    pub flops_per_s: f64,
    /// Bytes of memory that are free.
    pub free_bytes: u64,
    /// Bytes a second towards its edge, > 0.
    pub uplink_bytes_per_s: f64,
    /// Examples that it learns from.
    pub examples: u64,
    /// Examples that it has beside them, to measure by.
    pub kept_back: u64,
    /// It has an edge in its own site.
    pub has_edge: bool,
    /// Fewest examples behind an update.
    pub min_examples: u64,
    /// Fewest examples behind a class's mean.
    pub min_cell: u64,
    /// Activations may go to its edge: much of a window can be read back from them.
    pub shows_activations: bool,
}

/// What a member does in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Trains the whole model's adapter.
    Whole,
    /// Trains the front, its edge the rest.
    Split {
        /// Blocks in the front.
        cut: u32,
    },
    /// Has a model of its own, and says what that says of the reference inputs.
    ReferenceLogits,
    /// Has a model of its own, and says what that says a class.
    ClassLogits,
    /// Contributes nothing, and answers.
    Answers,
}

/// Who answers a member's windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The member itself: with the whole model, or with its own.
    Itself,
    /// The front on the member, the back at its edge.
    Halves {
        /// Blocks in the front.
        cut: u32,
    },
    /// Its edge, which reads its tags.
    Edge,
    /// Nobody: it hasn't the memory, and no edge.
    Nobody,
}

/// What a way costs a member in a round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes of memory at the peak.
    pub memory_bytes: u64,
    /// Seconds of computing.
    pub compute_s: f64,
    /// Bytes that it sends.
    pub sent_bytes: u64,
}

/// Why a way isn't open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Obstacle {
    /// Fewer bytes are free than it takes.
    Memory {
        /// That it takes.
        needs: u64,
        /// That are free.
        free: u64,
    },
    /// It takes more seconds of computing than a round has for that.
    Compute {
        /// That it takes.
        needs_s: f64,
        /// That there are.
        has_s: f64,
    },
    /// It sends more bytes than go up in a round's time for that.
    Uplink {
        /// That it sends.
        needs: u64,
        /// That go up.
        has: u64,
    },
    /// Fewer examples than the profile wants behind an update.
    Examples {
        /// That are wanted.
        needs: u64,
        /// That there are.
        has: u64,
    },
    /// Fewer examples a class than the profile wants behind a mean, were they spread evenly.
    ClassExamples {
        /// That are wanted.
        needs: u64,
        /// That there are.
        has: u64,
    },
    /// The plan has fewer steps than the profile wants.
    Steps {
        /// That are wanted.
        needs: u32,
        /// That there are.
        has: u32,
    },
    /// The profile keeps activations on the device.
    Activations,
    /// No edge in its site.
    NoEdge,
    /// The federation has no reference inputs.
    NoReferences,
}

/// A way that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Considered {
    /// The way.
    pub way: Way,
    /// What it would cost.
    pub cost: Cost,
    /// What speaks against it; the first one without is taken.
    pub obstacles: Vec<Obstacle>,
}

/// What a member should do.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// In a round.
    pub way: Way,
    /// In between.
    pub answered_by: AnsweredBy,
    /// What it costs; of [`Way::Answers`] that of answering.
    pub cost: Cost,
    /// All ways in their order, also those behind the one that is taken.
    pub considered: Vec<Considered>,
}

/// Parts of a round's time for computing, and for sending.
pub const SHARE: f64 = 0.5;

/// Proposes what a member should do.
///
/// # Errors
/// [`LearnError::OutOfRange`] names the figure that isn't finite, positive or within reason.
pub fn propose(
    model: &ModelCost,
    work: &RoundWork,
    member: &MemberFigures,
) -> Result<Proposal, LearnError> {
    check(model, work, member)?;
    let estimate = Estimate { model, work, member };
    let mut considered = vec![estimate.training(Way::Whole, model.whole())];
    for cut in (1..model.num_blocks()).rev() {
        let front = model.front(cut);
        let part = if work.labels_stay { front.and(&model.head) } else { front };
        considered.push(estimate.training(Way::Split { cut }, part));
    }
    considered
        .extend([estimate.knowledge(Way::ReferenceLogits), estimate.knowledge(Way::ClassLogits)]);
    let open = considered.iter().find(|considered| considered.obstacles.is_empty());
    let (way, cost) = match open {
        Some(open) => (open.way, open.cost),
        None => (Way::Answers, Cost::default()),
    };
    let (answered_by, answering) = estimate.answers(way);
    let cost = if way == Way::Answers { answering } else { cost };
    Ok(Proposal { way, answered_by, cost, considered })
}

/// Gives all split members of one edge the same cut, the earliest that one of them has: an edge offers one front
/// to all. Gives that cut.
pub fn align<'a>(members: impl IntoIterator<Item = &'a mut Proposal>) -> Option<u32> {
    let mut split: Vec<&mut Proposal> =
        members.into_iter().filter(|proposal| matches!(proposal.way, Way::Split { .. })).collect();
    let cut_of = |way: Way| if let Way::Split { cut } = way { Some(cut) } else { None };
    let least = split.iter().filter_map(|proposal| cut_of(proposal.way)).min()?;
    for proposal in &mut split {
        let way = Way::Split { cut: least };
        // An earlier cut takes less of everything but the bytes on the way, and of those as many.
        if let Some(there) = proposal.considered.iter().find(|there| there.way == way) {
            (proposal.way, proposal.cost) = (way, there.cost);
            if let AnsweredBy::Halves { cut } = &mut proposal.answered_by {
                *cut = least;
            }
        }
    }
    Some(least)
}

impl ModelCost {
    fn num_blocks(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    fn front(&self, cut: u32) -> PartCost {
        let blocks = self.blocks.iter().take(usize::try_from(cut).unwrap_or(usize::MAX));
        blocks.fold(self.stem, PartCost::and)
    }

    fn whole(&self) -> PartCost {
        self.front(self.num_blocks()).and(&self.head)
    }
}

/// About how many bytes training a part takes, beside its engine and examples: the weights beside the merged
/// ones, what trains with its gradient and two moments, and what `batch` examples keep for the backward pass.
pub fn training_bytes(part: &PartCost, batch: u32) -> u64 {
    let values = part.values.saturating_mul(2).saturating_add(part.trains.saturating_mul(4));
    4_u64.saturating_mul(values.saturating_add(part.kept.saturating_mul(batch.into())))
}

struct Estimate<'a> {
    model: &'a ModelCost,
    work: &'a RoundWork,
    member: &'a MemberFigures,
}

impl Estimate<'_> {
    fn training(&self, way: Way, part: PartCost) -> Considered {
        let Self { model, work, member } = *self;
        let examples = f64::from(work.steps) * f64::from(work.batch);
        let delta = bits(part.trains, work.delta_bits);
        let sent = match way {
            Way::Split { .. } => {
                let token = match work.coding {
                    ActivationCoding::F32 => model.width.saturating_mul(4),
                    ActivationCoding::Int8 => model.width.saturating_add(2),
                };
                // With the head here, the gradient at the back's output goes up too: a token's worth.
                let tokens = model.tokens.saturating_add(work.labels_stay.into());
                let step = u64::from(work.batch).saturating_mul(tokens).saturating_mul(token);
                delta.saturating_add(step.saturating_mul(work.steps.into()))
            }
            _ => delta,
        };
        // What answers meanwhile has merged weights of its own; a front shares the base with what trains.
        let copies = if way == Way::Whole { 2 } else { 1 };
        let answering = part.values.saturating_mul(4 * copies);
        let memory = training_bytes(&part, work.batch)
            .saturating_add(answering)
            .saturating_add(model.engine_bytes);
        let cost = self.cost(memory, FORWARD_AND_BACK * part.flops * examples, sent);
        let mut obstacles = self.limits(&cost);
        if let Way::Split { .. } = way {
            if !member.has_edge {
                obstacles.push(Obstacle::NoEdge);
            }
            if !member.shows_activations {
                obstacles.push(Obstacle::Activations);
            }
        }
        obstacles.extend(self.gate());
        Considered { way, cost, obstacles }
    }

    /// A model of its own that learns as the whole one would, and what it says.
    fn knowledge(&self, way: Way) -> Considered {
        let Self { model, work, member } = *self;
        let classes = model.classes;
        let (says, sent) = match way {
            Way::ReferenceLogits => {
                let references = u64::from(work.references);
                (references, references.saturating_mul(classes).saturating_mul(4))
            }
            // A mean and a count a class.
            _ => (
                member.examples,
                classes.saturating_mul(classes.saturating_mul(4).saturating_add(8)),
            ),
        };
        let examples = f64::from(work.steps) * f64::from(work.batch);
        let flops = model.own.flops * (FORWARD_AND_BACK * examples + whole(says));
        let cost = self.cost(training_bytes(&model.own, work.batch), flops, sent);
        let mut obstacles = self.limits(&cost);
        if way == Way::ReferenceLogits && work.references == 0 {
            obstacles.push(Obstacle::NoReferences);
        }
        if way == Way::ClassLogits {
            let (needs, has) = (member.min_cell, member.examples / classes.max(1));
            if has < needs {
                obstacles.push(Obstacle::ClassExamples { needs, has });
            }
        }
        obstacles.extend(self.gate());
        Considered { way, cost, obstacles }
    }

    /// Who answers between rounds, and what that costs the member.
    fn answers(&self, way: Way) -> (AnsweredBy, Cost) {
        let Self { model, member, .. } = *self;
        let answering = |part: PartCost| {
            let values = part.values.saturating_mul(2).saturating_add(part.trains);
            let memory = 4_u64.saturating_mul(values.saturating_add(part.kept));
            // No examples are kept for answering.
            Cost {
                memory_bytes: memory.saturating_add(model.engine_bytes),
                compute_s: part.flops / member.flops_per_s,
                sent_bytes: 0,
            }
        };
        let whole = answering(model.whole());
        match way {
            Way::Whole => return (AnsweredBy::Itself, whole),
            // Halves don't answer where the head is in front.
            Way::Split { .. } if self.work.labels_stay => {
                return (AnsweredBy::Edge, Cost::default());
            }
            Way::Split { cut } => return (AnsweredBy::Halves { cut }, answering(model.front(cut))),
            Way::ReferenceLogits | Way::ClassLogits => {
                return (AnsweredBy::Itself, Cost::default());
            }
            Way::Answers => {}
        }
        if whole.memory_bytes <= member.free_bytes {
            return (AnsweredBy::Itself, whole);
        }
        let front = answering(model.front(1));
        let fits = front.memory_bytes <= member.free_bytes && model.num_blocks() > 1;
        let fits = fits && !self.work.labels_stay;
        match (member.has_edge, fits && member.shows_activations) {
            (true, true) => (AnsweredBy::Halves { cut: 1 }, front),
            (true, false) => (AnsweredBy::Edge, Cost::default()),
            (false, _) => (AnsweredBy::Nobody, Cost::default()),
        }
    }

    fn cost(&self, memory: u64, flops: f64, sent_bytes: u64) -> Cost {
        let examples = self.member.examples.saturating_add(self.member.kept_back);
        let data = examples.saturating_mul(self.model.example_bytes);
        let compute_s = flops / self.member.flops_per_s;
        Cost { memory_bytes: memory.saturating_add(data), compute_s, sent_bytes }
    }

    fn limits(&self, cost: &Cost) -> Vec<Obstacle> {
        let Self { work, member, .. } = *self;
        let mut obstacles = Vec::new();
        let (needs, free) = (cost.memory_bytes, member.free_bytes);
        if needs > free {
            obstacles.push(Obstacle::Memory { needs, free });
        }
        let (needs_s, has_s) = (cost.compute_s, SHARE * work.budget_s);
        if needs_s > has_s {
            obstacles.push(Obstacle::Compute { needs_s, has_s });
        }
        let (needs, has) = (cost.sent_bytes, floor(member.uplink_bytes_per_s * has_s));
        if needs > has {
            obstacles.push(Obstacle::Uplink { needs, has });
        }
        obstacles
    }

    /// What the privacy gate would keep back.
    fn gate(&self) -> Vec<Obstacle> {
        let Self { work, member, .. } = *self;
        let mut obstacles = Vec::new();
        let (needs, has) = (member.min_examples, member.examples);
        if has < needs {
            obstacles.push(Obstacle::Examples { needs, has });
        }
        if work.steps < work.min_steps {
            obstacles.push(Obstacle::Steps { needs: work.min_steps, has: work.steps });
        }
        obstacles
    }
}

fn check(model: &ModelCost, work: &RoundWork, member: &MemberFigures) -> Result<(), LearnError> {
    let bad = |what, expected: &str, actual: &dyn std::fmt::Display| {
        let (expected, actual) = (expected.to_owned(), actual.to_string());
        Err(LearnError::OutOfRange { what, expected, actual })
    };
    let positive = |x: f64| x.is_finite() && x > 0.0;
    for (what, figure) in [
        ("floating-point operations a second", member.flops_per_s),
        ("uplink in bytes a second", member.uplink_bytes_per_s),
        ("seconds of a round", work.budget_s),
    ] {
        if !positive(figure) {
            return bad(what, "a finite number above 0", &figure);
        }
    }
    for (what, figure) in [("free memory", member.free_bytes), ("classes", model.classes)] {
        if figure == 0 {
            return bad(what, "above 0", &figure);
        }
    }
    for (what, figure) in [
        ("steps of a round", work.steps),
        ("examples a step", work.batch),
        ("bits a value", work.delta_bits),
    ] {
        if figure == 0 {
            return bad(what, "above 0", &figure);
        }
    }
    if model.blocks.is_empty() || model.tokens == 0 || model.width == 0 {
        return bad("model", "at least one block, token and value a token", &"none");
    }
    let parts = [&model.stem, &model.head, &model.own].into_iter().chain(&model.blocks);
    match parts.map(|part| part.flops).find(|flops| !(flops.is_finite() && *flops >= 0.0)) {
        Some(flops) => bad("operations of a part of the model", "finite, at least 0", &flops),
        None => Ok(()),
    }
}

fn bits(values: u64, bits: u32) -> u64 {
    values.saturating_mul(bits.into()).div_ceil(8)
}

#[expect(clippy::cast_precision_loss, reason = "counts of examples are far below 2^53")]
fn whole(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of bytes, rounded down; `as` saturates"
)]
fn floor(bytes: f64) -> u64 {
    bytes as u64
}

/// A forward pass, and a backward pass of twice its cost.
const FORWARD_AND_BACK: f64 = 3.0;

#[cfg(test)]
mod tests;
