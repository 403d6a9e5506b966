//! What a simulation came to: a terminal table, JSON, one HTML page.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chart::{self, Bar};
use super::html::Escaped;
use super::page::{HEAD, figure};
use super::to_f64;

/// All that is told of a simulation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SimReport {
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// The machine that it ran on.
    pub machine: String,
    /// The scenario's name.
    pub scenario: String,
    /// What it shows, in its own words.
    pub what: String,
    /// How messages were checked.
    pub trust: String,
    /// Devices that memory holds in the rows of federations in turns, about; `None` without such rows.
    pub devices_abreast: Option<u32>,
    /// Name of each invariant, and what it says.
    pub invariants: Vec<(String, String)>,
    /// One entry a size of the federation.
    pub rows: Vec<SimRow>,
}

/// Runs of one size, over some seeds. Counts are sums over the seeds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SimRow {
    /// Edges.
    pub edges: u32,
    /// Devices.
    pub devices: u32,
    /// Versions that the cloud had to make.
    pub rounds: u64,
    /// First and last seed.
    pub seeds: (u64, u64),
    /// Federations that were run in turns, one a seed; `None` when each was run alone.
    pub abreast: Option<u64>,
    /// Counts by name, in the order to tell them.
    pub counts: Vec<(String, u64)>,
    /// Times that machines refused something or found it worth a look, by their word.
    pub counted: Vec<(String, u64)>,
    /// Digest of all that was sent, of the first seed.
    pub trace: String,
    /// Processor time of all threads.
    pub cpu_seconds: f64,
    /// Largest resident set of the process so far.
    pub peak_rss_mib: f64,
    /// Seeds that broke an invariant.
    pub violations: Vec<SimViolation>,
}

/// A seed that broke an invariant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SimViolation {
    /// The seed.
    pub seed: u64,
    /// The invariant.
    pub invariant: String,
    /// What was seen.
    pub what: String,
    /// First step in which it was.
    pub step: u64,
    /// Virtual time in milliseconds.
    pub at_ms: u64,
    /// Digest of all that was sent until then.
    pub trace: String,
    /// What shows it again.
    pub command: String,
}

impl SimReport {
    /// Whether a seed broke an invariant.
    pub fn is_broken(&self) -> bool {
        self.rows.iter().any(|row| !row.violations.is_empty())
    }

    /// The last row of federations that were run alone.
    fn last_alone(&self) -> Option<&SimRow> {
        self.rows.iter().rfind(|row| row.abreast.is_none())
    }
}

impl SimRow {
    /// Seeds that were run.
    pub fn num_seeds(&self) -> u64 {
        (self.seeds.1 - self.seeds.0).saturating_add(1)
    }

    /// Processor time of one device in one round, in microseconds: the edges' and the cloud's is shared out.
    pub fn us_per_device_round(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.device_rounds()
    }

    /// Steps of machines for one device in one round, those of edges and cloud shared out likewise: work
    /// that doesn't depend on the machine.
    pub fn steps_per_device_round(&self) -> f64 {
        to_f64(self.count("steps")) / self.device_rounds()
    }

    fn device_rounds(&self) -> f64 {
        let rounds = to_f64(self.rounds) * to_f64(self.num_seeds());
        (rounds * f64::from(self.devices)).max(1.0)
    }

    fn count(&self, name: &str) -> u64 {
        self.counts.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
    }
}

