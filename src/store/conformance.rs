//! What every [`Store`] must do, written once and run on each.

use std::collections::BTreeSet;

use crate::ids::Digest;
use crate::store::{Batch, MAX_KPIS, OutboxItem, Side, Store};
use crate::time::Wall;

/// Runs the suite. `open` gives a handle to the same memory each time; it is empty at first, and
/// only one handle lives at a time.
pub(super) fn check(open: &mut dyn FnMut() -> Box<dyn Store>) {
    empty_store_reads_as_empty(&mut *open());
    state_is_set_replaced_deleted_and_sorted(&mut *open());
    entries_are_appended_and_read_by_range(&mut *open());
    outbox_keeps_the_order_of_putting(&mut *open());
    checkpoints_are_kept_by_tree_size(&mut *open());
    kpis_are_dated_and_bounded(&mut *open());
    blobs_are_found_by_digest(&mut *open());
    several_batches_are_one_commit_in_order(&mut *open());
    let before = everything(&*open());
    assert_eq!(everything(&*open()), before, "reopened");
}

/// An outbox item that differs from others by its key and `wire`.
pub(super) fn item(key: &str, side: Side, wire: &[u8]) -> OutboxItem {
    OutboxItem {
        key: key.to_owned(),
        side,
        topic: format!("gaisnet/v1/plant/_/edge/m/{key}"),
        wire: wire.to_vec(),
        retain: side == Side::Up,
        sealed_at: Wall(1_700_000_000_123),
    }
}

/// All that can be read but blobs, for comparison.
#[expect(clippy::type_complexity, reason = "a bag of everything")]
pub(super) fn everything(
    store: &dyn Store,
) -> (Vec<(String, Vec<u8>)>, Vec<Vec<u8>>, Vec<OutboxItem>, Vec<Vec<u8>>) {
    (
        store.state("").unwrap(),
        store.entries(0, u64::MAX).unwrap(),
        store.outbox().unwrap(),
        store.checkpoints().unwrap(),
    )
}

fn empty_store_reads_as_empty(store: &mut dyn Store) {
    store.commit(&[]).unwrap();
    store.commit(&[Batch::default()]).unwrap();
    assert_eq!(everything(store), (vec![], vec![], vec![], vec![]));
    assert_eq!(store.num_entries().unwrap(), 0);
    assert_eq!(store.kpis("loss").unwrap(), []);
    assert_eq!(store.blob(&Digest([0; 32])).unwrap(), None);
}

fn state_is_set_replaced_deleted_and_sorted(store: &mut dyn Store) {
    let set = |key: &'static str, value: &[u8]| (key.into(), Some(value.to_vec()));
    let batch = |state| Batch { state, ..Batch::default() };
    let first =
        vec![set("round/2", b"b"), set("round/10", b"a"), set("roundabout", b""), set("a", b"x")];
    store.commit(&[batch(first)]).unwrap();
    let second =
        vec![set("a", b"old"), set("a", b"new"), ("round/2".into(), None), ("no".into(), None)];
    store.commit(&[batch(second)]).unwrap();
    store.commit(&[batch(vec![set("é%_*", b"wild"), set("é", b"1")])]).unwrap();

    let keys = |prefix: &str| -> Vec<String> {
        store.state(prefix).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(""), ["a", "round/10", "roundabout", "é", "é%_*"]);
    assert_eq!(keys("round/"), ["round/10"]);
    assert_eq!(keys("é%"), ["é%_*"]);
    assert_eq!(keys("z"), Vec::<String>::new());
    assert_eq!(store.state("a").unwrap(), [("a".to_owned(), b"new".to_vec())]);
    assert_eq!(store.state("rounda").unwrap(), [("roundabout".to_owned(), vec![])]);
}

fn entries_are_appended_and_read_by_range(store: &mut dyn Store) {
    let entries = |range: std::ops::Range<u8>| Batch {
        entries: range.map(|i| vec![i; usize::from(i)]).collect(),
        ..Batch::default()
    };
    store.commit(&[entries(0..3)]).unwrap();
    store.commit(&[entries(3..5), entries(5..6)]).unwrap();
    assert_eq!(store.num_entries().unwrap(), 6);
    assert_eq!(store.entries(0, 2).unwrap(), [vec![], vec![1]]);
    assert_eq!(store.entries(5, u64::MAX).unwrap(), [[5; 5]]);
    assert_eq!(store.entries(2, 2).unwrap().len(), 0);
    assert_eq!(store.entries(4, 1).unwrap().len(), 0);
    assert_eq!(store.entries(6, 9).unwrap().len(), 0);
    assert_eq!(store.entries(u64::MAX, u64::MAX).unwrap().len(), 0);
}

