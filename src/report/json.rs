//! The one JSON object that ends a run with `--json`.

use serde_json::{Value, json};

use super::{DemoReport, Score};

/// The run as JSON; names and units of its keys are stable.
///
/// A number that isn't finite is `null`.
pub fn to_json(report: &DemoReport) -> Value {
    let alone = |pick: fn(&Score) -> f64| -> Vec<f64> {
        report.alone.iter().map(|arm| pick(&arm.score)).collect()
    };
    let arms = |pick: fn(&Score) -> f64| {
        json!({
            "alone": alone(pick),
            "federated": pick(&report.federated),
            "pooled": pick(&report.pooled),
        })
    };
    json!({
        "version": report.version,
        "commit": report.commit,
        "data": report.data,
        "model": report.model,
        "plants": report.alone.iter().map(|arm| &arm.name).collect::<Vec<_>>(),
        "macro_f1": arms(|score| score.macro_f1),
        "accuracy": arms(|score| score.accuracy),
        "rounds": report.rounds(),
        "seconds": report.seconds,
        "bytes": {
            "up": report.bytes_up(),
            "down": report.bytes_down(),
            "up_per_device_round": report.up_per_device_round,
            "message_per_device_round": report.message_per_device_round,
            "raw_f32_per_device_round": report.raw_f32_per_device_round,
            "tiers": report.traffic,
            "in_sites": report.in_sites,
        },
        "latency_ms": report.latency_ms,
        "cpu_seconds": report.cpu_seconds,
        "peak_rss_mib": report.peak_rss_mib,
        "refused": report.refused_total(),
        "refused_by_reason": report.refused,
        "audit": report.audit,
        "contributions": report.contributions,
        "crossings": report.crossings,
        "confusion": report.confusion,
        "curve": report.curve,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_promised_keys_are_there() {
        let json = to_json(&sample());
        let number = |path: &str| json.pointer(path).and_then(Value::as_f64).expect(path);
        assert_eq!(json["macro_f1"]["alone"], json!([0.600, 0.595, 0.489, 0.552]));
        for path in [
            "/macro_f1/federated",
            "/macro_f1/pooled",
            "/rounds",
            "/seconds",
            "/bytes/up",
            "/bytes/down",
            "/bytes/up_per_device_round",
            "/bytes/message_per_device_round",
            "/bytes/raw_f32_per_device_round",
            "/latency_ms/p50",
            "/latency_ms/p99",
            "/cpu_seconds",
            "/peak_rss_mib",
            "/refused",
            "/audit/entries",
        ] {
            assert!(number(path) > 0.0, "{path}");
        }
        assert_eq!(json["audit"]["verified"], true);
    }
}
