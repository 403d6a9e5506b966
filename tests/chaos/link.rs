//! The wire between one node and the broker: a TCP proxy whose weather a fault changes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// What a wire does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// They pass.
    Clear,
    /// They pass a while later.
    Slow,
    /// They pass in pieces of a few bytes.
    Sliced,
    /// What the node says goes nowhere; it hears the broker.
    DeafBroker,
    /// What the node says waits, and passes when that is over; it hears the broker.
    Held,
    /// What the broker says goes nowhere; it hears the node.
    DeafNode,
    /// The broker's side is gone and nobody tells the node; who connects anew gets through.
    HalfOpen,
}

/// A wire. Gone when dropped.
pub(crate) struct Link {
    pub(crate) port: u16,
    weather: watch::Sender<Weather>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    listening: AbortHandle,
}

impl Link {
    /// A wire to a broker's port on this machine.
    pub(crate) fn to(broker: u16, runtime: &Handle) -> Self {
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (weather, watching) = watch::channel(Weather::Clear);
        let connections = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&connections);
        let listening = runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let handle = tokio::spawn(pass(client, broker, watching.clone())).abort_handle();
                let mut open = list.lock().unwrap();
                open.retain(|old: &AbortHandle| !old.is_finished());
                open.push(handle);
            }
        });
        Self { port, weather, connections, listening: listening.abort_handle() }
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Drops all connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn pass(client: TcpStream, broker: u16, weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", broker)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut over = weather.clone();
    over.mark_unchanged();
    let (mut from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let half_open = async {
        while over.changed().await.is_ok() {
            if *over.borrow() == Weather::HalfOpen {
                return;
            }
        }
    };
    let up = copy(&mut from_client, to_server, weather.clone());
    let mut from_server = from_server;
    let mut to_client = to_client;
    let down = copy_to(&mut from_server, &mut to_client, weather, Direction::Down);
    let is_half_open = tokio::select! {
        () = up => false,
        () = down => false,
        () = half_open => true,
    };
    if is_half_open {
        drop(from_server);
        // The node speaks into the void until it has had enough.
        let mut void = [0; 4_096];
        let silence = async { while let Ok(1..) = from_client.read(&mut void).await {} };
        let _ = timeout(VOID, silence).await;
    }
}

/// Which way bytes go on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the node to the broker.
    Up,
    Down,
}

async fn copy(from: &mut OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    copy_to(from, &mut to, weather, Direction::Up).await;
}

/// Copies until the end, or until weather is over in which bytes were lost.
async fn copy_to(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    direction: Direction,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let today = *weather.borrow_and_update();
        match (today, direction) {
            (Weather::DeafBroker, Direction::Up) | (Weather::DeafNode, Direction::Down) => {
                let _ = weather.changed().await;
                return;
            }
            (Weather::Held, Direction::Up) => {
                let _ = weather.changed().await;
            }
            _ => {}
        }
        let piece = if today == Weather::Sliced { SLICE_BYTES } else { bytes };
        if today == Weather::Slow {
            sleep(LATER).await;
        }
        for slice in buffer[..bytes].chunks(piece) {
            if to.write_all(slice).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Each read of at most 16 KiB waits so long, each way.
const LATER: Duration = Duration::from_millis(80);
const SLICE_BYTES: usize = 3;
/// Longer than any node waits for a sign of its broker.
const VOID: Duration = Duration::from_secs(60);
