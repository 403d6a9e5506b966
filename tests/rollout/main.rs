//! Versions that go over a site in stages, or over all sites: whole nodes on the in-memory bus under a paused clock. An edge, or the
//! cloud, is the steward, four devices follow, an operator signs commands, and a toy model can be made wrong or sick by its adapter.

#![cfg(feature = "runtime")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]
#![allow(clippy::cast_precision_loss, reason = "a number of a device")]

#[path = "../support/federation.rs"]
mod federation;
mod over_sites;
mod works;

use std::time::Duration;

use federation::{key_of, name, paused};
use gaisnet::ids::{BootId, Digest};
use gaisnet::protocol::rollout::Plan;
use gaisnet::topic::{Branch, CommandName};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Assignment, Body, Command, Evidence, Manifest, Tally};
use serde_json::{Value, json};
use tokio::time::sleep;
use works::{DEVICES, Ill, Site, branch, edge, outcome, stage};

/// Shadow on two machines, canary on one, then the site.
fn all_stages() -> Value {
    json!([
        stage("shadow", &DEVICES[1..3], &json!({"max_disagreement": 0.2})),
        stage("canary", &DEVICES[..1], &json!({"max_worse": 0.3})),
        stage("site", &DEVICES, &json!({})),
    ])
}

/// The canary, then the site.
fn from_the_canary(rules: &Value) -> Value {
    json!([stage("canary", &DEVICES[..1], rules), stage("site", &DEVICES, &json!({}))])
}

#[test]
fn labels_that_come_late_bring_a_version_through_its_gate_and_halt_a_bad_one() {
    paused(async {
        for (ill, inspects, ends) in [
            (false, true, "canary passed"),
            (true, true, "1 to 0: worse"),
            (false, false, "1 to 0: too_late"),
        ] {
            let mut site = Site::new(true, false).await;
            let adapter = site.round().await;
            if ill {
                site.falls_ill(adapter, Ill::Wrong);
            }
            site.begins(1, from_the_canary(&json!({"max_worse": 0.3}))).await;
            for _ in 0..60 {
                site.works_and_inspects(inspects).await;
                if site
                    .story("edge0")
                    .iter()
                    .any(|step| step == "canary passed" || step.starts_with("1 to 0"))
                {
                    break;
                }
            }
            let story = site.story("edge0");
            assert!(story.contains(&ends.to_owned()), "{ends}: {story:?}");
        }
    });
}

#[test]
fn a_good_version_goes_over_the_site_stage_by_stage_and_is_served_everywhere_in_the_end() {
    paused(async {
        let mut site = Site::new(true, false).await;
        site.round().await;
        assert_eq!(site.answers().await, [0; 4], "nothing is served that isn't assigned");
        site.begins(1, all_stages()).await;
        site.works(20).await;
        let status = site.status().await;
        assert_eq!((&status["stage"], &status["version"]), (&json!("shadow"), &json!(1)));
        assert_eq!(site.answers().await, [0; 4], "nobody sees what it says in the shadow");
        let seconds = site.until_over().await;
        assert!((180..600).contains(&seconds), "each stage takes its minute: {seconds}");
        assert_eq!(site.status().await["stable"], 1);
        assert_eq!(site.answers().await, [1; 4]);
        let stages = ["shadow planned", "shadow entered", "shadow passed", "canary entered"];
        let more = ["canary passed", "site entered", "site done"];
        let story: Vec<&str> = stages.into_iter().chain(more).collect();
        let told: Vec<String> =
            site.story("edge0").into_iter().filter(|s| s.contains(' ')).collect();
        let told: Vec<&String> = told.iter().filter(|line| !line.starts_with("serves")).collect();
        assert_eq!(told, story);
        for device in DEVICES {
            assert_eq!(site.story(device), ["serves 1"]);
        }
        let known = &site.status().await["versions"][0];
        assert_eq!((&known["parent"], &known["num_examples"]), (&json!(0), &json!(480)), "{known}");
        assert_eq!(known["contributors"].as_array().unwrap().len(), 4, "{known}");
    });
}

