//! What can happen to a pair of clouds, step by step: faults that come to one moment of a takeover, which by chance is
//! never met. Each leaves a round open, by stopping a device of each site, so that what one cloud alone knows is a
//! contribution with a receipt.

use std::time::{Duration, Instant};

use gaisnet::rng::Stream;

use crate::faults::{Struck, moment};
use crate::federation::{Federation, Role, SITES, pause, since_now};
use crate::link::Weather;
use crate::machine;

/// Stops the leader until the other one has closed a round, or for as long as that should take at most.
pub(crate) fn stop_leader(federation: &mut Federation) -> &'static str {
    let stopped = federation.leader();
    federation.signal(stopped, "-STOP");
    let is_replaced = is_replaced(federation, stopped);
    federation.signal(stopped, "-CONT");
    if is_replaced { "takeover" } else { "stop_leader" }
}

/// The broker dies with the leader, so that what the standby didn't hear waits for it nowhere.
pub(crate) fn kill_unheard(federation: &mut Federation, draw: &mut Stream) -> &'static str {
    let (leader, standby) = (federation.leader(), federation.with(Role::Standby)[0]);
    federation.link(standby).set(Weather::DeafNode);
    pause(Duration::from_millis(200) + moment(draw, 1_500));
    federation.kill(leader);
    federation.kill_broker();
    federation.link(standby).set(Weather::Clear);
    federation.start_broker();
    let is_replaced = is_replaced(federation, leader);
    federation.spawn(leader, &[]);
    if is_replaced { "takeover_unheard" } else { "kill_unheard" }
}

/// Waits until the other cloud has closed a round. It may not where it isn't in step.
fn is_replaced(federation: &mut Federation, leader: &str) -> bool {
    let begun = since_now();
    while federation.leader() == leader && begun.elapsed() < TAKES_OVER_WITHIN {
        federation.listen();
        pause(Duration::from_millis(20));
    }
    federation.leader() != leader
}

/// What the leader says comes late: the standby leads by then. Edges hear both and may listen to one only.
pub(crate) fn late_words(federation: &mut Federation) -> Struck {
    hold_round(federation);
    let (leader, standby) = (federation.leader(), federation.with(Role::Standby)[0]);
    let led = federation.counted_by(standby, LEADS);
    federation.link(leader).set(Weather::Held);
    let leads = wait_for(AWAY, || federation.counted_by(standby, LEADS) > led);
    let refused = |federation: &Federation| -> u64 {
        SITES.iter().map(|(edge, _)| federation.counted_by(edge, "stale_epoch")).sum()
    };
    let before = refused(federation);
    federation.link(leader).set(Weather::Clear);
    let refuse = leads && wait_for(TAKES_OVER_WITHIN, || refused(federation) > before);
    let at = release_round(federation);
    if !leads {
        return Struck::new(at, "late_words_without_takeover");
    }
    let missed = "no edge refused what the old leader said last (stale_epoch)".to_owned();
    Struck { missed: (!refuse).then_some(missed), ..Struck::new(at, "late_words") }
}

/// The leader goes on alone, gives a receipt, and dies. The standby, which knows nothing of that, is the only one.
pub(crate) fn outdated(federation: &mut Federation) -> Struck {
    hold_round(federation);
    let (leader, standby) = (federation.leader(), federation.with(Role::Standby)[0]);
    let edge = SITES[0].0;
    let before = federation.heard_by(edge, "receipt");
    federation.kill(standby);
    // Nobody confirms, so a receipt that comes is that of a leader that is alone.
    let receipt = before.is_some()
        && one_counts(federation)
        && wait_for(TAKES_OVER_WITHIN, || federation.heard_by(edge, "receipt") > before);
    // Copies wait for the standby nowhere; that somebody leads, and in which epoch, is kept.
    federation.kill_broker();
    federation.start_broker();
    pause(SAYS_SO);
    federation.kill(leader);
    federation.spawn(standby, &[]);
    let mut leads = false;
    if receipt {
        release_round(federation);
        leads = wait_for(AWAY, || federation.counted_by(standby, LEADS) > 0);
    }
    // What the standby was told waits for the leader nowhere.
    federation.kill_broker();
    federation.start_broker();
    federation.spawn(leader, &[]);
    let at = release_round(federation);
    let missed = "a standby leads that lacks a receipt which is out".to_owned();
    let name = if receipt { "outdated" } else { "outdated_without_receipt" };
    Struck { missed: leads.then_some(missed), ..Struck::new(at, name) }
}

