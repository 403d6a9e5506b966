use super::*;
use crate::ledger::Event;
use crate::protocol::effect::{Job, Work};
use crate::protocol::fixture::{first_adapter, layout_of, member_config, plan, verified};
use crate::protocol::guard::tests::without;
use crate::wire::{Coding, Contribution, Plan, Receipt, Verdict};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn member() -> Member {
    Member::new(member_config(&node("d1"), &node("edge"), false), &[]).unwrap()
}

pub(super) fn offer(round: RoundNo, version: Version) -> Offer {
    Offer {
        island: None,
        knowledge: None,
        round,
        model: Name::new("m").unwrap(),
        base: Digest([1; 32]),
        version,
        adapter: Blob::of(&first_adapter(4), 4096),
        class_targets: None,
        plan: plan(Coding::F32),
        deadline_ms: 1_000,
        outer: None,
    }
}

fn from_edge(round: RoundNo, epoch: Epoch, body: Body) -> Input {
    Input::Message(verified(&node("edge"), round, epoch, body))
}

fn say(member: &mut Member, epoch: Epoch, offer: Offer) -> Vec<Effect> {
    member.step(Now::default(), from_edge(offer.round, epoch, Body::Offer(offer.into())))
}

pub(super) fn digest(offer: &Offer) -> Digest {
    Digest::of(&Body::Offer(offer.clone().into()).to_bytes().unwrap())
}

pub(super) fn work() -> Work {
    Work {
        knowledge: None,
        update: Some(first_adapter(4)),
        class_logits: None,
        num_examples: 100,
        num_devices: 1,
        steps: 4,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        residual: None,
        own: None,
        weighed: Vec::new(),
    }
}

fn done(member: &mut Member, offer: &Offer, work: Result<Work, &'static str>) -> Vec<Effect> {
    member.step(Now::default(), Input::Worked { offer: digest(offer), work })
}

fn trains(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Job(Job::Train(_))))
}

/// The answer in the effects, if there is one: accepted, or the reason.
fn answer(effects: &[Effect]) -> Option<Result<(), String>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { body: Body::Answer(answer), .. } if answer.accepted => Some(Ok(())),
        Effect::Send { body: Body::Answer(answer), .. } => Some(Err(answer.reason.clone())),
        _ => None,
    })
}

fn contribution(effects: &[Effect]) -> Option<(Contribution, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send {
            body: Body::Contribution(contribution),
            delivery: Delivery::UntilSettled(key),
            ..
        } => Some((Contribution::clone(contribution), key.clone())),
        _ => None,
    })
}

/// The member as its `Put`s left it.
fn reborn(effects: &[Vec<Effect>]) -> Member {
    let mut state: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for effect in effects.iter().flatten() {
        if let Effect::Put(key, value) = effect {
            state.insert(key.to_string(), value.clone());
        }
    }
    let state: Vec<_> = state.into_iter().collect();
    Member::new(member_config(&node("d1"), &node("edge"), false), &state).unwrap()
}

#[test]
fn an_offer_is_accepted_worked_on_and_contributed_once() {
    let mut member = member();
    let task = offer(1, 0);
    let first = say(&mut member, 1, task.clone());
    assert_eq!(answer(&first), Some(Ok(())));
    assert!(trains(&first));
    assert_eq!(say(&mut member, 1, task.clone()), []);
    let sent = done(&mut member, &task, Ok(work()));
    let (contribution, _) = contribution(&sent).unwrap();
    assert_eq!((contribution.offer, contribution.version), (digest(&task), 0));
    assert_eq!(done(&mut member, &task, Ok(work())), []);
    assert_eq!(say(&mut member, 1, task), []);
}

#[test]
fn a_receipt_settles_each_contribution_that_waits_also_an_older_one() {
    let mut member = member();
    let (one, two) = (offer(1, 0), offer(2, 0));
    say(&mut member, 1, one.clone());
    let (_, first) = contribution(&done(&mut member, &one, Ok(work()))).unwrap();
    say(&mut member, 1, two.clone());
    let (_, second) = contribution(&done(&mut member, &two, Ok(work()))).unwrap();
    assert!(member.blobs().contains(&Digest::of(&first_adapter(4))));
    for key in [second, first] {
        let receipt = Receipt { update: key.parse().unwrap(), verdict: Verdict::Late };
        let input = from_edge(1, 1, Body::Receipt(receipt));
        let effects = member.step(Now::default(), input.clone());
        assert!(effects.contains(&Effect::Settle(key)));
        let again = member.step(Now::default(), input);
        assert_eq!(again, [Effect::Count("receipt_of_nothing")]);
    }
    assert_eq!(member.sent, BTreeMap::new());
}

