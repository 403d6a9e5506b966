use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// Eight blocks of 1 M values, of which a tenth trains.
fn model() -> ModelCost {
    let block = PartCost { values: 1_000_000, trains: 100_000, flops: 1e8, kept: 50_000 };
    ModelCost {
        stem: PartCost { values: 200_000, trains: 0, flops: 1e7, kept: 5_000 },
        blocks: vec![block; 8],
        head: PartCost { values: 10_000, trains: 10_000, flops: 1e4, kept: 100 },
        tokens: 40,
        width: 64,
        classes: 3,
        example_bytes: 8_192,
        engine_bytes: 100 * MIB,
        own: PartCost { values: 300, trains: 300, flops: 1e5, kept: 100 },
    }
}

fn work() -> RoundWork {
    RoundWork {
        steps: 30,
        batch: 16,
        budget_s: 120.0,
        delta_bits: 32,
        coding: ActivationCoding::Int8,
        labels_stay: false,
        references: 500,
        min_steps: 16,
    }
}

fn member() -> MemberFigures {
    MemberFigures {
        flops_per_s: 1e11,
        free_bytes: 1_000 * MIB,
        uplink_bytes_per_s: 1e6,
        examples: 400,
        kept_back: 0,
        has_edge: true,
        min_examples: 100,
        min_cell: 20,
        shows_activations: true,
    }
}

fn way(member: &MemberFigures) -> Way {
    propose(&model(), &work(), member).unwrap().way
}

fn obstacles(proposal: &Proposal, way: Way) -> Vec<Obstacle> {
    proposal.considered.iter().find(|c| c.way == way).unwrap().obstacles.clone()
}

#[test]
fn who_has_enough_of_everything_trains_the_whole_adapter() {
    let proposal = propose(&model(), &work(), &member()).unwrap();
    assert_eq!((proposal.way, proposal.answered_by), (Way::Whole, AnsweredBy::Itself));
    // By hand: 2 x 8.21 M values to train and as many to answer, 4 x 0.81 M that train, 16 x 405 100 kept,
    // 4 bytes each.
    let values = 4 * 8_210_000_u64 + 4 * 810_000 + 16 * 405_100;
    assert_eq!(proposal.cost.memory_bytes, 4 * values + 100 * MIB + 400 * 8_192);
    assert_eq!(proposal.cost.sent_bytes, 4 * 810_000);
    let seconds = 3.0 * 480.0 * (8e8 + 1e7 + 1e4) / 1e11;
    assert!((proposal.cost.compute_s - seconds).abs() < 1e-6);
}

#[test]
fn less_memory_cuts_the_model_and_says_why_the_whole_does_not_fit() {
    let small = MemberFigures { free_bytes: 150 * MIB, ..member() };
    let proposal = propose(&model(), &work(), &small).unwrap();
    let Way::Split { cut } = proposal.way else { panic!("{proposal:?}") };
    assert!((1..8).contains(&cut));
    assert_eq!(proposal.answered_by, AnsweredBy::Halves { cut });
    let whole = obstacles(&proposal, Way::Whole);
    assert!(matches!(whole[..], [Obstacle::Memory { needs, free }] if needs > free));
    assert!(matches!(
        obstacles(&proposal, Way::Split { cut: cut + 1 })[..],
        [Obstacle::Memory { .. }]
    ));
    // Activations of 30 batches in a byte a value and a scale a token, and the front's delta.
    let delta = u64::from(cut) * 100_000 * 4;
    assert_eq!(proposal.cost.sent_bytes, delta + 30 * 16 * 40 * 66);
}

#[test]
fn where_labels_stay_the_head_is_in_front_and_the_edge_answers() {
    let small = MemberFigures { free_bytes: 150 * MIB, ..member() };
    let there = propose(&model(), &work(), &small).unwrap();
    let here = propose(&model(), &RoundWork { labels_stay: true, ..work() }, &small).unwrap();
    let Way::Split { cut } = here.way else { panic!("{here:?}") };
    assert_eq!(here.answered_by, AnsweredBy::Edge);
    // The head's delta, and a token's gradient an example.
    let more = 10_000 * 4 + 30 * 16 * 66;
    let there = there.considered.iter().find(|c| c.way == Way::Split { cut }).unwrap();
    assert_eq!(here.cost.sent_bytes, there.cost.sent_bytes + more);
    assert!(here.cost.memory_bytes > there.cost.memory_bytes);
}

