use std::borrow::Cow;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::MemoryStore;
use crate::store::Side;
use crate::store::conformance::{self, everything, item};

fn open(dir: &TempDir) -> SqliteStore {
    try_open(dir).unwrap()
}

fn try_open(dir: &TempDir) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(&dir.path().join("store"), BlobCaps::default())
}

fn database(dir: &TempDir) -> PathBuf {
    dir.path().join("store").join(DATABASE)
}

/// One step of a made-up node: counts itself in the state, the ledger and the outbox alike.
fn step(number: u64) -> Batch {
    Batch {
        at: Wall(number),
        state: vec![("count".into(), Some(number.to_le_bytes().to_vec()))],
        entries: vec![format!("entry {number}").into_bytes()],
        outbox_put: vec![item(&number.to_string(), Side::Up, b"sealed")],
        checkpoint: Some(format!("head {number}").into_bytes()),
        kpis: vec![("loss".to_owned(), 0.5)],
        ..Batch::default()
    }
}

/// Fills a store with `steps` steps and closes it.
fn filled(steps: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir);
    for number in 1..=steps {
        store.commit(&[step(number)]).unwrap();
    }
    dir
}

/// Changes a closed store as a person with `sqlite3` could.
fn meddle(dir: &TempDir, sql: &str) {
    Connection::open(database(dir)).unwrap().execute_batch(sql).unwrap();
}

fn corrupt(dir: &TempDir) -> String {
    match try_open(dir) {
        Err(error @ StoreError::Corrupt { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sqlite_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance::check(&mut || Box::new(open(&dir)));
}

fn arbitrary_batch() -> impl Strategy<Value = Batch> {
    let key = prop_oneof![Just(""), Just("a"), Just("a/b"), Just("ä"), Just("a\0b"), Just("b")];
    let key = key.prop_map(str::to_owned).boxed();
    let bytes = proptest::collection::vec(any::<u8>(), 0..40).boxed();
    let side = prop_oneof![Just(Side::Up), Just(Side::Down)];
    let put =
        (key.clone(), side, bytes.clone()).prop_map(|(key, side, wire)| item(&key, side, &wire));
    (
        proptest::collection::vec(
            (key.clone().prop_map(Cow::Owned), proptest::option::of(bytes.clone())),
            0..4,
        ),
        proptest::collection::vec(bytes.clone(), 0..3),
        proptest::collection::vec(put, 0..3),
        proptest::collection::vec(key, 0..3),
        proptest::option::of(bytes),
    )
        .prop_map(|(state, entries, outbox_put, outbox_delete, checkpoint)| Batch {
            state,
            entries,
            outbox_put,
            outbox_delete,
            checkpoint,
            ..Batch::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sqlite_and_memory_agree_on_any_batches(
        commits in proptest::collection::vec(
            (proptest::collection::vec(arbitrary_batch(), 0..3), any::<bool>()), 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = MemoryStore::new();
        let mut sqlite = open(&dir);
        for (batches, reopen) in commits {
            memory.commit(&batches).unwrap();
            sqlite.commit(&batches).unwrap();
            if reopen {
                drop(sqlite);
                sqlite = open(&dir);
            }
            prop_assert_eq!(everything(&sqlite), everything(&memory));
            for prefix in ["a", "a/", "ä", "\0"] {
                prop_assert_eq!(sqlite.state(prefix).unwrap(), memory.state(prefix).unwrap());
            }
        }
    }
}

#[test]
fn directory_and_files_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir);
    store.commit(&[step(1)]).unwrap();
    let root = dir.path().join("store");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    for name in ["node.sqlite", "node.sqlite-wal", "node.sqlite-shm", "lock"] {
        assert_eq!(mode(&root.join(name)), 0o600, "{name}");
    }
    drop(store);
    fs::set_permissions(database(&dir), fs::Permissions::from_mode(0o644)).unwrap();
    open(&dir);
    assert_eq!(mode(&database(&dir)), 0o600, "a copy from a backup");
}

#[test]
fn second_opener_is_told_that_it_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert!(matches!(try_open(&dir), Err(StoreError::Locked { .. })));
    drop(store);
    open(&dir);
}

#[test]
fn auditors_read_while_the_node_runs_and_can_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    assert!(SqliteStore::open_read_only(&root).is_err(), "there is none yet");
    let mut node = open(&dir);
    node.commit(&[step(1)]).unwrap();
    let blob = node.put_blob(b"update").unwrap();

    let mut auditor = SqliteStore::open_read_only(&root).unwrap();
    assert_eq!(everything(&auditor), everything(&node));
    assert_eq!(auditor.blob(&blob).unwrap().unwrap(), b"update");
    node.commit(&[step(2)]).unwrap();
    assert_eq!(auditor.num_entries().unwrap(), 2, "it follows");

    assert_eq!(auditor.commit(&[step(3)]).unwrap_err().kind(), "store_io");
    assert_eq!(auditor.put_blob(b"x").unwrap_err().kind(), "store_io");
    assert_eq!(auditor.retain_blobs(&BTreeSet::new()).unwrap_err().kind(), "store_io");
    drop(node);
    assert_eq!(SqliteStore::open_read_only(&root).unwrap().num_entries().unwrap(), 2);
    open(&dir);
}

#[test]
fn file_of_version_1_opens_and_can_be_written() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/store/v1.sqlite");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::copy(golden, database(&dir)).unwrap();
    let mut store = open(&dir);
    let expected = MemoryStore::new();
    for number in 1..=3 {
        expected.clone().commit(&[step(number)]).unwrap();
    }
    assert_eq!(everything(&store), everything(&expected));
    assert_eq!(store.kpis("loss").unwrap(), [(Wall(1), 0.5), (Wall(2), 0.5), (Wall(3), 0.5)]);
    store.commit(&[step(4)]).unwrap();
    assert_eq!(store.num_entries().unwrap(), 4);
}

#[test]
fn file_of_a_newer_gaisnet_is_left_alone() {
    let dir = filled(1);
    meddle(&dir, "PRAGMA user_version = 999");
    let error = try_open(&dir).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 999, known: schema::VERSION, .. }));
}

