//! `gaisnet feed`: plays recordings onto plant topics, as a sensor gateway would.

use std::io::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Exit;
use super::data::{Set, cached};
use super::exit::Misuse;
use super::trust_files::{now, read_capped};
use crate::bus::mqtt::{MqttBus, MqttSettings, TlsSettings};
use crate::bus::{Bus, BusError, BusEvent, Priority, Publish};
use crate::data::Cache;
use crate::data::bearings::{PLANTS, RATE_HZ, Recording};
use crate::scada::feed::Feed;
use crate::telemetry::logging;

/// Arguments of `gaisnet feed`.
#[derive(Debug, Args)]
pub(super) struct FeedArgs {
    /// Data set
    #[arg(long, value_enum, default_value = "bearings")]
    data: Set,
    /// Plant whose recordings are played: P1 to P4, or test
    #[arg(long)]
    plant: String,
    /// Broker
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    to: String,
    /// Topic of the sensor
    #[arg(long)]
    topic: String,
    /// 2 sends twice as fast as was measured
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Samples a telegram
    #[arg(long, default_value = "2048")]
    chunk: NonZeroUsize,
    /// Begin again at the end, until Ctrl-C
    #[arg(long = "loop")]
    again: bool,
    /// User at the broker
    #[arg(long, requires = "password_file")]
    username: Option<String>,
    /// File whose first line is the password
    #[arg(long, requires = "username")]
    password_file: Option<PathBuf>,
    /// Certificate authority of the broker, PEM; switches TLS on
    #[arg(long)]
    ca: Option<PathBuf>,
    /// MQTT client id; must differ between feeds at one broker
    #[arg(long)]
    client_id: Option<String>,
}

/// Runs `gaisnet feed`.
pub(super) fn run(args: &FeedArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = mqtt_settings(args)?;
    let recordings = recordings(args)?;
    let directives = std::env::var("RUST_LOG").ok();
    logging::init(false, "info", directives.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seed = u64::from(std::process::id());
    let sent = runtime.block_on(async {
        let (bus, mut events) = MqttBus::connect(settings, seed)?;
        let sent = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => None,
            sent = play(args, &recordings, &bus, &mut events) => Some(sent?),
        };
        bus.close(DRAIN_MS);
        // The events end when the goodbye was said.
        while events.recv().await.is_some() {}
        anyhow::Ok(sent)
    })?;
    match sent {
        Some(sent) => writeln!(out, "sent {sent} telegrams to {}", args.topic)?,
        None => writeln!(out, "stopped")?,
    }
    Ok(Exit::Ok)
}

