//! A demo that was stopped or killed leaves nothing running, and the next start goes on.

use crate::account;
use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_goes_on_and_nothing_is_left_running_in_between() {
    let Some(stage) = Stage::new() else { return };
    let rounds = 10;
    let mut demo = stage.start(rounds, &[]);
    while demo.next_version().await < 3 {}
    let names: Vec<String> = stage.processes().into_iter().map(|(name, _)| name).collect();
    let all = "broker broker-north broker-south cloud edge-north edge-south p1 p2 p3 p4";
    assert_eq!(names.join(" "), all);

    // Ctrl-C: it says where it will go on, and takes its children along.
    demo.signal("-INT");
    let ended = demo.end().await;
    assert_eq!(ended.code, Some(0));
    let told = ended.out.split("go on from version ").nth(1).expect(&ended.out).trim().to_owned();
    let version: u64 = told.parse().unwrap();
    assert!(version >= 3, "{told}");
    assert_eq!(stage.processes(), []);

    // kill -9 of the demo itself: the children notice.
    let mut demo = stage.start(rounds, &[]);
    demo.says(&format!("goes on from version {version}")).await;
    assert!(demo.next_version().await > version);
    demo.signal("-KILL");
    assert_eq!(demo.end().await.code, None);
    stage.is_empty().await;

    // The last start has the rounds of all three in its report.
    let ended = stage.run(rounds, &["--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&ended.out).expect(&ended.err.join("\n"));
    let curve: Vec<u64> =
        report["curve"].as_array().unwrap().iter().map(|p| p["round"].as_u64().unwrap()).collect();
    eprintln!("rounds in the curve: {curve:?}");
    // A version whose losses weren't heard in time has no point; the first start's are there.
    assert_eq!(report["rounds"].as_u64(), Some(rounds));
    assert!(curve[0] <= 2 && curve.contains(&3), "{curve:?}");
    assert_eq!(report["audit"]["verified"], true);
    assert!(report["bytes"]["up"].as_u64().unwrap() > 0 && report["refused"] == 0);
    let account = account::of(&stage.path(""));
    eprintln!("{account:#?}");
    assert_eq!(account.starts, 3 * 7);
    assert_eq!(stage.processes(), []);
}