#[test]
fn files_that_arent_a_store_are_refused_and_never_replaced() {
    for bytes in [b"".as_slice(), b"SQLite format 3\0", &[0x5a; 9000]] {
        let dir = filled(1);
        fs::write(database(&dir), bytes).unwrap();
        corrupt(&dir);
        assert_eq!(fs::read(database(&dir)).unwrap(), bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    meddle(&dir, "CREATE TABLE recipes (name TEXT)");
    assert!(corrupt(&dir).contains("application id"));
}

#[test]
fn log_without_its_database_is_not_played_into_a_new_one() {
    let dir = filled(1);
    fs::remove_file(database(&dir)).unwrap();
    fs::write(sidecar(&database(&dir), "-wal"), b"old log").unwrap();
    assert!(corrupt(&dir).contains("node.sqlite-wal"));
}

#[test]
fn start_that_died_while_making_the_file_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("node.new"), b"half").unwrap();
    fs::write(root.join("node.new-journal"), b"half").unwrap();
    open(&dir).commit(&[step(1)]).unwrap();
    assert!(!root.join("node.new").exists() && !root.join("node.new-journal").exists());
}

#[test]
fn ledger_in_the_database_refuses_change_by_hand() {
    let dir = filled(2);
    let connection = Connection::open(database(&dir)).unwrap();
    for sql in ["DELETE FROM ledger", "UPDATE ledger SET entry = x'00' WHERE idx = 1"] {
        let error = connection.execute_batch(sql).unwrap_err();
        assert!(error.to_string().contains("only grows"), "{error}");
    }
}

#[test]
fn missing_ledger_entry_is_named() {
    for (idx, renumbered) in [(0, None), (2, None), (4, None), (3, Some(9)), (0, Some(-1))] {
        let dir = filled(5);
        meddle(&dir, "DROP TRIGGER ledger_entries_stay; DROP TRIGGER ledger_entries_are_final");
        meddle(
            &dir,
            &renumbered.map_or_else(
                || format!("DELETE FROM ledger WHERE idx = {idx}"),
                |to| format!("UPDATE ledger SET idx = {to} WHERE idx = {idx}"),
            ),
        );
        let text = corrupt(&dir);
        assert!(text.contains(&format!("ledger entry {idx} is missing")), "{text}");
    }
}

