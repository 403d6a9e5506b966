//! Timing: ours and the reference in turns, in one run, medians of both.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Enough to show that everything works; the figures mean nothing.
    Quick,
    /// For figures.
    Full,
}

impl Effort {
    /// `full`, or about a hundredth of it.
    pub fn count(self, full: usize) -> usize {
        match self {
            Self::Quick => full.div_ceil(100),
            Self::Full => full,
        }
    }

    /// Turns of which the median is taken.
    pub fn turns(self) -> usize {
        match self {
            Self::Quick => 1,
            Self::Full => 5,
        }
    }
}

/// One figure beside its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub name: String,
    pub ours: f64,
    pub reference: f64,
    /// `ours / reference`.
    pub ratio: f64,
    pub unit: &'static str,
    /// What the reference is, and the target if there is one.
    pub remark: String,
}

impl Row {
    pub fn new(
        name: impl Into<String>,
        (ours, reference): (f64, f64),
        unit: &'static str,
        remark: impl Into<String>,
    ) -> Self {
        let (name, remark) = (name.into(), remark.into());
        Self { name, ours, reference, ratio: ours / reference, unit, remark }
    }
}

/// Medians of both, measured in turns; who goes first changes from turn to turn.
pub fn in_turns(
    effort: Effort,
    mut ours: impl FnMut() -> f64,
    mut reference: impl FnMut() -> f64,
) -> (f64, f64) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for turn in 0..effort.turns() {
        if turn % 2 == 0 {
            a.push(ours());
            b.push(reference());
        } else {
            b.push(reference());
            a.push(ours());
        }
    }
    (median(&mut a), median(&mut b))
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How long `work` takes.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

/// Microseconds of one of `count` repetitions.
pub fn micros_each(count: usize, mut work: impl FnMut(usize)) -> f64 {
    time(|| (0..count).for_each(&mut work)).as_secs_f64() * 1e6 / count as f64
}