/// The canary serves a bad version and nobody else does; it is taken back by itself, and never comes again.
async fn stops_at_the_canary(ill: Ill, rules: Value, reason: &str) {
    let mut site = Site::new(true, false).await;
    site.round().await;
    site.begins(1, json!([stage("site", &DEVICES, &json!({}))])).await;
    site.until_over().await;
    let bad = site.round().await;
    site.falls_ill(bad, ill);
    site.begins(2, from_the_canary(&rules)).await;
    if ill != Ill::Dead {
        assert_eq!(site.answers().await, [2, 1, 1, 1]);
    }
    let seconds = site.until_over().await;
    assert!(seconds <= 70, "within its budget of 64 answers: {seconds}");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(site.answers().await, [1; 4]);
    let back = format!("2 to 1: {reason}");
    assert!(site.story("edge0").contains(&back), "{:?}", site.story("edge0"));
    assert!(site.story(DEVICES[0]).iter().any(|line| line.starts_with("2 to 1")));
    for device in &DEVICES[1..] {
        assert_eq!(site.story(device), ["serves 1"], "{device} never served it");
    }
    assert_eq!(site.plans(2, from_the_canary(&json!({}))).await, "version_barred");
    // A better one goes on.
    site.round().await;
    site.begins(3, from_the_canary(&json!({}))).await;
    site.until_over().await;
    assert_eq!(site.answers().await, [3; 4]);
}

#[test]
fn a_version_without_answers_is_stopped_at_the_canary() {
    paused(stops_at_the_canary(Ill::Sick, json!({}), "errors"));
}

#[test]
fn a_version_that_is_wrong_is_stopped_at_the_canary_by_labels() {
    paused(stops_at_the_canary(Ill::Wrong, json!({"max_worse": 0.2}), "worse"));
}

#[test]
fn a_version_that_a_device_gives_up_by_its_own_checks_is_stopped_everywhere() {
    paused(stops_at_the_canary(Ill::Dead, json!({}), "failed_checks"));
}

#[test]
fn a_version_that_differs_is_stopped_in_the_shadow_and_nobody_ever_served_it() {
    paused(async {
        let mut site = Site::new(true, false).await;
        site.round().await;
        site.begins(1, json!([stage("site", &DEVICES, &json!({}))])).await;
        site.until_over().await;
        let bad = site.round().await;
        site.falls_ill(bad, Ill::Wrong);
        site.begins(2, all_stages()).await;
        site.until_over().await;
        assert!(site.story("edge0").contains(&"2 to 1: disagreement".to_owned()));
        for device in DEVICES {
            assert_eq!(site.story(device), ["serves 1"]);
        }
        assert_eq!(site.answers().await, [1; 4]);
    });
}

#[test]
fn inputs_that_drift_halt_a_rollout_that_asks_and_nobody_who_does_not_look_passes() {
    paused(async {
        let rules = json!({"max_drift": 0.7});
        let mut blind = Site::new(true, false).await;
        blind.round().await;
        blind.begins(1, from_the_canary(&rules)).await;
        blind.until_over().await;
        let way = blind.story("edge0");
        assert!(way.contains(&"1 to 0: too_late".to_owned()), "{way:?}");

        let mut site = Site::watching().await;
        site.round().await;
        site.begins(1, from_the_canary(&rules)).await;
        site.until_over().await;
        assert_eq!(site.answers().await, [1; 4], "the same inputs as before");
        site.round().await;
        site.begins(2, from_the_canary(&rules)).await;
        site.works(40).await;
        site.moved = 6;
        let seconds = site.until_over().await;
        assert!(seconds < 120, "{seconds}");
        let way = site.story("edge0");
        assert!(way.contains(&"2 to 1: drift".to_owned()), "{way:?}");
        assert_eq!(site.answers().await, [1; 4]);
    });
}

/// The pair to the canary's tests: what the gate and the assignments keep away.
#[test]
fn without_the_gate_a_bad_version_reaches_the_site() {
    paused(async {
        // A gate that doesn't look at labels lets it through...
        let mut site = Site::new(true, false).await;
        let bad = site.round().await;
        site.falls_ill(bad, Ill::Wrong);
        site.begins(1, from_the_canary(&json!({}))).await;
        site.until_over().await;
        assert_eq!(site.answers().await, [1; 4]);
        // ... and devices that don't follow serve it as it comes.
        let mut site = Site::new(false, false).await;
        let bad = site.round().await;
        site.falls_ill(bad, Ill::Wrong);
        site.works(5).await;
        assert_eq!(site.answers().await, [1; 4]);
        assert!(site.counted(DEVICES[0], "assignment_not_followed") > 0);
    });
}