#[test]
fn changed_rows_are_named_when_read() {
    let dir = filled(3);
    meddle(
        &dir,
        "DROP TRIGGER ledger_entries_are_final;
        UPDATE ledger SET entry = x'00' WHERE idx = 1;
        UPDATE state SET value = x'00';
        UPDATE outbox SET side = 'down' WHERE key = '2';
        UPDATE checkpoints SET note = x'00' WHERE tree_size = 3",
    );
    let store = open(&dir);
    let damage = |error: StoreError| {
        assert_eq!(error.kind(), "store_corrupt");
        error.to_string()
    };
    assert_eq!(store.entries(0, 1).unwrap().len(), 1);
    assert!(damage(store.entries(0, 3).unwrap_err()).contains("ledger entry 1 "));
    assert!(damage(store.state("").unwrap_err()).contains("state \"count\""));
    assert!(damage(store.outbox().unwrap_err()).contains("outbox item \"2\""));
    assert!(damage(store.checkpoints().unwrap_err()).contains("checkpoint over 3 entries"));
}

#[test]
fn flipped_bytes_are_found_or_harmless_and_never_a_panic() {
    let dir = filled(3);
    let sound = fs::read(database(&dir)).unwrap();
    let expected = everything(&open(&dir));
    let (mut found, mut harmless) = (0, 0);
    // Pages are mostly zeros that nobody reads: the other bytes are the interesting ones.
    let used = (0..sound.len()).filter(|&offset| sound[offset] != 0).step_by(11);
    for (offset, mask) in used.zip([1, 0xff, 0x80, 0x20].iter().cycle()) {
        let mut bytes = sound.clone();
        bytes[offset] ^= mask;
        fs::write(database(&dir), &bytes).unwrap();
        let _ = fs::remove_file(sidecar(&database(&dir), "-wal"));
        let read = || -> Result<_, StoreError> {
            let store = try_open(&dir)?;
            Ok((store.state("")?, store.entries(0, 99)?, store.outbox()?, store.checkpoints()?))
        };
        match read() {
            Ok(content) => {
                assert_eq!(content, expected, "offset {offset}");
                harmless += 1;
            }
            Err(error) => {
                assert_ne!(error.kind(), "store_full", "offset {offset}");
                found += 1;
            }
        }
    }
    assert!(found > 20 && harmless > 20, "{found} found, {harmless} harmless");
}

#[test]
fn failed_commit_leaves_nothing_and_room_heals_it() {
    let dir = filled(1);
    let mut store = open(&dir);
    let before = everything(&store);
    let pages: i64 =
        store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |store: &SqliteStore, pages: i64| {
        let set = |_: &rusqlite::Row<'_>| Ok(());
        store.connection.pragma_update_and_check(None, "max_page_count", pages, set).unwrap();
    };
    limit(&store, pages + 2);
    let big = Batch { entries: vec![vec![1; 100_000]], ..step(3) };
    let error = store.commit(&[step(2), big.clone()]).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(everything(&store), before);
    limit(&store, 10_000);
    store.commit(&[step(2), big]).unwrap();
    assert_eq!(store.num_entries().unwrap(), 3);
}

/// A tiny disk; needs the right to mount.
struct TinyDisk(TempDir);

impl TinyDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn full_disk_refuses_writes_and_recovers_by_itself() {
    let Some(disk) = TinyDisk::mount() else {
        println!("1 skipped: no right to mount a tmpfs");
        return;
    };
    let mut store = open(&disk.0);
    store.commit(&[step(1)]).unwrap();
    let filler = disk.0.path().join("filler");
    fs::write(&filler, vec![0; 300_000]).unwrap();
    let mut count = 1;
    let error = loop {
        let big = Batch { entries: vec![vec![1; 20_000]], ..step(count + 1) };
        match store.commit(&[big]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), "store_full");
    assert_eq!(store.put_blob(&vec![7; 100_000]).unwrap_err().kind(), "store_full");
    assert_eq!(store.num_entries().unwrap(), count, "reading goes on");
    fs::remove_file(&filler).unwrap();
    store.commit(&[step(count + 1)]).unwrap();
    let blob = store.put_blob(&vec![7; 100_000]).unwrap();
    drop(store);
    let reopened = open(&disk.0);
    assert_eq!(reopened.num_entries().unwrap(), count + 1);
    assert!(reopened.blob(&blob).unwrap().is_some());
}

