//! One self-contained page: the answer first, then plots, then the table, then what left the sites.

use std::fmt::Write as _;

use super::chart::{self, Bar, Line};
use super::html::Escaped;
use super::table::reached;
use super::{DemoReport, Latency, RoundPoint, human_bytes, to_f64};

/// Tells the run as HTML that loads nothing: styles and plots are in it, there is no script.
pub fn to_html(report: &DemoReport) -> String {
    let mut page = String::from(HEAD);
    headline(report, &mut page);
    plots(report, &mut page);
    confusion(report, &mut page);
    costs(report, &mut page);
    left_the_site(report, &mut page);
    about(report, &mut page);
    page + "</main>\n</body>\n</html>\n"
}

fn headline(report: &DemoReport, page: &mut String) {
    let together = report.federated.macro_f1;
    let best = report.best_alone();
    let alone = best.map_or(f64::NAN, |arm| arm.score.macro_f1);
    let answer = if together > alone {
        "Together the plants recognise more than any of them does alone"
    } else {
        "In this run, learning together did not beat the best plant alone"
    };
    let _ = write!(
        page,
        r#"<p class="over">gaisnet report</p>
<h1>{answer}</h1>
<p class="lead">{data}. Quality is macro-F1: 1 is perfect, guessing among {classes} classes gets about {guess:.2}.</p>
<div class="cards">
<div class="card main"><b>{together:.3}</b><span>learned together<br>{rounds} rounds</span></div>
<div class="card"><b>{alone:.3}</b><span>best plant alone<br>{name}</span></div>
<div class="card"><b>{pooled:.3}</b><span>all data in one place<br>upper reference</span></div>
<div class="card"><b>{samples}</b><span>of single samples<br>left the sites</span></div>
</div>
"#,
        data = Escaped(&report.data),
        classes = report.confusion.classes.len(),
        guess = 1.0 / to_f64(report.confusion.classes.len().max(1) as u64),
        rounds = report.rounds(),
        name = best.map_or(Escaped("none"), |arm| Escaped(&arm.name)),
        pooled = report.pooled.macro_f1,
        samples = human_bytes(per_sample_bytes(report)),
    );
}

fn plots(report: &DemoReport, page: &mut String) {
    let mut arms: Vec<Bar> = Vec::new();
    let mut push = |name: String, value: f64, class| {
        arms.push(Bar { name, value, shown: format!("{value:.3}"), class });
    };
    for arm in &report.alone {
        push(format!("{} alone", arm.name), arm.score.macro_f1, "alone");
    }
    push("learned together".into(), report.federated.macro_f1, "together");
    push("all data in one place".into(), report.pooled.macro_f1, "pooled");
    figure(page, "Macro-F1 on recordings that nobody trained on", "", |label| {
        chart::bars(label, &arms, 1.0)
    });

    let quality = line(report, "learned together", |point| point.macro_f1);
    figure(page, "Macro-F1 on the training recordings after each round", "", |label| {
        chart::lines(label, &[quality], 1.0)
    });

    let loss = line(report, "training loss", |point| point.loss);
    let top = loss.points.iter().map(|(_, y)| *y).filter(|y| y.is_finite()).fold(0.1, f64::max);
    figure(page, "Training loss after each round (nats)", "", |label| {
        chart::lines(label, &[loss], top)
    });

    let rounds: Vec<(u64, u64, u64)> =
        report.curve.iter().map(|p| (p.round, p.bytes_up, p.bytes_down)).collect();
    let key = r#"<i class="key together"></i> up, to the cloud <i class="key down"></i> down, to the sites"#;
    figure(page, "Bytes of each round between the sites and the federation", key, |label| {
        chart::columns(label, &rounds, human_bytes)
    });

    let ways: Vec<Bar> = report
        .contributions
        .iter()
        .map(|way| Bar {
            name: way.kind.clone(),
            value: to_f64(way.bytes_per_device_round),
            shown: human_bytes(way.bytes_per_device_round),
            class: "together",
        })
        .collect();
    let top = ways.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let mut prices = String::from(
        "<table class=\"wide\"><tr><th scope=\"col\">kind</th><th scope=\"col\">smaller</th>\
         <th scope=\"col\">macro-F1</th></tr>",
    );
    for way in &report.contributions {
        let _ = write!(
            prices,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
            Escaped(&way.kind),
            report.times_smaller(way),
            reached(way),
        );
    }
    prices.push_str("</table>");
    figure(page, "What one device sends in one round", &prices, |label| {
        chart::bars(label, &ways, top)
    });
}

