//! kill -9 of each role and of a broker while they learn: they come back, the rounds complete, and
//! the ledgers show that no contribution was lost or counted twice.

use crate::account;
use crate::stage::{Demo, Stage};
use crate::support::Peer;

/// Waits until somebody says this on a topic that ends so.
async fn heard(spy: &mut Peer, end: &str) {
    loop {
        if spy.delivery().await.0.ends_with(end) {
            return;
        }
    }
}

/// Kills once the message is seen, and waits for a version that came out after.
async fn strike(stage: &Stage, demo: &mut Demo, port: u16, end: &str, victim: &str) -> u64 {
    let mut spy = Peer::up(port, "spy").await;
    spy.listen(&["gaisnet/v1/#"]).await;
    heard(&mut spy, end).await;
    stage.kill(victim);
    eprintln!("killed {victim} on {end}");
    demo.says(&format!("{victim} ended (signal: 9")).await;
    demo.next_version().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_nodes_and_brokers_come_back_and_each_contribution_counts_once() {
    let Some(stage) = Stage::new() else { return };
    let rounds = 16;
    let mut demo = stage.start(rounds, &[]);
    demo.next_version().await;
    let (north, south, top) = (stage.port_of("p1"), stage.port_of("p3"), stage.port_of("cloud"));
    for (port, end, victim) in [
        (north, "edge-north/m/offer", "p1"),
        (south, "p3/m/contribution", "edge-south"),
        (top, "edge-north/m/contribution", "cloud"),
        (north, "p2/m/contribution", "broker-north"),
    ] {
        let version = strike(&stage, &mut demo, port, end, victim).await;
        assert!(version < rounds, "all rounds were over before {victim} was killed");
    }
    let ended = demo.end().await;
    // It ends with 0 only when every ledger verifies.
    assert_eq!(ended.code, Some(0), "{:?}", ended.err);
    assert!(ended.out.contains(&format!("federated, {rounds} rounds")), "{}", ended.out);
    let account = account::of(&stage.path(""));
    eprintln!("{account:#?}");
    // Seven starts, and one more of each node that was killed.
    assert_eq!((account.starts, account.without_verdict, account.refused), (10, 0, 0));
    assert!(account.committed >= 3 * rounds, "{account:?}");
    let counted = account.in_their_round + account.late + account.late_at_the_end;
    assert_eq!(counted + account.of_an_abandoned_round, account.contributed);
}
