//! Checks of one broker: reachable, lets us in, answers quickly, takes packets of our size.

use std::time::{Duration, Instant};

use super::probe::{Probe, ProbeError};
use super::stream::{self, Wire};
use super::{Check, address};
use crate::settings::{LinkSettings, Settings};

/// Asks the broker of a link.
pub(super) fn examine(section: &str, link: &LinkSettings, settings: &Settings) -> Vec<Check> {
    let limit = Duration::from_secs(u64::from(link.connect_timeout_s)).min(LONGEST_WAIT);
    let reached = match stream::connect(link, limit) {
        Ok(wire) => wire,
        Err(error) => return vec![unreachable(section, link, &error)],
    };
    let mut checks = vec![reachable(section, link)];
    let client_id = format!("{}-doctor", link.client_id_of(&settings.node));
    // A password file that can't be read is reported among the local checks.
    let Ok(login) = login(link) else { return checks };
    let login = login.as_ref().map(|(name, password)| (name.as_str(), password.as_bytes()));
    let name = format!("{section} login");
    let mut probe = match Probe::connect(reached, &client_id, login) {
        Ok(probe) => probe,
        Err(error) => {
            checks.push(Check::bad(name, error.to_string(), login_advice(section, &error)));
            return checks;
        }
    };
    checks.push(Check::good(name, format!("accepted as {client_id}")));
    let topic = format!("{}/event/doctor", settings.node.branch());
    match round_trips(&mut probe, &topic, section, link) {
        Ok(more) => checks.extend(more),
        Err(error) => checks.push(Check::bad(
            format!("{section} round trip"),
            format!("the connection broke: {error}"),
            format!("look into the broker's log: may this user write to {topic}?"),
        )),
    }
    // A broker that hangs up first doesn't change what was found.
    drop(probe.close());
    checks
}

fn reachable(section: &str, link: &LinkSettings) -> Check {
    let encrypted = link.tls.ca.is_some();
    let how = if encrypted { "TLS" } else { "plain TCP" };
    let check = Check::good(section, format!("{} reached by {how}", address(link)));
    if link.password_file.is_some() && !encrypted && !is_local(&link.host) {
        return check.advise(format!("the password travels in clear: set {section}.tls.ca"));
    }
    check
}

fn unreachable(section: &str, link: &LinkSettings, error: &std::io::Error) -> Check {
    let advice = if link.tls.ca.is_some() {
        format!(
            "is the broker's TLS port {}? does {section}.tls.ca hold the authority of its \
             certificate, and is {} a name in it?",
            link.port, link.host
        )
    } else {
        format!("is the broker running, and are {section}.host and {section}.port right?")
    };
    Check::bad(section, format!("{} can't be reached: {error}", address(link)), advice)
}

fn login_advice(section: &str, error: &ProbeError) -> String {
    match error {
        ProbeError::Refused(4 | 5) => {
            format!("check {section}.username and the first line of {section}.password_file")
        }
        ProbeError::Refused(2) => format!("set another {section}.client_id"),
        ProbeError::Refused(_) => "look into the broker's log".to_owned(),
        ProbeError::Io(_) => {
            format!(
                "is {section}.port an MQTT port? is TLS ({section}.tls.ca) on or off there, and does \
                 it ask for a certificate ({section}.tls.cert)?"
            )
        }
    }
}

/// Reads the password; its first line, as written.
fn login(link: &LinkSettings) -> std::io::Result<Option<(String, String)>> {
    let Some(name) = &link.username else { return Ok(None) };
    let password = match &link.password_file {
        Some(path) => std::fs::read_to_string(path)?,
        None => String::new(),
    };
    Ok(Some((name.clone(), password.lines().next().unwrap_or_default().to_owned())))
}

