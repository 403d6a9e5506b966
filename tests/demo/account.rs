//! Holds every contribution against the rounds, from the ledgers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gaisnet::ids::{Digest, UpdateId};
use gaisnet::ledger::{Entry, Event};
use gaisnet::store::{SqliteStore, Store};

const OWNERS: [&str; 3] = ["cloud", "edge-north", "edge-south"];
const MEMBERS: [&str; 6] = ["edge-north", "edge-south", "p1", "p2", "p3", "p4"];

/// What became of all contributions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Starts of nodes.
    pub(crate) starts: u64,
    /// Rounds that were committed, over all owners.
    pub(crate) committed: u64,
    /// Rounds that ended without a result.
    pub(crate) abandoned: u64,
    /// Contributions that members have recorded before they left.
    pub(crate) contributed: u64,
    /// Those in the contributor set of a round that they were made for.
    pub(crate) in_their_round: u64,
    /// Those that came late and are in the set of a later round.
    pub(crate) late: u64,
    /// Late ones for which no later round came.
    pub(crate) late_at_the_end: u64,
    /// Those of a round that was abandoned.
    pub(crate) of_an_abandoned_round: u64,
    /// Contributions that got another verdict than accepted or late.
    pub(crate) refused: u64,
    /// Contributions without a verdict.
    pub(crate) without_verdict: u64,
}

/// Reads all ledgers.
///
/// # Panics
/// When a round was closed or committed twice, when its recorded contributor set isn't made of
/// exactly what was accepted for it and what was late before it, when an update counts twice, or
/// when one counts that no member has recorded.
pub(crate) fn of(demo: &Path) -> Account {
    let mut account = Account::default();
    let mut made = BTreeSet::new();
    let mut known = BTreeSet::new();
    for member in MEMBERS {
        for event in events(demo, member) {
            match event {
                Event::Contribute { update, .. } => {
                    made.insert(update);
                }
                Event::ReceiptGot { update, verdict, .. }
                    if !["accepted", "late"].contains(&verdict.as_str()) =>
                {
                    account.refused += 1;
                    known.insert(update);
                }
                _ => {}
            }
        }
    }
    account.contributed = made.len() as u64;
    for owner in OWNERS {
        for update in owners_rounds(demo, owner, &mut account) {
            assert!(made.contains(&update), "{owner} counts {update}, which nobody made");
            assert!(known.insert(update), "{owner} has {update} twice");
        }
    }
    account.without_verdict = made.difference(&known).count() as u64;
    let nodes = OWNERS.iter().chain(&MEMBERS[2..]);
    let starts = |node: &&&str| {
        events(demo, node).iter().filter(|e| matches!(e, Event::NodeStart { .. })).count() as u64
    };
    account.starts = nodes.map(|node| starts(&node)).sum();
    account
}

/// Every update that the owner has taken.
fn owners_rounds(demo: &Path, owner: &str, account: &mut Account) -> Vec<UpdateId> {
    let mut taken = Vec::new();
    let mut accepted: BTreeMap<u64, Vec<(String, UpdateId)>> = BTreeMap::new();
    let mut late: Vec<(String, UpdateId)> = Vec::new();
    let (mut closed, mut committed) = (BTreeSet::new(), BTreeSet::new());
    for event in events(demo, owner) {
        match event {
            Event::Accept { round, sender, update, .. } => {
                assert!(!closed.contains(&round), "{owner}: {update} for the closed round {round}");
                accepted.entry(round).or_default().push((sender.to_string(), update));
                taken.push(update);
            }
            Event::Late { sender, update, .. } => {
                late.push((sender.to_string(), update));
                taken.push(update);
            }
            Event::RoundClose { round, contributions, set, .. } => {
                assert!(closed.insert(round), "{owner} closed round {round} twice");
                let mut counted = accepted.remove(&round).unwrap_or_default();
                account.in_their_round += counted.len() as u64;
                account.late += late.len() as u64;
                counted.append(&mut late);
                counted.sort();
                assert_eq!(contributions, counted.len() as u64, "{owner}, round {round}");
                let ids: Vec<u8> = counted.iter().flat_map(|(_, update)| update.0).collect();
                assert_eq!(set, Digest::of(&ids), "{owner}, round {round}: another set");
            }
            Event::RoundCommit { round, .. } => {
                assert!(committed.insert(round), "{owner} committed round {round} twice");
            }
            Event::RoundAbandon { round, .. } => {
                account.abandoned += 1;
                let lost = accepted.remove(&round).unwrap_or_default();
                account.of_an_abandoned_round += lost.len() as u64;
            }
            _ => {}
        }
    }
    assert_eq!(closed, committed, "{owner} has closed rounds that aren't committed");
    assert!(accepted.is_empty(), "{owner} has accepted what counts nowhere: {accepted:?}");
    account.committed += committed.len() as u64;
    account.late_at_the_end += late.len() as u64;
    taken
}

fn events(demo: &Path, node: &str) -> Vec<Event> {
    let store = SqliteStore::open_read_only(&demo.join(node).join("store")).unwrap();
    let entries = store.entries(0, store.num_entries().unwrap()).unwrap();
    entries.iter().map(|bytes| Entry::parse(bytes).unwrap().event).collect()
}
