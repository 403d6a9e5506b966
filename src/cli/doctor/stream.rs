//! A connection to a broker as bytes: plain TCP, or TLS over it.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::settings::{LinkSettings, TlsSettings};

/// Bytes both ways, with time limits on reading.
pub(super) trait Wire: io::Read + io::Write + Send {}
impl<T: io::Read + io::Write + Send> Wire for T {}

/// Connects, with TCP's small-packet delay off on our side.
pub(super) fn connect(link: &LinkSettings, limit: Duration) -> io::Result<Box<dyn Wire>> {
    let mut last = io::Error::other("the host has no address");
    for address in (link.host.as_str(), link.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                tcp.set_read_timeout(Some(limit))?;
                tcp.set_write_timeout(Some(limit))?;
                return if link.tls.ca.is_some() {
                    let tls = handshake(tcp, &link.host, &link.tls)?;
                    Ok(Box::new(tls))
                } else {
                    Ok(Box::new(tcp))
                };
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn handshake(
    mut tcp: TcpStream,
    host: &str,
    tls: &TlsSettings,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let config = Arc::new(client_config(tls)?);
    let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(connection, tcp))
}

fn client_config(tls: &TlsSettings) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &tls.ca {
        for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
            let certificate = certificate.map_err(io::Error::other)?;
            roots.add(certificate).map_err(io::Error::other)?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(cert).map_err(io::Error::other)?.collect();
            let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
            let chain = chain.map_err(io::Error::other)?;
            builder.with_client_auth_cert(chain, key).map_err(io::Error::other)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}
