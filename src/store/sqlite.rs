//! The durable memory of a real node: a directory with one SQLite file, blobs beside it and a lock.
//!
//! ```text
//! store/node.sqlite   state, ledger, outbox, checkpoints, kpis: open it with `sqlite3 -readonly`
//! store/blobs/ab/…    contributions and results, named by their SHA-256
//! store/lock          held by the running node
//! ```
//! WAL with synchronous=FULL: a commit that returned is on disk, and auditors read while the node
//! runs. The file is born complete (made under another name and renamed), so an empty or headless
//! one is damage, never a fresh start: a node that forgot its epoch would be believed. `schema`
//! knows the tables and their versions, `tables` reads and writes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::fail;
use crate::ids::Digest;
use crate::store::blobs::{BlobCaps, BlobDir};
use crate::store::{Batch, BlobReader, OutboxItem, Store, StoreError, directory, sha256};
use crate::time::Wall;

mod fault;
mod schema;
mod tables;
#[cfg(test)]
mod tests;

use fault::Fault;

/// A node's store on disk.
#[derive(Debug)]
pub struct SqliteStore {
    // Fields are dropped in this order: the database is closed before the lock is given back.
    connection: Connection,
    blobs: BlobDir,
    file: PathBuf,
    /// `None` when opened for reading alone.
    lock: Option<directory::Lock>,
    /// What is said to be on disk, where a test takes `commit` away.
    #[cfg(feature = "failpoints")]
    unwritten: Vec<Batch>,
}

impl SqliteStore {
    /// Name of the database in a store's folder.
    pub const FILE_NAME: &str = DATABASE;

    /// Opens the store in `dir`, or makes one (mode 0700, its files 0600). Checks the whole file,
    /// and brings the tables of an older gaisnet up to date.
    ///
    /// # Errors
    /// `Locked` while another process has it, `TooNew` for a file of a newer gaisnet, `Corrupt` if
    /// a check finds damage or a ledger entry is missing, `Full` and `Io` as the disk says.
    pub fn open(dir: &Path, caps: BlobCaps) -> Result<Self, StoreError> {
        directory::create(dir)?;
        let lock = directory::Lock::take(dir)?;
        let file = dir.join(DATABASE);
        if fs::symlink_metadata(&file).is_ok() {
            directory::make_private(&file)?;
        } else {
            create(dir, &file)?;
        }
        let at = |fault: Fault| fault.at(&file);
        let mut connection = connect(&file, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(at)?;
        schema::check(&connection).map_err(at)?;
        use_wal(&connection).map_err(at)?;
        schema::migrate(&mut connection).map_err(at)?;
        tables::check_ledger(&connection).map_err(at)?;
        let blobs = BlobDir::open(&dir.join(BLOBS), caps)?;
        Ok(Self {
            connection,
            blobs,
            file,
            lock: Some(lock),
            #[cfg(feature = "failpoints")]
            unwritten: Vec::new(),
        })
    }

    /// Opens the store in `dir` for reading alone, also while its node runs. Writes are refused.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], but never `Locked`; `Io` if there is none, or if its tables are
    /// of an older version, which only its node may change.
    pub fn open_read_only(dir: &Path) -> Result<Self, StoreError> {
        let file = dir.join(DATABASE);
        let at = |fault: Fault| fault.at(&file);
        let connection = connect(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(at)?;
        let version = schema::check(&connection).map_err(at)?;
        if version < schema::VERSION {
            let message = format!("schema version {version} is old: start its node once");
            return Err(StoreError::Io { path: file.display().to_string(), message });
        }
        tables::check_ledger(&connection).map_err(at)?;
        let blobs = BlobDir::open_read_only(&dir.join(BLOBS));
        Ok(Self {
            connection,
            blobs,
            file,
            lock: None,
            #[cfg(feature = "failpoints")]
            unwritten: Vec::new(),
        })
    }

    fn at(&self, fault: Fault) -> StoreError {
        fault.at(&self.file)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let message = "it was opened for reading alone".to_owned();
        Err(StoreError::Io { path: self.file.display().to_string(), message })
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        self.check_writable()?;
        #[cfg(feature = "failpoints")]
        if fail::is_without("commit") {
            // This commit is on disk with the next one, as where nothing is synced and the power goes.
            let due = std::mem::replace(&mut self.unwritten, batches.to_vec());
            let done = if due.is_empty() { Ok(()) } else { commit(&mut self.connection, &due) };
            return done.map_err(|fault| fault.at(&self.file));
        }
        commit(&mut self.connection, batches).map_err(|fault| fault.at(&self.file))
    }

    fn state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        tables::state(&self.connection, prefix).map_err(|fault| self.at(fault))
    }

    fn outbox(&self) -> Result<Vec<OutboxItem>, StoreError> {
        tables::outbox(&self.connection).map_err(|fault| self.at(fault))
    }

    fn num_entries(&self) -> Result<u64, StoreError> {
        let count = tables::num_entries(&self.connection).map_err(|fault| self.at(fault))?;
        Ok(count.unsigned_abs())
    }

    fn entries(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        tables::entries(&self.connection, from, to).map_err(|fault| self.at(fault))
    }

    fn checkpoints(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        tables::checkpoints(&self.connection).map_err(|fault| self.at(fault))
    }

    fn kpis(&self, name: &str) -> Result<Vec<(Wall, f64)>, StoreError> {
        tables::kpis(&self.connection, name).map_err(|fault| self.at(fault))
    }

    fn put_blob(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = sha256(bytes);
        self.put_checked_blob(&digest, bytes)?;
        Ok(digest)
    }

    fn put_checked_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.check_writable()?;
        self.blobs.put(digest, bytes)
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.blobs.get(digest)
    }

