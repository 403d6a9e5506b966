//! What the ledgers say once all nodes have ended: what was lost, what counted twice, what came from an epoch
//! that was over. Pure: ledgers go in as events.
//!
//! - **Lost:** a member has a receipt for a contribution that its owner's ledger doesn't know, or that isn't in
//!   the set of a closed round; or it uses a result that no owner has recorded.
//! - **Counted twice:** a contribution was recorded twice, stands in two sets, or a set holds two of one member.
//! - **Stale epoch:** a member uses a result of a lower epoch than that of one it used before, an older version than
//!   before without having gone back on purpose, or another result than the other members under the same version.
//!
//! A set is known by its digest alone, so it is found by trying: what has to be in it, and what came late or was
//! recorded by the other cloud only.

use std::collections::{BTreeMap, BTreeSet};

use gaisnet::ids::{Digest, UpdateId};
use gaisnet::ledger::Event;

/// A node's events by its name.
pub(crate) type Ledgers = BTreeMap<&'static str, Vec<Event>>;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) lost: u64,
    pub(crate) double_counted: u64,
    pub(crate) stale_epoch: u64,
    /// Receipts that say a contribution counts.
    pub(crate) receipts: u64,
    pub(crate) abandoned: u64,
    /// What stands behind the numbers.
    pub(crate) findings: Vec<String>,
    /// Results that members use, by version.
    pub(crate) results: BTreeMap<u64, Digest>,
}

/// A contribution: who sent it and its id, in the order in which sets are hashed.
type Sent = (String, UpdateId);

/// A closed round at one owner.
struct Close {
    owner: &'static str,
    round: u64,
    set: Digest,
    size: u64,
    /// Recorded by the owner and in no set before.
    must: BTreeSet<Sent>,
    /// What came of it.
    result: Option<Digest>,
}

/// Who owns rounds together, and their members.
pub(crate) struct Seat {
    pub(crate) owners: Vec<&'static str>,
    pub(crate) members: Vec<&'static str>,
}

/// Counts what is wrong between owners and their members.
pub(crate) fn count(ledgers: &Ledgers, seats: &[Seat]) -> Counts {
    let mut counts = Counts::default();
    check_results(ledgers, &mut counts);
    for seat in seats {
        let mut book = Book::default();
        book.read(ledgers, seat, &mut counts);
        book.check_receipts(ledgers, seat, &mut counts);
    }
    counts
}

/// What the owners of the same rounds have recorded.
#[derive(Default)]
struct Book {
    /// Contributions with their rounds.
    recorded: BTreeMap<Sent, u64>,
    /// In which rounds' sets a contribution stands.
    combined: BTreeMap<UpdateId, BTreeSet<u64>>,
    last_closed: u64,
}

impl Book {
    fn read(&mut self, ledgers: &Ledgers, seat: &Seat, counts: &mut Counts) {
        let mut closes = Vec::new();
        for owner in &seat.owners {
            let events = ledgers.get(owner).map_or(&[][..], Vec::as_slice);
            closes.extend(self.read_owner(owner, seat.owners.len() == 1, events, counts));
        }
        closes.sort_by_key(|close| close.round);
        self.last_closed = closes.last().map_or(0, |close| close.round);
        for close in &closes {
            if !is_overruled(close, &closes, counts) {
                self.explain(close, seat, counts);
            }
        }
        for (update, rounds) in &self.combined {
            if rounds.len() > 1 {
                counts.double_counted += 1;
                let owners = &seat.owners;
                counts.findings.push(format!("{owners:?} combined {update} in rounds {rounds:?}"));
            }
        }
    }