/// A recording's name, and its samples at the model's rate.
type Played = (&'static str, Vec<f32>);

fn recordings(args: &FeedArgs) -> anyhow::Result<Vec<Played>> {
    if args.data != Set::Bearings {
        return Err(Misuse("only recordings are played: use --data bearings".into()).into());
    }
    let plant = PLANTS.iter().position(|name| *name == args.plant);
    if plant.is_none() && args.plant != "test" {
        let known = PLANTS.join(", ");
        return Err(Misuse(format!("no plant {:?}: use {known} or test", args.plant)).into());
    }
    let bearings = cached(&Cache::from_env()?)?;
    let found = match plant {
        Some(plant) => bearings.plant_recordings(plant)?,
        None => bearings.test_recordings()?,
    };
    let played = |recording: &Recording| (recording.name, recording.at_model_rate());
    Ok(found.iter().map(played).collect())
}

fn mqtt_settings(args: &FeedArgs) -> anyhow::Result<MqttSettings> {
    let parts = args.to.rsplit_once(':');
    let place = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = place.filter(|(host, _)| !host.is_empty()) else {
        return Err(Misuse(format!("--to {:?}: expected HOST:PORT", args.to)).into());
    };
    if args.topic.is_empty() || args.topic.contains(['+', '#', '\0']) {
        return Err(Misuse(format!("--topic {:?} is no topic to write to", args.topic)).into());
    }
    let own = format!("gaisnet-feed-{}", std::process::id());
    let mut settings = MqttSettings::new(host, port, args.client_id.as_ref().unwrap_or(&own));
    settings.username.clone_from(&args.username);
    if let Some(path) = &args.password_file {
        let text = String::from_utf8(read_capped(path, 4_096)?)
            .with_context(|| path.display().to_string())?;
        settings.password = text.lines().next().map(str::to_owned);
    }
    settings.tls = args.ca.clone().map(|ca_file| TlsSettings { ca_file, client: None });
    Ok(settings)
}

/// Sends everything in its time; gives the number of telegrams.
async fn play(
    args: &FeedArgs,
    recordings: &[Played],
    bus: &MqttBus,
    events: &mut mpsc::Receiver<BusEvent>,
) -> anyhow::Result<u64> {
    let rate = NonZeroU32::new(RATE_HZ).context("the data set has no rate")?;
    connected(events).await?;
    let mut sent = 0;
    loop {
        for (name, samples) in recordings {
            tracing::info!(recording = name, topic = %args.topic, "playing");
            let start = Instant::now();
            let feed = Feed::new(samples, rate, args.chunk, args.speed, now())
                .map_err(|error| Misuse(error.to_string()))?;
            for telegram in feed {
                let due = start + Duration::from_millis(telegram.offset_ms);
                wait(due, events).await?;
                let message = Publish {
                    topic: args.topic.clone(),
                    payload: telegram.payload,
                    at_least_once: false,
                    retain: false,
                    priority: Priority::Control,
                };
                match bus.publish(message) {
                    // A sensor doesn't wait for its broker: what doesn't fit is lost.
                    Ok(()) | Err(BusError::Full { .. }) => sent += 1,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if !args.again {
            return Ok(sent);
        }
    }
}

/// The first connection; a feed that never gets there says why.
async fn connected(events: &mut mpsc::Receiver<BusEvent>) -> anyhow::Result<()> {
    match events.recv().await {
        Some(BusEvent::Connected { .. }) => Ok(()),
        Some(BusEvent::Disconnected { reason }) => bail!("no connection to the broker: {reason}"),
        _ => bail!("the link to the broker ended"),
    }
}

/// Waits until `due` and tells what the link reports in the meantime.
async fn wait(due: Instant, events: &mut mpsc::Receiver<BusEvent>) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                None => bail!("the link to the broker ended"),
                Some(BusEvent::Disconnected { reason }) => {
                    tracing::warn!(%reason, "the link is down; trying again");
                },
                Some(_) => {}
            },
            () = sleep_until(due) => return Ok(()),
        }
    }
}

/// How long the last telegrams may take.
const DRAIN_MS: u64 = 5_000;

/// Examples for `--help`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet feed --plant P1 --to localhost:1883 --topic plant/north/p1/vibration
  gaisnet feed --plant test --topic plant/north/p1/vibration --speed 10 --loop

Telegrams are {\"ts\": .., \"values\": [..]} at 48,828 samples a second, QoS 0. `gaisnet data fetch
bearings` brings the recordings.";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;

    #[test]
    fn wrong_places_topics_and_plants_are_usage_errors() {
        let good = ["feed", "--plant", "P1", "--topic", "a/b"];
        for wrong in [["--to", "localhost"], ["--to", ":1883"], ["--to", "h:99999"]] {
            let error = gaisnet(&[&good[..], &wrong].concat()).0.unwrap_err();
            assert!(error.is::<Misuse>(), "{error:#}");
        }
        for line in [["--plant", "P1", "--topic", "a/#"], ["--plant", "P9", "--topic", "a"]] {
            let error = gaisnet(&[&["feed"], &line[..]].concat()).0.unwrap_err();
            assert!(error.is::<Misuse>(), "{error:#}");
        }
    }
}
