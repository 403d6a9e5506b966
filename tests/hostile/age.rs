//! Messages out of their time: expired, from the future, good for ever.

use super::stage::{From, on_stage};
use gaisnet::time::Wall;
use gaisnet::wire::Kind;

const DAY_MS: u64 = 86_400_000;

#[test]
fn an_expired_message_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        let now = stage.now();
        bad.head.issued_at = Wall(now.0 - 31 * DAY_MS);
        bad.head.expires_at = Wall(now.0 - DAY_MS);
        stage.refuses(From::Below, &bad, "expired").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_message_issued_far_in_the_future_is_refused_and_a_clock_a_day_fast_is_not() {
    on_stage("cloud", |mut stage| async move {
        let lifetime_ms = Kind::Contribution.lifetime_ms();
        let mut good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.head.issued_at = stage.now().plus_ms(31 * DAY_MS);
        bad.head.expires_at = bad.head.issued_at.plus_ms(lifetime_ms);
        stage.refuses(From::Below, &bad, "from_the_future").await;
        good.head.issued_at = stage.now().plus_ms(DAY_MS);
        good.head.expires_at = good.head.issued_at.plus_ms(lifetime_ms);
        stage.accepts(&good).await;
    });
}

#[test]
fn a_message_that_wants_to_be_good_for_ever_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.head.expires_at = Wall(u64::MAX);
        stage.refuses(From::Below, &bad, "overlong_life").await;
        stage.accepts(&good).await;
    });
}
