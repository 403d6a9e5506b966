//! How the program ends.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::thread;

use rustix::process::{Signal, getpid, kill_process};

use crate::data::DataError;
use crate::ledger::LedgerError;
use crate::settings::SettingsError;
use crate::trust::keyring::KeyringError;
use crate::trust::keyring_document::DocumentError;

/// Outcome of a command, as scripts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: failed; the message names the cause.
    Failed,
    /// 2: wrong usage or settings; nothing was done.
    Usage,
    /// 3: a check said no.
    Refused,
    /// 4: an invariant was broken in a simulation.
    #[cfg(feature = "sim")]
    Violated,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Ok => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(2),
            Exit::Refused => Self::from(3),
            #[cfg(feature = "sim")]
            Exit::Violated => Self::from(4),
        }
    }
}

/// Arguments that clap can't judge, such as one that is missing when there are no settings.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misuse(pub(super) String);

/// Turns a command's result into an exit; tells an error with its causes, once.
pub(super) fn conclude(result: anyhow::Result<Exit>, err: &mut dyn Write) -> Exit {
    let error = match result {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    // The reader went away (`gaisnet config print | head`): nobody is left to complain to.
    let broken_pipe = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
    });
    if broken_pipe {
        return Exit::Ok;
    }
    drop(writeln!(err, "gaisnet: {error:#}"));
    if error.is::<SettingsError>() || error.is::<Misuse>() {
        return Exit::Usage;
    }
    #[cfg(feature = "sim")]
    if error.is::<crate::sim::ScenarioError>() {
        return Exit::Usage;
    }
    let other_bytes = error
        .downcast_ref::<DataError>()
        .is_some_and(|e| matches!(e.kind(), "hash_mismatch" | "wrong_size" | "bad_archive"));
    let refused = other_bytes
        || error.is::<KeyringError>()
        || error.is::<DocumentError>()
        || error.is::<LedgerError>();
    #[cfg(feature = "torch")]
    let refused = refused
        || error
            .downcast_ref::<crate::torch::safetensors::WeightsError>()
            .is_some_and(|e| e.kind() != "io");
    if refused { Exit::Refused } else { Exit::Failed }
}

/// Sends this process SIGTERM once standard input is closed, as the demo's children want it: a
/// parent that dies can't send a signal any more, but its pipes close.
pub(super) fn end_with_stdin() -> std::io::Result<()> {
    let watch = || {
        // An error is an end too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = kill_process(getpid(), Signal::TERM);
    };
    thread::Builder::new().name("stdin".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::settings::Layers;

    #[test]
    fn errors_become_the_documented_codes_and_are_told_with_their_causes() {
        let mut err = Vec::new();
        assert_eq!(conclude(Ok(Exit::Refused), &mut err), Exit::Refused);
        let settings = Layers::new().load().into_settings().map(|_| Exit::Ok);
        let settings = settings.map_err(anyhow::Error::from);
        assert_eq!(conclude(settings, &mut err), Exit::Usage);
        let misuse = Err(Misuse("give FILE".to_owned()).into());
        assert_eq!(conclude(misuse, &mut err), Exit::Usage);
        let refused = Err(anyhow::Error::from(DocumentError::WrongType)).context("keyring");
        assert_eq!(conclude(refused, &mut err), Exit::Refused);
        let forged = DataError::WrongSize { file: "a.gguf".into(), expected: 9, actual: 8 };
        let forged = Err(anyhow::Error::from(forged)).context("smollm2-135m");
        assert_eq!(conclude(forged, &mut err), Exit::Refused);
        let io = Err(std::io::Error::other("disk on fire")).context("ledger");
        assert_eq!(conclude(io, &mut err), Exit::Failed);
        let text = String::from_utf8(err).unwrap();
        assert!(text.contains("2 problems in the settings:\n  node.name: missing"), "{text}");
        assert!(text.ends_with("gaisnet: ledger: disk on fire\n"), "{text}");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let mut err = Vec::new();
        let pipe = Err(std::io::Error::from(ErrorKind::BrokenPipe).into());
        assert_eq!(conclude(pipe, &mut err), Exit::Ok);
        assert!(err.is_empty());
    }
}
