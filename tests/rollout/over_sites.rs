//! The cloud decides for two sites: one plan takes a version from a shadow to the federation.

use std::time::Duration;

use gaisnet::bus::Bus;
use gaisnet::wire::{Assignment, Body, Kind, SiteEvidence, Tally};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::federation::{name, paused};
use super::forged;
use super::works::{Ill, OF_BOTH, Site, branch, stage};
use gaisnet::trust::To;

/// A shadow at one site, a canary at the other one, then its site, then all.
fn all_stages(canary: &Value) -> Value {
    json!([
        stage("shadow", &OF_BOTH[3..], &json!({"max_disagreement": 0.2})),
        stage("canary", &OF_BOTH[..1], canary),
        stage("site", &OF_BOTH[..2], &json!({})),
        stage("federation", &OF_BOTH, &json!({"least_nodes": 4})),
    ])
}

fn whole() -> Value {
    json!([stage("federation", &OF_BOTH, &json!({}))])
}

#[test]
fn a_good_version_goes_over_all_sites_stage_by_stage() {
    paused(async {
        let mut site = Site::two().await;
        site.round().await;
        assert_eq!(site.answers().await, [0; 4], "nothing is served that isn't assigned");
        site.begins(1, all_stages(&json!({"max_worse": 0.3}))).await;
        site.works(20).await;
        assert_eq!(site.status().await["stage"], "shadow");
        assert_eq!(site.answers().await, [0; 4]);
        let mut stages = Vec::new();
        for _ in 0..1_200 {
            let status = site.status().await;
            if status["version"].is_null() {
                break;
            }
            let now = (status["stage"].as_str().unwrap().to_owned(), site.answers().await);
            if stages.last() != Some(&now) {
                stages.push(now);
            }
            site.works(1).await;
        }
        let served = |stage: &str| {
            let last = stages.iter().rev().find(|(known, _)| known == stage);
            last.map(|(_, versions)| versions.clone()).unwrap()
        };
        assert_eq!(served("shadow"), [0; 4]);
        assert_eq!(served("canary"), [1, 0, 0, 0]);
        assert_eq!(served("site"), [1, 1, 0, 0]);
        assert_eq!(served("federation"), [1; 4]);
        let status = site.status().await;
        assert_eq!((&status["stable"], site.answers().await), (&json!(1), vec![1; 4]));
        // What the version is made of, as the cloud knows it: its edges stand for their devices.
        let known = &status["versions"][0];
        assert_eq!((&known["parent"], &known["num_examples"]), (&json!(0), &json!(480)), "{known}");
        assert_eq!(known["contributors"], json!(["edge0", "edge1"]), "{known}");
        let steps: Vec<String> =
            site.story("cloud").into_iter().filter(|line| line.contains("entered")).collect();
        assert_eq!(
            steps,
            ["shadow entered", "canary entered", "site entered", "federation entered"]
        );
        for device in OF_BOTH {
            assert_eq!(site.story(device), ["serves 1"]);
        }
    });
}

#[test]
fn a_bad_version_is_stopped_at_the_canary_of_one_site_and_never_reaches_the_other() {
    paused(async {
        let mut site = Site::two().await;
        site.round().await;
        site.begins(1, whole()).await;
        site.until_over().await;
        assert_eq!(site.answers().await, [1; 4]);
        for (ill, rules, reason) in [
            (Ill::Sick, json!({}), "errors"),
            (Ill::Wrong, json!({"max_worse": 0.2}), "worse"),
            (Ill::Dead, json!({}), "failed_checks"),
        ] {
            let bad = site.round().await;
            site.falls_ill(bad, ill);
            let versions = site.status().await["versions"].clone();
            let version = versions.as_array().unwrap().last().unwrap()["version"].as_u64().unwrap();
            // No shadow before it, which would find it out.
            let mut stages = all_stages(&rules);
            stages.as_array_mut().unwrap().remove(0);
            site.begins(version, stages).await;
            let seconds = site.until_over().await;
            assert!(seconds <= 80, "{seconds}");
            sleep(Duration::from_secs(5)).await;
            assert_eq!(site.answers().await, [1; 4]);
            let back = format!("{version} to 1: {reason}");
            assert!(site.story("cloud").contains(&back), "{:?}", site.story("cloud"));
            assert!(
                site.story(OF_BOTH[0])
                    .iter()
                    .any(|line| line.starts_with(&format!("{version} to 1")))
            );
            for device in &OF_BOTH[1..] {
                assert_eq!(site.story(device), ["serves 1"], "{device} never served it");
            }
        }
    });
}

