//! Sensor gateways: play each plant's recordings onto its topic while the federation learns; where a story wants it in
//! turns, each with what quality inspection would say of it on a topic beside.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::DemoError;
use super::brokers::Brokers;
use super::plant::PLACES;
use crate::bus::mqtt::MqttBus;
use crate::bus::{Ack, Bus, BusEvent, Priority, Publish};
use crate::data::bearings::{Bearings, CLASSES, RATE_HZ, Recording, WINDOW_LEN};
use crate::scada::feed::Feed;
use crate::time::Wall;

/// What a gateway plays, again and again.
struct Program {
    samples: Vec<f32>,
    /// What is true from the telegram of this number on, if that is told.
    labels: BTreeMap<usize, &'static str>,
}

impl Program {
    /// One recording after the other.
    fn plain(recordings: &[Recording]) -> Self {
        let samples = recordings.iter().flat_map(Recording::at_model_rate).collect();
        Self { samples, labels: BTreeMap::new() }
    }

    /// Some windows of each in turn, with their labels: none of its states lasts so long that a version would be
    /// judged by that one alone.
    fn in_turns(recordings: &[Recording]) -> Self {
        let all: Vec<Vec<f32>> = recordings.iter().map(Recording::at_model_rate).collect();
        let mut this = Self { samples: Vec::new(), labels: BTreeMap::new() };
        let turns = all.iter().map(|samples| samples.len() / TURN).min().unwrap_or(0);
        for turn in 0..turns {
            for (recording, samples) in recordings.iter().zip(&all) {
                let label = CLASSES.get(recording.label).copied().unwrap_or_default();
                this.labels.insert(this.samples.len() / WINDOW_LEN, label);
                this.samples.extend(samples.iter().skip(turn * TURN).take(TURN));
            }
        }
        this
    }
}

/// Starts a gateway for each plant on the current runtime; they play until they are dropped.
pub(super) fn start(
    bearings: &Bearings,
    brokers: &Brokers,
    (speed, labelled): (f64, bool),
    now: Wall,
) -> Result<Vec<tokio::task::JoinHandle<()>>, DemoError> {
    let mut gateways = Vec::new();
    for place in &PLACES {
        let (Some(index), Some(broker)) = (place.data, brokers.get(place.site)) else { continue };
        let recordings = bearings.plant_recordings(index)?;
        let Program { samples, labels } =
            if labelled { Program::in_turns(&recordings) } else { Program::plain(&recordings) };
        let client = format!("gateway-{}", place.name);
        let (bus, mut events) = MqttBus::connect(broker.client(&client, "feed")?, 0)?;
        let (topic, label_topic) = (place.sensor_topic(), place.label_topic());
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
                for (number, telegram) in feed.enumerate() {
                    let wait = telegram.offset_ms.saturating_sub(played);
                    tokio::time::sleep(Duration::from_millis(wait.max(1))).await;
                    played = telegram.offset_ms;
                    let publish = |topic: &String, payload| {
                        let (topic, priority) = (topic.clone(), Priority::Control);
                        let (at_least_once, retain) = (false, false);
                        // A gateway doesn't wait for a slow broker: the next sample comes anyway.
                        let _ = bus.publish(Publish {
                            topic,
                            payload,
                            at_least_once,
                            retain,
                            priority,
                        });
                    };
                    if let Some(label) = labels.get(&number) {
                        publish(&label_topic, format!("\"{label}\"").into_bytes());
                    }
                    publish(&topic, telegram.payload);
                }
            }
        }));
    }
    Ok(gateways)
}

/// Samples of a turn: eight windows.
const TURN: usize = 8 * WINDOW_LEN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::bearings::Split;

    #[test]
    fn recordings_in_turns_tell_each_label_where_its_windows_begin() {
        let recording = |label, turns: usize| Recording {
            name: "toy",
            rate_hz: RATE_HZ,
            samples: vec![f32::from(u8::try_from(label).unwrap()); turns * TURN + 9],
            label,
            plant: Some(0),
            split: Split::Train,
        };
        let Program { samples, labels } = Program::in_turns(&[recording(0, 3), recording(2, 2)]);
        assert_eq!(samples.len(), 4 * TURN);
        let told: Vec<_> = labels.into_iter().collect();
        assert_eq!(told, [(0, "healthy"), (8, "outer"), (16, "healthy"), (24, "outer")]);
        for (at, label) in [(0, 0.0), (TURN, 2.0), (2 * TURN, 0.0), (4 * TURN - 1, 2.0)] {
            assert!((samples[at] - label).abs() < 1e-6, "{at}");
        }
    }
}