#[test]
fn what_is_kept_back_takes_memory_and_counts_for_nothing() {
    let all = propose(&model(), &work(), &MemberFigures { examples: 120, ..member() }).unwrap();
    let some = MemberFigures { examples: 90, kept_back: 30, ..member() };
    let some = propose(&model(), &work(), &some).unwrap();
    assert_eq!((all.way, some.way), (Way::Whole, Way::Answers));
    assert_eq!(some.considered[0].cost, all.considered[0].cost);
    assert_eq!(some.considered[0].obstacles, [Obstacle::Examples { needs: 100, has: 90 }]);
}

#[test]
fn what_a_strict_profile_or_the_place_forbids_is_not_proposed() {
    let small = MemberFigures { free_bytes: 150 * MIB, ..member() };
    for hindered in [
        MemberFigures { shows_activations: false, ..small },
        MemberFigures { has_edge: false, ..small },
    ] {
        assert_eq!(way(&hindered), Way::ReferenceLogits);
    }
    let no_references = RoundWork { references: 0, ..work() };
    let proposal = propose(&model(), &no_references, &MemberFigures { has_edge: false, ..small });
    assert_eq!(proposal.unwrap().way, Way::ClassLogits);
    let few = MemberFigures { examples: 99, ..member() };
    let proposal = propose(&model(), &work(), &few).unwrap();
    assert_eq!((proposal.way, proposal.answered_by), (Way::Answers, AnsweredBy::Itself));
    let needs = Obstacle::Examples { needs: 100, has: 99 };
    assert!(proposal.considered.iter().all(|c| c.obstacles == [needs]), "{proposal:?}");
    let short = RoundWork { steps: 15, ..work() };
    assert_eq!(propose(&model(), &short, &member()).unwrap().way, Way::Answers);
}

#[test]
fn a_slow_link_leaves_knowledge_and_a_smaller_one_yet_only_answers() {
    let slow = |uplink_bytes_per_s| MemberFigures { uplink_bytes_per_s, ..member() };
    assert_eq!(way(&slow(1e6)), Way::Whole);
    assert_eq!(way(&slow(1_000.0)), Way::ReferenceLogits);
    assert_eq!(way(&slow(10.0)), Way::ClassLogits);
    assert_eq!(way(&slow(0.1)), Way::Answers);
}

#[test]
fn who_can_neither_train_nor_hold_the_model_is_answered_for() {
    let tiny = MemberFigures { free_bytes: MIB, ..member() };
    let proposal = propose(&model(), &work(), &tiny).unwrap();
    assert_eq!((proposal.way, proposal.answered_by), (Way::Answers, AnsweredBy::Edge));
    let alone = MemberFigures { has_edge: false, ..tiny };
    assert_eq!(propose(&model(), &work(), &alone).unwrap().answered_by, AnsweredBy::Nobody);
    let front_only = MemberFigures { free_bytes: 120 * MIB, examples: 5, ..member() };
    let proposal = propose(&model(), &work(), &front_only).unwrap();
    assert_eq!(proposal.answered_by, AnsweredBy::Halves { cut: 1 });
}

#[test]
fn devices_of_one_edge_share_the_earliest_cut() {
    let of = |mib| propose(&model(), &work(), &MemberFigures { free_bytes: mib * MIB, ..member() });
    let mut all = [of(150).unwrap(), of(125).unwrap(), of(1_000).unwrap()];
    let Way::Split { cut: late } = all[0].way else { panic!() };
    let Way::Split { cut: early } = all[1].way else { panic!("{:?}", all[1]) };
    assert!(early < late);
    assert_eq!(align(&mut all), Some(early));
    assert_eq!(all[0].way, Way::Split { cut: early });
    assert_eq!((all[0].cost, all[2].way), (all[1].cost, Way::Whole));
    assert_eq!(align(&mut all[2..]), None);
}