/// Small messages for the time, then one of the largest size.
fn round_trips(
    probe: &mut Probe<Box<dyn Wire>>,
    topic: &str,
    section: &str,
    link: &LinkSettings,
) -> std::io::Result<Vec<Check>> {
    let echo = probe.subscribe(topic)? && timed(probe, topic, b"echo?", true)?.is_some();
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        if let Some(elapsed) = timed(probe, topic, b"gaisnet doctor", echo)? {
            times.push(elapsed);
        }
    }
    times.sort();
    let name = format!("{section} round trip");
    let Some(median) = times.get(times.len() / 2).copied() else {
        let advice = "the broker accepts messages but doesn't acknowledge them: look into its log";
        return Ok(vec![Check::bad(name, "no acknowledgement", advice)]);
    };
    let mut checks = vec![latency(name, median, echo)];

    let name = format!("{section} packet size");
    let bytes = link.max_packet_bytes as usize;
    let payload = vec![b' '; bytes.saturating_sub(topic.len() + PUBLISH_HEAD_BYTES)];
    checks.push(match timed(probe, topic, &payload, echo) {
        Ok(Some(_)) if echo => Check::good(name, format!("{bytes} bytes come through")),
        Ok(Some(_)) => Check::good(name, format!("{bytes} bytes are acknowledged"))
            .advise("this user may not read what it writes, so whether they arrive isn't known"),
        Ok(None) | Err(_) => Check::bad(
            name,
            format!("{bytes} bytes don't come through"),
            format!(
                "lower {section}.max_packet_bytes and chunk_bytes, or raise the broker's limit"
            ),
        ),
    });
    Ok(checks)
}

fn latency(name: String, median: Duration, echo: bool) -> Check {
    let what = if echo { "QoS 1 there and back" } else { "QoS 1 acknowledged" };
    let check = Check::good(name, format!("{what} in {:.2} ms", median.as_secs_f64() * 1000.0));
    if echo && NAGLE.contains(&median) {
        return check.advise(
            "the broker holds small packets back: switch its TCP_NODELAY on (mosquitto: \
             set_tcp_nodelay true), that saves some 40 ms a message",
        );
    }
    check
}

fn timed(
    probe: &mut Probe<Box<dyn Wire>>,
    topic: &str,
    payload: &[u8],
    echo: bool,
) -> std::io::Result<Option<Duration>> {
    #[expect(clippy::disallowed_methods, reason = "a round trip is what is measured")]
    let start = Instant::now();
    let came = probe.publish(topic, payload, echo)?;
    Ok(came.then(|| start.elapsed()))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Bound of each answer.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// Enough for a median beyond the first ones: TCP acknowledges the start of a connection quickly,
/// and delays that a node would meet all day don't show there.
const ROUND_TRIPS: usize = 45;

/// Fixed header, topic length and packet id of a PUBLISH at most.
const PUBLISH_HEAD_BYTES: usize = 9;

/// Delays that Nagle's algorithm and delayed acknowledgement make together, on a quick link.
const NAGLE: std::ops::Range<Duration> = Duration::from_millis(35)..Duration::from_millis(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;

    fn settings(port: u16) -> Settings {
        let mut layers = Layers::new();
        layers.set("node.name=n").set("node.site=s").set(&format!("bus.site.port={port}"));
        layers.load().into_settings().unwrap()
    }

    #[test]
    fn a_broker_that_isnt_there_is_named_with_the_keys_to_look_at() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = taken.local_addr().unwrap().port(); // nobody has ever listened there
        let settings = settings(port);
        let checks = examine("bus.site", &settings.bus.site, &settings);
        assert_eq!(checks.len(), 1);
        assert!(!checks[0].ok && checks[0].found.contains(&format!("127.0.0.1:{port}")));
        assert!(checks[0].what_to_do.as_ref().unwrap().contains("bus.site.port"));
    }

    #[test]
    fn something_else_on_the_port_is_no_broker() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = settings(listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"SSH-2.0-other\r\n").unwrap();
        });
        let checks = examine("bus.site", &settings.bus.site, &settings);
        server.join().unwrap();
        assert_eq!(checks.len(), 2);
        assert!(checks[0].ok && !checks[1].ok, "{checks:?}");
        assert!(checks[1].what_to_do.as_ref().unwrap().contains("TLS"), "{checks:?}");
    }

    #[test]
    fn delays_of_small_packets_get_an_advice_but_no_failure() {
        let slow = latency("x".to_owned(), Duration::from_millis(44), true);
        assert!(slow.ok && slow.what_to_do.unwrap().contains("set_tcp_nodelay"));
        assert_eq!(latency("x".to_owned(), Duration::from_micros(300), true).what_to_do, None);
        assert_eq!(latency("x".to_owned(), Duration::from_millis(44), false).what_to_do, None);
    }

    #[test]
    fn only_a_password_over_an_open_network_gets_a_warning() {
        let mut link = settings(1883).bus.site;
        link.password_file = Some("p".into());
        assert_eq!(reachable("bus.site", &link).what_to_do, None);
        link.host = "mqtt.example".to_owned();
        assert!(reachable("bus.site", &link).what_to_do.unwrap().contains("bus.site.tls.ca"));
        link.tls.ca = Some("ca.pem".into());
        assert_eq!(reachable("bus.site", &link).what_to_do, None);
    }
}
