//! A small language model on libtorch behind the lane that writes: adapters are swapped between its
//! steps, and each answer is, letter for letter, the one that its version gives alone.
#![cfg(all(feature = "runtime", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/small_language.rs"]
mod small_language;
#[path = "support/toy_generator.rs"]
mod toy_generator;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gaisnet::actors::lanes::LaneError;
use gaisnet::actors::text_lane::{Letter, TextLane, TextRequest, Writer};
use gaisnet::ids::Name;
use gaisnet::learn::{
    AdapterId, Ask, BatchLimits, Finish, Generated, Generator, Sampling, TensorSet, Told,
};
use gaisnet::node::SystemClock;
use gaisnet::time::{Clock, Mono};
use small_language::{LETTERS, adapter, alone, generator, peft, prompt, untrained};
use tokio::sync::mpsc::{Receiver, channel};
use toy_generator::ToyTokens;

const VERSIONS: u64 = 200;

fn ask(prompt: &str) -> Ask {
    Ask {
        prompt: prompt.into(),
        max_tokens: LETTERS,
        sampling: Sampling::GREEDY,
        seed: 1,
        stop: vec![],
        stream: false,
        adapter: None,
        deadline: Mono(u64::MAX),
    }
}

/// Submits, and waits for room where there is none.
fn submit(lane: &TextLane, mut request: impl FnMut() -> TextRequest) {
    while let Err(error) = lane.submit(request()) {
        assert_eq!(error, LaneError::Full);
        std::thread::yield_now();
    }
}

fn ends(mut letters: Receiver<Letter>, answered: &AtomicU64) -> BTreeMap<u64, Generated> {
    let mut all = BTreeMap::new();
    while let Some((ticket, told)) = letters.blocking_recv() {
        answered.fetch_add(1, Ordering::Relaxed);
        let Told::End(end) = told else { panic!("nobody asked for pieces") };
        assert!(all.insert(ticket, end.unwrap()).is_none());
    }
    all
}

#[test]
fn two_hundred_swaps_leave_each_answer_that_of_its_version_alone() {
    let adapters: Vec<Arc<TensorSet>> = (1..=VERSIONS).map(|v| Arc::new(adapter(v))).collect();
    let writer = Writer { generator: Box::new(generator()), tokens: Arc::new(ToyTokens) };
    let limits = BatchLimits { waiting: 4_096, ..BatchLimits::default() };
    let lane = TextLane::spawn(writer, limits, Arc::new(SystemClock::new()), 4).unwrap();
    let (told, letters) = channel(8);
    let answered = Arc::new(AtomicU64::new(0));
    let reader = std::thread::spawn({
        let answered = Arc::clone(&answered);
        move || ends(letters, &answered)
    });
    let mut ticket = 0;
    for (version, adapter) in (1..).zip(&adapters) {
        // Some of the answers before are still being written when the next version comes, but not all.
        while ticket > answered.load(Ordering::Relaxed) + 12 {
            std::thread::yield_now();
        }
        submit(&lane, || TextRequest::Load {
            id: AdapterId::Version(version),
            adapter: Arc::clone(adapter),
            done: Box::new(|result| result.unwrap()),
        });
        for _ in 0..2 {
            let told = told.clone();
            submit(&lane, || TextRequest::Ask {
                ticket,
                ask: ask(&prompt(ticket)),
                told: told.clone(),
            });
            ticket += 1;
        }
    }
    drop(told);
    lane.close();
    let all = reader.join().unwrap();
    assert_eq!(all.len() as u64, 2 * VERSIONS);
    let (versions, texts) = each_is_its_versions_alone(&all, &adapters);
    assert!(versions > 20, "answers of many versions: {versions}");
    assert!(texts > 20, "versions write differently: {texts}");
}

