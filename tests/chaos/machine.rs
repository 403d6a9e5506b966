//! What the machine under a node can do: a disk that is full or forgets how its bytes were, a clock that jumps, a
//! system call at which the process ends. Each gives its name in the report; what this machine can't do is said.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gaisnet::ledger::{Entry, Event};
use gaisnet::rng::Stream;
use gaisnet::store::{SqliteStore, Store};

use crate::federation::{Federation, SMALL_DISK, pause, since_now};
use crate::link::Weather;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// System calls by which something becomes durable.
const CALLS: [&str; 2] = ["fsync", "pwrite64"];

/// The process ends at the n-th of its calls (strace).
pub(crate) fn dies_at_call(
    federation: &mut Federation,
    name: &'static str,
    draw: &mut Stream,
) -> Result<String, String> {
    if Command::new("strace").arg("--version").output().is_err() {
        return Err("strace is not installed (apt install strace)".to_owned());
    }
    let (call, n) = (CALLS[draw.below(CALLS.len())], 1 + draw.below(8));
    federation.kill(name);
    let (only, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={n}"));
    // Without --seccomp-bpf, which lets injections do nothing where a filter stands already.
    let before = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", &only, "-e", &inject];
    federation.spawn_under(name, &before, &[]);
    let died = ends(federation, name, Duration::from_secs(20));
    federation.end(name);
    federation.mark();
    federation.spawn(name, &[]);
    Ok(if died { format!("at_call_{call}") } else { "call_not_reached".to_owned() })
}

/// A node goes on with a clock that is minutes off, and then with the right one again.
pub(crate) fn clock_jumps(
    federation: &mut Federation,
    name: &'static str,
    draw: &mut Stream,
) -> Result<String, String> {
    if !Path::new(FAKETIME).exists() {
        return Err("libfaketime is not installed (apt install libfaketime)".to_owned());
    }
    let sign = if draw.below(2) == 0 { '+' } else { '-' };
    let offset = format!("FAKETIME={sign}{}s", 5 + draw.below(600));
    federation.kill(name);
    federation.spawn(
        name,
        &[format!("LD_PRELOAD={FAKETIME}"), offset, "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned()],
    );
    pause(Duration::from_millis(3_000 + draw.below(3_000) as u64));
    federation.kill(name);
    federation.spawn(name, &[]);
    Ok(format!("clock_{}", if sign == '+' { "ahead" } else { "behind" }))
}

/// The disk of the node that has a small one is full for a while.
pub(crate) fn disk_full(federation: &mut Federation, draw: &mut Stream) -> Result<String, String> {
    if !federation.has_small_disk() {
        return Err("no small file system could be mounted (needs root)".to_owned());
    }
    let filler = federation.folder(SMALL_DISK).join("store/filler");
    let mut file = File::create(&filler).map_err(|error| error.to_string())?;
    for size in [1 << 16, 1 << 10, 16] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    pause(Duration::from_millis(2_000 + draw.below(4_000) as u64));
    if draw.below(2) == 0 {
        federation.kill(SMALL_DISK); // it has to start on a full disk, too
        federation.spawn(SMALL_DISK, &[]);
        pause(Duration::from_secs(2));
    }
    fs::remove_file(&filler).map_err(|error| error.to_string())?;
    Ok("disk_full".to_owned())
}

/// A byte of a dead node's files is another one. It starts without a link, so that nothing of what it makes of that
/// can leave; then it gets its files back.
pub(crate) fn bytes_rot(
    federation: &mut Federation,
    name: &'static str,
    draw: &mut Stream,
) -> Result<String, String> {
    federation.kill(name);
    let store = federation.folder(name).join("store");
    let mut files = Vec::new();
    collect(&store, &mut files);
    files.retain(|file| !file.ends_with("lock") && !file.to_string_lossy().ends_with("-shm"));
    let saved = federation.folder(name).join("saved");
    copy(&store, &saved);
    let file = files[draw.below(files.len())].clone();
    let kind = if file.to_string_lossy().contains("/blobs/") { "blob" } else { "store" };
    let mut bytes = fs::read(&file).map_err(|error| error.to_string())?;
    if !bytes.is_empty() {
        let at = draw.below(bytes.len());
        bytes[at] ^= 1 << draw.below(8);
        fs::write(&file, &bytes).map_err(|error| error.to_string())?;
    }
    federation.link(name).set(Weather::DeafBroker);
    federation.spawn(name, &[]);
    let noticed = ends(federation, name, Duration::from_secs(4));
    federation.kill(name);
    federation.link(name).set(Weather::Clear);
    for old in &files {
        let _ = fs::remove_file(old);
    }
    copy(&saved, &store);
    let _ = fs::remove_dir_all(&saved);
    federation.mark();
    federation.spawn(name, &[]);
    Ok(format!("bytes_of_{kind}_{}", if noticed { "refused" } else { "not_read" }))
}

/// Copies the files of a node that is stopped.
pub(crate) fn back_up(federation: &Federation, name: &str) {
    copy(&federation.folder(name).join("store"), &federation.folder(name).join("saved"));
}

/// The copy isn't needed.
pub(crate) fn forget_backup(federation: &Federation, name: &str) {
    fs::remove_dir_all(federation.folder(name).join("saved")).unwrap();
}

/// Puts a dead node's files back; what it has recorded since is kept for the count.
pub(crate) fn put_back(federation: &mut Federation, name: &'static str) {
    let (store, saved) =
        (federation.folder(name).join("store"), federation.folder(name).join("saved"));
    let recorded = entries(&store);
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&saved, &store).unwrap();
    let kept = entries(&store).len();
    federation.note_put_back(name, kept, recorded[kept..].to_vec());
}

/// What the ledger of a dead node says.
pub(crate) fn entries(store: &Path) -> Vec<Event> {
    let store = SqliteStore::open_read_only(store).unwrap();
    let entries = store.entries(0, store.num_entries().unwrap()).unwrap();
    entries.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
}

/// Whether it ends by itself in this time.
fn ends(federation: &mut Federation, name: &'static str, within: Duration) -> bool {
    let begun = since_now();
    while begun.elapsed() < within {
        pause(Duration::from_millis(20));
        federation.listen();
        if federation.has_ended(name) {
            return true;
        }
    }
    false
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for item in fs::read_dir(folder).unwrap().flatten() {
        if item.path().is_dir() {
            collect(&item.path(), files);
        } else {
            files.push(item.path());
        }
    }
    files.sort();
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::create_dir(to);
    let line = [&format!("{}/.", from.display()), &to.display().to_string()].map(String::from);
    assert!(Command::new("cp").arg("-a").args(line).status().unwrap().success());
}
