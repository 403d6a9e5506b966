//! Single steps of one of the two; whole takeovers are run by the simulator.

use super::*;
use crate::protocol::effect::Job;
use crate::protocol::fixture::{
    CHUNK_BYTES, contribution, first_adapter, plan, round_config, verified,
};
use crate::protocol::guard::tests::without;
use crate::protocol::{Owner, update};
use crate::wire::{Blob, Coding, CopyPart, Promise, StateCopy, encode};

const OWNER: &str = "cloud";
const STANDBY: &str = "cloud-2";

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

struct Bench {
    me: Failover,
    peer: NodeId,
}

impl Bench {
    fn new(me: &str) -> Self {
        let first = me == OWNER;
        let peer = node(if first { STANDBY } else { OWNER });
        let config =
            FailoverConfig { peer: peer.clone(), first, lease_ms: 4_000, chunk_bytes: CHUNK_BYTES };
        let members = ["a", "b", "c"].map(node).into();
        let round = round_config(Owner::Root, &members, plan(Coding::F32));
        let me = Failover::new(config, round, &first_adapter(4), &[], &[], Vec::new()).unwrap();
        let mut bench = Self { me, peer };
        bench.step(Input::Start);
        bench
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        self.me.step(Now::default(), input)
    }

    fn hear(&mut self, from: &str, epoch: Epoch, body: Body) -> Vec<Effect> {
        self.step(Input::Message(verified(&node(from), 0, epoch, body)))
    }

    fn peer_says(&mut self, epoch: Epoch, body: Body) -> Vec<Effect> {
        let peer = self.peer.to_string();
        self.hear(&peer, epoch, body)
    }

    fn ticks(&mut self, count: u64) -> Vec<Effect> {
        (0..count).flat_map(|_| self.step(Input::Timer(Timer::Lease))).collect()
    }

    fn copied(&mut self, epoch: Epoch, seq: u64, basis: Option<Epoch>) -> Vec<Effect> {
        self.peer_says(epoch, copy(seq, basis, owners_state(epoch)))
    }
}

/// A copy of all that an owner of a fresh federation has.
fn copy(seq: u64, basis: Option<Epoch>, puts: Vec<(String, Vec<u8>)>) -> Body {
    let blobs = vec![Manifest::of(&first_adapter(4), CHUNK_BYTES)];
    let puts = puts.into_iter().map(|(key, value)| (key, value.into())).collect();
    let part = encode(&CopyPart { puts, deletes: Vec::new(), blobs }).unwrap();
    let part = Blob::of(&part, CHUNK_BYTES);
    Body::Mirror(Mirror::Copy(StateCopy { seq, since: 0, basis, told: seq, part }))
}

fn owners_state(epoch: Epoch) -> Vec<(String, Vec<u8>)> {
    vec![("round/epoch".into(), encode(&epoch).unwrap())]
}

fn lease(ms: u64) -> Body {
    Body::Lease(Lease { ms, asks: false, alone: false, told: 0 })
}

fn puts(effects: &[Effect]) -> Vec<&str> {
    let mut keys = Vec::new();
    for effect in effects {
        if let Effect::Put(key, _) = effect {
            keys.push(&**key);
        }
    }
    keys
}

fn counted(effects: &[Effect], reason: &str) -> bool {
    effects.contains(&Effect::Count(match reason {
        "stale_epoch" => "stale_epoch",
        "standby_behind" => "standby_behind",
        "standby_not_in_step" => "standby_not_in_step",
        "senseless_copy" => "senseless_copy",
        "copy_knows_less" => "copy_knows_less",
        other => panic!("{other}"),
    }))
}

fn asks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| match effect {
        Effect::Send { body: Body::Lease(lease), .. } => lease.asks,
        _ => false,
    })
}

#[test]
fn what_a_woken_owner_copies_is_refused_and_without_the_check_it_would_put_the_state_back() {
    let woken = |bench: &mut Bench| {
        bench.copied(4, 1, Some(4));
        let effects = bench.copied(2, 9, None);
        (counted(&effects, "stale_epoch"), puts(&effects).contains(&"round/epoch"))
    };
    assert_eq!(woken(&mut Bench::new(STANDBY)), (true, false));
    let mut bench = Bench::new(STANDBY);
    assert_eq!(without(Guard::Epochs, || woken(&mut bench)), (false, true));
}