/// Compares each answer with what its version writes when nothing else runs; gives the numbers of versions
/// and of texts.
fn each_is_its_versions_alone(
    all: &BTreeMap<u64, Generated>,
    adapters: &[Arc<TensorSet>],
) -> (usize, usize) {
    let mut single = generator();
    let (mut versions, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for (ticket, end) in all {
        let Some(AdapterId::Version(version)) = end.adapter else { panic!("{end:?}") };
        assert!(matches!(end.finish, Finish::Stop | Finish::Length), "{end:?}");
        single.load(1, &adapters[version as usize - 1]).unwrap();
        assert_eq!(end.text, alone(&mut single, &prompt(*ticket)), "version {version}");
        versions.insert(version);
        texts.insert(end.text.clone());
    }
    (versions.len(), texts.len())
}

/// Three adapters with names, a version and the bare base, mixed: they share each step.
#[test]
fn requests_of_several_adapters_at_once_get_what_each_adapter_writes_alone() {
    let names = ["pumps", "belts", "motors"].map(|name| Name::new(name).unwrap());
    let mut writing = generator();
    for (at, name) in (101..).zip(&names) {
        writing.hold(name.clone(), &peft(), &adapter(at)).unwrap();
    }
    let writer = Writer { generator: Box::new(writing), tokens: Arc::new(ToyTokens) };
    let lane =
        TextLane::spawn(writer, BatchLimits::default(), Arc::new(SystemClock::new()), 64).unwrap();
    let (told, letters) = channel(64);
    let load = TextRequest::Load {
        id: AdapterId::Version(1),
        adapter: Arc::new(adapter(1)),
        done: Box::new(|result| result.unwrap()),
    };
    lane.submit(load).unwrap();
    let wanted = |ticket: u64| match ticket % 5 {
        0 => None,
        1 => Some(AdapterId::Version(0)),
        at => Some(AdapterId::Name(names[at as usize - 2].clone())),
    };
    for ticket in 0..40 {
        let ask = Ask { adapter: wanted(ticket), ..ask(&prompt(ticket)) };
        lane.submit(TextRequest::Ask { ticket, ask, told: told.clone() }).unwrap();
    }
    drop(told);
    lane.close();
    let all = ends(letters, &AtomicU64::new(0));
    assert_eq!(all.len(), 40);
    let mut texts = BTreeSet::new();
    for (ticket, end) in all {
        let mut single = generator();
        let (slot, id) = match ticket % 5 {
            0 => (1, AdapterId::Version(1)),
            1 => (0, AdapterId::Version(0)),
            at => (99 + at, AdapterId::Name(names[at as usize - 2].clone())),
        };
        assert_eq!(end.adapter, Some(id));
        single.load(1, &if slot == 0 { untrained() } else { adapter(slot) }).unwrap();
        assert_eq!(end.text, alone(&mut single, &prompt(ticket)), "{:?}", end.adapter);
        texts.insert(end.text);
    }
    assert!(texts.len() > 20, "adapters write differently: {}", texts.len());
}

#[test]
#[ignore = "ten seconds of real time: 20 requests a second with a deadline of 2 s, a swap with each"]
#[expect(clippy::disallowed_methods, reason = "real time")]
fn two_hundred_swaps_in_real_time_leave_no_answer_late_or_mixed() {
    let adapters: Vec<Arc<TensorSet>> = (1..=VERSIONS).map(|v| Arc::new(adapter(v))).collect();
    let writer = Writer { generator: Box::new(generator()), tokens: Arc::new(ToyTokens) };
    let clock = Arc::new(SystemClock::new());
    let lane = TextLane::spawn(writer, BatchLimits::default(), clock.clone(), 64).unwrap();
    let (told, letters) = channel(8);
    let reader = std::thread::spawn(move || ends(letters, &AtomicU64::new(0)));
    for (ticket, adapter) in (0..).zip(&adapters) {
        let load = TextRequest::Load {
            id: AdapterId::Version(ticket + 1),
            adapter: Arc::clone(adapter),
            done: Box::new(|result| result.unwrap()),
        };
        lane.submit(load).unwrap();
        let deadline = Mono(clock.now().mono.0 + 2_000);
        let ask = Ask { deadline, ..ask(&prompt(ticket)) };
        lane.submit(TextRequest::Ask { ticket, ask, told: told.clone() }).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    drop(told);
    lane.close();
    let all = reader.join().unwrap();
    assert_eq!(all.len() as u64, VERSIONS);
    // One that is taken together with the next version is answered by that.
    assert!(each_is_its_versions_alone(&all, &adapters).0 as u64 > VERSIONS / 2);
}