    fn read_owner(
        &mut self,
        owner: &'static str,
        is_alone: bool,
        events: &[Event],
        counts: &mut Counts,
    ) -> Vec<Close> {
        let (mut waiting, mut of_round) = (BTreeSet::new(), BTreeMap::new());
        let mut closes: Vec<Close> = Vec::new();
        for event in events {
            match event {
                Event::Accept { round, sender, update, .. }
                | Event::Late { round, sender, update } => {
                    // What one of two owners forgets with its lead comes to it again.
                    if of_round.insert((sender, round), update).is_some() && is_alone {
                        counts.double_counted += 1;
                        counts
                            .findings
                            .push(format!("{owner} recorded {sender} twice in round {round}"));
                    }
                    let sent = (sender.to_string(), *update);
                    self.recorded.insert(sent.clone(), *round);
                    waiting.insert(sent);
                }
                Event::RoundClose { contributions: size, round, set, .. } => {
                    let must = std::mem::take(&mut waiting);
                    let (round, set, size) = (*round, *set, *size);
                    closes.push(Close { owner, round, set, size, must, result: None });
                }
                Event::RoundCommit { round, result, .. } => {
                    let last = closes.iter_mut().rev().find(|close| close.round == *round);
                    if let Some(last) = last {
                        last.result = Some(*result);
                    }
                }
                Event::RoundAbandon { round, .. } => {
                    counts.abandoned += 1;
                    of_round.retain(|(_, of), _| *of != round); // it may be opened again
                }
                _ => {}
            }
        }
        closes
    }

    /// Finds out what is in a set.
    fn explain(&mut self, close: &Close, seat: &Seat, counts: &mut Counts) {
        let Close { owner, round, set, size, must, .. } = close;
        let wanted = usize::try_from(*size).unwrap_or(usize::MAX);
        let is_it = |ids: &BTreeSet<Sent>| ids.len() == wanted && digest_of(ids) == *set;
        let found = if is_it(must) {
            Some(must.clone())
        } else if seat.owners.len() > 1 {
            // What the other one recorded came with its copies.
            let is_free = |sent: &Sent, of: u64| {
                let before = self.combined.get(&sent.1);
                of <= *round
                    && of + LATE >= *round
                    && before.is_none_or(|rounds| rounds.contains(round))
            };
            let free = self.recorded.iter().filter(|(sent, of)| is_free(sent, **of));
            choose(&free.map(|(sent, _)| sent.clone()).collect::<Vec<_>>(), wanted, &is_it)
        } else {
            None
        };
        let Some(found) = found else {
            let has = must.len();
            if wanted > has {
                counts.double_counted += (wanted - has) as u64;
            } else {
                counts.lost += (has - wanted).max(1) as u64;
            }
            return counts.findings.push(format!(
                "{owner} closed round {round} with {wanted} contributions, not with the {has} that it recorded"
            ));
        };
        for (_, update) in found {
            self.combined.entry(update).or_default().insert(*round);
        }
    }

    fn check_receipts(&self, ledgers: &Ledgers, seat: &Seat, counts: &mut Counts) {
        let recorded: BTreeSet<UpdateId> =
            self.recorded.keys().map(|(_, update)| *update).collect();
        for member in &seat.members {
            for event in ledgers.get(member).into_iter().flatten() {
                let Event::ReceiptGot { from, round, update, verdict } = event else { continue };
                let verdict = verdict.as_str();
                if verdict == "refused" {
                    continue;
                }
                counts.receipts += 1;
                // The open round isn't combined yet; what came late waits for the next that closes.
                let is_due =
                    *round < self.last_closed.saturating_sub(u64::from(verdict == "late") * LATE);
                let what = if !recorded.contains(update) {
                    "has no record of it"
                } else if is_due && !self.combined.contains_key(update) {
                    "combined it nowhere"
                } else {
                    continue;
                };
                counts.lost += 1;
                counts.findings.push(format!(
                    "{from} said {verdict} to {update} of {member}, round {round}, and {what}"
                ));
            }
        }
    }
}

/// Whether another set of the same round is the one whose result is in use.
fn is_overruled(close: &Close, closes: &[Close], counts: &mut Counts) -> bool {
    let is_used = |close: &Close| {
        close.result.is_some_and(|result| counts.results.values().any(|used| *used == result))
    };
    let other = |other: &&Close| other.round == close.round && other.set != close.set;
    let Some(other) = closes.iter().filter(other).find(|other| is_used(other)) else {
        return false;
    };
    if is_used(close) {
        counts.double_counted += 1;
        counts.findings.push(format!(
            "{} and {} use two sets of round {}",
            close.owner, other.owner, close.round
        ));
    }
    true
}