#[test]
fn people_plan_approve_promote_and_halt_by_signed_commands() {
    paused(async {
        let mut site = Site::new(true, true).await;
        site.round().await;
        assert_eq!(
            site.plans(1, from_the_canary(&json!({}))).await,
            "stages_make_no_way",
            "four eyes"
        );
        let mut stages = from_the_canary(&json!({}));
        stages[1]["approvals"] = json!(1);
        let plan = json!({"model": "toy", "version": 1, "automatic": false, "stages": stages});
        assert_eq!(site.orders("rollout.plan", plan.clone()).await, "ok");
        let toy = || json!({"model": "toy"});
        assert_eq!(site.orders("rollout.promote", toy()).await, "rollout_not_begun");
        assert_eq!(site.orders("rollout.start", toy()).await, "ok");
        assert_eq!(site.orders("rollout.promote", toy()).await, "gate_not_passed");
        let digest = Plan::read(name("toy"), 1, false, &stages).unwrap().digest();
        let approval = |plan: Digest| json!({"model": "toy", "plan": plan, "stage": "site"});
        assert_eq!(site.orders("rollout.approve", approval(digest)).await, "own_proposal");
        let other =
            site.command("anna", edge(), "rollout.approve", approval(Digest([7; 32]))).await;
        assert_eq!(outcome(&other), "other_plan");
        site.works(90).await;
        let status = site.status().await;
        assert_eq!((&status["stage"], &status["passed"]), (&json!("canary"), &json!(true)));
        assert_eq!(site.orders("rollout.promote", toy()).await, "unapproved");
        let approved = site.command("anna", edge(), "rollout.approve", approval(digest)).await;
        assert_eq!(outcome(&approved), "ok", "{approved}");
        assert_eq!(site.orders("rollout.promote", toy()).await, "ok");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(site.answers().await, [1; 4]);
        // An approver's key says nothing else, and nobody's command comes without a signature.
        let before = site.counted("edge0", "role_not_allowed");
        let to = To::Command(edge(), CommandName::new("rollout.halt").unwrap());
        let json = serde_json::to_vec(&json!({"args": {"model": "toy"}})).unwrap();
        let body = Body::Command(Command { name: "rollout.halt".into(), json: json.clone() });
        let now = site.plant.clock.now().wall;
        let (topic, bytes) =
            site.sealers.get_mut("anna").unwrap().seal(&to, &body, 0, 0, now).unwrap();
        site.publish(topic.clone(), bytes);
        site.publish(topic, json);
        assert_eq!(outcome(&site.reply().await), "needs_signature");
        // What is recorded is counted when it is on disk.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(site.counted("edge0", "role_not_allowed"), before + 1);
        assert_eq!(site.answers().await, [1; 4]);
        // The order to halt: each node is back within five seconds.
        assert_eq!(site.orders("rollout.halt", toy()).await, "ok");
        sleep(Duration::from_secs(5)).await;
        assert_eq!(site.answers().await, [0; 4]);
        assert_eq!(site.orders("rollout.halt", toy()).await, "no_plan");
        // Halted by a person it may be tried again.
        assert_eq!(site.orders("rollout.plan", plan).await, "ok");
    });
}

#[test]
fn what_can_never_be_rolled_out_is_refused_when_it_is_planned() {
    paused(async {
        let mut site = Site::new(true, false).await;
        site.round().await;
        let way = || from_the_canary(&json!({}));
        assert_eq!(site.plans(7, way()).await, "version_unknown");
        let foreign = json!({"model": "other", "version": 1, "automatic": true, "stages": way()});
        assert_eq!(site.orders("rollout.plan", foreign).await, "unknown_model");
        let unmet = from_the_canary(&json!({"max_errors": 0.001}));
        assert_eq!(site.plans(1, unmet).await, "gate_cannot_be_met");
        assert_eq!(
            site.plans(1, from_the_canary(&json!({"max_risk": 0.5}))).await,
            "gate_cannot_be_met"
        );
        assert_eq!(
            site.plans(1, from_the_canary(&json!({"most_answers": 1}))).await,
            "malformed_plan"
        );
        let stranger = json!([stage("site", &["dev0-0", "stranger"], &json!({}))]);
        assert_eq!(site.plans(1, stranger).await, "stages_make_no_way");
        assert_eq!(site.orders("rollout.start", json!({"model": "toy"})).await, "no_plan");
        // Devices and the cloud decide about none.
        let device = branch("site0", "line", DEVICES[0]);
        let reply = site.command("ops", device, "rollout.halt", json!({"model": "toy"})).await;
        assert_eq!(outcome(&reply), "not_supported");
        assert_eq!(site.plans(1, way()).await, "ok");
        assert_eq!(site.plans(1, way()).await, "rollout_overlaps");
    });
}

