use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ids::Name;
use crate::learn::Sampling;
use crate::learn::toy_generator::{ToyGenerator, ToyTokens, answer, shift_by};

const LATER: Mono = Mono(1_000);

fn ask(prompt: &str, max_tokens: u32) -> Ask {
    Ask {
        prompt: prompt.into(),
        max_tokens,
        sampling: Sampling::GREEDY,
        seed: 1,
        stop: vec![],
        stream: false,
        adapter: None,
        deadline: LATER,
    }
}

/// A scheduler with its toy, and what it told.
struct Desk {
    scheduler: Scheduler,
    toy: ToyGenerator,
    told: Vec<(u64, Told)>,
}

impl Desk {
    fn new(limits: BatchLimits) -> Self {
        Self { scheduler: Scheduler::new(limits), toy: ToyGenerator::default(), told: vec![] }
    }

    fn load(&mut self, version: u64) {
        let shift = shift_by(u16::try_from(version).unwrap());
        self.scheduler.load(AdapterId::Version(version), &shift, &mut self.toy).unwrap();
    }

    fn ask(&mut self, ticket: u64, ask: Ask) -> Result<(), GenerateError> {
        self.scheduler.ask(ticket, ask, &self.toy, &ToyTokens)
    }

    fn step(&mut self, now: u64) {
        let told = self.scheduler.step(Mono(now), &mut self.toy, &ToyTokens);
        self.told.extend(told);
    }

    fn cancel(&mut self, ticket: u64) {
        let told = self.scheduler.cancel(ticket, &mut self.toy);
        self.told.extend(told);
    }

    fn run(&mut self) {
        for _ in 0..1_000 {
            if self.scheduler.is_idle() {
                assert_eq!(self.toy.sequences(), 0, "each sequence was forgotten");
                return;
            }
            self.step(0);
        }
        panic!("it never ends");
    }

    /// The one end of a ticket.
    fn end(&self, ticket: u64) -> Result<Generated, GenerateError> {
        let is_end = |(of, told): &(u64, Told)| match told {
            Told::End(end) if *of == ticket => Some(end.clone()),
            _ => None,
        };
        let ends: Vec<_> = self.told.iter().filter_map(is_end).collect();
        assert_eq!(ends.len(), 1, "one end for ticket {ticket}");
        ends[0].clone()
    }

    fn text(&self, ticket: u64) -> (String, Finish) {
        let end = self.end(ticket).unwrap();
        (end.text, end.finish)
    }

    fn pieces(&self, ticket: u64) -> String {
        let pieces = self.told.iter().filter_map(|(of, told)| match told {
            Told::Piece(text, _) if *of == ticket => Some(text.as_str()),
            _ => None,
        });
        pieces.collect()
    }
}

fn version(end: &Generated) -> u64 {
    match end.adapter {
        Some(AdapterId::Version(version)) => version,
        _ => panic!("{end:?}"),
    }
}

#[test]
fn answers_end_at_their_length_at_the_end_token_at_a_stop_string_and_at_the_contexts_end() {
    let mut desk = Desk::new(BatchLimits::default());
    desk.load(1);
    desk.ask(1, ask("abc", 4)).unwrap();
    desk.ask(2, ask("w", 9)).unwrap();
    desk.ask(3, Ask { stop: vec!["fg".into()], ..ask("c", 9) }).unwrap();
    desk.ask(4, ask(&"a".repeat(60), 9)).unwrap();
    desk.run();
    assert_eq!(desk.text(1), ("defg".into(), Finish::Length));
    assert_eq!(desk.text(2), ("xyz".into(), Finish::Stop));
    assert_eq!(desk.text(3), ("de".into(), Finish::Stop));
    assert_eq!(desk.text(4), ("bcde".into(), Finish::Length), "64 tokens are all");
    let first = desk.end(1).unwrap();
    assert_eq!((first.tokens, first.prompt_tokens, version(&first)), (4, 3, 1));
}

#[test]
fn requests_join_a_running_batch_and_make_its_steps_larger() {
    let mut desk = Desk::new(BatchLimits { running: 2, ..BatchLimits::default() });
    desk.load(1);
    desk.ask(1, ask("a", 6)).unwrap();
    desk.step(0);
    desk.step(0);
    desk.ask(2, ask("k", 3)).unwrap();
    desk.ask(3, ask("t", 2)).unwrap();
    desk.run();
    assert_eq!(desk.text(1).0, "bcdefg");
    assert_eq!(desk.text(2).0, "lmn");
    assert_eq!(desk.text(3).0, "uv");
    // The first alone, then with the second, whose place the third takes.
    assert_eq!(*desk.toy.batches.lock().unwrap(), [1, 1, 2, 2, 2]);
}