/// What members use: only what was recorded, one result a version, no way back in epochs.
fn check_results(ledgers: &Ledgers, counts: &mut Counts) {
    let mut epochs: BTreeMap<Digest, BTreeSet<u64>> = BTreeMap::new();
    for event in ledgers.values().flatten() {
        if let Event::RoundCommit { epoch, result, .. } = event {
            epochs.entry(*result).or_default().insert(*epoch);
        }
    }
    for (node, events) in ledgers {
        let (mut epoch, mut newest) = (0, 0);
        for event in events {
            if let Event::Rollback { to, .. } = event {
                newest = *to;
            }
            let Event::Rollout { adapter: result, version } = event else { continue };
            if *version < std::mem::replace(&mut newest, *version) {
                counts.stale_epoch += 1;
                counts.findings.push(format!("{node} uses version {version} after a newer one"));
            }
            if *version == 0 {
                continue; // untrained: it is of no round
            }
            let first = *counts.results.entry(*version).or_insert(*result);
            if first != *result {
                counts.stale_epoch += 1;
                counts.findings.push(format!("{node} uses another result as version {version}"));
            }
            let Some(of) = epochs.get(result) else {
                counts.lost += 1;
                counts
                    .findings
                    .push(format!("{node} uses version {version}, which nobody recorded"));
                continue;
            };
            if let Some(next) = of.range(epoch..).next() {
                epoch = *next;
            } else {
                counts.stale_epoch += 1;
                counts.findings.push(format!(
                    "{node} uses version {version} of epochs {of:?} after one of epoch {epoch}"
                ));
            }
        }
    }
}

/// As many of these as are wanted, so that their digest is the one.
fn choose(
    free: &[Sent],
    wanted: usize,
    is_it: &impl Fn(&BTreeSet<Sent>) -> bool,
) -> Option<BTreeSet<Sent>> {
    let mut open = vec![(BTreeSet::new(), 0)];
    for _ in 0..MOST_TRIED {
        let (chosen, from) = open.pop()?;
        if is_it(&chosen) {
            return Some(chosen);
        }
        if chosen.len() < wanted {
            for (at, sent) in free.iter().enumerate().skip(from) {
                let mut more = chosen.clone();
                more.insert(sent.clone());
                open.push((more, at + 1));
            }
        }
    }
    None
}

fn digest_of(ids: &BTreeSet<Sent>) -> Digest {
    let bytes: Vec<u8> = ids.iter().flat_map(|(_, id)| id.0).collect();
    Digest::of(&bytes)
}

/// Rounds after which late work is combined at the latest.
const LATE: u64 = 12;
const MOST_TRIED: usize = 100_000;

#[cfg(test)]
mod tests {
    use gaisnet::ids::Name;
    use gaisnet::ledger::Word;

    use super::*;

    fn id(n: u8) -> UpdateId {
        UpdateId([n; 16])
    }

    fn accept(round: u64, sender: &str, n: u8) -> Event {
        let sender = Name::new(sender).unwrap();
        Event::Accept { body: Digest::of(&[n]), round, sender, update: id(n) }
    }

    fn close(epoch: u64, round: u64, ids: &[u8]) -> Event {
        let bytes: Vec<u8> = ids.iter().flat_map(|n| id(*n).0).collect();
        Event::RoundClose { contributions: ids.len() as u64, epoch, round, set: Digest::of(&bytes) }
    }

    fn commit(epoch: u64, round: u64, result: u8) -> Event {
        Event::RoundCommit { epoch, result: Digest::of(&[result]), round, version: round }
    }

    fn receipt(round: u64, n: u8) -> Event {
        let from = Name::new("cloud").unwrap();
        Event::ReceiptGot { from, round, update: id(n), verdict: Word::new("accepted") }
    }

    fn applied(round: u64, result: u8) -> Event {
        Event::Rollout { adapter: Digest::of(&[result]), version: round }
    }