/// A receipt is given behind the backup, and the leader that is put back has no other than the standby to tell it. It isn't
/// put back where the standby can't: it wasn't in step, or no contribution came that it knows.
pub(crate) fn backup(federation: &mut Federation) -> Struck {
    hold_round(federation);
    let leader = federation.leader();
    // A standby in step says nothing as long as nothing changes, and confirms what does.
    let confirmed = |federation: &Federation| federation.heard_by(leader, "mirror");
    let before = confirmed(federation);
    pause(QUIET);
    let is_in_step = before.is_some() && confirmed(federation) == before;
    federation.signal(leader, "-STOP");
    machine::back_up(federation, leader);
    federation.signal(leader, "-CONT");
    let knows =
        is_in_step && one_counts(federation) && wait_for(AWAY, || confirmed(federation) > before);
    pause(SETTLES);
    federation.kill(leader);
    if knows {
        federation.kill_broker();
        machine::put_back(federation, leader);
        federation.start_broker();
    } else {
        machine::forget_backup(federation, leader);
    }
    federation.spawn(leader, &[]);
    let at = release_round(federation);
    Struck::new(at, if knows { "backup" } else { "backup_not_put_back" })
}

/// Stops a device of each site: the round stays open until they go on. Returns when what was under way is done and the
/// next round is open.
fn hold_round(federation: &mut Federation) {
    for (_, [(device, _), _]) in SITES {
        federation.signal(device, "-STOP");
    }
    let (begun, mut seen, mut since) = (since_now(), (0, 0), since_now());
    while since.elapsed() < QUIET && begun.elapsed() < TAKES_OVER_WITHIN {
        federation.listen();
        let now = (federation.version(), federation.num_counted());
        if now != seen {
            (seen, since) = (now, since_now());
        }
        pause(LOOKS);
    }
    federation.mark();
}

/// Lets the round end; when that was, for recovery is measured from there.
fn release_round(federation: &mut Federation) -> Instant {
    for (_, [(device, _), _]) in SITES {
        federation.signal(device, "-CONT");
    }
    federation.mark();
    since_now()
}

/// Lets the first site contribute; whether the leader has counted that.
fn one_counts(federation: &mut Federation) -> bool {
    let (_, [(device, _), _]) = SITES[0];
    federation.signal(device, "-CONT");
    wait_for(TAKES_OVER_WITHIN, || {
        federation.listen();
        federation.num_counted() > 0
    })
}

fn wait_for(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let begun = since_now();
    while begun.elapsed() < within {
        if is_so() {
            return true;
        }
        pause(LOOKS);
    }
    false
}

/// What a cloud counts when it begins to lead.
const LEADS: &str = "leading_the_rounds";
/// Several leases, on a busy machine.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(20);
/// Longer than the other one waits, shorter than the broker does until it gives up whoever says nothing.
const AWAY: Duration = Duration::from_secs(6);
/// A lease, and what it takes to connect anew.
const SAYS_SO: Duration = Duration::from_secs(3);
/// Longer than the pause between two rounds, and than a health page takes to tell what is new.
const QUIET: Duration = Duration::from_millis(2_500);
/// What was said is heard.
const SETTLES: Duration = Duration::from_secs(1);
const LOOKS: Duration = Duration::from_millis(20);