#[test]
fn work_goes_on_after_a_restart_and_its_contribution_is_the_same() {
    let mut member = member();
    let task = offer(1, 0);
    let effects = vec![say(&mut member, 1, task.clone())];
    let mut second = reborn(&effects);
    assert!(trains(&second.step(Now::default(), Input::Start)));
    let keys = [&mut member, &mut second]
        .map(|member| contribution(&done(member, &task, Ok(work()))).unwrap().1);
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn lower_epochs_are_fenced_off_and_without_the_fence_they_are_not() {
    let trial = || {
        let mut member = member();
        say(&mut member, 2, offer(1, 0));
        say(&mut member, 1, offer(2, 0));
        member.next.is_some()
    };
    assert!(!trial());
    assert!(without(Guard::Epochs, trial));
    let mut member = member();
    say(&mut member, 2, offer(1, 0));
    assert_eq!(say(&mut member, 1, offer(2, 0)), [Effect::Count("stale_epoch")]);
}

#[test]
fn an_offer_resealed_in_a_higher_epoch_is_no_new_work() {
    let mut member = member();
    say(&mut member, 1, offer(1, 0));
    let effects = say(&mut member, 2, offer(1, 0));
    assert!(!trains(&effects) && answer(&effects).is_none());
    assert!(matches!(effects.as_slice(), [Effect::Put(key, _)] if key == Member::EPOCH));
}

#[test]
fn what_was_declined_is_answered_again_and_taken_when_nothing_stands_against_it() {
    let mut member = member();
    member.step(Now::default(), Input::Pause(true));
    let records = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::Record(_))).count()
    };
    let first = say(&mut member, 1, offer(1, 0));
    let second = say(&mut member, 1, offer(1, 0));
    assert_eq!((answer(&first), records(&first)), (Some(Err("paused".into())), 1));
    assert_eq!((answer(&second), records(&second)), (Some(Err("paused".into())), 0));
    member.step(Now::default(), Input::Pause(false));
    assert!(trains(&say(&mut member, 1, offer(1, 0))));
}

#[test]
fn work_that_failed_is_declined_each_time_and_not_begun_again() {
    let mut member = member();
    let task = offer(1, 0);
    say(&mut member, 1, task.clone());
    let failed = done(&mut member, &task, Err("no_data"));
    assert_eq!(answer(&failed), Some(Err("no_data".into())));
    let again = say(&mut member, 1, task);
    assert_eq!(answer(&again), Some(Err("no_data".into())));
    assert!(!trains(&again));
}

#[test]
fn a_training_run_that_diverged_is_declined_and_not_fatal() {
    let mut member = member();
    let task = offer(1, 0);
    say(&mut member, 1, task.clone());
    let diverged = Work { loss_last: f32::NAN, ..work() };
    let effects = done(&mut member, &task, Ok(diverged));
    assert_eq!(answer(&effects), Some(Err("not_finite".into())));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Fatal(_))));
}

#[test]
fn the_gate_keeps_work_of_too_few_examples() {
    let mut member = member();
    member.config.gate.min_examples = 1_000;
    let task = offer(1, 0);
    say(&mut member, 1, task.clone());
    let effects = done(&mut member, &task, Ok(work()));
    assert!(contribution(&effects).is_none());
    assert!(effects.iter().any(|e| matches!(e, Effect::Record(Event::PrivacyRefusal { .. }))));
}

#[test]
fn foreign_models_bases_unsound_blobs_and_older_versions_are_declined() {
    let mut good = member();
    say(&mut good, 1, offer(1, 3));
    let task = offer(1, 3);
    done(&mut good, &task, Ok(work()));
    let cut = Blob::Manifest(crate::wire::Manifest { bytes: 1, ..big_manifest() });
    let cases = [
        (Offer { model: Name::new("x").unwrap(), ..offer(2, 3) }, "unknown_model"),
        (Offer { base: Digest([9; 32]), ..offer(2, 3) }, "base_mismatch"),
        (Offer { version: 2, ..offer(2, 3) }, "version_goes_back"),
        (Offer { adapter: cut, ..offer(2, 3) }, "unsound_blob"),
    ];
    for (bad, reason) in cases {
        assert_eq!(answer(&say(&mut good, 1, bad)), Some(Err(reason.into())));
    }
    assert_eq!(answer(&say(&mut good, 1, offer(2, 3))), Some(Ok(())));
}