#[test]
fn cloud_edges_and_devices_may_start_again_in_any_stage() {
    paused(async {
        let mut site = Site::two().await;
        site.round().await;
        site.begins(1, all_stages(&json!({}))).await;
        for node in ["edge1", "cloud", "dev1-1", "edge0", "dev0-0", "cloud", "edge1"] {
            site.works(25).await;
            let before = site.status().await;
            site.restart(node).await;
            let after = site.status().await;
            assert!(after["serial"].as_u64() >= before["serial"].as_u64(), "no stage comes back");
        }
        site.until_over().await;
        sleep(Duration::from_secs(15)).await;
        assert_eq!(site.answers().await, [1; 4]);
        let stages = site.story("cloud");
        let count = |what: &str| stages.iter().filter(|line| line.ends_with(what)).count();
        assert_eq!((count("entered"), count("passed"), count("done")), (4, 3, 1), "{stages:?}");
    });
}

#[test]
fn only_sums_leave_a_site_and_only_at_its_own_edge() {
    paused(async {
        let mut site = Site::two().await;
        let (link, mut heard) = site.plant.federation_bus.connect("auditor", None);
        link.subscribe(&["#".to_owned()]).unwrap();
        site.round().await;
        site.begins(1, all_stages(&json!({}))).await;
        site.works(40).await;
        let mut sums = 0;
        while let Ok(event) = heard.try_recv() {
            if let gaisnet::bus::BusEvent::Delivery(delivery) = event {
                assert!(!delivery.topic.ends_with("/evidence"), "{}", delivery.topic);
                sums += usize::from(delivery.topic.ends_with(Kind::SiteEvidence.as_str()));
                delivery.ack.release();
            }
        }
        assert!((2..20).contains(&sums), "{sums}");
        // Devices of the other site hear nothing of it.
        let (bus, mut told) = site.plant.site_buses[&name("site0")].connect("auditor", None);
        bus.subscribe(&["gaisnet/v1/site0/_/edge0/m/assignment".to_owned()]).unwrap();
        sleep(Duration::from_secs(1)).await;
        while let Ok(event) = told.try_recv() {
            if let gaisnet::bus::BusEvent::Delivery(delivery) = event {
                let says = String::from_utf8_lossy(&delivery.payload).into_owned();
                assert!(!says.contains("dev1-1"), "{says:?}");
            }
        }
    });
}

#[test]
fn what_is_forged_between_cloud_and_edges_changes_nothing() {
    paused(async {
        let mut site = Site::two().await;
        site.round().await;
        let mut stages = all_stages(&json!({}));
        stages.as_array_mut().unwrap().remove(0);
        site.begins(1, stages).await;
        let serial = site.status().await["serial"].as_u64().unwrap();
        let bad = Tally { answers: 900, errors: 900, ..Tally::default() };
        let says = |nodes| {
            let (version, tally, gave_up) = (1, bad, true);
            Body::SiteEvidence(SiteEvidence { serial, version, tally, nodes, gave_up })
        };
        let cloud = To::Directly(name("cloud"));
        let edge = |node: &str| branch(&format!("site{}", &node[4..]), "_", node);
        // The other site has no part in this stage; a stranger, a device and the operator have none at all.
        let (topic, bytes) = forged("edge1", edge("edge1"), &cloud, &says(2), &site);
        site.at_the_cloud(topic, bytes);
        for by in ["stranger", "dev0-0", "ops"] {
            let (topic, bytes) = forged(by, edge("edge0"), &cloud, &says(1), &site);
            site.at_the_cloud(topic, bytes);
        }
        // Who serves what is said by the cloud alone.
        let told = Assignment {
            model: name("toy"),
            serial: serial + 1,
            stable: 1,
            stable_adapter: None,
            candidate: None,
        };
        for by in ["edge1", "ops", "dev0-0"] {
            let body = Body::Assignment(told.clone());
            let (topic, bytes) = forged(by, branch("_", "_", "cloud"), &To::Anyone, &body, &site);
            site.at_the_cloud(topic, bytes);
        }
        let old = Body::Assignment(Assignment { serial: serial - 1, ..told });
        let (topic, bytes) = forged("cloud", branch("_", "_", "cloud"), &To::Anyone, &old, &site);
        site.at_the_cloud(topic, bytes);
        sleep(Duration::from_secs(15)).await;
        let status = site.status().await;
        assert_eq!((&status["stage"], &status["seen"]["errors"]), (&json!("canary"), &json!(0)));
        assert_eq!(site.counted("cloud", "no_evidence"), 1);
        assert!(
            site.counted("cloud", "unknown_key") + site.counted("cloud", "foreign_branch") >= 3
        );
        assert_eq!(site.counted("edge0", "older_assignment"), 1);
        assert_eq!(site.answers().await, [1, 0, 0, 0]);
        site.until_over().await;
        assert_eq!(site.answers().await, [1; 4]);
    });
}
