//! The health page of a node: `/livez`, `/readyz` and `/metrics`.
//!
//! It has no password, so it listens on loopback unless the settings allow more. It shows numbers
//! and reasons, never payloads. Whoever supervises the node asks it: systemd, Kubernetes, Prometheus.
//!
//! - `/livez`: 200 as long as the process answers.
//! - `/readyz`: 200, or 503 with the reasons as JSON, from [`Readiness`].
//! - `/metrics`: the text format of Prometheus.

mod readiness;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

pub use readiness::Readiness;

use crate::telemetry::Metrics;

/// The health page can't be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// The address is reachable from outside, and that wasn't allowed.
    #[error(
        "{listen} is no loopback address, and the health page has no password: use 127.0.0.1, or \
         set telemetry.metrics_public = true"
    )]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The address can't be listened on.
    #[error("can't listen on {listen}: {message}; choose another telemetry.metrics_listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        message: String,
    },
    /// It stopped by itself.
    #[error("the health page stopped: {message}")]
    Stopped {
        /// What the system said.
        message: String,
    },
}

impl WebError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotLoopback { .. } => "web_not_loopback",
            Self::Listen { .. } => "web_listen",
            Self::Stopped { .. } => "web_stopped",
        }
    }
}

/// A health page that listens but doesn't answer yet.
#[derive(Debug)]
pub struct HealthPage {
    listener: TcpListener,
    address: SocketAddr,
}

impl HealthPage {
    /// Listens. With `public` also on an address that isn't loopback.
    ///
    /// # Errors
    /// [`WebError::NotLoopback`], [`WebError::Listen`].
    pub async fn listen(listen: SocketAddr, public: bool) -> Result<Self, WebError> {
        if !public && !listen.ip().is_loopback() {
            return Err(WebError::NotLoopback { listen });
        }
        let failed =
            |error: std::io::Error| WebError::Listen { listen, message: error.to_string() };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`.
    ///
    /// # Errors
    /// [`WebError::Stopped`].
    pub async fn serve(
        self,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), WebError> {
        let router = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(show_metrics))
            .with_state(Shown { metrics, readiness });
        axum::serve(self.listener, router)
            .with_graceful_shutdown(shutdown)
            .await
            .map_err(|error| WebError::Stopped { message: error.to_string() })
    }
}

#[derive(Debug, Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let reasons = shown.readiness.reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], shown.metrics.to_text())
}

/// Media type of the text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    /// Sends a request over loopback and gives the whole answer.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_tells_life_readiness_and_numbers_until_shutdown() {
        let page = HealthPage::listen("127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let address = page.address();
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::starting();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let serving = tokio::spawn(page.serve(metrics.clone(), readiness.clone(), shutdown));

        assert!(ask(address, "GET /livez").await.starts_with("HTTP/1.1 200"));
        let answer = ask(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#"{"ready":false,"reasons":{"start":"#), "{answer}");

        readiness.clear("start");
        metrics.set_round(3);
        let answer = ask(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("{\"ready\":true,\"reasons\":{}}\n"), "{answer}");
        let answer = ask(address, "GET /metrics").await;
        assert!(answer.contains("openmetrics-text") && answer.contains("gaisnet_round_number 3\n"));

        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /readyz").await.starts_with("HTTP/1.1 405"));
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn other_addresses_than_loopback_must_be_allowed() {
        let everywhere = "0.0.0.0:0".parse().unwrap();
        let error = HealthPage::listen(everywhere, false).await.unwrap_err();
        assert_eq!(error.kind(), "web_not_loopback");
        assert!(HealthPage::listen(everywhere, true).await.is_ok());
        assert!(
            HealthPage::listen("[::1]:0".parse().unwrap(), false)
                .await
                .is_ok_and(|page| { page.address().ip().is_loopback() })
        );
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_it() {
        let first = HealthPage::listen("127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let error = HealthPage::listen(first.address(), false).await.unwrap_err();
        assert!(error.to_string().contains(&first.address().to_string()), "{error}");
    }
}