#[test]
fn long_prompts_do_not_all_join_in_one_step() {
    let limits = BatchLimits { prompt_tokens: 50, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    for ticket in 0..5 {
        desk.ask(ticket, ask(&"a".repeat(30), 3)).unwrap();
    }
    desk.step(0);
    assert_eq!(desk.scheduler.waiting(), 3);
    desk.step(0);
    assert_eq!(desk.scheduler.waiting(), 1);
    desk.run();
}

#[test]
fn a_full_queue_is_busy_and_what_was_taken_is_answered() {
    let limits = BatchLimits { running: 1, waiting: 2, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    desk.ask(1, ask("a", 2)).unwrap();
    desk.step(0);
    desk.ask(2, ask("a", 2)).unwrap();
    desk.ask(3, ask("a", 2)).unwrap();
    assert_eq!(desk.ask(4, ask("a", 2)), Err(GenerateError::Busy { waiting: 2 }));
    desk.run();
    for ticket in 1..=3 {
        assert_eq!(desk.text(ticket).0, "aa");
    }
    desk.ask(4, ask("a", 2)).unwrap();
}

#[test]
fn a_sequence_keeps_the_version_that_it_began_with() {
    let mut desk = Desk::new(BatchLimits::default());
    desk.load(1);
    desk.ask(1, ask("a", 8)).unwrap();
    desk.step(0);
    for v in 2..=30 {
        desk.load(v);
        desk.ask(v, ask("a", 8)).unwrap();
        desk.step(0);
    }
    desk.run();
    for ticket in 1..=30 {
        let end = desk.end(ticket).unwrap();
        assert_eq!(end.text, answer("a", version(&end), 8), "{end:?}");
    }
    assert_eq!(version(&desk.end(1).unwrap()), 1);
}

/// The twin: a generator without slots mixes versions, and the toy shows it.
#[test]
fn without_slots_answers_mix_versions() {
    let mut desk = Desk::new(BatchLimits::default());
    desk.toy = ToyGenerator::without_slots();
    desk.load(1);
    desk.ask(1, ask("a", 8)).unwrap();
    desk.step(0);
    desk.load(2);
    desk.run();
    let end = desk.end(1).unwrap();
    assert_eq!((end.text.as_str(), version(&end)), ("bdfhjlnp", 1));
    assert_ne!(end.text, answer("a", 1, 8));
}

#[test]
fn one_batch_serves_several_adapters() {
    let mut desk = Desk::new(BatchLimits::default());
    desk.load(1);
    desk.load(3);
    let pumps = AdapterId::Name(Name::new("pumps").unwrap());
    desk.scheduler.load(pumps.clone(), &shift_by(5), &mut desk.toy).unwrap();
    for (ticket, adapter) in [
        (1, None),
        (2, Some(AdapterId::Version(1))),
        (3, Some(pumps)),
        (4, Some(AdapterId::Version(0))),
    ] {
        desk.ask(ticket, Ask { adapter, ..ask("a", 3) }).unwrap();
    }
    desk.run();
    let texts: Vec<String> = (1..=4).map(|ticket| desk.text(ticket).0).collect();
    assert_eq!(texts, ["dgj", "bcd", "fkp", "aaa"]);
    assert_eq!(*desk.toy.batches.lock().unwrap(), [4, 4]);
}

#[test]
fn prompts_and_adapters_that_cannot_be_served_are_refused_with_what_would_do() {
    let mut desk = Desk::new(BatchLimits::default());
    assert_eq!(desk.ask(1, ask("", 4)), Err(GenerateError::EmptyPrompt));
    let long = desk.ask(1, ask(&"a".repeat(64), 4)).unwrap_err();
    assert_eq!(long, GenerateError::PromptTooLong { tokens: 64, context: 64 });
    assert!(desk.ask(2, ask(&"a".repeat(63), 4)).is_ok());
    desk.load(7);
    let adapter = Some(AdapterId::Version(3));
    let unknown = desk.ask(3, Ask { adapter, ..ask("a", 4) }).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no adapter \"3\" here, only 0, 7");
    desk.run();
    assert_eq!(desk.text(2), ("h".into(), Finish::Length), "one token of room");
}

#[test]
fn an_adapter_that_goes_while_a_request_waits_is_an_error_of_that_request_alone() {
    let limits = BatchLimits { running: 1, named: 0, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    desk.load(1);
    desk.ask(1, ask("a", 9)).unwrap();
    desk.step(0);
    let adapter = Some(AdapterId::Version(1));
    desk.ask(2, Ask { adapter: adapter.clone(), ..ask("a", 2) }).unwrap();
    desk.cancel(1);
    for v in 2..=4 {
        desk.load(v);
    }
    desk.ask(3, ask("a", 2)).unwrap();
    desk.run();
    assert_eq!(desk.end(2).unwrap_err().kind(), "unknown_adapter");
    assert_eq!(desk.text(3).0, "ei");
}

#[test]
fn a_deadline_ends_what_waits_and_what_runs_and_frees_its_place() {
    let limits = BatchLimits { running: 1, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    desk.load(1);
    let until = |ms, ask: Ask| Ask { deadline: Mono(ms), ..ask };
    desk.ask(1, until(20, ask("a", 50))).unwrap();
    desk.ask(2, until(10, ask("b", 50))).unwrap();
    desk.ask(3, ask("c", 2)).unwrap();
    desk.step(0);
    desk.step(9);
    desk.step(10);
    assert_eq!(desk.text(2), (String::new(), Finish::Deadline));
    assert_eq!(desk.end(2).unwrap().adapter, None, "nothing made it");
    desk.step(19);
    desk.step(20);
    assert_eq!(desk.text(1), ("bcde".into(), Finish::Deadline), "a step each at 0, 9, 10, 19");
    desk.run();
    assert_eq!(desk.text(3), ("de".into(), Finish::Length));
}

#[test]
fn cancelled_requests_answer_with_what_they_have_and_unknown_ones_are_nothing() {
    let limits = BatchLimits { running: 1, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    desk.load(1);
    desk.ask(1, Ask { stream: true, stop: vec!["cx".into()], ..ask("a", 50) }).unwrap();
    desk.ask(2, ask("b", 50)).unwrap();
    desk.step(0);
    desk.step(0);
    desk.cancel(2);
    desk.cancel(1);
    desk.cancel(1);
    desk.cancel(77);
    assert_eq!(desk.text(2), (String::new(), Finish::Cancelled));
    assert_eq!(desk.text(1), ("bc".into(), Finish::Cancelled));
    assert_eq!(desk.pieces(1), "bc", "what was held back for a stop string too");
    assert!(desk.scheduler.is_idle());
    desk.run();
}

proptest! {
    #[test]
    fn guesses_change_the_number_of_steps_and_nothing_else(
        prompt in "[a-f]{1,9}", version in 0_u64..14, tokens in 1_u32..40, guesses in 1_usize..6,
        stop in proptest::option::of("[a-z]{1,2}"),
    ) {
        let answered = |guesses| {
            let mut desk = Desk::new(BatchLimits::default());
            desk.toy.guesses = guesses;
            desk.load(version);
            let stop = stop.iter().cloned().collect();
            desk.ask(1, Ask { stop, stream: true, ..ask(&prompt, tokens) }).unwrap();
            desk.run();
            let steps = desk.toy.batches.lock().unwrap().len();
            let pieces: String = desk.told.iter().filter_map(|(_, told)| match told {
                Told::Piece(piece, _) => Some(piece.as_str()),
                Told::End(_) => None,
            }).collect();
            (desk.end(1).unwrap(), pieces, steps)
        };
        let (plain, guessed) = (answered(0), answered(guesses));
        prop_assert_eq!(&guessed.0, &plain.0);
        prop_assert_eq!(&guessed.1, &plain.1);
        prop_assert!(guessed.2 <= plain.2);
    }
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps() {
    let mut desk = Desk::new(BatchLimits::default());
    desk.toy.guesses = 4;
    desk.load(13); // a n a n a n ...
    desk.ask(1, ask("a", 30)).unwrap();
    desk.run();
    assert_eq!(desk.text(1).0, answer("a", 13, 30));
    let steps = desk.toy.batches.lock().unwrap().len();
    assert!(steps < 15, "{steps}");
}

#[test]
fn a_wrong_guess_is_taken_back() {
    let mut desk = Desk::new(BatchLimits::default());
    // The answer fills the context to its end: there is no room for what a wrong guess would leave.
    desk.toy = ToyGenerator::with_context(12);
    desk.toy.guesses = 4;
    desk.load(1);
    // After `bcd` came `fbc` last time, and now it goes on with `efg`.
    desk.ask(1, ask("bcdfbc", 6)).unwrap();
    desk.run();
    assert_eq!(desk.text(1), ("defghi".into(), Finish::Length));
}

#[test]
fn a_generator_that_fails_ends_those_of_its_call_and_no_others() {
    struct Broken(ToyGenerator, bool);
    impl Generator for Broken {
        fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
            self.0.load(slot, adapter)
        }
        fn context(&self) -> u32 {
            self.0.context()
        }
        fn start(&mut self, id: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError> {
            if prompt == [25] {
                return Ok(vec![f32::NAN; 28]);
            }
            self.0.start(id, slot, prompt)
        }
        fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
            if self.1 {
                return Ok(vec![]);
            }
            self.0.step(tokens)
        }
        fn end(&mut self, sequence: u64) {
            self.0.end(sequence);
        }
    }
    let mut scheduler = Scheduler::new(BatchLimits { running: 2, ..BatchLimits::default() });
    let mut broken = Broken(ToyGenerator::default(), false);
    for (ticket, prompt) in [(1, "z"), (2, "a"), (3, "b"), (4, "c")] {
        scheduler.ask(ticket, ask(prompt, 3), &broken, &ToyTokens).unwrap();
    }
    let mut told = scheduler.step(Mono(0), &mut broken, &ToyTokens);
    broken.1 = true;
    told.extend(scheduler.step(Mono(0), &mut broken, &ToyTokens));
    broken.1 = false;
    while !scheduler.is_idle() {
        told.extend(scheduler.step(Mono(0), &mut broken, &ToyTokens));
    }
    let kinds: Vec<(u64, &str)> = told
        .iter()
        .map(|(ticket, told)| match told {
            Told::End(Ok(end)) => (*ticket, end.finish.as_str()),
            Told::End(Err(error)) => (*ticket, error.kind()),
            Told::Piece(..) => panic!("nobody asked for pieces"),
        })
        .collect();
    assert_eq!(kinds, [(1, "not_finite"), (2, "engine"), (3, "engine"), (4, "length")]);
    assert_eq!(broken.0.sequences(), 0);
}

#[test]
fn an_answer_ends_before_its_text_is_too_large_for_a_packet() {
    let limits = BatchLimits { answer_bytes: 10, ..BatchLimits::default() };
    let mut desk = Desk::new(limits);
    desk.ask(1, ask("a", 50)).unwrap();
    desk.run();
    assert_eq!(desk.text(1), ("a".repeat(10), Finish::Length));
}

#[derive(Debug, Clone)]
enum Act {
    Ask { letter: u8, max_tokens: u32, deadline: u64, stream: bool },
    Load,
    Cancel(u64),
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (97_u8..122, 1_u32..20, 1_u64..60, any::<bool>()).prop_map(
            |(letter, max_tokens, deadline, stream)| Act::Ask { letter, max_tokens, deadline, stream }
        ),
        1 => Just(Act::Load),
        1 => (0_u64..40).prop_map(Act::Cancel),
        5 => Just(Act::Step),
    ]
}

proptest! {
    /// Whatever happens in whatever order: each request that was taken ends once, its text is of one
    /// version, the streamed pieces are that text, and nothing is left behind.
    #[test]
    fn every_request_ends_once_and_whole(acts in prop::collection::vec(act(), 0..120)) {
        let limits = BatchLimits { running: 3, waiting: 4, named: 0, ..BatchLimits::default() };
        let mut desk = Desk::new(limits);
        let (mut taken, mut version_now, mut now) = (BTreeMap::new(), 0, 0);
        for (ticket, act) in (0..).zip(acts) {
            match act {
                Act::Ask { letter, max_tokens, deadline, stream } => {
                    let prompt = char::from(letter).to_string();
                    let deadline = Mono(now + deadline);
                    let request = Ask { stream, deadline, ..ask(&prompt, max_tokens) };
                    match desk.ask(ticket, request.clone()) {
                        Ok(()) => drop(taken.insert(ticket, request)),
                        Err(error) => prop_assert_eq!(error, GenerateError::Busy { waiting: 4 }),
                    }
                }
                Act::Load => {
                    version_now += 1;
                    desk.load(version_now);
                }
                Act::Cancel(back) => desk.cancel(ticket - back.min(ticket)),
                Act::Step => {
                    now += 1;
                    desk.step(now);
                }
            }
        }
        desk.run();
        let largest = Arc::clone(&desk.toy.batches).lock().unwrap().iter().copied().max();
        prop_assert!(largest.unwrap_or(0) <= 3);
        for (ticket, request) in taken {
            let end = desk.end(ticket).unwrap();
            let Some(AdapterId::Version(shift)) = end.adapter else {
                prop_assert!(end.text.is_empty());
                continue;
            };
            let whole = answer(&request.prompt, shift, request.max_tokens as usize);
            match end.finish {
                Finish::Stop | Finish::Length => prop_assert_eq!(&end.text, &whole),
                Finish::Cancelled | Finish::Deadline => prop_assert!(whole.starts_with(&end.text)),
            }
            if request.stream {
                prop_assert_eq!(desk.pieces(ticket), end.text);
            }
        }
    }
}
