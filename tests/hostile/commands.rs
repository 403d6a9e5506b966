//! Commands: replayed, retained, expired, malformed, enormous.

use std::collections::BTreeMap;

use gaisnet::ids::Digest;
use gaisnet::ledger::Event;
use gaisnet::scada::command::{self, CommandPolicy};
use gaisnet::time::Wall;
use gaisnet::wire::{Body, Command};

use super::federation::{name, paused};
use super::stage::{Forged, From, Stage, a_moment, on_stage};

/// A sound command of the operator.
fn signed(stage: &mut Stage, command: &str) -> Forged {
    let body = Body::Command(Command { name: command.into(), json: b"{}".to_vec() });
    let topic = format!("{}/cmd/{command}", stage.branch("cloud"));
    stage.forge("ops", 0, 0, &body).at(&topic)
}

async fn round(stage: &Stage) -> u64 {
    stage.plant.running[&name("cloud")].view().await.unwrap().round
}

/// A cloud that opens rounds on command only, before its start.
fn waiting_cloud() -> Stage {
    let mut stage = Stage::new("cloud");
    stage.plant.versions = 0;
    stage
}

async fn works(stage: &mut Stage, good: &Forged) {
    let (before, opened) = (stage.counted(), round(stage).await);
    stage.send(From::Below, &good.topic, good.wire(), false);
    a_moment().await;
    assert_eq!(stage.since(&before), BTreeMap::new());
    assert_eq!(round(stage).await, opened + 1);
}

#[test]
fn a_replayed_command_is_refused_and_a_new_one_works() {
    paused(async {
        let mut stage = waiting_cloud();
        stage.begin().await;
        let good = signed(&mut stage, "round.start");
        works(&mut stage, &good).await;
        stage.refuses(From::Below, &good, "replayed_command").await;
        assert_eq!(round(&stage).await, 1);
        let mut outcomes = Vec::new();
        for event in stage.plant.entries("cloud") {
            if let Event::Command { outcome, operator, .. } = event {
                assert_eq!(operator, Some(name("ops")));
                outcomes.push(outcome.as_str().to_owned());
            }
        }
        assert_eq!(outcomes, ["ok", "replayed_command"]);
    });
}

#[test]
fn a_command_that_came_late_behind_a_newer_one_is_refused() {
    paused(async {
        let mut stage = waiting_cloud();
        stage.begin().await;
        let (older, newer) = (signed(&mut stage, "round.start"), signed(&mut stage, "round.start"));
        works(&mut stage, &newer).await;
        stage.refuses(From::Below, &older, "replayed_command").await;
    });
}

#[test]
fn a_signed_command_that_the_broker_kept_is_refused_and_a_fresh_one_works() {
    paused(async {
        let mut stage = waiting_cloud();
        let kept = signed(&mut stage, "round.start");
        stage.send(From::Below, &kept.topic, kept.wire(), true);
        a_moment().await;
        stage.begin().await;
        assert_eq!(stage.counted(), BTreeMap::from([("retained_command".to_owned(), 1)]));
        assert_eq!(stage.refusals(), [("retained_command".to_owned(), None)]);
        assert_eq!(round(&stage).await, 0);
        let good = signed(&mut stage, "round.start");
        works(&mut stage, &good).await;
    });
}

#[test]
fn a_plain_command_that_the_broker_kept_is_refused_and_a_fresh_one_works() {
    paused(async {
        let mut stage = waiting_cloud();
        let topic = format!("{}/cmd/round.start", stage.branch("cloud"));
        stage.send(From::Below, &topic, b"{}".to_vec(), true);
        a_moment().await;
        stage.begin().await;
        assert_eq!(stage.counted(), BTreeMap::from([("retained".to_owned(), 1)]));
        assert_eq!(round(&stage).await, 0);
        stage.send(From::Below, &topic, b"{}".to_vec(), false);
        a_moment().await;
        assert_eq!(round(&stage).await, 1);
    });
}

#[test]
fn commands_out_of_their_time_are_refused_and_one_in_time_works() {
    paused(async {
        let mut stage = waiting_cloud();
        stage.begin().await;
        let good = signed(&mut stage, "round.start");
        let now = stage.now().0;
        let aged = |issued_at: u64, expires_at: u64| {
            let mut bad = good.clone();
            (bad.head.issued_at, bad.head.expires_at) = (Wall(issued_at), Wall(expires_at));
            bad
        };
        let minutes = |n: u64| n * 60_000;
        let expired = aged(now - minutes(10), now - minutes(5));
        stage.refuses(From::Below, &expired, "expired").await;
        let early = aged(now + minutes(10), now + minutes(15));
        stage.refuses(From::Below, &early, "from_the_future").await;
        let for_ever = aged(now, u64::MAX);
        stage.refuses(From::Below, &for_ever, "overlong_life").await;
        works(&mut stage, &good).await;
    });
}

