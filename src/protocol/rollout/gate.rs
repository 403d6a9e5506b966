//! Whether what was seen of a version is good enough to serve it further on: rules that are fixed before
//! anything is seen.
//!
//! A gate is looked at each time that the answers have doubled, from [`FIRST_LOOK`] on, and the k-th look spends
//! `delta / 2^k` of the probability to be wrong, shared by its bounds: together they spend no more than `delta`,
//! however often one looks. Looking after each answer with one bound promotes what it shouldn't; a test shows it.

use serde::{Deserialize, Serialize};

use crate::learn::{lower_bound, upper_bound};
pub use crate::wire::Tally;

/// Answers at the first look.
pub const FIRST_LOOK: u64 = 16;
/// Looks at most: 2^40 answers are more than any plant gives.
pub(super) const MAX_LOOKS: u32 = 36;

/// When a stage is passed, and when the rollout is halted. A rule that is left out isn't asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Fewest answers by the new version.
    pub least_answers: u64,
    /// Fewest nodes that they come from.
    pub least_nodes: u64,
    /// Shortest time in the stage, milliseconds.
    pub least_ms: u64,
    /// Longest time: it is halted if it isn't passed by then.
    pub most_ms: u64,
    /// Probability that a stage is passed, or halted, in error by a rule about a rate; for each rule's bound in its share.
    pub delta: f64,
    /// Most of its answers that may be none (errors), as a rate.
    pub max_errors: Option<f64>,
    /// Most of its answers that may come later than `slow_ms`.
    pub max_slow: Option<f64>,
    /// An answer that comes later is slow, milliseconds; 0 where `max_slow` isn't asked for.
    #[serde(default)]
    pub slow_ms: u64,
    /// By how much its rate of wrong answers, as labels tell them, may lie above that of the version before.
    pub max_worse: Option<f64>,
    /// Most of the inputs that both versions answered on which they may differ.
    pub max_disagreement: Option<f64>,
    /// Most that the inputs of any node may be off from those that it saw first by the version that it serves, as a distance of
    /// distributions (0 to 1). Not passed as long as no node has looked.
    pub max_drift: Option<f64>,
    /// Most that its adapter may tell of those whose data made it, as the registry has it.
    pub max_risk: Option<f64>,
    /// What the stage's nodes are expected to see within `most_ms`.
    #[serde(default)]
    pub expected: Expected,
}

/// What a stage will see, so that rules that can't be met are told before it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expected {
    /// Answers.
    pub answers: u64,
    /// Of those, answers whose label becomes known.
    pub judged: u64,
    /// Answers of the version before whose label becomes known.
    pub base_judged: u64,
    /// Inputs that both versions answer.
    pub compared: u64,
}

/// A rule of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// [`Gate::least_answers`].
    Answers,
    /// [`Gate::least_nodes`].
    Nodes,
    /// [`Gate::max_errors`].
    Errors,
    /// [`Gate::max_slow`].
    Slow,
    /// [`Gate::max_worse`].
    Worse,
    /// [`Gate::max_disagreement`].
    Disagreement,
    /// [`Gate::max_drift`].
    Drift,
    /// [`Gate::max_risk`].
    Risk,
}

impl Rule {
    /// A short word for the ledger and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Nodes => "nodes",
            Self::Errors => "errors",
            Self::Slow => "slow",
            Self::Worse => "worse",
            Self::Disagreement => "disagreement",
            Self::Drift => "drift",
            Self::Risk => "risk",
        }
    }
}

/// What a look came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Rules that are broken, as surely as the gate asks for.
    pub broken: Vec<Rule>,
    /// Rules of which too little is known yet.
    pub open: Vec<Rule>,
}

impl Judgement {
    /// Nothing is broken or open.
    pub fn passed(&self) -> bool {
        self.broken.is_empty() && self.open.is_empty()
    }
}

impl Tally {
    /// Largest count: all of them stay exact as f64, and sums of 2^10 nodes too.
    pub const MAX_COUNT: u64 = 1 << 42;

    /// Whether one of these can follow from what a node sees.
    pub fn makes_sense(&self) -> bool {
        let parts = [
            (self.errors, self.answers),
            (self.slow, self.answers),
            (self.judged, self.answers),
            (self.wrong, self.judged),
            (self.base_wrong, self.base_judged),
            (self.compared, self.answers),
            (self.disagreed, self.compared),
        ];
        let counts = [self.answers, self.base_judged];
        parts.iter().all(|(part, all)| part <= all)
            && counts.iter().all(|count| *count <= Self::MAX_COUNT)
            && (0.0..=1.0).contains(&self.drift)
    }