#[test]
fn figures_that_can_not_be_are_refused_by_name() {
    let refused =
        |member: &MemberFigures| propose(&model(), &work(), member).unwrap_err().to_string();
    for bad in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        let text = refused(&MemberFigures { flops_per_s: bad, ..member() });
        assert!(text.contains("operations a second") && text.contains(&bad.to_string()), "{text}");
        let text = refused(&MemberFigures { uplink_bytes_per_s: bad, ..member() });
        assert!(text.contains("uplink"), "{text}");
        let work = RoundWork { budget_s: bad, ..work() };
        assert!(propose(&model(), &work, &member()).is_err());
    }
    assert!(refused(&MemberFigures { free_bytes: 0, ..member() }).contains("free memory"));
    let none = ModelCost { blocks: vec![], ..model() };
    assert!(propose(&none, &work(), &member()).is_err());
    assert!(propose(&model(), &RoundWork { batch: 0, ..work() }, &member()).is_err());
    let mut odd = model();
    odd.blocks[3].flops = f64::NAN;
    assert!(propose(&odd, &work(), &member()).is_err());
}

/// How much a round gets of a member: the order of the ways.
fn rank(way: Way) -> u32 {
    match way {
        Way::Whole => 1_000,
        Way::Split { cut } => 100 + cut,
        Way::ReferenceLogits => 3,
        Way::ClassLogits => 2,
        Way::Answers => 1,
    }
}

prop_compose! {
    fn any_member()(
        flops in 6.0_f64..12.0,
        free_mib in 1_u64..600,
        uplink in 0.0_f64..8.0,
        examples in 0_u64..1_000,
        has_edge: bool,
        shows_activations: bool,
        strict: bool,
    ) -> MemberFigures {
        let (min_examples, min_cell) = if strict { (200, 200) } else { (100, 20) };
        MemberFigures {
            flops_per_s: 10_f64.powf(flops),
            free_bytes: free_mib * MIB,
            uplink_bytes_per_s: 10_f64.powf(uplink),
            examples,
            kept_back: 0,
            has_edge,
            min_examples,
            min_cell,
            shows_activations,
        }
    }
}

proptest! {
    #[test]
    fn more_memory_or_speed_never_gives_an_earlier_cut(member in any_member(), more in 1.0_f64..50.0) {
        let before = way(&member);
        let memory = MemberFigures { free_bytes: member.free_bytes * 3, ..member };
        let speed = MemberFigures { flops_per_s: member.flops_per_s * more, ..member };
        let uplink = MemberFigures { uplink_bytes_per_s: member.uplink_bytes_per_s * more, ..member };
        for richer in [memory, speed, uplink] {
            prop_assert!(rank(way(&richer)) >= rank(before), "{:?} {:?}", before, way(&richer));
        }
    }

    #[test]
    fn a_slower_uplink_never_sends_more_bytes(member in any_member(), less in 0.001_f64..1.0) {
        let slower = MemberFigures { uplink_bytes_per_s: member.uplink_bytes_per_s * less, ..member };
        let sent = |member| propose(&model(), &work(), member).unwrap().cost.sent_bytes;
        prop_assert!(sent(&slower) <= sent(&member));
    }

    #[test]
    fn what_is_proposed_fits_what_there_is(member in any_member()) {
        let proposal = propose(&model(), &work(), &member).unwrap();
        if proposal.way != Way::Answers {
            prop_assert!(proposal.cost.memory_bytes <= member.free_bytes);
            prop_assert!(proposal.cost.compute_s <= work().budget_s);
            prop_assert!(obstacles(&proposal, proposal.way).is_empty());
            prop_assert!(member.examples >= member.min_examples);
        }
        let has_activations = matches!(proposal.answered_by, AnsweredBy::Halves { .. });
        prop_assert!(!has_activations || member.shows_activations && member.has_edge);
    }

    #[test]
    fn no_figures_make_it_panic(
        flops: f64, uplink: f64, budget: f64, free: u64, examples: u64, values: u64, kept: u64, steps: u32,
    ) {
        let mut model = model();
        model.blocks[0] = PartCost { values, trains: values, flops, kept };
        let member =
            MemberFigures { flops_per_s: flops, free_bytes: free, uplink_bytes_per_s: uplink, examples, ..member() };
        let work = RoundWork { budget_s: budget, steps, ..work() };
        let _ = propose(&model, &work, &member);
    }
}
