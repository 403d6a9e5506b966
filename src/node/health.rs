//! What the health page shows of a node: its counters for `/metrics`, its reasons for `/readyz`.
//!
//! A node is ready when its links are up with every subscription granted, its disk takes new work and
//! its keyring lets things change. Called once a second by `gaisnet run`.

use std::sync::Arc;

use crate::actors::{FiguresView, MachineView};
use crate::ids::Side;
use crate::telemetry::{Direction, Metrics};
use crate::trust::keyring::Standing;
use crate::web::Readiness;

/// See the module.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// What was shown last: counters grow by the difference.
    shown: FiguresView,
}

impl Health {
    /// Shows through these; `readiness` still says that the node is starting.
    pub fn new(metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self { metrics, readiness, shown: FiguresView::default() }
    }

    /// The node is up.
    pub fn started(&self) {
        self.readiness.clear("start");
    }

    /// Shows how the node is now.
    pub fn show(&mut self, figures: FiguresView, machine: &MachineView, keyring: Standing) {
        self.count(&figures);
        self.metrics.set_round(machine.round);
        self.metrics.set_version(machine.version);
        self.metrics.set_outbox(figures.outbox);
        self.metrics.set_ledger(figures.entries);
        for (side, link, subscription) in [
            (Side::Down, "link_down", "subscription_down"),
            (Side::Up, "link_up", "subscription_up"),
        ] {
            self.say(link, figures.down.get(&side).cloned());
            let refused = figures.refused_filters.get(&side).map(|filters| {
                let names = filters.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("the broker refuses {names}: give this user read access (gaisnet acl)")
            });
            self.say(subscription, refused);
        }
        self.say("disk", figures.full.clone());
        let expired = "it has expired, nothing may change: gaisnet keyring accept a newer one";
        self.say("keyring", (keyring == Standing::Expired).then(|| expired.to_owned()));
        self.shown = figures;
    }

    fn say(&self, key: &'static str, reason: Option<String>) {
        match reason {
            Some(reason) => self.readiness.block(key, reason),
            None => self.readiness.clear(key),
        }
    }

    fn count(&self, now: &FiguresView) {
        let (metrics, last) = (&self.metrics, &self.shown);
        for (reason, count) in &now.counted {
            let before = last.counted.get(reason).copied().unwrap_or(0);
            (before..*count).for_each(|_| metrics.refused(reason));
        }
        for (direction, all, before) in [
            (Direction::In, &now.received, &last.received),
            (Direction::Out, &now.sent, &last.sent),
        ] {
            for (kind, count) in all {
                let before = before.get(kind).copied().unwrap_or(0);
                (before..*count).for_each(|_| metrics.message(kind, direction));
            }
        }
        for (direction, all, before) in [
            (Direction::In, &now.bytes_in, &last.bytes_in),
            (Direction::Out, &now.bytes_out, &last.bytes_out),
        ] {
            for (side, bytes) in all {
                let before = before.get(side).copied().unwrap_or(0);
                metrics.bytes(*side, direction, bytes.saturating_sub(before));
            }
        }
        let answers = usize::try_from(now.answers.saturating_sub(last.answers));
        let newest = now.latencies_ms.iter().rev().take(answers.unwrap_or(usize::MAX));
        newest.for_each(|ms| metrics.answered(ms / 1_000.0));
        for (version, online) in &now.online {
            let before = last.online.get(version).copied().unwrap_or_default();
            let [labelled, right] = [
                online.labelled.saturating_sub(before.labelled),
                online.right.saturating_sub(before.right),
            ];
            metrics.labelled(labelled, right);
        }
        metrics.drifted(now.drifts.saturating_sub(last.drifts));
        metrics.trained(now.train_steps.saturating_sub(last.train_steps));
        (last.commits..now.commits).for_each(|_| metrics.committed());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scada::answer_book::Online;

    fn health() -> Health {
        Health::new(Arc::default(), Readiness::starting())
    }

    fn reasons(health: &Health) -> Vec<&'static str> {
        health.readiness.reasons().into_keys().collect()
    }

    #[test]
    fn a_node_is_ready_when_links_subscriptions_and_keyring_are_good() {
        let (mut health, machine) = (health(), MachineView::default());
        let mut figures = FiguresView::default();
        figures.down.insert(Side::Up, "broker x:1883 is unreachable".into());
        figures.refused_filters.insert(Side::Down, BTreeSet::from(["a/b".to_owned()]));
        figures.full = Some("the disk is 95 % full".into());
        health.show(figures.clone(), &machine, Standing::Expired);
        health.started();
        assert_eq!(reasons(&health), ["disk", "keyring", "link_up", "subscription_down"]);
        let said = health.readiness.reasons();
        assert!(
            said["link_up"].contains("unreachable") && said["subscription_down"].contains("a/b")
        );
        figures.down.clear();
        figures.full = None;
        figures.refused_filters.clear();
        health.show(figures, &machine, Standing::Valid);
        assert!(reasons(&health).is_empty());
    }

    #[test]
    fn counters_are_shown_as_they_are_however_often_one_looks() {
        let (mut health, machine) = (health(), MachineView { round: 7, ..MachineView::default() });
        let mut figures = FiguresView::default();
        for answers in [2, 3, 3] {
            figures.answers = answers;
            figures.latencies_ms = vec![1.0; usize::try_from(answers).unwrap()].into();
            figures.counted.insert("bad_signature", answers);
            figures.received.insert("offer", answers);
            figures.bytes_in.insert(Side::Up, answers * 100);
            figures.commits = answers;
            figures.drifts = 1;
            let online = Online { labelled: answers, right: 1, confidence: 0.0 };
            figures.online.insert(4, online);
            health.show(figures.clone(), &machine, Standing::Valid);
        }
        let text = health.metrics.to_text();
        for line in [
            "gaisnet_refused_messages_total{reason=\"bad_signature\"} 3",
            "gaisnet_messages_total{kind=\"offer\",direction=\"in\"} 3",
            "gaisnet_bus_bytes_total{side=\"up\",direction=\"in\"} 300",
            "gaisnet_answer_seconds_count 3",
            "gaisnet_store_commits_total 3",
            "gaisnet_round_number 7",
            "gaisnet_labelled_answers_total 3",
            "gaisnet_right_answers_total 1",
            "gaisnet_drifts_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }
}
