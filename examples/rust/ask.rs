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
    SubscribeReasonCode,
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

    // Listen first, then ask: a question could overtake a subscription that waits in line before it,
    // and its answer would find nobody.
    client.subscribe(format!("{branch}/reply/infer"), QoS::AtLeastOnce)?;
    granted(&mut connection)?;

    // Retained, so it is there at once: what the device serves.
    client.subscribe(format!("{branch}/meta"), QoS::AtLeastOnce)?;
    let meta = next(&mut connection, |topic, _| topic.ends_with("/meta"))?;
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

    // Others ask too: ours is the answer with our id.
    let window = ringing(served["window"].as_u64().ok_or("no window in meta")?);
    let request = json!({ "id": id, "input": window }).to_string();
    let once = PublishOptions::new(QoS::AtLeastOnce);
    client.publish(format!("{branch}/infer/{model}"), request, once)?;
    let answer = next(&mut connection, |topic, answer| {
        topic.ends_with("/reply/infer") && answer["id"] == id.as_str()
    })?;
    if answer["status"] != "ok" {
        return Err(format!("refused: {answer}").into());
    }
    println!("asked: {}", described(&answer));

    client.subscribe(format!("{branch}/inference/{model}"), QoS::AtLeastOnce)?;
    for _ in 0..watch {
        let seen = next(&mut connection, |topic, _| topic.contains("/inference/"))?;
        println!("seen: {}", described(&seen));
    }
    client.disconnect()?;
    Ok(())
}

/// Polls the connection until the broker has answered the first subscription.
fn granted(connection: &mut Connection) -> Result<(), Box<dyn Error>> {
    loop {
        if let Event::Incoming(Packet::SubAck(answer)) = event(connection)? {
            let refused = answer.return_codes.contains(&SubscribeReasonCode::Failure);
            return if refused {
                Err("the broker lets nobody read the answers".into())
            } else {
                Ok(())
            };
        }
    }
}

/// Polls the connection until a telegram comes that is wanted.
fn next(
    connection: &mut Connection,
    is_wanted: impl Fn(&str, &Value) -> bool,
) -> Result<Value, Box<dyn Error>> {
    loop {
        if let Event::Incoming(Packet::Publish(Publish { topic, payload, .. })) = event(connection)?
        {
            let telegram: Value = serde_json::from_slice(&payload)?;
            if is_wanted(str::from_utf8(&topic)?, &telegram) {
                return Ok(telegram);
            }
        }
    }
}

/// What happens next on the connection. An error is the connection's; polling again would connect anew.
fn event(connection: &mut Connection) -> Result<Event, Box<dyn Error>> {
    match connection.recv_timeout(PATIENCE) {
        Ok(event) => Ok(event?),
        Err(RecvTimeoutError::Timeout { .. }) => {
            Err("nothing came: is the node online (its `status`)?".into())
        }
        Err(RecvTimeoutError::Disconnected) => Err("the connection has ended".into()),
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
