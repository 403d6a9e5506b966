//! The log on standard error: text for people or one JSON object a line.
//!
//! `RUST_LOG` wins over the settings, so that one start can be looked into without editing a file.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The log can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The filter can't be read.
    #[error(
        "{source_name} {filter:?} is no log filter ({message}): use info or info,gaisnet::bus=debug"
    )]
    Filter {
        /// `RUST_LOG` or `telemetry.level`.
        source_name: &'static str,
        /// What stands there.
        filter: String,
        /// What is wrong with it.
        message: String,
    },
    /// This process has a log already.
    #[error("the log was started twice")]
    Twice,
}

impl LoggingError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Filter { .. } => "log_filter",
            Self::Twice => "log_twice",
        }
    }
}

/// Starts the log of this process. `rust_log` is the variable's value, `level` the setting's.
///
/// # Errors
/// [`LoggingError`].
pub fn init(json: bool, level: &str, rust_log: Option<&str>) -> Result<(), LoggingError> {
    let filter = filter(level, rust_log)?;
    let colour = std::io::stderr().is_terminal();
    tracing::subscriber::set_global_default(subscriber(json, filter, colour, std::io::stderr))
        .map_err(|_| LoggingError::Twice)
}

fn filter(level: &str, rust_log: Option<&str>) -> Result<EnvFilter, LoggingError> {
    let (source_name, filter) = match rust_log.filter(|text| !text.is_empty()) {
        Some(text) => ("RUST_LOG", text),
        None => ("telemetry.level", level),
    };
    EnvFilter::builder().parse(filter).map_err(|error| LoggingError::Filter {
        source_name,
        filter: filter.to_owned(),
        message: error.to_string(),
    })
}

fn subscriber<W>(
    json: bool,
    filter: EnvFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if json {
        Box::new(builder.json().flatten_event(true).finish())
    } else {
        Box::new(builder.with_ansi(colour).finish())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, level: &str, rust_log: Option<&str>) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let filter = filter(level, rust_log).unwrap();
        let subscriber = subscriber(json, filter, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(round = 7, node = "press-7", "round closed");
            tracing::debug!("details");
        });
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_their_fields_at_the_top() {
        let text = logged(true, "info", None);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "round closed");
        assert_eq!(line["round"], 7);
        assert_eq!(line["node"], "press-7");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_lines_are_for_people_and_without_colour_codes_in_files() {
        let text = logged(false, "info", None);
        assert!(text.contains("INFO") && text.contains("round closed round=7"), "{text}");
        assert!(!text.contains('\u{1b}') && text.lines().count() == 1);
    }

    #[test]
    fn rust_log_wins_unless_it_is_empty() {
        assert_eq!(logged(false, "info", Some("debug")).lines().count(), 2);
        assert_eq!(logged(false, "debug", Some("warn")).lines().count(), 0);
        assert_eq!(logged(false, "debug", Some("")).lines().count(), 2);
    }

    #[test]
    fn a_bad_filter_names_where_it_stands() {
        let error = filter("info", Some("gaisnet=loud")).unwrap_err();
        assert!(error.to_string().starts_with("RUST_LOG \"gaisnet=loud\""), "{error}");
        assert!(filter("info=1=2", None).unwrap_err().to_string().starts_with("telemetry.level"));
    }
}
