//! What is said is what a model foresees, comes back as it was, and is refused where it contradicts itself.

use proptest::prelude::*;

use super::*;
use crate::rng::Stream;

fn texts(lengths: &[u32], tokens: &[u32]) -> Texts {
    Texts { tokens: tokens.to_vec(), lengths: lengths.to_vec(), chars: 1 }
}

fn two_texts() -> Texts {
    texts(&[2, 1], &[5, 4, 0])
}

fn shape_of(texts: &Texts, top: u16, vocab: u32) -> TopShape {
    let tokens = digest_of(&texts.lengths, &texts.tokens);
    TopShape { top, vocab, texts: u32::try_from(texts.lengths.len()).unwrap(), tokens }
}

fn log_softmax(logits: &[f64]) -> Vec<f32> {
    let sum: f64 = logits.iter().map(|z| z.exp()).sum();
    logits.iter().map(|z| super::super::narrow(z - sum.ln())).collect()
}

/// 3 sin(1.7 j): what numbers of another program are for.
fn row() -> Vec<f32> {
    log_softmax(&(0..13).map(|j| 3.0 * (1.7 * f64::from(j)).sin()).collect::<Vec<_>>())
}

/// A model that gives its texts' tokens this much more than others.
fn said(texts: &Texts, top: u16, vocab: usize, knows: &[f64]) -> TopLogits {
    let mut said = TopLogits::silent(texts, top).unwrap();
    let of_text = texts.lengths.iter().zip(knows).flat_map(|(len, k)| (0..*len).map(move |_| *k));
    for (place, (token, knows)) in texts.tokens.iter().zip(of_text).enumerate() {
        let mut stream = Stream::new(place as u64, "row");
        let mut logits: Vec<f64> = (0..vocab).map(|_| stream.normal()).collect();
        logits[*token as usize] += knows;
        said.say(place, &log_softmax(&logits)).unwrap();
    }
    said
}

#[test]
fn what_is_named_is_what_another_program_finds() {
    let texts = two_texts();
    let mut said = TopLogits::silent(&texts, 4).unwrap();
    (0..3).for_each(|place| said.say(place, &row()).unwrap());
    // torch.log_softmax and topk in f64, ceil(-log p * 1024).
    assert_eq!(said.ids[..4], [12, 1, 8, 5]);
    assert_eq!(said.steps[..4], [1336, 1361, 1768, 1955]);
    assert_eq!(said.own[..2], [1955, 2890]);
    let taught = said.place(0).unwrap();
    assert_eq!(taught.ids, [12, 1, 8, 5, 5]);
    assert!(
        taught
            .shares
            .iter()
            .zip([0.2713, 0.2648, 0.1779, 0.1483, 0.0])
            .all(|(a, b)| { *a <= b + 1e-4 && *a > b * 0.999 - 1e-4 })
    );
    let taught = said.place(1).unwrap();
    assert_eq!((taught.ids.len(), taught.ids[4]), (5, 4));
    assert!((taught.shares[4] - 0.059_51).abs() < 1e-4, "{taught:?}");
    assert!((taught.rest - (0.137_749 - 0.059_510)).abs() < 2e-3, "{taught:?}");
    let losses = said.losses();
    assert!((losses[0] - f64::midpoint(1.908_498, 2.821_619)).abs() < 1e-3, "{losses:?}");
    assert_eq!(said.place(3), None);
}

#[test]
fn of_equal_words_the_lower_ids_are_named() {
    let texts = texts(&[1], &[6]);
    let mut said = TopLogits::silent(&texts, 3).unwrap();
    said.say(0, &log_softmax(&[1.0, 2.0, 1.0, 2.0, 2.0, 2.0, 0.0])).unwrap();
    assert_eq!(said.ids, [1, 3, 4]);
}

