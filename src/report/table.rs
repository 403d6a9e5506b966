//! The table at the end of a run in the terminal.

use super::{Contribution, DemoReport, Score, human_bytes};

/// Tells the run in plain text of at most 80 columns (longer names make it wider).
pub fn to_table(report: &DemoReport) -> String {
    let mut rows = vec![format!("gaisnet {} ({})", report.version, report.commit)];
    rows.push(format!("  data   {}", report.data));
    rows.push(format!("  model  {}", report.model));
    rows.push(String::new());
    scores(report, &mut rows);
    rows.push(String::new());
    traffic(report, &mut rows);
    rows.push(String::new());
    contributions(report, &mut rows);
    rows.push(String::new());
    costs(report, &mut rows);
    rows.push(String::new());
    rows.join("\n")
}

fn scores(report: &DemoReport, rows: &mut Vec<String>) {
    rows.push(format!("  {:<34}{:>10}{:>10}", "test part", "macro-F1", "accuracy"));
    let mut row = |name: &str, score: &Score| {
        rows.push(format!("  {name:<34}{:>10.3}{:>10.3}", score.macro_f1, score.accuracy));
    };
    for arm in &report.alone {
        row(&format!("{} alone", arm.name), &arm.score);
    }
    row(&format!("federated, {} rounds", report.rounds()), &report.federated);
    row("all data in one place", &report.pooled);
}

fn traffic(report: &DemoReport, rows: &mut Vec<String>) {
    rows.push(format!("  {:<34}{:>10}{:>10}", "bytes", "up", "down"));
    let mut row = |name: &str, up: u64, down: u64| {
        rows.push(format!("  {name:<34}{:>10}{:>10}", human_bytes(up), human_bytes(down)));
    };
    for tier in &report.traffic {
        row(&tier.tier, tier.up, tier.down);
    }
    row("all tiers", report.bytes_up(), report.bytes_down());
    row(&report.in_sites.tier, report.in_sites.up, report.in_sites.down);
}

fn contributions(report: &DemoReport, rows: &mut Vec<String>) {
    rows.push(format!(
        "  {:<34}{:>10}{:>10}{:>10}",
        "work of a device and round", "bytes", "smaller", "macro-F1"
    ));
    for way in &report.contributions {
        rows.push(format!(
            "  {:<34}{:>10}{:>10}{:>10}",
            way.kind,
            human_bytes(way.bytes_per_device_round),
            report.times_smaller(way),
            reached(way),
        ));
    }
    let message = human_bytes(report.message_per_device_round);
    rows.push(format!("  {:<34}{message:>10}", "as sent, with the signed message"));
}

fn costs(report: &DemoReport, rows: &mut Vec<String>) {
    let mut row = |name: &str, value: String| rows.push(format!("  {name:<34}{value:>10}"));
    row("seconds", format!("{:.1}", report.seconds));
    row("CPU seconds", format!("{:.1}", report.cpu_seconds));
    row("peak memory, MiB", format!("{:.0}", report.peak_rss_mib));
    row("answer p50 while training, ms", format!("{:.2}", report.latency_ms.p50));
    row("answer p99 while training, ms", format!("{:.2}", report.latency_ms.p99));
    row("refused messages", report.refused_total().to_string());
    for (reason, count) in &report.refused {
        row(&format!("  {reason}"), count.to_string());
    }
    row("audit entries", report.audit.entries.to_string());
    row("audit verified", if report.audit.verified { "yes" } else { "NO" }.to_owned());
}

/// What the federation reached with a way; only a run of it can tell.
pub(super) fn reached(way: &Contribution) -> String {
    way.macro_f1.map_or_else(|| "not run".to_owned(), |macro_f1| format!("{macro_f1:.3}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_table_tells_the_run() {
        insta::assert_snapshot!(to_table(&sample()));
    }
}