#[test]
fn a_command_under_another_commands_topic_is_refused() {
    paused(async {
        let mut stage = waiting_cloud();
        stage.begin().await;
        let good = signed(&mut stage, "round.start");
        let bad = signed(&mut stage, "pause").at(&good.topic);
        stage.refuses(From::Below, &bad, "wrong_topic").await;
        works(&mut stage, &good).await;
    });
}

#[test]
fn malformed_json_gets_a_clear_reply_and_the_sound_command_is_done() {
    for (json, reason) in [
        (&b"not json"[..], "not_json"),
        (b"{\"id\":", "not_json"),
        (b"\xff\xfe", "not_utf8"),
        (b"[]", "not_an_object"),
        (b"{\"id\":\"1\",\"x\":1}", "unknown_field"),
        (b"{\"id\":[1]}", "wrong_field"),
        (b"{\"exp\":\"tomorrow\"}", "wrong_field"),
        (b"{\"exp\":1}", "expired"),
    ] {
        on_stage("cloud", move |mut stage| async move {
            let topic = format!("{}/cmd/pause", stage.branch("cloud"));
            stage.refuses_bytes(From::Below, &topic, json.to_vec(), reason).await;
            let reply = stage.json("reply/pause").unwrap();
            assert_eq!(
                (&reply["status"], &reply["error"]["kind"]),
                (&"error".into(), &reason.into())
            );
            assert!(!reply["error"]["hint"].as_str().unwrap().is_empty());
            stage.send(From::Below, &topic, b"{\"id\":\"2\"}".to_vec(), false);
            a_moment().await;
            assert_eq!(stage.json("reply/pause").unwrap()["status"], "ok");
        });
    }
}

#[test]
fn json_nested_without_end_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let topic = format!("{}/cmd/pause", stage.branch("cloud"));
        let nested = [b"{\"args\":".to_vec(), vec![b'['; 10_000]].concat();
        stage.refuses_bytes(From::Below, &topic, nested, "not_json").await;
        stage.send(From::Below, &topic, b"{}".to_vec(), false);
        a_moment().await;
        assert_eq!(stage.json("reply/pause").unwrap()["status"], "ok");
    });
}

#[test]
fn a_command_that_needs_a_signature_is_not_taken_plain() {
    on_stage("cloud", |mut stage| async move {
        let versions = ["rollback", "version.release", "version.floor"];
        for plain in versions.into_iter().chain(["config.set", "keyring.update"]) {
            let topic = format!("{}/cmd/{plain}", stage.branch("cloud"));
            stage.refuses_bytes(From::Below, &topic, b"{}".to_vec(), "needs_signature").await;
        }
        let topic = format!("{}/cmd/status", stage.branch("cloud"));
        stage.send(From::Below, &topic, Vec::new(), false);
        a_moment().await;
        assert_eq!(stage.json("reply/status").unwrap()["status"], "ok");
    });
}

#[test]
fn a_command_as_big_as_a_packet_may_be_is_refused_unparsed() {
    on_stage("cloud", |mut stage| async move {
        let topic = format!("{}/cmd/pause", stage.branch("cloud"));
        let big = vec![b'{'; 1_000_000];
        stage.refuses_bytes(From::Below, &topic, big, "too_large").await;
        let mut signed = signed(&mut stage, "round.start");
        signed.body = vec![0; 1_000_000];
        let sealed = signed.wire();
        stage.refuses_bytes(From::Below, &signed.topic.clone(), sealed, "over_cap").await;
        stage.send(From::Below, &topic, b"{}".to_vec(), false);
        a_moment().await;
        assert_eq!(stage.json("reply/pause").unwrap()["status"], "ok");
    });
}

#[test]
fn a_command_of_ten_megabytes_is_refused_by_its_length() {
    let policy = CommandPolicy::new(["pause"]).unwrap();
    let parse = |payload: &[u8]| command::parse("pause", payload, false, Wall(0), &policy);
    let mut ten = b"{\"id\":\"".to_vec();
    ten.resize(10_000_000, b'x');
    assert_eq!(parse(&ten).unwrap_err().kind(), "too_large");
    assert!(parse(b"{\"id\":\"1\"}").is_ok());
}

#[test]
fn a_flood_of_bad_commands_fills_a_minute_of_the_ledger_and_no_more() {
    on_stage("cloud", |mut stage| async move {
        let topic = format!("{}/cmd/pause", stage.branch("cloud"));
        for n in 0..500_u32 {
            stage.send(From::Below, &topic, n.to_string().into_bytes(), false);
        }
        a_moment().await;
        let entries = stage.plant.entries("cloud");
        let recorded = entries.iter().filter(|e| matches!(e, Event::Command { .. })).count();
        assert!(recorded <= 120, "{recorded} entries of one flood");
        assert_eq!(stage.counted()["ledger_quota"], 500 - recorded as u64);
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
        let accepted = |event: &Event| matches!(event, Event::Accept { .. });
        assert!(stage.plant.entries("cloud").iter().any(accepted), "rounds are always recorded");
        let digest = Digest::of(b"0");
        assert!(
            entries
                .iter()
                .any(|e| matches!(e, Event::Command { command, .. } if *command == digest))
        );
    });
}
