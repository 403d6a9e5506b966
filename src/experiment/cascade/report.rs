//! Figures of tiers that answer together: over the splits of a seed, and over seeds.

use serde::Serialize;

use super::{CascadeOptions, Level, Outcome, Pool, count, violations_allowed};
use crate::experiment::over::{Over, over};

/// A tier over all splits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierFigures {
    /// What it is.
    pub name: String,
    /// Accuracy if it answered everything.
    pub alone: f64,
    /// Share of the questions that it answered, mean.
    pub share: f64,
    /// Rate of wrong ones among its answers, all splits together; none where it gave none.
    pub wrong: Option<f64>,
    /// Bound that it gave, mean.
    pub bound: Option<f64>,
    /// Splits in which more of its sure answers were wrong than `alpha`.
    pub violations: u64,
    /// Splits in which it had a threshold.
    pub sure: u64,
}

/// One way to judge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeFigures {
    /// In a few words.
    pub way: String,
    /// Questions that thresholds are taken from, in each split.
    pub calibrated_on: usize,
    /// Questions that are judged, in each split.
    pub judged: usize,
    /// Number of splits.
    pub splits: usize,
    /// The tiers.
    pub tiers: Vec<TierFigures>,
    /// Share that a tier below the highest answered, mean.
    pub answered_below: f64,
    /// Splits in which more of all sure answers together were wrong than `alpha`.
    pub violations: u64,
    /// Accuracy of the cascade, mean.
    pub accuracy: f64,
    /// Accuracy of the better tier alone.
    pub best_alone: f64,
}

/// One data set with its models, one seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeSubject {
    /// Data and models, in a few words.
    pub data: String,
    /// Of training and splits.
    pub seed: u64,
    /// The ways.
    pub ways: Vec<CascadeFigures>,
}

/// One way to judge one data set, over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Data and models.
    pub data: String,
    /// The way.
    pub way: String,
    /// Share that a tier below the highest answered.
    pub answered_below: Over,
    /// Accuracy of the cascade less that of the better single tier.
    pub less_than_best: Over,
    /// Most violations of a seed: of all sure answers together.
    pub violations: u64,
    /// Splits of a seed.
    pub splits: usize,
}

/// All that is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CascadeReport {
    /// Version of the program.
    pub version: String,
    /// Commit that it was built from.
    pub commit: String,
    /// What ran it.
    pub machine: String,
    /// Judged on training data, to choose settings by.
    pub rehearsal: bool,
    /// Rate of wrong answers that was allowed.
    pub alpha: f64,
    /// Probability of being misled that was allowed.
    pub delta: f64,
    /// Most violations that chance alone gives in all but one of a hundred such series.
    pub violations_allowed: u64,
    /// Over the seeds.
    pub summary: Vec<Summary>,
    /// The data sets, seed by seed.
    pub subjects: Vec<CascadeSubject>,
}

impl CascadeReport {
    /// What came of these subjects.
    pub fn of(subjects: Vec<CascadeSubject>, options: &CascadeOptions, rehearsal: bool) -> Self {
        let CascadeOptions { alpha, delta, splits, .. } = *options;
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
            machine: crate::telemetry::machine(),
            rehearsal,
            alpha,
            delta,
            violations_allowed: violations_allowed(splits, delta),
            summary: summaries(&subjects),
            subjects,
        }
    }
}

