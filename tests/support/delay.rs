//! A link of some length: a TCP proxy that lets every byte through later, in both directions.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// A proxy before a port of this machine. Gone when dropped.
pub(crate) struct DelayProxy {
    pub(crate) port: u16,
    listening: AbortHandle,
}

impl DelayProxy {
    /// Each way takes `one_way` longer than without it.
    pub(crate) async fn before(target: u16, one_way: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                // Nagle's algorithm would add delays of its own.
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(later(from_client, to_server, one_way));
                tokio::spawn(later(from_server, to_client, one_way));
            }
        });
        Self { port, listening: listening.abort_handle() }
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Copies until the end; what comes at one time leaves at one time.
async fn later(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    one_way: Duration,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    tokio::spawn(async move {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut buffer = vec![0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now() + one_way, buffer[..bytes].to_vec())).await.is_err() {
            return;
        }
    }
}
