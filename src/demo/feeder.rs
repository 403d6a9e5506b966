//! Sensor gateways: play each plant's recordings onto its topic while the federation learns.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::DemoError;
use super::brokers::Brokers;
use super::plant::PLACES;
use crate::bus::mqtt::MqttBus;
use crate::bus::{Ack, Bus, BusEvent, Priority, Publish};
use crate::data::bearings::{Bearings, RATE_HZ, WINDOW_LEN};
use crate::scada::feed::Feed;
use crate::time::Wall;

/// Starts a gateway for each plant on the current runtime; they play until they are dropped.
pub(super) fn start(
    bearings: &Bearings,
    brokers: &Brokers,
    speed: f64,
    now: Wall,
) -> Result<Vec<tokio::task::JoinHandle<()>>, DemoError> {
    let mut gateways = Vec::new();
    for place in &PLACES {
        let (Some(index), Some(broker)) = (place.data, brokers.get(place.site)) else { continue };
        let mut samples = Vec::new();
        for recording in bearings.plant_recordings(index)? {
            samples.extend(recording.at_model_rate());
        }
        let client = format!("gateway-{}", place.name);
        let (bus, mut events) = MqttBus::connect(broker.client(&client, "feed")?, 0)?;
        let topic = place.sensor_topic();
        let rate = NonZeroU32::new(RATE_HZ).unwrap_or(NonZeroU32::MIN);
        let chunk = NonZeroUsize::new(WINDOW_LEN).unwrap_or(NonZeroUsize::MIN);
        gateways.push(tokio::spawn(async move {
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if let BusEvent::Delivery(delivery) = event {
                        Ack::release(delivery.ack);
                    }
                }
            });
            loop {
                let Ok(feed) = Feed::new(&samples, rate, chunk, speed, now) else { return };
                let mut played = 0;
                for telegram in feed {
                    let wait = telegram.offset_ms.saturating_sub(played);
                    tokio::time::sleep(Duration::from_millis(wait.max(1))).await;
                    played = telegram.offset_ms;
                    let message = Publish {
                        topic: topic.clone(),
                        payload: telegram.payload,
                        at_least_once: false,
                        retain: false,
                        priority: Priority::Control,
                    };
                    // A gateway doesn't wait for a slow broker: the next sample comes anyway.
                    let _ = bus.publish(message);
                }
            }
        }));
    }
    Ok(gateways)
}