#[test]
fn an_old_lease_keeps_nobody_from_taking_over_and_a_new_one_does() {
    for (epoch, stands) in [(2, true), (4, false)] {
        let mut bench = Bench::new(STANDBY);
        bench.copied(4, 1, Some(4));
        assert!(!asks(&bench.ticks(4)));
        let heard = bench.peer_says(epoch, lease(4_000));
        assert_eq!(counted(&heard, "stale_epoch"), stands);
        assert_eq!(asks(&bench.ticks(2)), stands, "a lease of epoch {epoch}");
    }
}

#[test]
fn no_lease_keeps_the_rounds_for_longer_than_is_allowed() {
    let mut bench = Bench::new(STANDBY);
    bench.copied(4, 1, Some(4));
    bench.peer_says(4, lease(u64::MAX));
    assert!(asks(&bench.ticks(Failover::MOST_TICKS + 1)));
}

#[test]
fn a_lease_of_anybody_else_is_nothing() {
    let mut bench = Bench::new(STANDBY);
    bench.copied(4, 1, Some(4));
    let before = bench.me.stand.clone();
    bench.hear("a", 100, lease(60_000));
    bench.hear("stranger", 100, lease(60_000));
    assert_eq!(bench.me.stand, before);
    assert!(asks(&bench.ticks(5)));
}

#[test]
fn who_was_never_in_step_says_so_and_does_not_stand() {
    let mut bench = Bench::new(STANDBY);
    bench.copied(4, 1, None);
    let effects = bench.ticks(30);
    assert!(counted(&effects, "standby_not_in_step") && !asks(&effects));
}

#[test]
fn most_members_have_to_promise_and_none_that_has_heard_more_counts() {
    for (before, leads) in [(4, true), (3, true), (6, false)] {
        let mut bench = Bench::new(STANDBY);
        bench.copied(4, 1, Some(4));
        bench.ticks(5);
        assert_eq!(bench.me.view().post, "standing");
        let promise = |before| Body::Promise(Promise { before });
        bench.hear("a", 5, promise(4));
        bench.hear("a", 5, promise(4)); // the same member once more
        bench.hear("d", 5, promise(4)); // no member
        bench.hear("b", 7, promise(4)); // for another epoch
        assert_eq!(bench.me.view().post, "standing");
        let effects = bench.hear("b", 5, promise(before));
        assert_eq!(counted(&effects, "standby_behind"), !leads);
        assert_eq!(bench.me.view().post == "alone", leads, "before: {before}");
    }
}

#[test]
fn who_knows_less_is_not_confirmed_and_who_knows_as_much_is() {
    for (basis, taken) in [(2, false), (4, true)] {
        let mut bench = Bench::new(STANDBY);
        bench.copied(4, 1, Some(4));
        let effects = bench.copied(8, 1, Some(basis));
        assert_eq!(puts(&effects).contains(&"round/epoch"), taken, "basis {basis}");
        // Asking in vain keeps nobody from standing.
        let asking = Body::Lease(Lease { ms: 4_000, asks: true, alone: false, told: 0 });
        let mut stood = false;
        for _ in 0..8 {
            bench.peer_says(8, asking.clone());
            stood |= asks(&bench.ticks(1));
        }
        assert!(stood);
    }
}

#[test]
fn a_copy_of_what_was_put_back_from_a_backup_is_refused_and_else_it_would_take_the_state_s_place() {
    // Of before it asks, and where it was alone when the backup was taken.
    for basis in [Some(4), None] {
        let given_back = |told: u64| {
            let mut bench = Bench::new(STANDBY);
            bench.copied(4, 5, Some(4));
            let effects = bench.peer_says(6, copy(told, basis, owners_state(6)));
            let taken = puts(&effects).contains(&"round/epoch");
            (counted(&effects, "copy_knows_less"), asks(&effects), taken)
        };
        assert_eq!(given_back(2), (true, true, false), "it stands: {basis:?}");
        assert_eq!(given_back(5), (false, false, true), "nothing was lost: {basis:?}");
        let broken = without(Guard::Told, || given_back(2));
        assert_eq!(broken, (false, false, true));
    }
}

#[test]
fn who_has_just_started_hears_the_other_one_before_promises_count() {
    let mut bench = Bench::new(STANDBY);
    bench.copied(4, 1, Some(4));
    bench.ticks(5);
    assert_eq!(bench.me.view().post, "standing");
    bench.step(Input::Start);
    for member in ["a", "b"] {
        bench.hear(member, 5, Body::Promise(Promise { before: 4 }));
    }
    bench.ticks(Failover::TICKS - 1);
    assert_eq!(bench.me.view().post, "standing");
    let effects = bench.ticks(1);
    assert_eq!(bench.me.view().post, "alone");
    assert!(!asks(&effects));
}

