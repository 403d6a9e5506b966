//! What everything is held against: rumqttc by itself, QoS 1, its own defaults but for no delay.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, NetworkOptions, Packet, PublishOptions, QoS,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::stats::{micros_each, time};

/// Messages a second from one client through the broker to another.
pub fn rate(port: u16, bytes: usize, count: usize) -> f64 {
    let room = Arc::new(Semaphore::new(OUTSTANDING));
    let (listening, is_listening) = mpsc::channel();
    let freed = Arc::clone(&room);
    let subscriber = thread::spawn(move || {
        runtime().block_on(async {
            let (client, mut events) = client(port, "bare-subscriber");
            client.subscribe(TOPIC, QoS::AtLeastOnce).await.unwrap();
            let mut left = count;
            while left > 0 {
                match events.poll().await.unwrap() {
                    Event::Incoming(Packet::SubAck(_)) => listening.send(()).unwrap(),
                    Event::Incoming(Packet::Publish(publish)) => {
                        assert_eq!(publish.payload.len(), bytes);
                        freed.add_permits(1);
                        left -= 1;
                    }
                    _ => {}
                }
            }
        });
    });
    is_listening.recv().unwrap();
    let payload = bytes::Bytes::from(vec![0x5a; bytes]);
    let taken = time(|| {
        runtime().block_on(async {
            let (client, mut events) = client(port, "bare-publisher");
            let polling = tokio::spawn(async move { while events.poll().await.is_ok() {} });
            for _ in 0..count {
                room.acquire().await.unwrap().forget();
                client.publish(TOPIC, payload.clone(), at_least_once()).await.unwrap();
            }
            // All of them are there.
            drop(room.acquire_many(u32::try_from(OUTSTANDING).unwrap()).await.unwrap());
            polling.abort();
        });
    });
    subscriber.join().unwrap();
    count as f64 / taken.as_secs_f64()
}

/// A client that answers each message on `TOPIC` with `answer_bytes` on `BACK`, until dropped.
pub struct Echo {
    stop: Arc<tokio::sync::Notify>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    pub fn start(port: u16, answer_bytes: usize) -> Self {
        let stop = Arc::new(tokio::sync::Notify::new());
        let (stopped, (listening, is_listening)) = (Arc::clone(&stop), mpsc::channel());
        let answer = bytes::Bytes::from(vec![b'5'; answer_bytes]);
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let (client, mut events) = client(port, "bare-echo");
                client.subscribe(TOPIC, QoS::AtLeastOnce).await.unwrap();
                loop {
                    let event = tokio::select! {
                        () = stopped.notified() => return,
                        event = events.poll() => event.unwrap(),
                    };
                    match event {
                        Event::Incoming(Packet::SubAck(_)) => listening.send(()).unwrap(),
                        Event::Incoming(Packet::Publish(_)) => {
                            client.try_publish(BACK, answer.clone(), at_least_once()).unwrap();
                        }
                        _ => {}
                    }
                }
            });
        });
        is_listening.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.notify_one();
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Asks and waits for the answer, one at a time.
pub struct Asker {
    runtime: Runtime,
    client: AsyncClient,
    answers: UnboundedReceiver<Vec<u8>>,
    ask: String,
    question: bytes::Bytes,
}

impl Asker {
    /// Publishes `question` on `ask` and waits for what comes on `answer`.
    pub fn new(port: u16, name: &str, ask: &str, answer: &str, question: Vec<u8>) -> Self {
        let runtime = runtime();
        let (arrived, answers) = unbounded_channel();
        let client = runtime.block_on(async {
            let (client, mut events) = client(port, name);
            client.subscribe(answer, QoS::AtLeastOnce).await.unwrap();
            while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
            tokio::spawn(async move {
                while let Ok(event) = events.poll().await {
                    if let Event::Incoming(Packet::Publish(answer)) = event {
                        let _ = arrived.send(answer.payload.to_vec());
                    }
                }
            });
            client
        });
        Self { runtime, client, answers, ask: ask.into(), question: question.into() }
    }

    /// The answer to one question; `None` when none comes in time.
    pub fn ask(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.runtime.block_on(async {
            let question = self.question.clone();
            self.client.try_publish(&self.ask, question, at_least_once()).unwrap();
            tokio::time::timeout(patience, self.answers.recv()).await.ok().flatten()
        })
    }

    /// Waits until nothing comes any more.
    pub fn drain(&mut self) {
        self.runtime.block_on(async {
            let quiet = Duration::from_millis(300);
            while tokio::time::timeout(quiet, self.answers.recv()).await.is_ok() {}
        });
    }

    /// Milliseconds of each of `count` questions.
    pub fn millis(&mut self, count: usize) -> Vec<f64> {
        let one = |_| micros_each(1, |_| assert!(self.ask(PATIENCE).is_some())) / 1_000.0;
        (0..count).map(one).collect()
    }
}

fn client(port: u16, name: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, ("127.0.0.1".to_owned(), port));
    options.set_max_packet_size(256 << 10, 256 << 10);
    options.set_keep_alive(30);
    let (client, mut events) = AsyncClient::builder(options).capacity(256).try_build().unwrap();
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    (client, events)
}

fn at_least_once() -> PublishOptions {
    PublishOptions::new(QoS::AtLeastOnce)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits a little.
#[expect(clippy::disallowed_methods, reason = "a benchmark's main thread has nothing else to do")]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// Messages on their way at most, ours too: what a broker keeps for a subscriber is bounded.
pub const OUTSTANDING: usize = 512;

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub const TOPIC: &str = "bare/there";
pub const BACK: &str = "bare/back";
