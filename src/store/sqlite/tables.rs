//! Reads and writes of the five tables, each row checked as it is read.
//!
//! SQLite's own check sees a broken page, not a flipped bit inside a value; so a ledger entry is
//! compared with its leaf hash, and state, outbox and checkpoints with a checksum. That finds a worn disk,
//! not a forger: the signatures above do.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::fault::Fault;
use crate::store::{Batch, MAX_KPIS, OutboxItem, Side};
use crate::time::Wall;

/// Writes one batch into the open transaction; the ledger has `num_entries` before, the result after.
pub(super) fn apply(
    transaction: &Connection,
    batch: &Batch,
    num_entries: i64,
) -> Result<i64, Fault> {
    let run = |sql| transaction.prepare_cached(sql);
    for (key, value) in &batch.state {
        if let Some(value) = value {
            let sum = checksum(&[key.as_bytes(), value]);
            run("INSERT OR REPLACE INTO state (key, value, checksum) VALUES (?1, ?2, ?3)")?
                .execute(params![key, value, sum])?;
        } else {
            run("DELETE FROM state WHERE key = ?1")?.execute([key])?;
        }
    }
    let mut idx = num_entries;
    for entry in &batch.entries {
        run("INSERT INTO ledger (idx, leaf_hash, entry) VALUES (?1, ?2, ?3)")?.execute(params![
            idx,
            leaf_hash(entry),
            entry
        ])?;
        idx += 1;
    }
    for key in &batch.outbox_delete {
        run("DELETE FROM outbox WHERE key = ?1")?.execute([key])?;
    }
    for item in &batch.outbox_put {
        run("INSERT OR REPLACE INTO outbox
             (key, side, topic, wire, retain, sealed_at_ms, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            item.key,
            side_to_text(item.side),
            item.topic,
            item.wire,
            item.retain,
            to_sql(item.sealed_at.0),
            outbox_checksum(item),
        ])?;
    }
    if let Some(note) = &batch.checkpoint {
        run("INSERT OR REPLACE INTO checkpoints (tree_size, note, checksum) VALUES (?1, ?2, ?3)")?
            .execute(params![idx, note, checksum(&[&idx.to_le_bytes(), note])])?;
    }
    for (name, value) in &batch.kpis {
        run("INSERT INTO kpis (at_ms, name, value) VALUES (?1, ?2, ?3)")?.execute(params![
            to_sql(batch.at.0),
            name,
            value
        ])?;
    }
    if !batch.kpis.is_empty() {
        run("DELETE FROM kpis WHERE seq <= (SELECT max(seq) FROM kpis) - ?1")?
            .execute([to_sql(MAX_KPIS as u64)])?;
    }
    Ok(idx)
}

/// Looks for a missing entry, and for a checkpoint over entries that are gone.
pub(super) fn check_ledger(connection: &Connection) -> Result<(), Fault> {
    let count: i64 = connection.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?;
    let end = num_entries(connection)?;
    let first_gap = "SELECT idx, place FROM
        (SELECT idx, row_number() OVER (ORDER BY idx) - 1 AS place FROM ledger)
        WHERE idx <> place LIMIT 1";
    let gap = connection.query_row(first_gap, [], |row| Ok((row.get(0)?, row.get(1)?)));
    if let Some((found, place)) = gap.optional()? {
        return Err(wrong_entry(place, found));
    }
    if count != end {
        return Err(Fault::Damage(format!("ledger has {count} entries, its last is {end}")));
    }
    let last: Option<i64> =
        connection.query_row("SELECT max(tree_size) FROM checkpoints", [], |row| row.get(0))?;
    match last {
        Some(tree_size) if tree_size > end => Err(Fault::Damage(format!(
            "ledger entry {end} is missing: a checkpoint covers {tree_size} entries"
        ))),
        _ => Ok(()),
    }
}

/// Index of the next entry.
pub(super) fn num_entries(connection: &Connection) -> Result<i64, Fault> {
    let sql = "SELECT coalesce(max(idx) + 1, 0) FROM ledger";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Entries `from..to` as far as they exist.
pub(super) fn entries(connection: &Connection, from: u64, to: u64) -> Result<Vec<Vec<u8>>, Fault> {
    let mut place = to_sql(from);
    let end = to_sql(to).min(num_entries(connection)?);
    let sql = "SELECT idx, leaf_hash, entry FROM ledger WHERE idx >= ?1 AND idx < ?2 ORDER BY idx";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([place, end])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let idx: i64 = row.get(0)?;
        if idx != place {
            return Err(wrong_entry(place, idx));
        }
        let entry: Vec<u8> = row.get(2)?;
        if row.get::<_, Vec<u8>>(1)? != leaf_hash(&entry) {
            return Err(Fault::Damage(format!("ledger entry {idx} doesn't have its leaf hash")));
        }
        entries.push(entry);
        place += 1;
    }
    if place < end {
        return Err(wrong_entry(place, end));
    }
    Ok(entries)
}

