//! What the nodes' ledgers have of the story, and what is missing there.

use super::super::ledgers;
use super::super::plant::{PLACES, Place, place_of};
use super::super::{DemoError, DemoOptions};
use super::plan::Site;
use crate::ids::Version;
use crate::ledger::Event;
use crate::report::{StoryEntry, StoryReport};
use crate::settings::Tier;
use crate::trust::keyring::Keyring;

/// Checks all ledgers, and looks for what the story must have left in them.
pub(super) fn read(
    options: &DemoOptions,
    keyring: &Keyring,
    report: &mut StoryReport,
) -> Result<(), DemoError> {
    report.audit = ledgers::read(options, keyring)?.audit;
    let (bad, good, first) = (report.bad.version, report.good, report.first);
    let mut others = Vec::new();
    for place in PLACES.iter().filter(|place| place.tier != Tier::Cloud) {
        let events = ledgers::events(options, place)?;
        let steps = events.iter().filter_map(|event| match event {
            Event::RolloutStep { outcome, stage, version, .. } => {
                Some(StoryEntry::step(place.name, *version, stage.as_str(), outcome.as_str()))
            }
            Event::Rollback { from, reason, to } => {
                Some(StoryEntry::rollback(place.name, (*from, *to), reason.as_str()))
            }
            _ => None,
        });
        report.recorded.extend(steps);
        if place.name != report.bad.canary && serves(&events, bad) {
            others.push(format!("{} has served version {bad}", place.name));
        }
        if place.name == report.bad.canary && !serves(&events, bad) {
            others.push(format!("{} has no record of serving version {bad}", place.name));
        }
    }
    let halt = report.recorded.iter().find(|entry| entry.version == bad && entry.what == "halted");
    report.bad.halted_at = halt.map(|halt| halt.stage.clone()).unwrap_or_default();
    let canary = report.bad.canary.clone();
    let edge = place_of(&canary).and_then(|canary| canary.parent).unwrap_or_default();
    let by_the_gate = |entry: &&StoryEntry| entry.node == edge && entry.is_rollback(bad, good);
    let rule = report.recorded.iter().find(by_the_gate).map(|entry| entry.why.clone());
    report.bad.rule = rule.unwrap_or_default();
    let missing = expected(&canary, edge, (first, good, bad)).into_iter();
    let missing = missing.filter(|wanted| !report.recorded.iter().any(|entry| entry.is(wanted)));
    report.missing = missing.map(|wanted| wanted.to_string()).chain(others).collect();
    Ok(())
}

/// What has to be there, whatever else is; an empty word stands for any.
fn expected(
    canary: &str,
    edge: &str,
    (first, good, bad): (Version, Version, Version),
) -> Vec<StoryEntry> {
    let mut all = Vec::new();
    for site in Site::all() {
        let at = |version, stage, what| StoryEntry::step(site.edge.name, version, stage, what);
        all.extend([at(first, "site", "planned"), at(first, "site", "done")]);
        all.extend([at(good, "shadow", "planned"), at(good, "shadow", "passed")]);
        all.extend([at(good, "canary", "passed"), at(good, "site", "done")]);
    }
    all.push(StoryEntry::step(edge, bad, "shadow", "passed"));
    all.push(StoryEntry::step(edge, bad, "canary", "halted"));
    all.push(StoryEntry::rollback(edge, (bad, good), ""));
    all.push(StoryEntry::rollback(canary, (bad, good), "assigned"));
    let nodes = PLACES.iter().filter(|place| place.tier != Tier::Cloud);
    all.extend(
        nodes.map(|Place { name, .. }| StoryEntry::rollback(name, (good, first), "operator")),
    );
    all
}

fn serves(events: &[Event], bad: Version) -> bool {
    events.iter().any(|event| matches!(event, Event::Rollout { version, .. } if *version == bad))
}