#[test]
fn a_split_site_takes_whole_passes_and_no_rate_that_falls_within_a_round() {
    let plan = offer(1, 0).plan;
    let passes = Plan { local_epochs: Some(2), ..plan.clone() };
    let falling = Plan { final_rate: Some(0.0), ..plan.clone() };
    for (split, asked, expected) in [
        (true, &plan, Ok(())),
        (true, &passes, Ok(())),
        (true, &falling, Err("plan_not_for_split".to_owned())),
        (false, &falling, Ok(())),
    ] {
        let mut member = member();
        member.config.split = split;
        let asked = Offer { plan: asked.clone(), ..offer(1, 0) };
        assert_eq!(answer(&say(&mut member, 1, asked)), Some(expected));
    }
}

fn big() -> Vec<u8> {
    first_adapter(8_000)
}

fn big_manifest() -> crate::wire::Manifest {
    crate::wire::Manifest::of(&big(), 4096)
}

#[test]
fn an_adapter_in_chunks_is_fetched_and_one_on_disk_starts_at_once() {
    let mut config = member_config(&node("d1"), &node("edge"), false);
    config.layout = layout_of(&big()).into();
    let mut member = Member::new(config, &[]).unwrap();
    let task = Offer { adapter: Blob::Manifest(big_manifest()), ..offer(1, 0) };
    for _ in 0..2 {
        let effects = say(&mut member, 1, task.clone());
        assert!(matches!(effects.last(), Some(Effect::Fetch { .. })));
        assert!(!trains(&effects));
    }
    let bytes = big();
    let input = Input::Fetched { digest: Digest::of(&bytes), bytes };
    assert!(trains(&member.step(Now::default(), input.clone())));
    assert_eq!(member.step(Now::default(), input), []);
}

#[test]
fn an_offer_that_waited_is_looked_at_again_before_it_begins() {
    let mut member = member();
    let (one, two) = (offer(1, 0), offer(2, 0));
    say(&mut member, 1, one.clone());
    say(&mut member, 1, two);
    say(&mut member, 1, offer(3, 0));
    say(&mut member, 1, offer(2, 0)); // an older one doesn't push out a newer one
    assert_eq!(member.next.as_ref().unwrap().offer.round, 3);
    let result = RoundResult {
        knowledge: None,
        offer: digest(&one),
        version: 1,
        adapter: Blob::of(&first_adapter(4), 4096),
        class_targets: None,
        contributors: 1,
        contributor_set: Digest([0; 32]),
    };
    member.step(Now::default(), from_edge(1, 1, Body::Result(result.into())));
    assert_eq!(member.version(), 1);
    let effects = done(&mut member, &one, Ok(work()));
    assert!(contribution(&effects).is_some(), "what was begun is contributed, if late");
    assert_eq!(answer(&effects), Some(Err("version_goes_back".into())));
    assert_eq!(member.version(), 1);
}

#[test]
fn versions_rise_only_and_a_late_joiner_asks_for_the_latest() {
    let mut member = member();
    let start = member.step(Now::default(), Input::Start);
    let soon = Effect::Timer { timer: Timer::Resync, after_ms: Member::FIRST_RESYNC_MS };
    assert!(start.contains(&soon), "what a broker has kept comes first");
    let latest = |effect: &Effect| {
        matches!(effect, Effect::Send { body: Body::Get(Get { wanted: Wanted::Latest }), .. })
    };
    assert!(!start.iter().any(latest));
    assert!(member.step(Now::default(), Input::Timer(Timer::Resync)).iter().any(latest));
    let result = |version| {
        Body::Result(
            RoundResult {
                knowledge: None,
                offer: Digest([0; 32]),
                version,
                adapter: Blob::of(&first_adapter(4), 4096),
                class_targets: None,
                contributors: 1,
                contributor_set: Digest([0; 32]),
            }
            .into(),
        )
    };
    for (version, expected) in [(5, 5), (4, 5), (5, 5), (6, 6)] {
        member.step(Now::default(), from_edge(1, 1, result(version)));
        assert_eq!(member.version(), expected);
    }
    assert!(!member.step(Now::default(), Input::Timer(Timer::Resync)).iter().any(latest));
    assert!(member.step(Now::default(), Input::Timer(Timer::Resync)).iter().any(latest));
}

