//! Says in words why a link is down, with the way out where there is one.

use std::io;

use rumqttc::{ConnectReturnCode, ConnectionError, Error as PacketError, StateError, TlsError};
use rustls::{AlertDescription, CertificateError};

use super::settings::MqttSettings;

/// The text of [`crate::bus::BusEvent::Disconnected`].
pub(super) fn reason(error: &ConnectionError, settings: &MqttSettings) -> String {
    let MqttSettings { host, port, client_id, max_packet_bytes, .. } = settings;
    let address = format!("{host}:{port}");
    match error {
        ConnectionError::ConnectionRefused(code) => refused(*code, settings),
        ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
            io_reason(error, &address)
        }
        ConnectionError::MqttState(StateError::Io(error)) => io_reason(error, &address),
        ConnectionError::Tls(TlsError::TLS(error)) => tls_reason(error, &address),
        ConnectionError::Tls(error) => format!("TLS with {address} failed: {error}"),
        ConnectionError::NetworkTimeout => format!(
            "broker {address} is unreachable: no answer in {} s (wrong address, or a firewall?)",
            settings.connection_timeout_s
        ),
        ConnectionError::FlushTimeout => {
            format!("broker {address} took nothing for {} s", settings.connection_timeout_s)
        }
        ConnectionError::MqttState(StateError::Deserialization(error)) => match error {
            PacketError::PayloadSizeLimitExceeded(_)
            | PacketError::PayloadTooLong
            | PacketError::OutgoingPacketTooLarge { .. } => format!(
                "a packet is over max_packet_bytes = {max_packet_bytes}: {error}; raise the limit, \
                 or remove the message (a retained one comes back at each reconnect)"
            ),
            PacketError::Io(error) => io_reason(error, &address),
            other => format!("broker {address} sent what isn't MQTT 3.1.1: {other}"),
        },
        ConnectionError::MqttState(StateError::ConnectionAborted) => format!(
            "broker {address} closed the connection (restarted, refused a message, over its packet \
             limit, or another client took the id {client_id})"
        ),
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            format!("broker {address} answers no ping")
        }
        other => other.to_string(),
    }
}

/// Whether the broker sent a packet that is over our limit.
pub(super) fn is_too_large(error: &ConnectionError) -> bool {
    matches!(
        error,
        ConnectionError::MqttState(StateError::Deserialization(
            PacketError::PayloadSizeLimitExceeded(_)
        ))
    )
}

fn refused(code: ConnectReturnCode, settings: &MqttSettings) -> String {
    let MqttSettings { host, port, client_id, username, .. } = settings;
    let user = username.as_deref().unwrap_or("(none)");
    match code {
        ConnectReturnCode::BadUserNamePassword => {
            format!("broker {host}:{port} refused user {user}: wrong user name or password")
        }
        ConnectReturnCode::NotAuthorized => format!(
            "broker {host}:{port} refused user {user}: not authorised (wrong user name or \
             password, or its access list doesn't know client {client_id} or its last will)"
        ),
        ConnectReturnCode::BadClientId => {
            format!("broker {host}:{port} refused the client id {client_id}")
        }
        ConnectReturnCode::RefusedProtocolVersion => {
            format!("broker {host}:{port} doesn't speak MQTT 3.1.1")
        }
        ConnectReturnCode::ServiceUnavailable => {
            format!("broker {host}:{port} is there but takes no more clients now")
        }
        ConnectReturnCode::Success => format!("broker {host}:{port} accepted and then failed"),
    }
}

fn io_reason(error: &io::Error, address: &str) -> String {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls_reason(tls, address);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("broker {address} is unreachable: nothing listens there")
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => format!(
            "broker {address} cut the connection ({error}); does it expect TLS, a client \
             certificate, or smaller packets?"
        ),
        _ => format!("broker {address} is unreachable: {error}"),
    }
}

fn tls_reason(error: &rustls::Error, address: &str) -> String {
    let hint = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate comes from an authority that isn't in our CA file"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name than the configured host",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired (or our clock is wrong)",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate isn't valid yet (or our clock is wrong)",
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => "it wants a client certificate from us",
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => "it doesn't accept our client certificate",
        rustls::Error::InvalidMessage(_) => "the port seems not to speak TLS",
        _ => "see the detail",
    };
    format!("TLS with broker {address} failed: {hint} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(error: &ConnectionError) -> String {
        let mut settings = MqttSettings::new("broker.plant", 8883, "press-3");
        settings.username = Some("press".into());
        reason(error, &settings)
    }

    #[test]
    fn each_known_cause_names_the_broker_and_the_way_out() {
        let tls = |error| {
            let io = io::Error::new(io::ErrorKind::InvalidData, error);
            ConnectionError::Tls(TlsError::Io(io))
        };
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        for (error, expected) in [
            (ConnectionError::Io(refused), "unreachable"),
            (ConnectionError::NetworkTimeout, "unreachable"),
            (
                ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword),
                "wrong user name or password",
            ),
            (ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized), "press"),
            (tls(unknown), "authority"),
            (tls(name), "another name"),
            (tls(alert), "client certificate"),
        ] {
            let text = words(&error);
            assert!(text.contains(expected) && text.contains("broker.plant:8883"), "{text}");
        }
    }
}
