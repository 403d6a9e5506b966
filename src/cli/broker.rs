//! `gaisnet broker`: the embedded broker as a process of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::Exit;
use super::trust_files::read_capped;
use crate::bus::embedded::{BrokerSettings, BrokerUser, run as run_broker};

/// Arguments of `gaisnet broker`.
#[derive(Debug, Args)]
pub(super) struct BrokerArgs {
    /// Address and port; port 0 takes a free one. Anything but loopback needs --users
    #[arg(long, default_value = "127.0.0.1:1883", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// File of users, mode 0600, a line each: NAME:PASSWORD
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// What each user may read and write, as `gaisnet acl` prints it; default: everything
    #[arg(long, value_name = "FILE", requires = "users")]
    acl: Option<PathBuf>,
    /// All settings from a TOML file instead, as brokers/embedded.toml; mode 0600 if it has users
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "users", "acl", "max_payload_bytes"])]
    file: Option<PathBuf>,
    /// Largest payload
    #[arg(long, value_name = "BYTES", default_value_t = 262_144)]
    max_payload_bytes: usize,
    /// Tell the address as a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `gaisnet broker` until Ctrl-C or SIGTERM.
pub(super) fn run(args: &BrokerArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = match &args.file {
        Some(path) => from_file(path)?,
        None => from_arguments(args)?,
    };
    let mut told = Ok(());
    run_broker(settings, |address| {
        told = if args.json {
            writeln!(out, "{}", json!({ "address": address, "port": address.port() }))
        } else {
            writeln!(out, "broker listens on {address} (MQTT 3.1.1); Ctrl-C ends it")
        }
        .and_then(|()| out.flush());
    })?;
    told?;
    Ok(Exit::Ok)
}

fn from_arguments(args: &BrokerArgs) -> anyhow::Result<BrokerSettings> {
    let mut users = args.users.as_deref().map(read_users).transpose()?.unwrap_or_default();
    if let Some(acl) = &args.acl {
        let text = read_capped(acl, MAX_FILE_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        grant(&mut users, &text).with_context(|| acl.display().to_string())?;
    }
    Ok(BrokerSettings {
        listen: args.listen,
        users,
        max_payload_bytes: args.max_payload_bytes,
        ..BrokerSettings::default()
    })
}

fn from_file(path: &Path) -> anyhow::Result<BrokerSettings> {
    let text = String::from_utf8(read_capped(path, MAX_FILE_BYTES)?);
    let text = text.with_context(|| path.display().to_string())?;
    let settings: BrokerSettings =
        toml::from_str(&text).with_context(|| path.display().to_string())?;
    if !settings.users.is_empty() {
        check_private(path)?;
    }
    Ok(settings)
}

fn check_private(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata().with_context(|| path.display().to_string())?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("{} holds passwords and is open to others: chmod 600 it", path.display());
    }
    Ok(())
}

/// Users that may do everything, until an access list says otherwise.
fn read_users(path: &Path) -> anyhow::Result<Vec<BrokerUser>> {
    check_private(path)?;
    let text = read_capped(path, MAX_FILE_BYTES)?;
    let text = String::from_utf8(text).with_context(|| path.display().to_string())?;
    let mut users = Vec::new();
    for (line, number) in content_lines(&text) {
        let Some((name, password)) =
            line.split_once(':').filter(|(n, p)| !n.is_empty() && !p.is_empty())
        else {
            bail!("{}, line {number}: expected NAME:PASSWORD", path.display());
        };
        let everything = || vec!["#".to_owned()];
        let (name, password) = (name.to_owned(), password.to_owned());
        users.push(BrokerUser { name, password, read: everything(), write: everything() });
    }
    if users.is_empty() {
        bail!("{} has no user: add lines NAME:PASSWORD", path.display());
    }
    Ok(users)
}