/// A titled figure; `note` is HTML.
pub(super) fn figure(
    page: &mut String,
    title: &str,
    note: &str,
    draw: impl FnOnce(&str) -> String,
) {
    let _ = write!(page, "<figure>\n<figcaption>{}</figcaption>\n{}", Escaped(title), draw(title));
    if !note.is_empty() {
        let _ = write!(page, "\n<div class=\"note\">{note}</div>");
    }
    page.push_str("\n</figure>\n");
}

fn line(report: &DemoReport, name: &str, pick: fn(&RoundPoint) -> f64) -> Line {
    let points = report.curve.iter().map(|p| (to_f64(p.round), pick(p))).collect();
    Line { name: name.into(), class: "together", points }
}

fn confusion(report: &DemoReport, page: &mut String) {
    page.push_str("<figure>\n<figcaption>Where the learned-together model is right and wrong</figcaption>\n<table class=\"matrix\">\n<tr><th scope=\"col\">really &#8595; answered &#8594;</th>");
    for class in &report.confusion.classes {
        let _ = write!(page, "<th scope=\"col\">{}</th>", Escaped(class));
    }
    page.push_str("<th scope=\"col\">found</th></tr>\n");
    let rows = report.confusion.classes.iter().zip(&report.confusion.counts);
    for (truth, (class, counts)) in rows.enumerate() {
        let total: u64 = counts.iter().sum();
        let share = |count: u64| to_f64(count) / to_f64(total.max(1));
        let _ = write!(page, "<tr><th scope=\"row\">{}</th>", Escaped(class));
        for (answered, count) in counts.iter().enumerate() {
            let kind = if truth == answered { "right" } else { "wrong" };
            let depth = share(*count);
            let _ = write!(
                page,
                "<td class=\"{kind}\" style=\"--depth:{:.0}%\">{count}</td>",
                depth * 100.0
            );
        }
        let found = counts.get(truth).map_or(0.0, |count| share(*count));
        let _ = writeln!(page, "<td>{:.1} %</td></tr>", found * 100.0);
    }
    page.push_str("</table>\n<p class=\"note\">Windows of the test part; each row is one true class.</p>\n</figure>\n");
}

fn costs(report: &DemoReport, page: &mut String) {
    page.push_str("<section>\n<h2>The run in numbers</h2>\n<table>\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
            Escaped(name),
            Escaped(&value)
        );
    };
    row("Rounds", report.rounds().to_string());
    row("Time", format!("{:.1} s", report.seconds));
    row("CPU time, all processes", format!("{:.1} s", report.cpu_seconds));
    row("Peak memory, all processes", format!("{:.0} MiB", report.peak_rss_mib));
    let Latency { p50, p99, answers } = report.latency_ms;
    row(
        "Answer over MQTT while training, median / 99th percentile",
        format!("{p50:.2} / {p99:.2} ms ({answers} answers)"),
    );
    for tier in report.traffic.iter().chain([&report.in_sites]) {
        row(
            &format!("Bytes {}, up / down", tier.tier),
            format!("{} / {}", human_bytes(tier.up), human_bytes(tier.down)),
        );
    }
    let ratio =
        report.compression().map_or(String::new(), |ratio| format!(", {ratio:.1} times smaller"));
    row(
        "Uplink of a device in a round",
        format!(
            "{} (raw f32: {}{ratio}), {} with the signed message around it",
            human_bytes(report.up_per_device_round),
            human_bytes(report.raw_f32_per_device_round),
            human_bytes(report.message_per_device_round),
        ),
    );
    row(
        "Accuracy together / in one place",
        format!("{:.3} / {:.3}", report.federated.accuracy, report.pooled.accuracy),
    );
    row("Refused messages", report.refused_total().to_string());
    for (reason, count) in &report.refused {
        row(&format!("\u{2003}{reason}"), count.to_string());
    }
    let verified = if report.audit.verified { "all verified" } else { "NOT verified" };
    row("Audit log", format!("{} entries, {verified}", report.audit.entries));
    page.push_str("</table>\n</section>\n");
}

