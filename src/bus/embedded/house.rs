//! The broker's own client: proves once a second that the router is alive, and publishes traffic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttd::Notification;
use rumqttd::local::{LinkRx, LinkTx};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::front::Front;
use super::names::{HEARTBEAT, HOUSE};
use super::packet::Ended;

/// Runs until the router is dead, and says so through `dying`.
pub(super) async fn run(front: Arc<Front>, dying: watch::Sender<bool>) {
    let error = match front.link(HOUSE, true) {
        Ok((to_router, from_router)) => watch_over(&front, to_router, from_router).await,
        Err(error) => error,
    };
    tracing::error!(%error, "the router is dead");
    dying.send_replace(true);
}

async fn watch_over(front: &Front, mut to_router: LinkTx, mut from_router: LinkRx) -> Ended {
    let patience = Duration::from_millis(front.settings.health_timeout_ms);
    let every = Duration::from_millis(front.settings.stats_every_ms);
    if let Err(error) = to_router.subscribe(HEARTBEAT) {
        return Ended::Router(error.to_string());
    }
    let mut reported: Option<Instant> = None;
    for beat in 0_u64.. {
        let sent = Bytes::copy_from_slice(&beat.to_be_bytes());
        if let Err(error) = to_router.publish(HEARTBEAT, sent.clone()) {
            return Ended::Router(error.to_string());
        }
        match timeout(patience, heard(&mut from_router, &sent)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return Ended::Silent(patience),
        }
        if reported.is_none_or(|at| at.elapsed() >= every) {
            reported = Some(Instant::now());
            let figures = serde_json::to_vec(&front.stats.snapshot()).unwrap_or_default();
            let published = front.publish(&mut to_router, TRAFFIC, figures.into(), 0, true).await;
            if let Err(error) = published {
                return error;
            }
        }
        sleep(BEAT.min(every)).await;
    }
    Ended::Stopping
}

/// Waits for one heartbeat.
async fn heard(from_router: &mut LinkRx, sent: &Bytes) -> Result<(), Ended> {
    loop {
        let router = |error: rumqttd::local::LinkError| Ended::Router(error.to_string());
        match from_router.next().await.map_err(router)? {
            Some(Notification::Forward(forward)) if forward.publish.payload == sent => {
                return Ok(());
            }
            Some(Notification::Unschedule) => from_router.ready().map_err(router)?,
            _ => {}
        }
    }
}

/// Retained: [`super::BrokerStats`] as JSON.
const TRAFFIC: &str = "$SYS/gaisnet/bytes";
/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