    fn fill_percent(&self) -> u64 {
        self.blobs.fill_percent()
    }

    fn blob_reader(&self) -> Box<dyn BlobReader> {
        Box::new(self.blobs.clone())
    }

    fn retain_blobs(&mut self, keep: &BTreeSet<Digest>) -> Result<(), StoreError> {
        self.check_writable()?;
        self.blobs.retain(keep)
    }
}

/// Makes the file under another name, so that it is there complete or not at all.
fn create(dir: &Path, file: &Path) -> Result<(), StoreError> {
    if sidecar(file, "-wal").exists() {
        // SQLite would play the old log into the new file.
        let path = file.display().to_string();
        let what = "it is missing, and its log node.sqlite-wal is still there".to_owned();
        return Err(StoreError::Corrupt { path, what });
    }
    let unfinished = dir.join("node.new");
    let _ = fs::remove_file(sidecar(&unfinished, "-journal")); // of a start that died here
    directory::create_file(&unfinished)?;
    let made = connect(&unfinished, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(|mut new| {
        schema::migrate(&mut new)?;
        new.close().map_err(|(_, error)| Fault::from(error))
    });
    made.map_err(|fault| fault.at(&unfinished))?;
    fs::rename(&unfinished, file).map_err(|error| directory::io_error(file, &error))?;
    directory::sync(dir)
}

fn sidecar(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn connect(file: &Path, flags: OpenFlags) -> Result<Connection, Fault> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Readers don't stop the writer, nor it them. After a long read the log shrinks again.
fn use_wal(connection: &Connection) -> Result<(), Fault> {
    let set = |_: &rusqlite::Row<'_>| Ok(());
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES, set)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode == "wal" { Ok(()) } else { Err(Fault::NoWal) }
}

fn commit(connection: &mut Connection, batches: &[Batch]) -> Result<(), Fault> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut num_entries = tables::num_entries(&transaction)?;
    for batch in batches {
        num_entries = tables::apply(&transaction, batch, num_entries)?;
    }
    fail::here("transaction-made", "");
    transaction.commit()?;
    Ok(())
}

const DATABASE: &str = "node.sqlite";
const BLOBS: &str = "blobs";

/// How long to wait for a person who holds the file with a write of their own.
const PATIENCE: Duration = Duration::from_secs(5);

/// Size to which the write-ahead log is cut once all of it is in the database.
const WAL_BYTES: i64 = 64 << 20;