#[test]
fn only_what_waits_for_a_receipt_is_given_out_in_chunks() {
    let mut member = member();
    let task = offer(1, 0);
    say(&mut member, 1, task.clone());
    let get = |sha256| {
        let wanted = Wanted::Chunks { sha256, indices: (0..20).collect() };
        from_edge(0, 0, Body::Get(Get { wanted }))
    };
    let bytes = big();
    let named = Digest::of(&bytes);
    let refused = [Effect::Count("blob_not_offered")];
    assert_eq!(member.step(Now::default(), get(named)), refused);
    done(&mut member, &task, Ok(Work { update: Some(bytes), ..work() }));
    let sent = member.step(Now::default(), get(named));
    assert!(matches!(
        sent.as_slice(),
        [Effect::SendChunks { indices, chunk_bytes: 4096, .. }] if indices.len() == 8
    ));
    assert_eq!(member.step(Now::default(), get(task.adapter.sha256())), refused);
}

#[test]
fn others_than_the_parent_are_not_listened_to() {
    let mut member = member();
    let message = verified(&node("x"), 1, 9, Body::Offer(offer(1, 0).into()));
    let effects = member.step(Now::default(), Input::Message(message));
    assert_eq!(effects, [Effect::Count("not_from_the_parent")]);
}

#[test]
fn an_adapter_of_another_model_is_neither_trained_from_nor_served_and_its_twin_is() {
    let served =
        |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Apply { .. }));
    let recorded = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Record(Event::Refusal { sender: Some(_), .. })))
    };
    let of = |width| Blob::of(&first_adapter(width), 4096);
    let result = |width| {
        let result = RoundResult {
            knowledge: None,
            offer: Digest([0; 32]),
            version: 1,
            adapter: of(width),
            class_targets: None,
            contributors: 1,
            contributor_set: Digest([0; 32]),
        };
        from_edge(1, 1, Body::Result(result.into()))
    };
    let mut member = member();
    let refused = say(&mut member, 1, Offer { adapter: of(5), ..offer(1, 0) });
    assert_eq!(answer(&refused), Some(Err("layout_mismatch".into())));
    assert!(!served(&refused) && !trains(&refused));
    for again in [false, true] {
        let effects = member.step(Now::default(), result(5));
        assert!(effects.contains(&Effect::Count("layout_mismatch")) && !served(&effects));
        assert_eq!(recorded(&effects), !again, "published again and again, recorded once");
    }
    assert!(served(&member.step(Now::default(), result(4))));
}

#[test]
fn a_fetched_adapter_of_another_model_is_refused_too() {
    let mut member = member();
    let big = big();
    let adapter = Blob::Manifest(big_manifest());
    say(&mut member, 1, Offer { adapter, ..offer(1, 0) });
    let input = Input::Fetched { digest: Digest::of(&big), bytes: big };
    let effects = member.step(Now::default(), input);
    assert_eq!(answer(&effects), Some(Err("layout_mismatch".into())));
    assert!(trains(&say(&mut member, 1, offer(2, 0))));
}

#[test]
fn without_room_an_offer_is_declined_and_taken_when_it_comes_again_with_room() {
    let mut member = member();
    member.step(Now::default(), Input::Full(true));
    assert_eq!(answer(&say(&mut member, 1, offer(1, 0))), Some(Err("disk_full".into())));
    member.step(Now::default(), Input::Full(false));
    assert_eq!(answer(&say(&mut member, 1, offer(1, 0))), Some(Ok(())));
}

