//! Just enough MQTT 3.1.1 to ask a broker questions: connect, subscribe, publish, listen.
//!
//! Written out here, since the answers wanted are about single packets and their timing, which a
//! full client hides. Synchronous: one question at a time. Section numbers are of the OASIS standard.

use std::io::{self, Read, Write};

/// A connection that was accepted.
pub(super) struct Probe<W> {
    wire: W,
    next_id: u16,
}

/// The broker's answer to CONNECT when it isn't yes (3.2.2.3).
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// A return code.
    #[error("the broker refused the connection: {}", refusal(*.0))]
    Refused(u8),
    /// Network, TLS, or bytes that aren't MQTT.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<W: Read + Write> Probe<W> {
    /// Connects with a clean session.
    pub(super) fn connect(
        mut wire: W,
        client_id: &str,
        login: Option<(&str, &[u8])>,
    ) -> Result<Self, ProbeError> {
        let mut body = Vec::new();
        put_bytes(&mut body, b"MQTT");
        let login_flags = match login {
            Some(_) => 0b1100_0000,
            None => 0,
        };
        let clean_session = 0b10;
        body.extend([4, login_flags | clean_session, 0, 60]);
        put_bytes(&mut body, client_id.as_bytes());
        if let Some((name, password)) = login {
            put_bytes(&mut body, name.as_bytes());
            put_bytes(&mut body, password);
        }
        send(&mut wire, CONNECT, &body)?;
        match receive(&mut wire)? {
            (CONNACK, body) => match body.as_slice() {
                [_, 0] => Ok(Self { wire, next_id: 1 }),
                [_, code] => Err(ProbeError::Refused(*code)),
                _ => Err(bad_packet("CONNACK").into()),
            },
            _ => Err(bad_packet("first packet").into()),
        }
    }

    /// Subscribes with QoS 0; false if the broker refused (3.9.3).
    ///
    /// With QoS 0 we send nothing back, so a broker whose small packets wait for TCP's
    /// acknowledgement shows it.
    pub(super) fn subscribe(&mut self, filter: &str) -> io::Result<bool> {
        let id = self.take_id();
        let mut body = id.to_be_bytes().to_vec();
        put_bytes(&mut body, filter.as_bytes());
        body.push(0);
        send(&mut self.wire, SUBSCRIBE | 0b10, &body)?;
        loop {
            if let (SUBACK, body) = receive(&mut self.wire)? {
                return Ok(body.last().is_some_and(|code| *code < 0x80));
            }
        }
    }

    /// Publishes with QoS 1 and waits for the acknowledgement and, with `echo`, for the message
    /// itself to come back. False if the connection's time limit passed first.
    pub(super) fn publish(&mut self, topic: &str, payload: &[u8], echo: bool) -> io::Result<bool> {
        let id = self.take_id();
        let mut body = Vec::new();
        put_bytes(&mut body, topic.as_bytes());
        body.extend(id.to_be_bytes());
        body.extend(payload);
        send(&mut self.wire, PUBLISH | 0b10, &body)?;
        let (mut acknowledged, mut returned) = (false, !echo);
        while !(acknowledged && returned) {
            match receive(&mut self.wire) {
                Ok((PUBACK, body)) => acknowledged |= body.starts_with(&id.to_be_bytes()),
                Ok((kind, body)) if kind & 0xf0 == PUBLISH => returned |= body.ends_with(payload),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Says goodbye.
    pub(super) fn close(mut self) -> io::Result<()> {
        send(&mut self.wire, DISCONNECT, &[])
    }

    fn take_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(1);
        id
    }
}

/// Whether a read ended because its time was over.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    body.extend(len.to_be_bytes());
    body.extend(bytes.iter().take(usize::from(len)));
}

fn send(wire: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut packet = vec![kind];
    let mut rest = body.len();
    // Remaining length: seven bits a byte, the eighth says that more follow (2.2.3).
    loop {
        let low = u8::try_from(rest & 0x7f).unwrap_or(0x7f);
        rest >>= 7;
        packet.push(if rest == 0 { low } else { low | 0x80 });
        if rest == 0 {
            break;
        }
    }
    packet.extend(body);
    wire.write_all(&packet)?;
    wire.flush()
}