fn outbox_keeps_the_order_of_putting(store: &mut dyn Store) {
    let [a, b, c] = ["a", "b", "c"].map(|key| item(key, Side::Down, b"1"));
    let put = |items: &[&OutboxItem]| Batch {
        outbox_put: items.iter().map(|&item| item.clone()).collect(),
        ..Batch::default()
    };
    store.commit(&[put(&[&b, &a]), put(&[&c])]).unwrap();
    assert_eq!(store.outbox().unwrap(), [b.clone(), a.clone(), c.clone()]);

    let newer_b = item("b", Side::Up, b"2");
    store.commit(&[put(&[&newer_b])]).unwrap();
    assert_eq!(store.outbox().unwrap(), [a.clone(), c.clone(), newer_b.clone()]);

    let settled = vec!["c".to_owned(), "b".to_owned(), "unknown".to_owned()];
    let swap = Batch { outbox_delete: settled, outbox_put: vec![b.clone()], ..Batch::default() };
    store.commit(&[swap]).unwrap();
    assert_eq!(store.outbox().unwrap(), [a, b], "what is put in the same batch stays");
}

fn checkpoints_are_kept_by_tree_size(store: &mut dyn Store) {
    let grow = |entries: &[u8], note: &[u8]| Batch {
        entries: entries.iter().map(|&byte| vec![byte]).collect(),
        checkpoint: Some(note.to_vec()),
        ..Batch::default()
    };
    store.commit(&[grow(&[], b"first"), grow(&[7], b"second")]).unwrap();
    store.commit(&[grow(&[], b"second, cosigned")]).unwrap();
    store.commit(&[grow(&[8, 9], b"third")]).unwrap();
    let notes = store.checkpoints().unwrap();
    assert_eq!(notes, [b"first".as_slice(), b"second, cosigned", b"third"]);
}

fn kpis_are_dated_and_bounded(store: &mut dyn Store) {
    let sample = |at: u64, name: &str, value: f64| Batch {
        at: Wall(at),
        kpis: vec![(name.to_owned(), value)],
        ..Batch::default()
    };
    store.commit(&[sample(5, "loss", 0.5), sample(6, "acc", 0.9)]).unwrap();
    store.commit(&[sample(7, "loss", f64::NAN), sample(8, "loss", f64::INFINITY)]).unwrap();
    let loss = store.kpis("loss").unwrap();
    assert_eq!(loss.iter().map(|sample| sample.0.0).collect::<Vec<_>>(), [5, 7, 8]);
    assert!(loss[1].1.is_nan(), "a sample that is no number must not stop a commit");
    assert_eq!((loss[0].1, loss[2].1), (0.5, f64::INFINITY));

    let flood = (0..MAX_KPIS).map(|_| ("flood".to_owned(), 1.0)).collect();
    store.commit(&[Batch { kpis: flood, ..Batch::default() }]).unwrap();
    store.commit(&[sample(9, "loss", 0.1)]).unwrap();
    assert_eq!(store.kpis("loss").unwrap(), [(Wall(9), 0.1)]);
    assert_eq!(store.kpis("flood").unwrap().len(), MAX_KPIS - 1);
}

fn blobs_are_found_by_digest(store: &mut dyn Store) {
    let abc = store.put_blob(b"abc").unwrap();
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(abc.to_string(), hex);
    assert_eq!(store.put_blob(b"abc").unwrap(), abc);
    let empty = store.put_blob(b"").unwrap();
    assert_eq!(store.blob(&abc).unwrap().unwrap(), b"abc");
    assert_eq!(store.blob(&empty).unwrap().unwrap(), b"");
    store.retain_blobs(&BTreeSet::from([abc, Digest([9; 32])])).unwrap();
    assert_eq!(store.blob(&empty).unwrap(), None);
    assert_eq!(store.blob(&abc).unwrap().unwrap(), b"abc");
}

fn several_batches_are_one_commit_in_order(store: &mut dyn Store) {
    let set = |value: &[u8]| Batch {
        state: vec![("order".into(), Some(value.to_vec()))],
        outbox_put: vec![item("order", Side::Up, value)],
        ..Batch::default()
    };
    let settle = Batch { outbox_delete: vec!["order".to_owned()], ..Batch::default() };
    store.commit(&[set(b"1"), set(b"2"), settle]).unwrap();
    assert_eq!(store.state("order").unwrap(), [("order".into(), b"2".to_vec())]);
    assert!(store.outbox().unwrap().iter().all(|item| item.key != "order"));
}
