//! Sound messages in the wrong place: of another federation, for another topic, for another node.

use super::federation::name;
use super::stage::{Forged, From, a_moment, on_stage};

/// Spoils a good contribution; a cloud must refuse it for this reason and take the good one.
fn spoilt(reason: &'static str, spoil: impl FnOnce(&mut Forged) + 'static) {
    on_stage("cloud", move |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        spoil(&mut bad);
        stage.refuses(From::Below, &bad, reason).await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_message_of_another_federation_is_refused() {
    spoilt("wrong_federation", |bad| bad.head.federation = name("other"));
}

#[test]
fn a_message_that_was_sealed_for_another_topic_is_refused() {
    spoilt("wrong_topic", |bad| bad.head.topic += "x");
}

#[test]
fn a_message_for_another_node_is_not_for_us() {
    spoilt("wrong_audience", |bad| bad.head.audience = Some(name("edge1")));
}

#[test]
fn a_head_that_names_another_sender_than_the_key_is_refused() {
    spoilt("wrong_sender", |bad| bad.head.sender = name("edge1"));
}

#[test]
fn a_message_in_another_nodes_branch_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let topic = stage.branch("edge1").machine("contribution");
        stage.refuses(From::Below, &good.clone().at(&topic), "foreign_branch").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn what_a_neighbour_says_to_its_own_children_is_counted_and_blames_nobody() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        // On one broker for all, a cloud hears an edge's offers to its devices.
        let mut offer = stage.forge("edge0", 1, 1, &offer_body(&stage.offer().1));
        offer.head.audience = None;
        stage.refuses(From::Below, &offer, "not_our_neighbour").await;
        assert_eq!(stage.refusals(), []);
        stage.accepts(&good).await;
    });
}

#[test]
fn a_message_that_comes_on_the_wrong_link_is_not_our_neighbours() {
    on_stage("edge0", |mut stage| async move {
        let offer = stage.offer_with(1, |_| {});
        let before = stage.counted();
        // The parent's words on the site's broker: nobody listens for them there.
        stage.send(From::Below, &offer.topic, offer.wire(), false);
        a_moment().await;
        assert_eq!(stage.since(&before).values().sum::<u64>(), 0);
        stage.takes(&offer).await;
    });
}

fn offer_body(offer: &gaisnet::wire::Offer) -> gaisnet::wire::Body {
    gaisnet::wire::Body::Offer(offer.clone().into())
}
