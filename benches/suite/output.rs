//! The table, the JSON, and the machine that the figures are of.

use super::Row;

/// One line about the machine.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| info.lines().find(|line| line.starts_with(key));
    let value = |line: &str| line.split(':').nth(1).map(|text| text.trim().to_owned());
    let model = of("model name").and_then(value).unwrap_or_else(|| "unknown processor".into());
    let flags = of("flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let sha = if has("sha_ni") { "with" } else { "without" };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("machine: {model}, {cores} cores, {sha} SHA instructions")
}

pub fn heading() -> String {
    format!(
        "{:<44} {:>12} {:>12} {:>7}  {:<10} reference",
        "figure", "ours", "reference", "ratio", "unit"
    )
}

pub fn line(row: &Row) -> String {
    let Row { name, ours, reference, ratio, unit, remark } = row;
    format!(
        "{name:<44} {:>12} {:>12} {ratio:>7.2}  {unit:<10} {remark}",
        short(*ours),
        short(*reference)
    )
}

/// An array with one object a figure.
pub fn json(rows: &[Row]) -> String {
    let object = |row: &Row| {
        serde_json::json!({
            "name": row.name,
            "ours": row.ours,
            "reference": row.reference,
            "ratio": row.ratio,
            "unit": row.unit,
        })
    };
    let rows: Vec<_> = rows.iter().map(object).collect();
    serde_json::to_string_pretty(&rows).unwrap_or_default() + "\n"
}

fn short(value: f64) -> String {
    if value.abs() >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