#[test]
fn steward_and_devices_may_start_again_in_any_stage() {
    paused(async {
        let mut site = Site::new(true, false).await;
        site.round().await;
        site.begins(1, all_stages()).await;
        for node in ["edge0", DEVICES[1], DEVICES[0], "edge0"] {
            site.works(25).await;
            let before = site.status().await;
            site.restart(node).await;
            let after = site.status().await;
            if !before["version"].is_null() {
                assert_eq!(before["plan"], after["plan"], "the plan is what it was");
            }
            assert!(after["serial"].as_u64() >= before["serial"].as_u64(), "no stage comes back");
        }
        site.until_over().await;
        site.restart("edge0").await;
        assert_eq!(site.answers().await, [1; 4]);
        let stages: Vec<String> =
            site.story("edge0").into_iter().filter(|line| !line.starts_with("serves")).collect();
        let count = |what: &str| stages.iter().filter(|line| line.ends_with(what)).count();
        assert_eq!((count("entered"), count("passed"), count("done")), (3, 2, 1), "{stages:?}");
    });
}

#[test]
fn a_device_that_has_not_the_assigned_version_gets_it_from_its_edge() {
    paused(async {
        let mut site = Site::new(true, false).await;
        for _ in 0..3 {
            site.round().await;
        }
        site.begins(2, json!([stage("site", &DEVICES, &json!({}))])).await;
        sleep(Duration::from_secs(15)).await;
        assert_eq!(site.answers().await, [2; 4], "newer ones are known, and this one was assigned");
        site.until_over().await;
        site.round().await;
        assert_eq!(site.answers().await, [2; 4]);
        // One that was away all the time, and has nothing but the newest, too.
        assert_eq!(site.status().await["stable"], 2);
    });
}

/// Seals a body as a node that may be someone else, to a topic in its own branch.
fn forged(by: &str, own: Branch, to: &To, body: &Body, site: &Site) -> (String, Vec<u8>) {
    let mut sealer = Sealer::new(key_of(&name(by)), name("fed"), own, BootId([99; 16]));
    sealer.seal(to, body, 0, 0, site.plant.clock.now().wall).unwrap()
}

#[test]
fn forged_evidence_and_assignments_change_nothing() {
    paused(async {
        let mut site = Site::new(true, false).await;
        site.round().await;
        site.begins(1, from_the_canary(&json!({}))).await;
        let (edge_name, line) = (name("edge0"), |node: &str| branch("site0", "line", node));
        let serial = site.status().await["serial"].as_u64().unwrap();
        let bad = Tally { answers: 900, errors: 900, ..Tally::default() };
        let says = |tally: Tally, gave_up: bool| {
            Body::Evidence(Evidence { serial, version: 1, life: 90, tally, gave_up })
        };
        let directly = To::Directly(edge_name.clone());
        // Of a device that isn't in the stage: signed, and it says nothing of it.
        let (topic, bytes) = forged("dev0-3", line("dev0-3"), &directly, &says(bad, true), &site);
        site.publish(topic.clone(), bytes);
        // Of a stranger under the canary's topic, of the operator, and with numbers that can't be.
        let own = line("dev0-0");
        for (by, body) in [("stranger", says(bad, false)), ("ops", says(bad, false))] {
            let (topic, bytes) = forged(by, own.clone(), &directly, &body, &site);
            site.publish(topic, bytes);
        }
        let nonsense = Tally { answers: 1, errors: 2, ..Tally::default() };
        let (topic, bytes) =
            forged("dev0-0", own.clone(), &directly, &says(nonsense, false), &site);
        site.publish(topic, bytes);
        sleep(Duration::from_secs(2)).await;
        let status = site.status().await;
        assert_eq!((&status["stage"], &status["seen"]["errors"]), (&json!("canary"), &json!(0)));
        assert!(site.counted("edge0", "no_evidence") >= 2);
        assert!(
            site.counted("edge0", "unknown_key") + site.counted("edge0", "foreign_branch") >= 2
        );
        // An assignment of anybody but the edge, and an old one of the edge.
        let told = Assignment {
            model: name("toy"),
            serial: serial + 1,
            stable: 1,
            stable_adapter: None::<Manifest>,
            candidate: None,
        };
        for (by, own) in [("dev0-1", line("dev0-1")), ("ops", edge()), ("cloud", edge())] {
            let body = Body::Assignment(told.clone());
            let (topic, bytes) = forged(by, own, &To::Anyone, &body, &site);
            site.publish(topic, bytes);
        }
        let old = Body::Assignment(Assignment { serial: serial - 1, ..told });
        let (topic, bytes) = forged("edge0", edge(), &To::Anyone, &old, &site);
        site.publish(topic, bytes);
        sleep(Duration::from_secs(15)).await;
        assert_eq!(site.answers().await, [1, 0, 0, 0]);
        assert_eq!(site.counted("dev0-2", "older_assignment"), 1);
        assert!(site.counted("dev0-2", "foreign_branch") >= 2);
        // The true ones still count.
        site.until_over().await;
        assert_eq!(site.answers().await, [1; 4]);
    });
}
