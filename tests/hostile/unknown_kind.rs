//! Kinds, types and versions that this node doesn't know.

use super::stage::{From, on_stage};

#[test]
fn a_topic_of_an_unknown_kind_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let topic = stage.branch("edge0").machine("banana");
        stage.refuses(From::Below, &good.clone().at(&topic), "unknown_kind").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_command_outside_of_cmd_is_of_no_known_kind() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let topic = stage.branch("edge0").machine("command");
        stage.refuses(From::Below, &good.clone().at(&topic), "unknown_kind").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_payload_type_that_is_not_the_topics_is_refused() {
    for wrong in [
        "application/vnd.gaisnet.answer.v1+msgpack",
        "application/vnd.gaisnet.contribution.v2+msgpack",
        "application/json",
        "",
    ] {
        on_stage("cloud", move |mut stage| async move {
            let good = stage.contribution("edge0");
            let mut bad = good.clone();
            wrong.clone_into(&mut bad.payload_type);
            stage.refuses(From::Below, &bad, "wrong_type").await;
            stage.accepts(&good).await;
        });
    }
}

#[test]
fn a_schema_from_the_next_release_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.head.minor = 9;
        stage.refuses(From::Below, &bad, "unknown_version").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn an_envelope_of_another_layout_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bytes = good.wire();
        assert_eq!(bytes[1], 1, "the layout's number");
        bytes[1] = 2;
        stage.refuses_bytes(From::Below, &good.topic.clone(), bytes, "malformed_envelope").await;
        stage.accepts(&good).await;
    });
}