    /// The later of two of one life: whichever order they come in, however often.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self {
            answers: self.answers.max(other.answers),
            errors: self.errors.max(other.errors),
            slow: self.slow.max(other.slow),
            judged: self.judged.max(other.judged),
            wrong: self.wrong.max(other.wrong),
            base_judged: self.base_judged.max(other.base_judged),
            base_wrong: self.base_wrong.max(other.base_wrong),
            compared: self.compared.max(other.compared),
            disagreed: self.disagreed.max(other.disagreed),
            drift: self.drift.max(other.drift),
        }
    }

    /// The same with no count above `bound`: a part stays at most its whole.
    #[must_use]
    pub fn bounded(self, bound: u64) -> Self {
        let most = |count: u64| count.min(bound);
        Self {
            answers: most(self.answers),
            errors: most(self.errors),
            slow: most(self.slow),
            judged: most(self.judged),
            wrong: most(self.wrong),
            base_judged: most(self.base_judged),
            base_wrong: most(self.base_wrong),
            compared: most(self.compared),
            disagreed: most(self.disagreed),
            drift: self.drift,
        }
    }

    /// What several nodes have seen.
    pub fn sum<'a>(tallies: impl IntoIterator<Item = &'a Self>) -> Self {
        tallies.into_iter().fold(Self::default(), |sum, one| Self {
            answers: sum.answers.saturating_add(one.answers),
            errors: sum.errors.saturating_add(one.errors),
            slow: sum.slow.saturating_add(one.slow),
            judged: sum.judged.saturating_add(one.judged),
            wrong: sum.wrong.saturating_add(one.wrong),
            base_judged: sum.base_judged.saturating_add(one.base_judged),
            base_wrong: sum.base_wrong.saturating_add(one.base_wrong),
            compared: sum.compared.saturating_add(one.compared),
            disagreed: sum.disagreed.saturating_add(one.disagreed),
            drift: sum.drift.max(one.drift),
        })
    }
}

/// Answers at which the look of this number (from 0) is taken.
pub fn look_at(look: u32) -> u64 {
    FIRST_LOOK << look.min(MAX_LOOKS)
}