#[test]
fn of_two_that_lead_alone_the_one_with_another_disk_than_it_had_follows() {
    for (told, kept_by_broker, post) in
        [(9, false, "following"), (0, false, "alone"), (9, true, "alone")]
    {
        let mut bench = Bench::new(OWNER);
        assert_eq!(bench.me.view().post, "alone");
        let lease = Body::Lease(Lease { ms: 4_000, asks: false, alone: true, told });
        let message = verified(&node(STANDBY), 0, 3, lease);
        let message = if kept_by_broker { message.kept_by_broker() } else { message };
        bench.step(Input::Message(message));
        assert_eq!(bench.me.view().post, post, "{told} {kept_by_broker}");
    }
}

#[test]
fn who_stands_answers_a_wish_with_a_copy_and_nothing_else_with_one() {
    let mut bench = Bench::new(STANDBY);
    bench.copied(4, 1, Some(4));
    bench.ticks(5);
    assert_eq!(bench.me.view().post, "standing");
    for (wants, copies) in [(false, 0), (true, 1)] {
        let effects = bench.peer_says(5, Body::Mirror(Mirror::Have { seq: 0, wants }));
        let copy =
            |e: &&Effect| matches!(e, Effect::Send { body: Body::Mirror(Mirror::Copy(_)), .. });
        assert_eq!(effects.iter().filter(copy).count(), copies);
    }
}

#[test]
fn a_copy_may_not_touch_what_is_not_the_rounds() {
    let mut bench = Bench::new(STANDBY);
    let mut state = owners_state(4);
    state.push(("failover/stand".into(), vec![0xc0]));
    let effects = bench.peer_says(4, copy(1, Some(4), state));
    assert!(counted(&effects, "senseless_copy"));
    assert!(!bench.me.view().in_step);
    let bad = vec![("round/global".to_owned(), vec![0xc1])];
    let effects = bench.peer_says(4, copy(2, Some(4), bad));
    assert!(counted(&effects, "senseless_copy") && !bench.me.view().in_step);
}

#[test]
fn a_receipt_and_a_result_leave_once_the_standby_has_what_they_say() {
    let mut bench = Bench::new(OWNER);
    let epoch = bench.me.view().epoch;
    let have = |seq| Body::Mirror(Mirror::Have { seq, wants: false });
    let newest = |bench: &Bench| match &bench.me.place {
        Place::Leading { outgoing, .. } => outgoing.number(),
        _ => panic!("it leads"),
    };
    let first = newest(&bench);
    bench.peer_says(epoch, have(first));
    assert_eq!(bench.me.view().post, "paired");
    let at = newest(&bench);
    bench.peer_says(epoch, have(at));
    let effects = bench.step(Input::Timer(Timer::NextRound));
    let offer = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Send { body: body @ Body::Offer(offer), .. } => {
                Some((Digest::of(&body.to_bytes().unwrap()), offer.clone()))
            }
            _ => None,
        })
    };
    assert!(offer(&effects).is_none());
    let at = newest(&bench);
    let (digest, offer) = offer(&bench.peer_says(epoch, have(at))).unwrap();

    let receipts = |effects: &[Effect]| {
        let is_receipt = |e: &&Effect| matches!(e, Effect::Send { body: Body::Receipt(_), .. });
        effects.iter().filter(is_receipt).count()
    };
    let mut job = None;
    for member in ["a", "b", "c"] {
        let work = contribution(digest, offer.version, &first_adapter(4));
        let work = Body::Contribution(work.into());
        let message = verified(&node(member), offer.round, epoch, work);
        let effects = bench.step(Input::Message(message));
        assert_eq!(receipts(&effects), 0);
        job = effects.into_iter().find_map(|effect| match effect {
            Effect::Job(Job::Combine(job)) => Some(job),
            _ => None,
        });
    }
    let at = newest(&bench);
    assert_eq!(receipts(&bench.peer_says(epoch, have(at - 1))), 2);
    assert_eq!(receipts(&bench.peer_says(epoch, have(at))), 1);
    let job = job.unwrap();
    let blob = |_: &Digest| Some(first_adapter(4));
    let mut of_before = job.clone();
    of_before.inputs.pop();
    let outcome = Ok(update::combine(&of_before, &blob).unwrap());
    let effects = bench.step(Input::Combined { offer: job.offer, outcome });
    assert_eq!(effects, [Effect::Count("outcome_of_another_set")], "of a set of before");
    let outcome = Ok(update::combine(&job, &blob).unwrap());
    let effects = bench.step(Input::Combined { offer: job.offer, outcome });
    let speaks =
        |e: &Effect| matches!(e, Effect::Send { body: Body::Result(_), .. } | Effect::Apply { .. });
    assert!(!effects.iter().any(speaks));
    let at = newest(&bench);
    let effects = bench.peer_says(epoch, have(at));
    assert_eq!(effects.iter().filter(|effect| speaks(effect)).count(), 2);
}