/// Values whose key starts with `prefix`, in the order of keys.
pub(super) fn state(
    connection: &Connection,
    prefix: &str,
) -> Result<Vec<(String, Vec<u8>)>, Fault> {
    let sql = "SELECT key, value, checksum FROM state WHERE key >= ?1 ORDER BY key";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([prefix])?;
    let mut values = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        if !key.starts_with(prefix) {
            break;
        }
        let value: Vec<u8> = row.get(1)?;
        if row.get::<_, Vec<u8>>(2)? != checksum(&[key.as_bytes(), &value]) {
            return Err(Fault::Damage(format!("state {key:?} doesn't have its checksum")));
        }
        values.push((key, value));
    }
    Ok(values)
}

/// All items in the order in which they were put.
pub(super) fn outbox(connection: &Connection) -> Result<Vec<OutboxItem>, Fault> {
    let sql = "SELECT key, side, topic, wire, retain, sealed_at_ms, checksum
               FROM outbox ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut items = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        let side: String = row.get(1)?;
        let item = OutboxItem {
            side: if side == side_to_text(Side::Up) { Side::Up } else { Side::Down },
            topic: row.get(2)?,
            wire: row.get(3)?,
            retain: row.get(4)?,
            sealed_at: Wall(row.get::<_, i64>(5)?.unsigned_abs()),
            key,
        };
        if row.get::<_, Vec<u8>>(6)? != outbox_checksum(&item) {
            let what = format!("outbox item {:?} doesn't have its checksum", item.key);
            return Err(Fault::Damage(what));
        }
        items.push(item);
    }
    Ok(items)
}

/// All checkpoints, oldest first.
pub(super) fn checkpoints(connection: &Connection) -> Result<Vec<Vec<u8>>, Fault> {
    let sql = "SELECT tree_size, note, checksum FROM checkpoints ORDER BY tree_size";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut notes = Vec::new();
    while let Some(row) = rows.next()? {
        let tree_size: i64 = row.get(0)?;
        let note: Vec<u8> = row.get(1)?;
        if row.get::<_, Vec<u8>>(2)? != checksum(&[&tree_size.to_le_bytes(), &note]) {
            let what = format!("checkpoint over {tree_size} entries doesn't have its checksum");
            return Err(Fault::Damage(what));
        }
        notes.push(note);
    }
    Ok(notes)
}

/// Samples of one KPI, oldest first.
pub(super) fn kpis(connection: &Connection, name: &str) -> Result<Vec<(Wall, f64)>, Fault> {
    let sql = "SELECT at_ms, value FROM kpis WHERE name = ?1 ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let samples = statement.query_map([name], |row| {
        let at = Wall(row.get::<_, i64>(0)?.unsigned_abs());
        let value = row.get::<_, Option<f64>>(1)?.unwrap_or(f64::NAN);
        Ok((at, value))
    })?;
    Ok(samples.collect::<Result<_, _>>()?)
}

fn wrong_entry(expected: i64, found: i64) -> Fault {
    Fault::Damage(format!("ledger entry {expected} is missing, entry {found} is in its place"))
}

fn leaf_hash(entry: &[u8]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(&[0]);
    hash.update(entry);
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

fn outbox_checksum(item: &OutboxItem) -> [u8; 8] {
    checksum(&[
        item.key.as_bytes(),
        side_to_text(item.side).as_bytes(),
        item.topic.as_bytes(),
        &item.wire,
        &[u8::from(item.retain)],
        &to_sql(item.sealed_at.0).to_le_bytes(),
    ])
}

/// First 8 bytes of SHA-256 over the columns, each after its length.
fn checksum(columns: &[&[u8]]) -> [u8; 8] {
    let mut hash = Context::new(&SHA256);
    for column in columns {
        hash.update(&(column.len() as u64).to_le_bytes());
        hash.update(column);
    }
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    first
}

fn side_to_text(side: Side) -> &'static str {
    match side {
        Side::Down => "down",
        Side::Up => "up",
    }
}

/// SQLite's integers are signed; what lies above isn't reached by counting or by the calendar.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