/// The simulation as JSON; names and units of its keys are stable.
pub fn sim_to_json(report: &SimReport) -> Value {
    let map = |pairs: &[(String, u64)]| -> Value {
        pairs.iter().map(|(name, count)| (name.clone(), json!(count))).collect()
    };
    let row = |row: &SimRow| {
        json!({
            "edges": row.edges,
            "devices": row.devices,
            "rounds": row.rounds,
            "seeds": [row.seeds.0, row.seeds.1],
            "abreast": row.abreast,
            "trace": row.trace,
            "counts": map(&row.counts),
            "counted": map(&row.counted),
            "cpu_seconds": row.cpu_seconds,
            "us_per_device_round": row.us_per_device_round(),
            "steps_per_device_round": row.steps_per_device_round(),
            "peak_rss_mib": row.peak_rss_mib,
            "violations": row.violations,
        })
    };
    json!({
        "version": report.version,
        "commit": report.commit,
        "machine": report.machine,
        "scenario": report.scenario,
        "trust": report.trust,
        "devices_abreast": report.devices_abreast,
        "broken": report.is_broken(),
        "runs": report.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Tells the simulation in plain text.
pub fn sim_to_table(report: &SimReport) -> String {
    let mut lines = vec![format!("gaisnet {} ({})", report.version, report.commit)];
    lines.push(format!("  scenario  {}: {}", report.scenario, report.what));
    lines.push(format!("  trust     {}", report.trust));
    lines.push(String::new());
    lines.push(format!(
        "  {:>7}{:>9}{:>8}{:>7}{:>9}{:>12}{:>12}{:>10}{:>14}{:>10}",
        "edges",
        "devices",
        "rounds",
        "seeds",
        "abreast",
        "messages",
        "steps",
        "CPU s",
        "us/dev+round",
        "peak MiB"
    ));
    for row in &report.rows {
        lines.push(format!(
            "  {:>7}{:>9}{:>8}{:>7}{:>9}{:>12}{:>12}{:>10.1}{:>14.1}{:>10.0}",
            row.edges,
            row.devices,
            row.rounds,
            row.num_seeds(),
            row.abreast.unwrap_or(1),
            row.count("sent"),
            row.count("steps"),
            row.cpu_seconds,
            row.us_per_device_round(),
            row.peak_rss_mib,
        ));
    }
    if let Some(row) = report.last_alone() {
        lines.push(String::new());
        for pair in row.counts.chunks(3) {
            let told = pair.iter().map(|(name, count)| format!("{name:<14}{count:>12}   "));
            lines.push(format!("  {}", told.collect::<String>().trim_end()));
        }
        lines.push(format!("  trace         {} (seed {})", row.trace, row.seeds.0));
    }
    lines.push(String::new());
    lines.push(answer(report));
    lines.extend(report.rows.iter().flat_map(told));
    lines.push(String::new());
    lines.join("\n")
}

/// Tells the simulation as HTML that loads nothing.
pub fn sim_to_html(report: &SimReport) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(
        page,
        "<p class=\"over\">gaisnet sim</p>\n<h1>{}</h1>\n<p class=\"lead\">{}: {}. {}</p>\n",
        Escaped(&answer(report)),
        Escaped(&report.scenario),
        Escaped(&report.what),
        Escaped(&report.trust),
    );
    let (alone, abreast): (Vec<&SimRow>, Vec<&SimRow>) =
        report.rows.iter().partition(|row| row.abreast.is_none());
    if let Some(devices) = report.devices_abreast {
        let what = format!("Processor time, with about {devices} devices in memory at each size,");
        cost(&abreast, &what, " us", SimRow::us_per_device_round, &mut page);
    }
    cost(&alone, "Processor time, alone,", " us", SimRow::us_per_device_round, &mut page);
    cost(&alone, "Steps", "", SimRow::steps_per_device_round, &mut page);
    if let Some(row) = report.last_alone() {
        let fates = ["sent", "delivered", "lost", "repeated", "refused"];
        let bars: Vec<Bar> = fates.map(|name| bar_of(row, name)).into();
        let top = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        let title = format!("What became of messages, {} devices", row.devices);
        figure(&mut page, &title, "", |label| chart::bars(label, &bars, top));
    }
    table(report, &mut page);
    page.push_str("<section>\n<h2>What held in each step</h2>\n<table>\n");
    for (name, what) in &report.invariants {
        let (name, what) = (Escaped(name), Escaped(what));
        let _ = writeln!(page, "<tr><th scope=\"row\">{name}</th><td>{what}</td></tr>");
    }
    page + "</table>\n</section>\n</main>\n</body>\n</html>\n"
}

/// What a device and round costs, by size.
fn cost(rows: &[&SimRow], what: &str, unit: &str, value: fn(&SimRow) -> f64, page: &mut String) {
    let bar = |row: &&SimRow| Bar {
        name: match row.abreast {
            None => format!("{} devices", row.devices),
            Some(abreast) => format!("{abreast} times {} devices", row.devices),
        },
        value: value(row),
        shown: format!("{:.1}{unit}", value(row)),
        class: "together",
    };
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let top = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let title = format!("{what} of one device in one round, its share of edges and cloud in it");
    figure(page, &title, "", |label| chart::bars(label, &bars, top));
}

fn table(report: &SimReport, page: &mut String) {
    page.push_str(
        "<section>\n<h2>Figures</h2>\n<table class=\"wide\">\n<tr><th scope=\"col\">devices</th>\
         <th scope=\"col\">edges</th><th scope=\"col\">rounds</th><th scope=\"col\">seeds</th>\
         <th scope=\"col\">abreast</th><th scope=\"col\">messages</th><th scope=\"col\">CPU seconds</th>\
         <th scope=\"col\">us a device and round</th><th scope=\"col\">steps a device and round</th>\
         <th scope=\"col\">peak MiB</th></tr>\n",
    );
    for row in &report.rows {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{:.1}</td><td>{:.1}</td><td>{:.1}</td><td>{:.0}</td></tr>",
            row.devices,
            row.edges,
            row.rounds,
            row.num_seeds(),
            row.abreast.unwrap_or(1),
            row.count("sent"),
            row.cpu_seconds,
            row.us_per_device_round(),
            row.steps_per_device_round(),
            row.peak_rss_mib,
        );
    }
    let _ = writeln!(page, "</table>\n<p>{}</p>", Escaped(&report.machine));
    for line in report.rows.iter().flat_map(told) {
        let _ = writeln!(page, "<p>{}</p>", Escaped(&line));
    }
    page.push_str("</section>\n");
}

fn bar_of(row: &SimRow, name: &str) -> Bar {
    let count = row.count(name);
    Bar { name: name.to_owned(), value: to_f64(count), shown: count.to_string(), class: "together" }
}

fn answer(report: &SimReport) -> String {
    let seeds: u64 = report.rows.iter().map(SimRow::num_seeds).sum();
    let broken: usize = report.rows.iter().map(|row| row.violations.len()).sum();
    let runs = if seeds == 1 { "1 run".to_owned() } else { format!("{seeds} runs") };
    match broken {
        0 => format!("{runs}, and no invariant was broken"),
        broken => format!("{runs}, {broken} of them BROKE AN INVARIANT"),
    }
}

fn told(row: &SimRow) -> Vec<String> {
    let line = |v: &SimViolation| {
        let SimViolation { seed, invariant, what, step, at_ms, trace, command } = v;
        format!(
            "  seed {seed}, step {step}, at {at_ms} ms: {invariant}: {what}\n    again: {command}\n    trace: {trace}"
        )
    };
    row.violations.iter().take(TOLD).map(line).collect()
}

/// Violations of a size that are told one by one.
const TOLD: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SimReport {
        let violation = SimViolation {
            seed: 8,
            invariant: "counted_once".into(),
            what: "edge-1 counts <b> twice".into(),
            step: 17,
            at_ms: 900,
            trace: "ab".into(),
            command: "gaisnet sim faults --seed 8".into(),
        };
        SimReport {
            scenario: "faults".into(),
            rows: vec![SimRow {
                edges: 2,
                devices: 100,
                rounds: 10,
                seeds: (7, 8),
                counts: vec![("sent".into(), 4_000), ("steps".into(), 9_000)],
                cpu_seconds: 0.2,
                violations: vec![violation],
                ..SimRow::default()
            }],
            ..SimReport::default()
        }
    }

    #[test]
    fn a_device_and_round_costs_its_part_of_time_and_steps() {
        let row = &sample().rows[0];
        assert_eq!(row.num_seeds(), 2);
        assert!((row.us_per_device_round() - 100.0).abs() < 1e-9);
        assert!((row.steps_per_device_round() - 4.5).abs() < 1e-9);
    }

    #[test]
    fn federations_in_turns_have_a_plot_of_their_own() {
        let row = |devices, abreast| {
            let counts = vec![("sent".to_owned(), u64::from(devices))];
            SimRow { devices, abreast, counts, ..SimRow::default() }
        };
        let rows = vec![row(100, None), row(400, None)];
        let mut report = SimReport { rows, ..SimReport::default() };
        let title = "with about 400 devices in memory at each size";
        assert!(!sim_to_html(&report).contains(title));
        report.rows.extend([row(100, Some(4)), row(400, Some(1))]);
        report.devices_abreast = Some(400);
        let page = sim_to_html(&report);
        let (_, plot) = page.split_once(title).unwrap();
        let (plot, rest) = plot.split_once("</figure>").unwrap();
        assert!(plot.contains("4 times 100 devices") && plot.contains("1 times 400 devices"));
        assert!(rest.contains("messages, 400 devices"), "{rest}");
        report.rows.swap(1, 3);
        assert!(sim_to_html(&report).contains("messages, 400 devices"));
        report.rows.pop();
        assert!(sim_to_html(&report).contains("messages, 100 devices"));
    }

    #[test]
    fn a_violation_is_told_with_its_seed_step_and_command_everywhere() {
        let report = sample();
        let (table, page) = (sim_to_table(&report), sim_to_html(&report));
        for text in [&table, &page] {
            for part in ["seed 8", "step 17", "counted_once", "gaisnet sim faults --seed 8"] {
                assert!(text.contains(part), "{part:?} isn't in {text}");
            }
        }
        assert!(table.contains("1 of them BROKE") && !page.contains("<b> twice"));
        let json = sim_to_json(&report);
        assert_eq!(json["broken"], true);
        assert_eq!(json["runs"][0]["violations"][0]["step"], 17);
        assert_eq!(json["runs"][0]["counts"]["sent"], 4_000);
    }
}