/// Starts `test` of this very binary in a process of its own, with a directory for its store.
fn spawn(test: &str, dir: &TempDir) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(CRASH_DIR, dir.path().join("store"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

const CRASH_DIR: &str = "GAISNET_TEST_CRASH_DIR";

#[test]
#[ignore = "the process that is killed by the test below"]
fn child_that_commits_for_ever() {
    let Ok(dir) = std::env::var(CRASH_DIR) else { return };
    let mut store = SqliteStore::open(Path::new(&dir), BlobCaps::default()).unwrap();
    for number in 1_u64.. {
        let blob = store.put_blob(&number.to_le_bytes()).unwrap();
        let named = ("blob".into(), Some(blob.0.to_vec()));
        let names = Batch { state: vec![named], ..Batch::default() };
        store.commit(&[step(number), names]).unwrap();
        println!("\ncommitted {number}");
    }
}

#[test]
fn killed_process_leaves_what_it_committed_and_no_halves() {
    let dir = tempfile::tempdir().unwrap();
    let mut so_far = 0;
    for more in [1, 7, 20] {
        // The child starts over at 1: state and outbox are replaced, the ledger grows.
        let mut child = spawn("store::sqlite::tests::child_that_commits_for_ever", &dir);
        let mut reported = 0;
        let numbers = BufReader::new(child.stdout.take().unwrap()).lines().filter_map(|line| {
            line.unwrap().strip_prefix("committed ").map(|number| number.parse::<u64>().unwrap())
        });
        for number in numbers {
            reported = number;
            if number == more {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(reported >= more);

        let store = open(&dir);
        let count = u64::from_le_bytes(store.state("count").unwrap()[0].1[..].try_into().unwrap());
        assert!(count == reported || count == reported + 1, "{count} of {reported}");
        so_far += count;
        assert_eq!(store.num_entries().unwrap(), so_far);
        let last = store.entries(so_far - 1, so_far).unwrap();
        assert_eq!(last, [format!("entry {count}").into_bytes()]);
        assert_eq!(store.outbox().unwrap().last().unwrap().key, count.to_string());
        let blob = Digest(store.state("blob").unwrap()[0].1[..].try_into().unwrap());
        assert_eq!(store.blob(&blob).unwrap().unwrap(), count.to_le_bytes());
    }
}

#[test]
#[ignore = "the process that is killed by the test below"]
fn child_inside_a_transaction() {
    let Ok(dir) = std::env::var(CRASH_DIR) else { return };
    let mut store = SqliteStore::open(Path::new(&dir), BlobCaps::default()).unwrap();
    store.commit(&[step(1)]).unwrap();
    store.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    // More than SQLite's cache holds: pages of it are in the log on disk before any commit.
    let big = Batch { entries: vec![vec![1; 1_000_000]; 8], ..step(2) };
    tables::apply(&store.connection, &big, 1).unwrap();
    println!("\ninside");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn killed_transaction_is_gone_though_its_pages_were_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn("store::sqlite::tests::child_inside_a_transaction", &dir);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "inside"));
    assert!(matches!(try_open(&dir), Err(StoreError::Locked { .. })), "another process has it");
    child.kill().unwrap();
    child.wait().unwrap();
    let log = fs::metadata(sidecar(&database(&dir), "-wal")).unwrap().len();
    assert!(log > 1_000_000, "the log has {log} bytes");
    let expected = MemoryStore::new();
    expected.clone().commit(&[step(1)]).unwrap();
    assert_eq!(everything(&open(&dir)), everything(&expected));
}

#[test]
#[ignore = "a measurement, for people: run it with --run-ignored only --no-capture"]
#[expect(clippy::disallowed_methods, reason = "measures")]
fn commits_per_second() {
    let batch = Batch {
        state: vec![("round".into(), Some(vec![1; 64]))],
        entries: vec![vec![2; 200]],
        ..Batch::default()
    };
    for (batches, commits) in [(1, 1000), (100, 200)] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir);
        let group = vec![batch.clone(); batches];
        let start = std::time::Instant::now();
        for _ in 0..commits {
            store.commit(&group).unwrap();
        }
        let per_second = f64::from(commits) / start.elapsed().as_secs_f64();
        println!("{batches} batches a commit: {per_second:.0} commits/s");
    }
}