#[test]
fn the_two_never_take_the_same_number() {
    for heard in 0..6 {
        let take = |me: &str| {
            let mut bench = Bench::new(me);
            bench.me.stand.epoch = heard;
            bench.me.next_epoch()
        };
        let (owner, standby) = (take(OWNER), take(STANDBY));
        assert!(owner > heard && standby > heard);
        assert_eq!((owner % 2, standby % 2), (0, 1));
    }
}

#[test]
fn of_too_much_that_is_held_back_offers_results_and_the_version_to_serve_stay() {
    let say = |body: Body, delivery: Delivery| Effect::Send {
        to: To::Children,
        body,
        round: 0,
        epoch: 2,
        delivery,
    };
    let receipt = || say(Body::Promise(Promise { before: 1 }), Delivery::Volatile);
    let latest = |ms: u64| say(lease(ms), Delivery::Latest);
    let serve = |version| Effect::Apply { version, adapter: Digest([1; 32]) };
    let mut held: Vec<_> = [latest(1), serve(1), Effect::Republish, receipt(), receipt()]
        .into_iter()
        .chain([receipt(), Effect::Republish, latest(2), serve(2)])
        .zip(1..)
        .map(|(effect, number)| (number, effect))
        .collect();
    shorten(&mut held, 5);
    let stays =
        [(5, receipt()), (6, receipt()), (7, Effect::Republish), (8, latest(2)), (9, serve(2))];
    assert_eq!(held, stays);
    shorten(&mut held, 1);
    assert_eq!(held.len(), 3, "what isn't said again stays, however much it is");
}

#[test]
fn changes_that_nobody_confirms_are_bounded_and_none_is_lost() {
    let mut outgoing = Outgoing::default();
    let mut state: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let change = |outgoing: &mut Outgoing, state: &mut BTreeMap<_, _>, key: usize| {
        state.insert(format!("round/{key}"), vec![1]);
        outgoing.changed([format!("round/{key}")].into());
    };
    let lacks = |outgoing: &mut Outgoing, state: &BTreeMap<String, Vec<u8>>| {
        let (copy, _) = outgoing.copy(state, Vec::new(), (None, 0), 1 << 24).unwrap();
        let part = match copy.part {
            Blob::Inline(bytes) => bytes,
            Blob::Manifest(_) => panic!("it is small"),
        };
        decode::<CopyPart>(&part, 1 << 24).unwrap().puts.len()
    };
    change(&mut outgoing, &mut state, 0);
    let sent = outgoing.number();
    change(&mut outgoing, &mut state, 1);
    assert!(outgoing.confirm(sent));
    assert_eq!(lacks(&mut outgoing, &state), 1, "what has changed since that copy was sent");
    for key in 0..3 * Outgoing::MOST_CHANGED {
        change(&mut outgoing, &mut state, key % 10_000);
        assert!(outgoing.noted() <= Outgoing::MOST_CHANGED);
    }
    assert!(!outgoing.confirm(sent + 1), "it would lack what isn't noted any more");
    assert_eq!(outgoing.confirmed(), 0, "everything is told again");
}

#[test]
fn who_leads_alone_goes_on_above_what_a_member_has_heard_and_once_a_tick() {
    let mut bench = Bench::new(OWNER);
    let promise = || Body::Promise(Promise { before: 2 });
    let epoch = bench.me.view().epoch;
    bench.ticks(1);
    bench.hear("stranger", epoch + 1, promise());
    bench.hear("a", u64::MAX / 2, promise());
    bench.hear("a", epoch, promise());
    assert_eq!(bench.me.view().epoch, epoch);
    bench.ticks(1);
    bench.hear("a", epoch + 1, promise());
    assert_eq!((bench.me.view().post, bench.me.view().epoch), ("alone", epoch + 2));
    bench.hear("b", epoch + 3, promise());
    assert_eq!(bench.me.view().epoch, epoch + 2, "in the same tick");
    bench.ticks(1);
    bench.hear("b", epoch + 3, promise());
    assert_eq!(bench.me.view().epoch, epoch + 4);
}