fn receive(wire: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut byte = [0; 1];
    wire.read_exact(&mut byte)?;
    let [kind] = byte;
    let mut len = 0_u64;
    for shift in [0, 7, 14, 21] {
        wire.read_exact(&mut byte)?;
        let [part] = byte;
        len |= u64::from(part & 0x7f) << shift;
        if part & 0x80 == 0 {
            let mut body = Vec::new();
            wire.take(len).read_to_end(&mut body)?;
            return if body.len() as u64 == len {
                Ok((kind, body))
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
    Err(bad_packet("length"))
}

fn bad_packet(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the {what} is no MQTT 3.1.1"))
}

fn refusal(code: u8) -> &'static str {
    match code {
        1 => "it doesn't speak MQTT 3.1.1",
        2 => "it doesn't accept the client id",
        3 => "it is unavailable",
        4 => "wrong user name or password",
        5 => "not authorised",
        _ => "unknown return code",
    }
}

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x80;
const SUBACK: u8 = 0x90;
const DISCONNECT: u8 = 0xe0;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A broker that says what it was told to say, and keeps what it hears.
    struct Scripted {
        says: Cursor<Vec<u8>>,
        heard: Vec<u8>,
    }

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.says.read(buffer)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                n => Ok(n),
            }
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn broker(says: &[u8]) -> Scripted {
        Scripted { says: Cursor::new(says.to_vec()), heard: Vec::new() }
    }

    #[test]
    fn a_connect_packet_is_as_in_the_standard() {
        let probe = Probe::connect(broker(&[0x20, 2, 0, 0]), "id", Some(("u", b"pw"))).unwrap();
        let expected = b"\x10\x15\0\x04MQTT\x04\xc2\0\x3c\0\x02id\0\x01u\0\x02pw";
        assert_eq!(probe.wire.heard, expected);
    }

    #[test]
    fn refusals_and_rubbish_are_told_apart() {
        let error = Probe::connect(broker(&[0x20, 2, 0, 4]), "id", None).err().unwrap();
        assert!(error.to_string().ends_with("wrong user name or password"), "{error}");
        for rubbish in [&b"HTTP/1.1 400 Bad Request"[..], &[0x20, 0xff, 0xff, 0xff, 0xff], &[]] {
            let result = Probe::connect(broker(rubbish), "id", None);
            assert!(matches!(result, Err(ProbeError::Io(_))));
        }
    }

    #[test]
    fn an_echo_and_an_acknowledgement_are_awaited_in_any_order() {
        let connack = [0x20, 2, 0, 0];
        let echo = b"\x30\x05\0\x01thi";
        let puback = [0x40, 2, 0, 1];
        for says in
            [[&connack, &echo[..], &puback].concat(), [&connack, &puback[..], echo].concat()]
        {
            let mut probe = Probe::connect(broker(&says), "id", None).unwrap();
            probe.wire.heard.clear();
            assert!(probe.publish("t", b"hi", true).unwrap());
            assert_eq!(probe.wire.heard, b"\x32\x07\0\x01t\0\x01hi");
            assert!(!probe.publish("t", b"hi", false).unwrap(), "silence is no answer");
        }
    }

    #[test]
    fn a_refused_subscription_is_seen() {
        for (code, granted) in [(0x80, false), (1, true)] {
            let says = [0x20, 2, 0, 0, 0x90, 3, 0, 1, code];
            let mut probe = Probe::connect(broker(&says), "id", None).unwrap();
            assert_eq!(probe.subscribe("t/#").unwrap(), granted);
        }
    }

    #[test]
    fn long_packets_have_long_lengths() {
        let mut packet = Vec::new();
        send(&mut packet, PUBLISH, &vec![7; 200_000]).unwrap();
        assert_eq!(packet[1..4], [0xc0, 0x9a, 0x0c]);
        let (kind, body) = receive(&mut Cursor::new(packet)).unwrap();
        assert_eq!((kind, body.len()), (PUBLISH, 200_000));
    }
}
