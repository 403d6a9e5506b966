//! Frames of split training where no model is split, and where none may ever be heard.

use gaisnet::wire::{Body, Frame};

use super::stage::{From, a_moment, on_stage};

fn frame() -> Body {
    Body::Frame(Frame { run: 1, step: 1, turn: 0, part: 0, parts: 1, data: vec![1; 9] })
}

#[test]
fn nodes_that_split_no_model_count_frames_and_go_on() {
    on_stage("dev0-0", |mut stage| async move {
        let bad = stage.forge("edge0", 1, 1, &frame());
        stage.refuses(From::Above, &bad, "not_for_a_member").await;
        let good = stage.offer_with(1, |_| {});
        stage.takes(&good).await;
    });
    on_stage("edge0", |mut stage| async move {
        let bad = stage.forge("dev0-0", 1, 1, &frame());
        stage.refuses(From::Below, &bad, "not_for_a_relay").await;
        let good = stage.offer_with(1, |_| {});
        stage.takes(&good).await;
    });
}

#[test]
fn on_the_federations_broker_nobody_listens_for_frames() {
    for (target, sender, from) in [("cloud", "edge0", From::Below), ("edge0", "cloud", From::Above)]
    {
        on_stage(target, move |mut stage| async move {
            let bad = stage.forge(sender, 1, 1, &frame());
            let before = stage.counted();
            stage.send(from, &bad.topic, bad.wire(), false);
            a_moment().await;
            assert_eq!(stage.since(&before).values().sum::<u64>(), 0);
            match from {
                From::Below => {
                    let good = stage.contribution(sender);
                    stage.accepts(&good).await;
                }
                From::Above => {
                    let good = stage.offer_with(1, |_| {});
                    stage.takes(&good).await;
                }
            }
        });
    }
}
