//! The samples of `docs/topics.md` are what the program writes and takes.

use std::num::NonZeroUsize;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::command::{self, CommandPolicy};
use super::feedback;
use super::infer;
use super::telegram::{Event, Inference, Kpi, Meta, Reply, Status};
use super::text::{self, TextAnswer, TextPiece};
use crate::time::Wall;

/// JSON samples under a topic's heading: a block is one value, or one a line.
fn samples(pattern: &str) -> Vec<Value> {
    let page = include_str!("../../docs/topics.md");
    let heading = format!("\n### `{pattern}`");
    let section = page.split(&heading).nth(1).unwrap_or_default();
    let section = section.split("\n### ").next().unwrap_or_default();
    let blocks = section.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let found: Vec<Value> = blocks
        .flat_map(|block| {
            let values = serde_json::Deserializer::from_str(block).into_iter();
            values.collect::<Result<Vec<Value>, _>>().unwrap()
        })
        .collect();
    assert!(!found.is_empty(), "no sample under {pattern}");
    found
}

/// Nothing of the sample is unknown to the type, and nothing of the type is missing in the sample.
fn is_written<T: DeserializeOwned + Serialize>(sample: &Value) {
    let read: T = serde_json::from_value(sample.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), *sample);
}

#[test]
fn each_telegram_on_the_topics_page_is_one_that_is_written() {
    samples("status").iter().for_each(is_written::<Status>);
    samples("meta").iter().for_each(is_written::<Meta>);
    samples("kpi").iter().for_each(is_written::<Kpi>);
    samples("inference/{model}").iter().for_each(is_written::<Inference>);
    samples("event/{kind}").iter().for_each(is_written::<Event>);
    samples("stream/{id}").iter().for_each(is_written::<TextPiece>);
    for mut sample in samples("reply/{name}") {
        // The answer to a request is flat, with `status` beside it.
        if sample.get("finish").is_some() {
            is_written::<TextAnswer>(&sample);
        } else if sample.get("tier").is_some() {
            assert_eq!(sample.as_object_mut().unwrap().remove("status").unwrap(), "ok");
            is_written::<Inference>(&sample);
        } else {
            is_written::<Reply>(&sample);
        }
    }
}

#[test]
fn each_request_and_command_on_the_topics_page_is_taken() {
    let policy = CommandPolicy::new(["infer", "round.start"]).unwrap();
    let window = NonZeroUsize::new(3).unwrap();
    for sample in samples("infer/{model}") {
        let payload = sample.to_string();
        if sample.get("input").is_some() {
            infer::parse(payload.as_bytes(), false, window, &policy).unwrap();
        } else {
            text::parse(payload.as_bytes(), false, &policy).unwrap();
        }
    }
    let labels = CommandPolicy::new(["feedback"]).unwrap();
    for sample in samples("feedback/{model}") {
        let (payload, now) = (sample.to_string(), Wall(1_767_312_000_000));
        feedback::parse(payload.as_bytes(), false, now, &labels).unwrap();
    }
    for sample in samples("cmd/{name}") {
        let payload = sample.to_string();
        command::parse("round.start", payload.as_bytes(), false, Wall(0), &policy).unwrap();
    }
}
