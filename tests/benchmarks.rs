//! The benchmarks run and give sound figures; how quick we are is no business of a test.

#![cfg(feature = "cli")]

#[path = "../benches/suite/mod.rs"]
mod suite;

use suite::{Effort, Part, Row};

fn rows(part: Part) -> Vec<Row> {
    let mut rows = Vec::new();
    part.run(Effort::Quick, &mut |row| rows.push(row));
    rows
}

fn check(part: Part) {
    for row in rows(part) {
        assert!(row.ours > 0.0 && row.reference > 0.0 && row.ratio.is_finite(), "{row:?}");
        assert!((row.ours / row.reference - row.ratio).abs() < 1e-9, "{row:?}");
    }
}

#[test]
fn aggregation_is_measured_beside_a_copy() {
    check(Part::Aggregation);
}

#[test]
fn envelopes_are_measured_beside_bare_signatures() {
    check(Part::Envelope);
}

#[test]
fn messages_are_measured_beside_a_bare_client() {
    check(Part::Messages);
}

#[test]
fn chunks_are_measured_beside_a_bare_client() {
    check(Part::Chunks);
}

#[test]
fn answers_are_measured_beside_a_bare_round_trip() {
    check(Part::Latency);
}

/// Needs Fashion-MNIST and mosquitto; without them there are no rows, and a line that says so.
#[cfg(feature = "torch")]
#[test]
fn a_federation_is_measured_beside_the_plain_loop() {
    check(Part::Federation);
}

#[test]
fn the_json_has_one_object_a_figure_with_its_five_keys() {
    let rows = rows(Part::Envelope);
    let json: Vec<serde_json::Value> =
        serde_json::from_str(&suite::output::json(&rows)).expect("an array");
    assert_eq!(json.len(), rows.len());
    for object in &json {
        let keys: Vec<&str> =
            object.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["name", "ours", "ratio", "reference", "unit"]);
    }
}
