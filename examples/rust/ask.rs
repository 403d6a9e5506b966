//! Shows: a program in Rust that asks a device's model about a window of vibration, as a plant's own
//! software would, with nothing but an MQTT client: it reads from `meta` how long a window is, asks
//! on `infer/{model}`, waits for its answer on `reply/infer`, and then watches what the model says
//! about the machine itself on `inference/{model}`.
//!
//! Run:
//! ```sh
//! cargo run --example ask --no-default-features --features mqtt
//! cargo run --example ask --no-default-features --features mqtt -- \
//!     --broker localhost:1884 --branch gaisnet/v1/south/bearings/p3 --watch 5
//! ```
//! (device p1 of the demo's site north, or your own; --user NAME --password WORD where the broker
//! wants them, --model NAME for another model than bearing)
//!
//! Expect:
//! ```text
//! p1 serves bearing v4: windows of 2048 samples, classes healthy, inner, outer
//! asked: outer 80 % [good] 3.5 ms
//! seen: inner 97 % [good] 2.9 ms
//! ```
//! `asked` is about the made-up ringing that was sent along, `seen` about the device's own sensor,
//! --watch times (default 1). Exit 1 and a reason when nothing comes for 10 seconds.
#![allow(clippy::print_stdout, reason = "a program for people")]
#![allow(clippy::indexing_slicing, reason = "a JSON value has null for a key that isn't there")]

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use rumqttc::{
    Client, Connection, Event, MqttOptions, Packet, Publish, PublishOptions, QoS, RecvTimeoutError,
};
use serde_json::{Value, json};

/// What the command line says.
struct Options {
    broker: String,
    branch: String,
    model: String,
    user: Option<(String, String)>,
    watch: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("no luck: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Options { broker, branch, model, user, watch } = options()?;
    let (host, port) = broker.split_once(':').ok_or("--broker wants HOST:PORT")?;
    let id = format!("ask-{}", std::process::id());
    let mut settings = MqttOptions::new(&id, (host.to_owned(), port.parse()?));
    settings.set_keep_alive(30);
    // Requests may be as long as 256 KiB; the client's own limit is 10 KiB.
    settings.set_max_packet_size(512 * 1024, 512 * 1024);
    if let Some((name, password)) = user {
        settings.set_credentials(name, password);
    }
    let (client, mut connection) = Client::builder(settings).capacity(10).build();

    // Retained, so it is there at once: what the device serves.
    client.subscribe(format!("{branch}/meta"), QoS::AtLeastOnce)?;
    let meta = next(&mut connection, PATIENCE, |_, _| true)?.ok_or(NOTHING)?;
    let mut models = meta["models"].as_array().into_iter().flatten();
    let served = models.find(|served| served["name"] == model.as_str());
    let served = served.ok_or_else(|| format!("{branch} doesn't serve {model:?}: {meta}"))?;
    let node = branch.rsplit('/').next().unwrap_or_default();
    let labels: Vec<&str> =
        served["labels"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    println!(
        "{node} serves {model} v{}: windows of {} samples, classes {}",
        served["version"],
        served["window"],
        labels.join(", ")
    );

    // Listen first, then ask. Others ask too: ours is the answer with our id.
    client.subscribe(format!("{branch}/reply/infer"), QoS::AtLeastOnce)?;
    let window = ringing(served["window"].as_u64().ok_or("no window in meta")?);
    let ours = |topic: &str, answer: &Value| {
        topic.ends_with("/reply/infer")
            && answer["id"].as_str().is_some_and(|it| it.starts_with(&id))
    };
    let mut answer = None;
    // A node that has only just come online may not listen yet: nobody keeps a question for it.
    for attempt in 1..=ATTEMPTS {
        let request = json!({ "id": format!("{id}-{attempt}"), "input": window }).to_string();
        let once = PublishOptions::new(QoS::AtLeastOnce);
        client.publish(format!("{branch}/infer/{model}"), request, once)?;
        answer = next(&mut connection, PATIENCE / ATTEMPTS, ours)?;
        if answer.is_some() {
            break;
        }
    }
    let answer = answer.ok_or(NOTHING)?;
    if answer["status"] != "ok" {
        return Err(format!("refused: {answer}").into());
    }
    println!("asked: {}", described(&answer));

    client.subscribe(format!("{branch}/inference/{model}"), QoS::AtLeastOnce)?;
    for _ in 0..watch {
        let seen = next(&mut connection, PATIENCE, |topic, _| topic.contains("/inference/"))?;
        let seen = seen.ok_or(NOTHING)?;
        println!("seen: {}", described(&seen));
    }
    client.disconnect()?;
    Ok(())
}

/// Polls the connection until a telegram comes that is wanted; `None` when nothing comes for so long.
fn next(
    connection: &mut Connection,
    patience: Duration,
    is_wanted: impl Fn(&str, &Value) -> bool,
) -> Result<Option<Value>, Box<dyn Error>> {
    loop {
        let event = match connection.recv_timeout(patience) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout { .. }) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err("the connection has ended".into()),
        };
        // An error here is the connection's; polling again would connect anew.
        if let Event::Incoming(Packet::Publish(Publish { topic, payload, .. })) = event? {
            let telegram: Value = serde_json::from_slice(&payload)?;
            if is_wanted(str::from_utf8(&topic)?, &telegram) {
                return Ok(Some(telegram));
            }
        }
    }
}

/// An answer in words. `value`, `label` and `confidence` are null when there is none.
fn described(answer: &Value) -> String {
    let mut text = match (&answer["label"], &answer["value"]) {
        (Value::String(label), _) => label.clone(),
        (_, Value::Null) => "no answer".to_owned(),
        (_, value) => value.to_string(),
    };
    if let Some(sure) = answer["confidence"].as_f64() {
        let _ = write!(text, " {:.0} %", sure * 100.0);
    }
    let quality = answer["quality"].as_str().unwrap_or("?");
    let _ = write!(text, " [{quality}] {:.1} ms", answer["latency_ms"].as_f64().unwrap_or(0.0));
    text
}

/// A ringing that starts anew every 300 samples, as a damaged race would make it.
fn ringing(samples: u64) -> Vec<f64> {
    let sample = |i: u64| {
        let t = f64::from(u32::try_from(i % 300).unwrap_or(0));
        (-t / 40.0).exp() * (0.9 * t).sin()
    };
    (0..samples).map(sample).collect()
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        broker: "localhost:1883".into(),
        branch: "gaisnet/v1/north/bearings/p1".into(),
        model: "bearing".into(),
        user: None,
        watch: 1,
    };
    let (mut user, mut password) = (None, String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        match word.as_str() {
            "--broker" => options.broker = value,
            "--branch" => options.branch = value,
            "--model" => options.model = value,
            "--user" => user = Some(value),
            "--password" => password = value,
            "--watch" => options.watch = value.parse()?,
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    options.user = user.map(|user| (user, password));
    Ok(options)
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions that are asked within it.
const ATTEMPTS: u32 = 5;

const NOTHING: &str = "nothing came: is the node online (its `status`)?";
