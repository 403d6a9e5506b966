//! The canary story on unmodified mosquitto with passwords, access lists and TLS, on real recordings.

use crate::mosquitto::Plant;
use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_is_stopped_at_its_canary_over_mosquitto_and_nobody_else_ever_serves_it() {
    let Some(stage) = Stage::new() else { return };
    let (rounds, story) = (3, ["--story", "rollout"]);
    let prepared = stage.run(rounds, &[&story[..], &["--prepare"]].concat()).await;
    assert_eq!(prepared.code, Some(0));
    let Some(plant) = Plant::start(&stage.path("keyring")) else { return };
    let file = plant.file();
    let line = ["--json", "--broker-config", file.to_str().unwrap()];
    let ended = stage.run(rounds, &[&story[..], &line].concat()).await;
    let told = ended.json();
    eprintln!("{told:#}");
    let bad = &told["bad"];
    assert_eq!((&bad["halted_at"], &bad["rule"]), (&"canary".into(), &"worse".into()));
    assert!(bad["answers"].as_u64() <= bad["budget"].as_u64() && bad["answers"] != 0);
    assert_eq!(bad["answered_by"], serde_json::json!(["p1"]));
    assert_eq!(told["answers_without_version"], 0);
    // The steps and rollbacks that each ledger must have, the canary's own way back and the operator's among them.
    assert_eq!(told["missing"], serde_json::json!([]));
    assert_eq!((&told["audit"]["verified"], &told["holds"]), (&true.into(), &true.into()));
    assert_eq!(ended.code, Some(0));
    assert_eq!(plant.refusals(), [""; 0]);
    stage.is_empty().await;
}