#[test]
fn who_knows_a_text_best_teaches_it_and_nothing_else() {
    let texts = two_texts();
    let first = said(&texts, 4, 13, &[4.0, 0.0]);
    let second = said(&texts, 4, 13, &[0.0, 4.0]);
    let mut merged = TopLogits::silent(&texts, 4).unwrap();
    for other in [&first, &second, &first] {
        merged.take_better(other).unwrap();
    }
    assert_eq!((merged.place(0), merged.place(1)), (first.place(0), first.place(1)));
    assert_eq!(merged.place(2), second.place(2));
    let best = merged.losses();
    assert_eq!(best, [first.losses()[0], second.losses()[1]]);
    let again = merged.clone();
    merged.take_better(&again).unwrap();
    assert_eq!(merged, again, "nobody is better than itself");
    let other = TopLogits::silent(&self::texts(&[3], &[5, 4, 0]), 4).unwrap();
    assert_eq!(merged.take_better(&other).unwrap_err().kind(), "out_of_range");
    assert!(!other.is_about(&texts) && merged.is_about(&texts));
}

#[test]
fn a_model_that_says_nothing_sound_is_not_heard() {
    let texts = two_texts();
    let mut said = TopLogits::silent(&texts, 4).unwrap();
    assert_eq!(said.say(0, &[f32::NAN; 13]).unwrap_err().kind(), "not_finite");
    assert_eq!(said.say(3, &row()).unwrap_err().kind(), "out_of_range");
    assert_eq!(said.say(0, &row()[..5]).unwrap_err().kind(), "out_of_range");
    assert!(said.say(0, &row()).is_ok());
    for (lengths, tokens, top) in [
        (&[][..], &[][..], 4),
        (&[2, 0], &[1, 2], 4),
        (&[2], &[1], 4),
        (&[u32::MAX, 2], &[1], 4),
        (&[1], &[1], 0),
        (&[1], &[1], MAX_TOP + 1),
    ] {
        let refused = TopLogits::silent(&self::texts(lengths, tokens), top);
        assert_eq!(refused.unwrap_err().kind(), "out_of_range");
    }
    let long = self::texts(&[20_000], &vec![1; 20_000]);
    let problem = TopLogits::silent(&long, 512).unwrap_err().to_string();
    assert!(problem.contains("knowledge.top_logits"), "{problem}");
    assert!(TopLogits::silent(&long, 128).is_ok());
}

/// What is said of a set with one number changed: by name, place and value.
fn spoilt(name: &str, at: usize, value: f32) -> Result<TopLogits, LearnError> {
    let texts = two_texts();
    let mut set = said(&texts, 4, 13, &[1.0, 1.0]).to_set().unwrap();
    for (found, data) in set.named_values_mut() {
        if found == name {
            data[at] = value;
        }
    }
    TopLogits::from_set(&set, &shape_of(&texts, 4, 13))
}

#[test]
fn numbers_that_contradict_each_other_are_refused_and_their_twin_is_taken() {
    let texts = two_texts();
    let good = said(&texts, 4, 13, &[1.0, 1.0]);
    assert_eq!(spoilt("none", 0, 0.0).unwrap(), good);
    let kind = |name, at, value| spoilt(name, at, value).unwrap_err().kind();
    for value in [f32::NAN, -1.0, 0.5, 13.0, f32::INFINITY] {
        assert_eq!(kind(IDS, 1, value), "out_of_range", "an id of {value}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a small id")]
    let first = good.ids[0] as f32;
    assert!(spoilt(IDS, 2, first).unwrap_err().to_string().contains("twice"), "a word twice");
    assert_eq!(kind(TOKENS, 0, 6.0), "out_of_range", "other tokens than the plan's");
    assert_eq!(kind(LENGTHS, 0, 1.0), "out_of_range", "a token that belongs to no text");
    assert!(spoilt(GAPS, 0, 0.0).unwrap_err().to_string().contains("in all"), "more than all");
    assert_eq!(kind(GAPS, 3, 65_535.0), "out_of_range", "beyond what can be told");
    assert_eq!(kind(OWN, 0, 65_536.0), "out_of_range");
    // A loss that is lower than the words that would teach have it.
    assert!(spoilt(OWN, 0, 1.0).unwrap_err().to_string().contains("share of a token"));
    assert_eq!(kind(OWN, 1, f32::NAN), "out_of_range");
    // Equal words in the other order.
    let mut equal = TopLogits::silent(&texts, 4).unwrap();
    let shape = shape_of(&texts, 4, 13);
    assert_eq!(TopLogits::from_set(&equal.to_set().unwrap(), &shape).unwrap(), equal);
    equal.ids.swap(0, 1);
    let order = TopLogits::from_set(&equal.to_set().unwrap(), &shape).unwrap_err();
    assert!(order.to_string().contains("lower id"), "{order}");
}