impl Gate {
    /// Whether its numbers are ones at all; what is wrong with them.
    ///
    /// # Errors
    /// The field, for a person.
    pub fn check(&self) -> Result<(), &'static str> {
        let rates = [self.max_errors, self.max_slow, self.max_worse, self.max_disagreement];
        if !rates.iter().flatten().all(|rate| *rate > 0.0 && *rate < 1.0) {
            return Err("rates lie between 0 and 1, and no bound on a rate ever reaches 0");
        }
        if !(self.delta > 0.0 && self.delta <= 0.5) {
            return Err("delta lies between 0 and 0.5");
        }
        let shares = [self.max_drift, self.max_risk];
        if !shares.iter().flatten().all(|most| *most > 0.0 && *most < 1.0) {
            return Err("max_drift and max_risk lie between 0 and 1");
        }
        if rates.iter().flatten().next().is_none() {
            return Err(
                "a gate without a rule on errors, slow, worse or different answers lets everything through",
            );
        }
        if self.least_answers == 0 || self.least_nodes == 0 {
            return Err("least_answers and least_nodes are 1 or more");
        }
        if self.max_slow.is_some() != (self.slow_ms > 0) {
            return Err("max_slow and slow_ms belong together");
        }
        if self.most_ms <= self.least_ms {
            return Err("most_ms lies above least_ms");
        }
        Ok(())
    }

    /// The first rule that can't be passed with what is expected, even if nothing goes wrong.
    pub fn cannot_be_met(&self) -> Option<Rule> {
        let Expected { answers, judged, base_judged, compared } = self.expected;
        let looks = (0..=MAX_LOOKS).take_while(|look| look_at(*look) <= answers);
        let best = |look: u32| {
            let seen = look_at(look);
            // Labels come as evenly as answers.
            let so_far = |all: u64| {
                let part =
                    u128::from(all.min(answers)) * u128::from(seen) / u128::from(answers.max(1));
                u64::try_from(part).unwrap_or(u64::MAX)
            };
            let (judged, base_judged) = (so_far(judged), so_far(base_judged));
            let compared = so_far(compared);
            let perfect = Tally {
                answers: seen,
                judged,
                base_judged,
                compared,
                drift: f64::MIN_POSITIVE,
                ..Tally::default()
            };
            self.judge(&perfect, u64::MAX, 1, look).open
        };
        let mut left = vec![Rule::Answers];
        for look in looks {
            left = best(look);
            if left.is_empty() {
                return None;
            }
        }
        left.into_iter().next()
    }

    /// Judges what all have seen together, at the look of this number (from 0). Where several say what they see, they get half of
    /// the halts in error: [`Gate::broken_by_one`].
    pub fn judge(&self, seen: &Tally, nodes: u64, speakers: u32, look: u32) -> Judgement {
        let mut out = Judgement::default();
        if seen.answers < self.least_answers {
            out.open.push(Rule::Answers);
        }
        if nodes < self.least_nodes {
            out.open.push(Rule::Nodes);
        }
        let share = self.share(look);
        let halting = if speakers > 1 { share / 2.0 } else { share };
        for (rule, most) in self.rates() {
            let broken = is_above(rule, seen, most, halting);
            out.note(rule, broken, !is_below(rule, seen, most, share));
        }
        if let Some(most) = self.max_drift {
            out.note(Rule::Drift, seen.drift > most, seen.drift <= 0.0);
        }
        out
    }

    /// The rule that is broken by what one of several speakers has seen alone, at the look of this number at it: so nobody's
    /// good answers drown what another one sees fail, whenever that is.
    pub fn broken_by_one(&self, seen: &Tally, speakers: u32, look: u32) -> Option<Rule> {
        let share = self.share(look) / 2.0 / f64::from(speakers.max(1));
        let mut rates = self.rates().filter(|_| speakers > 1);
        rates.find(|(rule, most)| is_above(*rule, seen, *most, share)).map(|(rule, _)| rule)
    }

    /// The rules about rates that are asked for, with what they allow.
    fn rates(&self) -> impl Iterator<Item = (Rule, f64)> {
        let all = [
            (Rule::Errors, self.max_errors),
            (Rule::Slow, self.max_slow),
            (Rule::Disagreement, self.max_disagreement),
            (Rule::Worse, self.max_worse),
        ];
        all.into_iter().filter_map(|(rule, most)| Some((rule, most?)))
    }

    /// What each bound may spend at a look.
    fn share(&self, look: u32) -> f64 {
        let singles = [self.max_errors, self.max_slow, self.max_disagreement];
        let bounds = singles.iter().flatten().count() + 2 * usize::from(self.max_worse.is_some());
        let bounds = u32::try_from(bounds.max(1)).map_or(1.0, f64::from);
        self.delta / bounds / 2_f64.powi(i32::try_from(look.min(MAX_LOOKS)).unwrap_or(0) + 1)
    }
}

/// Draws of a rule's rate, and hits among them.
fn rate(rule: Rule, seen: &Tally) -> (u64, u64) {
    match rule {
        Rule::Slow => (seen.slow, seen.answers),
        Rule::Disagreement => (seen.disagreed, seen.compared),
        Rule::Worse => (seen.wrong, seen.judged),
        _ => (seen.errors, seen.answers),
    }
}

/// How often what a rule is about was seen.
pub(super) fn hits(rule: Rule, seen: &Tally) -> u64 {
    rate(rule, seen).0
}

/// Whether a rule's rate lies above what it may be, as surely as this probability of an error says.
fn is_above(rule: Rule, seen: &Tally, most: f64, share: f64) -> bool {
    let (hits, draws) = rate(rule, seen);
    let base = match rule {
        Rule::Worse => upper_bound(seen.base_wrong, seen.base_judged, share),
        _ => 0.0,
    };
    lower_bound(hits, draws, share) > base + most
}

/// Whether it lies below.
fn is_below(rule: Rule, seen: &Tally, most: f64, share: f64) -> bool {
    let (hits, draws) = rate(rule, seen);
    let base = match rule {
        Rule::Worse => lower_bound(seen.base_wrong, seen.base_judged, share),
        _ => 0.0,
    };
    upper_bound(hits, draws, share) <= base + most
}

impl Judgement {
    fn note(&mut self, rule: Rule, broken: bool, open: bool) {
        if broken {
            self.broken.push(rule);
        } else if open {
            self.open.push(rule);
        }
    }
}