#[test]
fn a_summary_that_waited_too_long_is_given_up_and_an_update_never_is() {
    let sent = |update: Option<Vec<u8>>| {
        let mut member = member();
        let task = offer(1, 0);
        say(&mut member, 1, task.clone());
        let effects = done(&mut member, &task, Ok(Work { update, ..work() }));
        let (_, key) = contribution(&effects).unwrap();
        (member, key)
    };
    let (mut member, key) = sent(None);
    assert!(key.starts_with(Member::SUMMARY));
    let given_up = member.step(Now::default(), Input::Expired(key.clone()));
    assert!(given_up.contains(&Effect::Settle(key.clone())));
    assert!(given_up.contains(&Effect::Count("outbox_overflow")));
    let recorded = |event: &Effect| matches!(event, Effect::Record(Event::Decline { .. }));
    assert!(given_up.iter().any(recorded));
    assert_eq!(member.step(Now::default(), Input::Expired(key)), [], "once");

    let (mut member, key) = sent(work().update);
    let kept = member.step(Now::default(), Input::Expired(key));
    assert_eq!(kept, [Effect::Count("updates_are_never_dropped")]);
}

/// The blob that a training run starts from.
fn starts_from(effects: &[Effect]) -> Option<Digest> {
    effects.iter().find_map(|effect| match effect {
        Effect::Job(Job::Train(task)) => Some(task.adapter),
        _ => None,
    })
}

#[test]
fn with_soft_labels_alone_a_device_goes_on_from_its_own_adapter_until_deltas_are_asked_for() {
    let labels_only = |round, version| {
        let mut offer = offer(round, version);
        (offer.plan.adapter_delta, offer.plan.class_logits) = (false, true);
        offer
    };
    let everybodys = offer(1, 0).adapter.sha256();
    let mut member = member();
    let mut all = vec![say(&mut member, 1, labels_only(1, 0))];
    assert_eq!(starts_from(&all[0]), Some(everybodys));

    let own = vec![7; 9];
    let mine = Digest::of(&own);
    let learned = Work { update: None, own: Some(own.clone()), ..work() };
    all.push(done(&mut member, &labels_only(1, 0), Ok(learned)));
    assert!(all[1].contains(&Effect::SaveBlob(own)), "on disk before the state names it");
    assert!(all[1].contains(&Effect::Apply { version: 0, adapter: mine }));
    assert!(member.blobs().contains(&mine));

    let rebased =
        MemberConfig { base: Digest([9; 32]), ..member_config(&node("d1"), &node("edge"), false) };
    let state = all.iter().flatten().filter_map(|effect| match effect {
        Effect::Put(key, value) => Some((key.to_string(), value.clone())),
        _ => None,
    });
    let on_another_base = Member::new(rebased, &state.collect::<Vec<_>>()).unwrap();
    assert!(!on_another_base.blobs().contains(&mine), "it is good on its own base only");

    let mut again = reborn(&all);
    let restarted = again.step(Now::default(), Input::Start);
    assert!(restarted.contains(&Effect::Apply { version: 0, adapter: mine }));
    for member in [&mut member, &mut again] {
        assert_eq!(starts_from(&say(member, 1, labels_only(2, 0))), Some(mine));
        done(member, &labels_only(2, 0), Err("stopped"));
        let back = say(member, 1, offer(3, 0));
        assert_eq!(starts_from(&back), Some(everybodys));
        assert!(back.contains(&Effect::Apply { version: 0, adapter: everybodys }));
        assert!(!member.blobs().contains(&mine));
    }
}

#[test]
fn what_was_counted_is_told_in_all_at_once_and_again_and_is_kept_over_a_restart() {
    let told = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Send { body: Body::Get(Get { wanted: Wanted::Round(wishes) }), .. } => {
                Some((wishes.drifts, wishes.labels))
            }
            _ => None,
        })
    };
    let mut member = member();
    assert_eq!(told(&member.step(Now::default(), Input::Timer(Timer::Resync))), None);
    let wish = |drifts, labels| Input::Wish(Wishes { drifts, labels });
    assert_eq!(told(&member.step(Now::default(), wish(1, 0))), Some((1, 0)));
    let effects = member.step(Now::default(), wish(0, 7));
    assert_eq!(told(&effects), Some((1, 7)));
    let state: Vec<_> = effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Put(key, value) => Some((key.into_owned(), value)),
            _ => None,
        })
        .collect();
    let config = member_config(&node("d1"), &node("edge"), false);
    let mut member = Member::new(config, &state).unwrap();
    assert_eq!(told(&member.step(Now::default(), Input::Timer(Timer::Resync))), Some((1, 7)));
}