/// Takes the rights out of an access list in mosquitto's form; who isn't in it may do nothing.
///
/// `user NAME` and `topic read|write|readwrite FILTER` are known; another line is an error, since
/// what it would forbid or allow is unknown.
fn grant(users: &mut [BrokerUser], acl: &str) -> anyhow::Result<()> {
    for user in &mut *users {
        user.read.clear();
        user.write.clear();
    }
    let mut current = None;
    for (line, number) in content_lines(acl) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("user"), Some(name), None) => current = Some(name),
            (Some("topic"), Some(verb @ ("read" | "write" | "readwrite")), Some(filter)) => {
                let Some(name) = current else {
                    bail!(
                        "line {number}: rights for everybody aren't known here, name a user first"
                    );
                };
                for user in users.iter_mut().filter(|user| user.name == name) {
                    if verb != "write" {
                        user.read.push(filter.to_owned());
                    }
                    if verb != "read" {
                        user.write.push(filter.to_owned());
                    }
                }
            }
            _ => {
                bail!("line {number}: expected `user NAME` or `topic read|write|readwrite FILTER`")
            }
        }
    }
    Ok(())
}

/// Lines that aren't empty or a comment, with their numbers.
fn content_lines(text: &str) -> impl Iterator<Item = (&str, usize)> {
    let lines = text.lines().map(str::trim).zip(1..);
    lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'))
}

const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// Examples for `--help`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet broker
  gaisnet broker --listen 0.0.0.0:1883 --users users --acl gaisnet.acl
  gaisnet broker --listen 127.0.0.1:0 --json | head -n 1 | jq .port
  gaisnet broker --file brokers/embedded.toml

For demos, tests and a single small site: nothing is kept on disk, no TLS. `gaisnet acl` writes the
list of --acl.";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("users");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn users_are_read_from_a_private_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let users = read_users(&file(folder.path(), "# us\np1:a:b\n\nscada:x\n", 0o600)).unwrap();
        let found: Vec<_> = users.iter().map(|u| (u.name.as_str(), u.password.as_str())).collect();
        assert_eq!(found, [("p1", "a:b"), ("scada", "x")]);
        let open = read_users(&file(folder.path(), "p1:a\n", 0o644)).unwrap_err();
        assert!(open.to_string().contains("chmod 600"), "{open:#}");
        for (bad, part) in [("p1\n", "line 1"), ("p1:\n", "line 1"), ("# none\n", "no user")] {
            let error = read_users(&file(folder.path(), bad, 0o600)).unwrap_err();
            assert!(error.to_string().contains(part), "{error:#}");
        }
    }

    #[test]
    fn the_shipped_file_says_the_defaults_and_mistakes_in_it_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let shipped = include_str!("../../brokers/embedded.toml");
        let read = |text: &str, mode| from_file(&file(folder.path(), text, mode));
        assert_eq!(read(shipped, 0o644).unwrap(), BrokerSettings::default());
        let error = read("listn = \"127.0.0.1:1883\"\n", 0o644).unwrap_err();
        assert!(format!("{error:#}").contains("listn"), "{error:#}");
        let users = "[[users]]\nname = \"p1\"\npassword = \"a\"\nread = [\"t/#\"]\n";
        assert!(read(users, 0o644).unwrap_err().to_string().contains("chmod 600"));
        assert_eq!(read(users, 0o600).unwrap().users[0].read, ["t/#"]);
    }

    #[test]
    fn an_access_list_takes_everything_away_that_it_does_not_give() {
        let folder = tempfile::tempdir().unwrap();
        let mut users = read_users(&file(folder.path(), "p1:a\np2:b\n", 0o600)).unwrap();
        let acl = "# list\nuser p1\ntopic write b/p1/status\ntopic readwrite t/#\nuser scada\ntopic read b/#\n";
        grant(&mut users, acl).unwrap();
        assert_eq!((users[0].read.clone(), users[0].write.len()), (vec!["t/#".to_owned()], 2));
        assert!(users[1].read.is_empty() && users[1].write.is_empty());
        for bad in ["topic read a\n", "user p1\ntopic deny a\n", "pattern read %u/#\n"] {
            assert!(grant(&mut users, bad).unwrap_err().to_string().contains("line "), "{bad}");
        }
    }
}