    /// Lost, counted twice, stale.
    fn counted(all: [(&'static str, Vec<Event>); 4]) -> (u64, u64, u64) {
        let clouds = Seat { owners: vec!["cloud", "cloud-2"], members: vec!["edge-a", "edge-b"] };
        let edge = Seat { owners: vec!["edge-a"], members: Vec::new() };
        let counts = count(&all.into_iter().collect(), &[clouds, edge]);
        (counts.lost, counts.double_counted, counts.stale_epoch)
    }

    /// One round of the first cloud, one that the second closes with what the first had accepted, a third one.
    fn sound() -> [(&'static str, Vec<Event>); 4] {
        let first = vec![
            accept(1, "edge-a", 1),
            accept(1, "edge-b", 2),
            close(2, 1, &[1, 2]),
            commit(2, 1, 1),
            accept(2, "edge-a", 3),
        ];
        let second = vec![
            accept(2, "edge-b", 4),
            close(3, 2, &[3, 4]),
            commit(3, 2, 2),
            accept(3, "edge-a", 5),
            accept(3, "edge-b", 6),
            close(3, 3, &[5, 6]),
            commit(3, 3, 3),
        ];
        let a = vec![
            receipt(1, 1),
            applied(1, 1),
            receipt(2, 3),
            applied(2, 2),
            receipt(3, 5),
            applied(3, 3),
        ];
        let b = vec![
            receipt(1, 2),
            applied(1, 1),
            receipt(2, 4),
            applied(2, 2),
            receipt(3, 6),
            applied(3, 3),
        ];
        [("cloud", first), ("cloud-2", second), ("edge-a", a), ("edge-b", b)]
    }

    #[test]
    fn a_takeover_in_an_open_round_is_sound() {
        assert_eq!(counted(sound()), (0, 0, 0));
    }

    #[test]
    fn a_receipt_for_what_nobody_recorded_is_a_loss() {
        let mut all = sound();
        all[2].1.push(receipt(3, 9));
        assert_eq!(counted(all), (1, 0, 0));
    }

    #[test]
    fn a_receipt_for_what_no_set_holds_is_a_loss() {
        let mut all = sound();
        all[1].1[1] = close(3, 2, &[4]);
        assert_eq!(counted(all), (1, 0, 0));
    }

    #[test]
    fn a_result_that_nobody_recorded_is_a_loss() {
        let mut all = sound();
        all[1].1.retain(|event| *event != commit(3, 3, 3));
        assert_eq!(counted(all), (2, 0, 0), "at each of both members");
    }

    #[test]
    fn one_contribution_in_two_sets_counts_twice() {
        let mut all = sound();
        all[1].1.insert(3, accept(3, "edge-a", 3));
        all[1].1[4] = accept(3, "edge-c", 5);
        all[1].1[6] = close(3, 3, &[3, 5, 6]);
        assert_ne!(counted(all).1, 0);
    }

    #[test]
    fn one_contribution_recorded_twice_counts_twice() {
        let mut all = sound();
        all[2].1.extend([accept(1, "dev-a1", 1), close(1, 1, &[1])]);
        assert_eq!(counted(all.clone()), (0, 0, 0));
        all[2].1.insert(0, accept(1, "dev-a1", 1));
        assert_eq!(counted(all), (0, 1, 0));
    }

    #[test]
    fn an_older_version_is_used_again_on_purpose_only() {
        let mut all = sound();
        all[3].1.push(applied(2, 2));
        assert_eq!(counted(all.clone()), (0, 0, 1));
        all[3].1.pop();
        let reason = gaisnet::ledger::Word::new("operator");
        all[3].1.push(Event::Rollback { from: 3, reason, to: 2 });
        assert_eq!(counted(all), (0, 0, 0));
    }

    #[test]
    fn a_result_of_an_epoch_that_is_over_is_stale() {
        let mut all = sound();
        all[0].1.push(commit(2, 3, 9));
        all[2].1[5] = applied(3, 9);
        let (_, _, stale) = counted(all);
        assert_eq!(stale, 2, "it is of a lower epoch, and not what the other member has");
    }

    #[test]
    fn a_set_that_was_closed_and_never_left_is_no_loss() {
        let mut all = sound();
        // The first cloud closed round 2 by itself, died before anybody heard, and took it from the second then.
        all[0].1.extend([accept(2, "edge-c", 7), close(2, 2, &[3, 7]), commit(2, 2, 8)]);
        assert_eq!(counted(all), (0, 0, 0));
    }
}