/// A line a data set and way, in the order in which they come.
fn summaries(subjects: &[CascadeSubject]) -> Vec<Summary> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for subject in subjects {
        for way in &subject.ways {
            let name = (subject.data.as_str(), way.way.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let of = |(data, way): (&str, &str)| {
        let same = subjects.iter().filter(|subject| subject.data == data);
        let ways: Vec<&CascadeFigures> =
            same.flat_map(|subject| &subject.ways).filter(|of| of.way == way).collect();
        let each = |f: &dyn Fn(&CascadeFigures) -> f64| over(ways.iter().map(|w| f(w)).collect());
        Summary {
            data: data.to_owned(),
            way: way.to_owned(),
            answered_below: each(&|way| way.answered_below),
            less_than_best: each(&|way| way.accuracy - way.best_alone),
            violations: ways.iter().map(|way| way.violations).max().unwrap_or_default(),
            splits: ways.first().map_or(0, |way| way.splits),
        }
    };
    names.into_iter().map(of).collect()
}

/// What came of the splits; `judged_alone` is what each tier is judged on by itself.
pub(super) fn figures(
    way: &str,
    pool: &Pool,
    judged_alone: &[usize],
    (calibrated_on, judged): (usize, usize),
    outcomes: &[Outcome],
    alpha: f64,
) -> CascadeFigures {
    let all = count((judged * outcomes.len()) as u64);
    let tier = |(at, level): (usize, &Level)| {
        let right = judged_alone.iter().filter(|i| pool.is_right(at, **i)).count();
        let of = outcomes
            .iter()
            .filter_map(|outcome| Some((*outcome.answered.get(at)?, *outcome.bounds.get(at)?)));
        let (mut answered, mut wrong, mut violations) = (0, 0, 0);
        let mut bounds = Vec::new();
        for ((n, bad), bound) in of {
            (answered, wrong) = (answered + n, wrong + bad);
            if let Some(bound) = bound {
                bounds.push(bound);
                violations += u64::from(count(bad) > alpha * count(n));
            }
        }
        let sure = bounds.len() as u64;
        TierFigures {
            name: level.name.clone(),
            alone: count(right as u64) / count(judged_alone.len() as u64),
            share: count(answered) / all,
            wrong: (answered > 0).then(|| count(wrong) / count(answered)),
            bound: (sure > 0).then(|| bounds.iter().sum::<f64>() / count(sure)),
            violations,
            sure,
        }
    };
    let tiers: Vec<TierFigures> = pool.levels.iter().enumerate().map(tier).collect();
    // All sure answers of a split: those of the tiers that somebody is above.
    let sure = |outcome: &Outcome| {
        let below = outcome.answered.split_last().map_or(&[][..], |(_, below)| below);
        below.iter().fold((0, 0), |(n, bad), (more, wrong)| (n + more, bad + wrong))
    };
    let below: u64 = outcomes.iter().map(|outcome| sure(outcome).0).sum();
    let broken = outcomes.iter().map(sure).filter(|(n, bad)| count(*bad) > alpha * count(*n));
    let wrong: u64 = outcomes.iter().flat_map(|o| &o.answered).map(|(_, wrong)| wrong).sum();
    CascadeFigures {
        way: way.to_owned(),
        calibrated_on,
        judged,
        splits: outcomes.len(),
        best_alone: tiers.iter().map(|tier| tier.alone).fold(0.0, f64::max),
        tiers,
        answered_below: count(below) / all,
        violations: broken.count() as u64,
        accuracy: 1.0 - count(wrong) / all,
    }
}

/// Tells it in plain text.
pub fn to_table(report: &CascadeReport) -> String {
    let (alpha, delta, allowed) = (report.alpha, report.delta, report.violations_allowed);
    let part = if report.rehearsal { ", REHEARSAL: judged on training data" } else { "" };
    let mut rows = vec![format!("gaisnet {}: alpha {alpha}, delta {delta}{part}", report.version)];
    for subject in &report.subjects {
        rows.push(format!("\n{}, seed {}", subject.data, subject.seed));
        for way in &subject.ways {
            rows.push(format!(
                "\n  {}: {} splits, thresholds from {} questions, {} judged\n  {:<34}{:>8}{:>10}{:>8}{:>8}{:>12}",
                way.way,
                way.splits,
                way.calibrated_on,
                way.judged,
                "tier",
                "alone",
                "answered",
                "wrong",
                "bound",
                "violations"
            ));
            rows.extend(way.tiers.iter().map(row));
            rows.push(format!(
                "  below the top {:.3}; accuracy of the cascade {:.3}, of the better tier alone {:.3}; violations of all \
                 sure answers together {}",
                way.answered_below, way.accuracy, way.best_alone, way.violations
            ));
        }
    }
    rows.push("\nOver the seeds, with Student's interval of 95 %".to_owned());
    rows.extend(report.summary.iter().map(summary_row));
    rows.push(format!("\nviolations that chance allows in a series of splits (99 %): {allowed}"));
    rows.join("\n")
}

fn summary_row(summary: &Summary) -> String {
    let show = |of: &Over, scale: f64| match of.plus_minus {
        Some(half) => format!("{:.3} +- {:.3}", scale * of.mean, scale * half),
        None => format!("{:.3}", scale * of.mean),
    };
    format!(
        "  {}; {}: below the top {}, points over the better tier {}, violations of a seed at most {} of {}",
        summary.data,
        summary.way,
        show(&summary.answered_below, 1.0),
        show(&summary.less_than_best, 100.0),
        summary.violations,
        summary.splits
    )
}

fn row(tier: &TierFigures) -> String {
    let part = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
    let broken = match tier.sure {
        0 => "-".to_owned(),
        sure => format!("{} of {sure}", tier.violations),
    };
    format!(
        "  {:<34}{:>8.3}{:>10.3}{:>8}{:>8}{:>12}",
        tier.name,
        tier.alone,
        tier.share,
        part(tier.wrong),
        part(tier.bound),
        broken
    )
}