fn said(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Send { .. })).count()
}

#[test]
fn who_led_alone_when_it_stopped_hears_the_other_one_before_its_first_word() {
    let heard = |asks: bool, told: u64, kept_by_broker: bool| {
        let mut bench = Bench::new(OWNER);
        let epoch = bench.me.view().epoch;
        bench.me.is_new = false;
        assert_eq!(said(&bench.step(Input::Start)), 0);
        assert_eq!(said(&bench.ticks(Failover::TICKS + 1)), 0);
        let lease = Body::Lease(Lease { ms: 4_000, asks, alone: false, told });
        let message = verified(&node(STANDBY), 0, epoch + 1, lease);
        let message = if kept_by_broker { message.kept_by_broker() } else { message };
        bench.step(Input::Message(message));
        bench
    };
    for asks in [true, false] {
        assert_eq!(heard(asks, u64::MAX, false).me.view().post, "following", "it is of a backup");
        assert_eq!(heard(asks, 0, false).me.view().post, "alone", "it has all there is");
        let mut bench = heard(asks, u64::MAX, true);
        let before = bench.me.view();
        assert_eq!(before.post, "standing", "nobody has to live who said so once");
        bench.ticks(1);
        assert_eq!(bench.me.view().post, "alone");
        assert!(bench.me.view().epoch > before.epoch);
    }
    let broken = without(Guard::Told, || heard(true, u64::MAX, false).me.view().post);
    assert_eq!(broken, "alone");
}

#[test]
fn who_leads_alone_from_a_backup_follows_whoever_asks_and_knows_more() {
    for (more, post) in [(1, "following"), (0, "alone")] {
        let mut bench = Bench::new(OWNER);
        let (epoch, told) = (bench.me.view().epoch, bench.me.told);
        let asks = Lease { ms: 4_000, asks: true, alone: false, told: told + more };
        bench.peer_says(epoch + 1, Body::Lease(asks));
        assert_eq!(bench.me.view().post, post);
    }
}

#[test]
fn what_nobody_confirmed_is_no_reason_to_refuse_who_went_on_without_it() {
    let mut bench = Bench::new(OWNER);
    let epoch = bench.me.view().epoch;
    let have = |bench: &Bench| match &bench.me.place {
        Place::Leading { outgoing, .. } => {
            Body::Mirror(Mirror::Have { seq: outgoing.number(), wants: false })
        }
        _ => panic!("it leads"),
    };
    for _ in 0..2 {
        let all = have(&bench);
        bench.peer_says(epoch, all);
    }
    let confirmed = bench.me.told;
    bench.step(Input::Timer(Timer::NextRound));
    assert!(bench.me.told > confirmed);
    assert_eq!(bench.me.known, confirmed);
    bench.peer_says(epoch + 1, lease(4_000));
    let effects = bench.peer_says(epoch + 1, copy(confirmed, None, owners_state(epoch + 1)));
    assert!(puts(&effects).contains(&"round/epoch"));
}

#[test]
fn what_an_older_copy_lacked_is_given_up_when_a_newer_one_comes_and_what_both_lack_is_not() {
    let large = |fill: u8| vec![("round/late/x".to_owned(), noise(fill, 80_000))];
    let fetched = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Fetch { manifest, .. } => Some(manifest.sha256),
            _ => None,
        })
    };
    let forgot = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Forget(digest) => Some(*digest),
            _ => None,
        })
    };
    let mut bench = Bench::new(STANDBY);
    let first = bench.peer_says(1, copy(1, None, large(1)));
    let wanted = fetched(&first).unwrap();
    assert_eq!(forgot(&first), None, "nothing was under way");
    let same = bench.peer_says(1, copy(2, None, large(1)));
    assert_eq!(
        (fetched(&same), forgot(&same)),
        (Some(wanted), None),
        "the same bytes under another number"
    );
    let newer = bench.peer_says(1, copy(3, None, large(2)));
    assert_eq!(forgot(&newer), Some(wanted));
    assert!(fetched(&newer).is_some_and(|digest| digest != wanted));
}

/// Bytes that don't fit inline.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_mul(31).wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}
