//! Packets on a socket, through rumqttd's 3.1.1 codec, with a cap on size and counted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::{Error as CodecError, Packet, Protocol, Publish};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::stats::{Counters, count};

/// Why a connection ended, other than by a goodbye.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client is gone")]
    Gone,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not MQTT 3.1.1: {0}")]
    Codec(#[from] CodecError),
    #[error("against the protocol: {0}")]
    Protocol(&'static str),
    #[error("nothing heard for {0:?}")]
    Silent(Duration),
    #[error("the client doesn't read")]
    Stalled,
    #[error("a message of {bytes} bytes is over max_payload_bytes = {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("another connection took the client id")]
    TakenOver,
    #[error("the broker stops")]
    Stopping,
    #[error("the router took no more: {0}")]
    Router(String),
}

/// Reads packets. Safe to cancel.
pub(super) struct PacketReader<R> {
    socket: R,
    buffer: BytesMut,
    max_bytes: usize,
    /// Silence after which the client is given up; none if it asked for that.
    patience: Option<Duration>,
    pub(super) counters: Arc<Counters>,
}

impl<R: AsyncRead + Unpin> PacketReader<R> {
    pub(super) fn new(socket: R, max_bytes: usize, counters: Arc<Counters>) -> Self {
        let buffer = BytesMut::with_capacity(READ_BYTES);
        Self { socket, buffer, max_bytes, patience: None, counters }
    }

    /// One and a half times the keep-alive, as the standard has it.
    pub(super) fn set_keep_alive(&mut self, seconds: u16) {
        let patience = Duration::from_millis(u64::from(seconds) * 1_500);
        self.patience = (seconds > 0).then_some(patience);
    }

    /// Moves what was read so far to the client's own counters, once it is known.
    pub(super) fn count_for(&mut self, counters: Arc<Counters>) {
        let sofar = self.counters.bytes_in.load(std::sync::atomic::Ordering::Relaxed);
        self.counters = counters;
        self.counters.bytes_in.fetch_add(sofar, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) async fn next(&mut self) -> Result<Packet, Ended> {
        loop {
            match V4.read_mut(&mut self.buffer, self.max_bytes) {
                Ok(packet) => return Ok(packet),
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => return Err(error.into()),
            }
            self.buffer.reserve(READ_BYTES);
            let reading = self.socket.read_buf(&mut self.buffer);
            let bytes = match self.patience {
                Some(patience) => {
                    timeout(patience, reading).await.map_err(|_| Ended::Silent(patience))??
                }
                None => reading.await?,
            };
            if bytes == 0 {
                return Err(Ended::Gone);
            }
            count(&self.counters.bytes_in, bytes);
        }
    }
}

/// The parts of a PUBLISH that rumqttd keeps to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) qos: u8,
    pub(super) pkid: u16,
}

impl Head {
    /// Reads them from the message's serialised form, without its topic and payload.
    pub(super) fn of(publish: &Publish) -> Self {
        let mut bare = publish.clone();
        bare.topic = Bytes::new();
        bare.payload = Bytes::new();
        match *bare.serialize() {
            [flags, high, low, ..] => {
                Self { qos: (flags >> 1) & 3, pkid: u16::from_be_bytes([high, low]) }
            }
            _ => Self { qos: 0, pkid: 0 },
        }
    }
}

/// Writes a PUBLISH; QoS 1 if it has a packet identifier. The topic fits, as it came in a packet.
pub(super) fn put_publish(
    out: &mut BytesMut,
    topic: &str,
    payload: &[u8],
    pkid: Option<u16>,
    retained: bool,
) {
    let qos = if pkid.is_some() { 0b10 } else { 0 };
    out.put_u8(0x30 | qos | u8::from(retained));
    let mut remaining = 2 + topic.len() + payload.len() + if pkid.is_some() { 2 } else { 0 };
    loop {
        let [low, ..] = remaining.to_le_bytes();
        remaining >>= 7;
        if remaining == 0 {
            out.put_u8(low & 0x7f);
            break;
        }
        out.put_u8(low | 0x80);
    }
    out.put_u16(u16::try_from(topic.len()).unwrap_or(u16::MAX));
    out.put_slice(topic.as_bytes());
    if let Some(pkid) = pkid {
        out.put_u16(pkid);
    }
    out.put_slice(payload);
}

/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_publish_is_read_again_by_the_codec() {
        for (size, pkid) in [(0, None), (5, Some(7)), (200, Some(1_000)), (20_000, Some(3))] {
            let payload = vec![b'x'; size];
            let mut out = BytesMut::new();
            put_publish(&mut out, "ü/b", &payload, pkid, true);
            let Packet::Publish(publish, None) = V4.read_mut(&mut out, 1 << 20).unwrap() else {
                panic!("not a PUBLISH")
            };
            assert_eq!(publish.topic, "ü/b");
            assert_eq!(publish.payload, payload);
            assert!(publish.retain && out.is_empty());
            let qos = u8::from(pkid.is_some());
            assert_eq!(Head::of(&publish), Head { qos, pkid: pkid.unwrap_or(0) });
        }
    }

    #[tokio::test]
    async fn packet_over_the_cap_is_refused_before_it_is_read() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut reader = PacketReader::new(server, 100, Arc::default());
        tokio::io::AsyncWriteExt::write_all(&mut client, &[0x30, 0xff, 0xff, 0x7f]).await.unwrap();
        assert!(matches!(
            reader.next().await,
            Err(Ended::Codec(CodecError::PayloadSizeLimitExceeded(_)))
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_codec_panic(bytes in proptest::collection::vec(0..=255_u8, 0..64)) {
            let mut stream = BytesMut::from(&bytes[..]);
            while V4.read_mut(&mut stream, 1_000).is_ok() {}
        }
    }
}