fn left_the_site(report: &DemoReport, page: &mut String) {
    let all: u64 = report.crossings.iter().map(|crossing| crossing.bytes).sum();
    let _ = write!(
        page,
        "<section>\n<h2>What left the sites</h2>\n<p>Everything that went from a site to the \
         federation in the whole run: {}. Of it, {} say anything about a single sample.</p>\n\
         <table class=\"wide\">\n<tr><th scope=\"col\">kind</th><th scope=\"col\">messages</th>\
         <th scope=\"col\">bytes</th><th scope=\"col\">tells of single samples</th></tr>\n",
        human_bytes(all),
        human_bytes(per_sample_bytes(report)),
    );
    for crossing in &report.crossings {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            Escaped(&crossing.what),
            crossing.messages,
            human_bytes(crossing.bytes),
            if crossing.per_sample { "YES" } else { "no" },
        );
    }
    page.push_str("</table>\n</section>\n");
}

fn about(report: &DemoReport, page: &mut String) {
    page.push_str("<section>\n<h2>How to repeat it</h2>\n<table>\n");
    let version = format!("{} ({})", report.version, report.commit);
    let fixed = [("gaisnet", &version), ("model", &report.model)];
    let settings = report.settings.iter().map(|(key, value)| (key.as_str(), value));
    for (key, value) in fixed.into_iter().chain(settings) {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
            Escaped(key),
            Escaped(value)
        );
    }
    page.push_str("</table>\n</section>\n");
}

fn per_sample_bytes(report: &DemoReport) -> u64 {
    report.crossings.iter().filter(|c| c.per_sample).map(|c| c.bytes).sum()
}

pub(super) const HEAD: &str = include_str!("head.html");

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::super::{Crossing, Score};
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_escapes_everything() {
        let mut report = sample();
        let evil = "<script src=\"https://x\">'&";
        for text in [&mut report.version, &mut report.commit, &mut report.data, &mut report.model] {
            evil.clone_into(text);
        }
        evil.clone_into(&mut report.alone[0].name);
        evil.clone_into(&mut report.confusion.classes[0]);
        evil.clone_into(&mut report.traffic[0].tier);
        evil.clone_into(&mut report.crossings[0].what);
        evil.clone_into(&mut report.contributions[0].kind);
        report.settings.push((evil.into(), evil.into()));
        report.refused.insert(evil.into(), 1);
        let page = to_html(&report);
        assert!(page.contains("&lt;script src=&quot;https://x&quot;&gt;&#39;&amp;"));
        for bad in ["<script", "src=\"", "href=", "url(", "@import", "NaN"] {
            assert!(!page.contains(bad), "{bad}");
        }
    }

    #[test]
    fn the_headline_is_honest() {
        let mut report = sample();
        assert!(to_html(&report).contains("more than any of them does alone"));
        assert!(to_html(&report).contains("<b>0 B</b>"));
        report.federated = Score { macro_f1: 0.5, accuracy: 0.5 };
        let what = "escalated inputs".into();
        report.crossings.push(Crossing { what, messages: 1, bytes: 8_192, per_sample: true });
        let page = to_html(&report);
        assert!(page.contains("did not beat the best plant alone"));
        assert!(page.contains("<b>8.2 kB</b>") && page.contains("<td>YES</td>"));
    }

    #[test]
    #[ignore = "writes the made-up page for a look in a browser"]
    fn write_the_page() {
        let path = std::env::temp_dir().join("gaisnet-report.html");
        std::fs::write(&path, to_html(&sample())).unwrap();
        eprintln!("{}", path.display());
    }
}
