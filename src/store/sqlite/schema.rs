//! The tables, step by step from version to version, and the checks before they are used.
//!
//! A released step never changes; a new one is added at the end, with a golden file of the version
//! before it (`tests/golden/store/`). The comments are for whoever types `.schema`.

use rusqlite::{Connection, TransactionBehavior};

use super::fault::Fault;

/// Schema version that this gaisnet writes.
#[expect(clippy::cast_possible_wrap, reason = "a handful of steps")]
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Refuses files of others, of newer gaisnets, and damaged ones; gives the schema version.
pub(super) fn check(connection: &Connection) -> Result<i64, Fault> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = number("application_id")?;
    if application != APPLICATION_ID {
        return Err(Fault::Damage(format!("its application id {application} isn't gaisnet's")));
    }
    let version = number("user_version")?;
    if version > VERSION {
        return Err(Fault::TooNew { found: version, known: VERSION });
    }
    if version < 1 {
        return Err(Fault::Damage(format!("its schema version is {version}")));
    }
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(version) } else { Err(Fault::Damage(found)) }
}

/// Applies the steps that the file hasn't seen, all or none.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Fault> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == VERSION {
        return Ok(());
    }
    let done = usize::try_from(version).unwrap_or(0);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in STEPS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

/// "gais" in ASCII: `file node.sqlite` shows it.
const APPLICATION_ID: i64 = 0x6761_6973;

const STEPS: [&str; 1] = [V1];

const V1: &str = "
CREATE TABLE state (
  -- What the node's machines remember. Change nothing by hand: values are checked when read.
  key      TEXT NOT NULL PRIMARY KEY,
  value    BLOB NOT NULL,            -- MessagePack
  checksum BLOB NOT NULL             -- of the other columns; finds a worn disk
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
  -- The audit log. It only grows.
  idx       INTEGER PRIMARY KEY,     -- 0, 1, 2, ... without a gap
  leaf_hash BLOB NOT NULL,           -- SHA-256 of a zero byte and the entry (RFC 6962)
  entry     BLOB NOT NULL            -- canonical bytes
) STRICT;

CREATE TRIGGER ledger_entries_stay BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;

CREATE TRIGGER ledger_entries_are_final BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;

CREATE TABLE outbox (
  -- Sealed messages that have to reach somebody, in the order of sending.
  seq          INTEGER PRIMARY KEY,
  key          TEXT NOT NULL UNIQUE, -- update id in hex, or the topic of a retained value
  side         TEXT NOT NULL CHECK (side IN ('down', 'up')), -- to the children, to the parent
  topic        TEXT NOT NULL,
  wire         BLOB NOT NULL,        -- sent again and again, byte by byte the same
  retain       INTEGER NOT NULL CHECK (retain IN (0, 1)),
  sealed_at_ms INTEGER NOT NULL,     -- since 1970-01-01 UTC
  checksum     BLOB NOT NULL         -- of the other columns but seq
) STRICT;

CREATE TABLE checkpoints (
  -- Signed heads of the audit log.
  tree_size INTEGER PRIMARY KEY,     -- entries it covers
  note      BLOB NOT NULL,           -- signed note: text
  checksum  BLOB NOT NULL            -- of the other columns
) STRICT;

CREATE TABLE kpis (
  -- The newest samples; old ones make room.
  seq   INTEGER PRIMARY KEY,
  at_ms INTEGER NOT NULL,            -- since 1970-01-01 UTC
  name  TEXT NOT NULL,
  value REAL                         -- NULL: not a number
) STRICT;
";