#[test]
fn sets_of_another_shape_are_refused_and_their_twin_is_taken() {
    let texts = two_texts();
    let set = said(&texts, 4, 13, &[1.0, 1.0]).to_set().unwrap();
    let shape = shape_of(&texts, 4, 13);
    assert!(shape.is_sound() && TopLogits::from_set(&set, &shape).is_ok());
    for other in [
        TopShape { top: 3, ..shape },
        TopShape { texts: 3, ..shape },
        TopShape { tokens: Digest([0; 32]), ..shape },
        TopShape { vocab: 5, ..shape },
    ] {
        assert!(TopLogits::from_set(&set, &other).is_err(), "{other:?}");
    }
    for name in [LENGTHS, TOKENS, OWN, IDS, GAPS] {
        let fewer = set.filtered(|found| found != name);
        assert_eq!(TopLogits::from_set(&fewer, &shape).unwrap_err().kind(), "layout_mismatch");
    }
    let mut more = set.tensors().to_vec();
    more.push(Tensor { name: "more".into(), shape: vec![], data: vec![1.0] });
    let more = TensorSet::new(more).unwrap();
    assert_eq!(TopLogits::from_set(&more, &shape).unwrap_err().kind(), "layout_mismatch");
    assert!(TopShape { top: 11, ..shape }.is_sound(), "two words are left");
    assert!(!TopShape { vocab: u32::MAX, ..shape }.is_sound());
    for top in [0, 12, MAX_TOP + 1, u16::MAX] {
        assert!(!TopShape { top, ..shape }.is_sound(), "{top}");
    }
}

proptest! {
    #[test]
    fn whatever_a_model_foresees_is_taken_and_never_more_than_it_is(
        logits in prop::collection::vec(-30.0_f64..30.0, 13), top in 1_u16..11, token in 0_u32..13,
    ) {
        let texts = texts(&[1], &[token]);
        let mut said = TopLogits::silent(&texts, top).unwrap();
        let row = log_softmax(&logits);
        said.say(0, &row).unwrap();
        let back = TopLogits::from_set(&said.to_set().unwrap(), &shape_of(&texts, top, 13));
        prop_assert_eq!(back.as_ref(), Ok(&said));
        let taught = said.place(0).unwrap();
        let sum = taught.shares.iter().sum::<f32>() + taught.rest;
        prop_assert!((sum - 1.0).abs() < 1e-4, "{}", sum);
        for (id, share) in taught.ids.iter().zip(&taught.shares) {
            let (share, real) = (f64::from(*share), f64::from(row[*id as usize]).exp());
            prop_assert!(share <= real * 1.0001 + 1e-9);
            prop_assert!(share == 0.0 || share >= real * 0.9989, "{} of {}", share, real);
        }
    }

    #[test]
    fn the_best_of_all_is_the_best_in_any_order_of_different_ones(
        knows in prop::collection::vec(prop::collection::vec(0.0_f64..5.0, 2), 1..5),
    ) {
        let texts = two_texts();
        let all: Vec<TopLogits> = knows.iter().map(|k| said(&texts, 4, 13, k)).collect();
        let merge = |all: &mut dyn Iterator<Item = &TopLogits>| {
            let mut merged = TopLogits::silent(&texts, 4).unwrap();
            all.for_each(|one| merged.take_better(one).unwrap());
            merged
        };
        let merged = merge(&mut all.iter());
        prop_assert_eq!(merged.losses(), merge(&mut all.iter().rev()).losses());
        for one in &all {
            prop_assert!(merged.losses().iter().zip(one.losses()).all(|(best, each)| *best <= each));
        }
    }
}
