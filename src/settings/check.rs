//! From merged values to typed settings, or to every problem at once.
//!
//! First each key by itself against the table, then the rules that hold between keys. A value that
//! is wrong is replaced by its default on the way, so that one mistake doesn't hide another.

use std::collections::BTreeSet;

use config::{Config, ConfigError, Map, Source, Value};

use super::keys::{self, KEYS};
use super::layers::{Leaves, toml_text};
use super::{
    Contribute, LearnerName, LinkSettings, NodeRole, Problem, Settings, SettingsError, SplitLabels,
    StrategyName, TagBinds, TagFormat, WithoutReply,
};
use crate::ids::Digest;

/// Checks merged values. `base` are the defaults; `problems` are those of reading the layers.
pub(super) fn check(
    mut values: Leaves,
    base: &Leaves,
    mut problems: Vec<Problem>,
) -> Result<Settings, SettingsError> {
    let origins = values.clone();
    check_keys(&mut values, base, &mut problems);
    let already: BTreeSet<String> = problems.iter().map(|problem| problem.key.clone()).collect();
    match typed(&values) {
        Ok(settings) => {
            for (key, message) in broken_rules(&settings) {
                if !already.contains(&key) {
                    let origin = origins.get(&key).and_then(Value::origin).unwrap_or("no layer");
                    problems.push(Problem { origin: origin.to_owned(), key, message });
                }
            }
            if problems.is_empty() {
                return Ok(settings);
            }
        }
        // Only when a problem above left a hole that no default fills.
        Err(error) if problems.is_empty() => problems.push(Problem {
            key: "settings".to_owned(),
            origin: "all layers".to_owned(),
            message: error.to_string(),
        }),
        Err(_) => {}
    }
    problems.sort_by(|a, b| a.key.cmp(&b.key));
    Err(SettingsError { problems })
}

/// Each key by itself: known, of the right kind, in range, there if required.
fn check_keys(values: &mut Leaves, base: &Leaves, problems: &mut Vec<Problem>) {
    let mut bad = Vec::new();
    let required = required_paths(values);
    for (path, value) in values.iter() {
        let message = match keys::find(path) {
            Some(key) if key.expect.accepts(value) => continue,
            Some(key) => format!("found {}, expected {}", toml_text(value), key.expect),
            None if KEYS.iter().any(|key| is_section(path, key.path)) => {
                format!("found {}, expected a section", toml_text(value))
            }
            None => match keys::nearest(path) {
                Some(near) => format!("unknown key, did you mean {near}?"),
                None => "unknown key".to_owned(),
            },
        };
        let origin = value.origin().unwrap_or("default").to_owned();
        problems.push(Problem { key: path.clone(), origin, message });
        bad.push(path.clone());
    }
    for path in bad {
        values.remove(&path);
    }
    for path in &required {
        if values.contains_key(path) {
            continue;
        }
        if !problems.iter().any(|problem| problem.key == *path) {
            let expect = keys::find(path).map(|key| key.expect.to_string()).unwrap_or_default();
            let message = format!("missing, expected {expect}");
            problems.push(Problem { key: path.clone(), origin: "no layer".to_owned(), message });
        }
    }
    let whole = |path: &str| match path.split_once("].") {
        Some((element, _)) => {
            !problems.iter().any(|bad| bad.key.starts_with(&format!("{element}]")))
        }
        None => true,
    };
    values.retain(|path, _| whole(path));
    for (path, value) in base {
        values.entry(path.clone()).or_insert_with(|| value.clone());
    }
    for path in required.iter().filter(|path| !path.contains('[')) {
        values.entry(path.clone()).or_insert_with(|| Value::new(None, "missing"));
    }
}

/// The required keys, for each element and link that is there.
fn required_paths(values: &Leaves) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for key in KEYS.iter().filter(|key| key.required) {
        match key.path.split_once("[]") {
            Some((array, rest)) => {
                let elements = values.keys().filter(|path| path.starts_with(&format!("{array}[")));
                paths.extend(elements.filter_map(|path| {
                    path.split_once(']').map(|(element, _)| format!("{element}]{rest}"))
                }));
            }
            None => drop(paths.insert(key.path.to_owned())),
        }
    }
    if values.keys().any(|path| path.starts_with("bus.parent.")) {
        paths.insert("bus.parent.host".to_owned());
    }
    paths
}

fn is_section(path: &str, key: &str) -> bool {
    path == "bus.parent" || key.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']))
}

/// The values as a source, to be put together into tables again.
#[derive(Debug, Clone)]
struct Flat(Leaves);

impl Source for Flat {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

fn typed(values: &Leaves) -> Result<Settings, ConfigError> {
    Config::builder().add_source(Flat(values.clone())).build()?.try_deserialize()
}

/// Freezes of rollouts at most.
const MAX_FREEZES: usize = 64;

/// Rules between keys: `(key, what is wrong)`.
fn broken_rules(settings: &Settings) -> Vec<(String, String)> {
    let mut broken = Vec::new();
    let mut rule = |holds: bool, key: &str, message: &str| {
        if !holds {
            broken.push((key.to_owned(), message.to_owned()));
        }
    };
    let node = &settings.node;
    let [trains, relays, aggregates] =
        [NodeRole::Trainer, NodeRole::Relay, NodeRole::Aggregator].map(|role| node.has(role));
    rule(!node.roles.is_empty(), "node.roles", "empty: a node without a role does nothing");
    rule(
        u8::from(trains) + u8::from(relays) + u8::from(aggregates) <= 1,
        "node.roles",
        "trainer, relay and aggregator exclude each other: run a node for each",
    );
    rule(
        node.parent.is_some() || !(trains || relays),
        "node.parent",
        "missing: a trainer or relay has a node above it",
    );
    rule(
        node.parent.is_none() || !aggregates,
        "node.parent",
        "set, but an aggregator has nobody above it",
    );
    rule(
        !(relays || aggregates) || node.line.as_str() == "_",
        "node.line",
        "an edge or cloud belongs to no line: use \"_\"",
    );
    rule(
        !aggregates || node.site.as_str() == "_",
        "node.site",
        "a cloud belongs to no site: use \"_\"",
    );

    let round = &settings.round;
    rule(
        !relays || round.relay_margin_s < round.deadline_s,
        "round.relay_margin_s",
        "not below round.deadline_s: no time would be left for the relay's own round",
    );
    let strategy = &settings.strategy;
    rule(
        strategy.cluster_rounds == 1
            || strategy.contribute.contains(&Contribute::AdapterDelta)
                && !settings.knowledge.own_models,
        "strategy.cluster_rounds",
        "above 1, but a site has rounds of its own only where adapters travel: strategy.contribute with adapter_delta, without \
         knowledge.own_models",
    );
    let island = round.island_after_s;
    rule(
        island == 0 || relays,
        "round.island_after_s",
        "set, but only a relay has a parent to miss and members to go on with",
    );
    rule(
        island == 0 || island > 6 * round.republish_s,
        "round.island_after_s",
        "too short: a parent that has nothing to say is asked every three times round.republish_s, so take \
         more than six times that",
    );
    rule(
        island == 0 || !(settings.split.cut.is_some() || settings.knowledge.own_models),
        "round.island_after_s",
        "set, but a relay goes on alone only where whole adapters travel: not with split.cut or \
         knowledge.own_models",
    );
    let after = round.second_edge_after_s;
    rule(
        after == 0 || after > 6 * round.republish_s,
        "round.second_edge_after_s",
        "too short: an edge that has nothing to say is asked every three times round.republish_s, so take \
         more than six times that, or 0",
    );
    let triggers = !round.triggers.is_empty();
    rule(
        !triggers || aggregates,
        "round.triggers",
        "set, but only the cloud opens rounds; an edge and its devices tell it what they count",
    );
    rule(
        !triggers || !round.auto_start,
        "round.triggers",
        "set, but round.auto_start opens one round after the other: switch that off",
    );
    rule(!strategy.contribute.is_empty(), "strategy.contribute", "empty: nothing to aggregate");
    rule(
        strategy.name != StrategyName::Fedprox || strategy.prox_mu > 0.0,
        "strategy.prox_mu",
        "0 makes fedprox the same as fedavg: raise it, or set strategy.name = \"fedavg\"",
    );
    let knowledge = &settings.knowledge;
    let sends = |kind| strategy.contribute.contains(&kind);
    rule(
        knowledge.own_models
            || ![
                Contribute::Prototypes,
                Contribute::ReferenceLogits,
                Contribute::Generator,
                Contribute::Spectra,
            ]
            .into_iter()
            .any(sends),
        "strategy.contribute",
        "prototypes, reference_logits, generator and spectra need models of the nodes' own: set knowledge.own_models = true",
    );
    rule(
        !(knowledge.own_models && sends(Contribute::AdapterDelta)),
        "strategy.contribute",
        "adapter_delta, but with knowledge.own_models no adapter travels: take it out",
    );
    let texts = settings.model.learner.classifies_texts();
    let writes = settings.model.learner == LearnerName::Language;
    rule(
        knowledge.reference.is_some()
            || knowledge.reference_file.is_some()
            || !sends(Contribute::ReferenceLogits),
        "knowledge.reference",
        "missing: reference_logits need reference inputs",
    );
    rule(
        !(sends(Contribute::Spectra) && (texts || writes)),
        "strategy.contribute",
        "spectra are of sensor windows, and model.learner is one of texts: take them out",
    );
    rule(
        texts || writes || knowledge.reference.is_some() || !sends(Contribute::Spectra),
        "knowledge.reference",
        "missing: spectra are for reference inputs that a generator makes",
    );
    let beside = [Contribute::ReferenceLogits, Contribute::Generator].into_iter().any(sends);
    rule(
        !(sends(Contribute::Spectra) && beside),
        "strategy.contribute",
        "spectra go with prototypes and class_logits only: of reference_logits each node would say others, and layers are left \
         out by other rules; take one of them out",
    );
    rule(
        knowledge.reference.is_none() || knowledge.reference_file.is_none(),
        "knowledge.reference_file",
        "set, but so is knowledge.reference: inputs come from one of them",
    );
    let digest = knowledge.reference_digest.as_deref();
    rule(
        digest.is_some() == knowledge.reference_file.is_some(),
        "knowledge.reference_digest",
        "goes with knowledge.reference_file: set both, or none",
    );
    rule(
        digest.is_none_or(|text| text.parse::<Digest>().is_ok()),
        "knowledge.reference_digest",
        "is no SHA-256: 64 hexadecimal digits, as gaisnet reference show prints them",
    );
    rule(
        knowledge.reference_file.is_some() == (texts || writes && knowledge.own_models),
        "knowledge.reference_file",
        "goes with model.learner = \"text-softmax\" or \"text-encoder\", or with \"language\" and knowledge.own_models: \
         set both, or none",
    );
    rule(
        knowledge.reference_labels || sends(Contribute::ReferenceLogits),
        "knowledge.reference_labels",
        "false, but nobody says anything about the inputs then: contribute reference_logits, or set true",
    );
    let model = &settings.model;
    rule(
        matches!(model.learner, LearnerName::Softmax | LearnerName::TextSoftmax)
            || model.base.is_some(),
        "model.base",
        "missing: this learner needs its base model",
    );
    rule(
        !(knowledge.own_models && writes)
            || strategy.contribute == [Contribute::ReferenceLogits] && knowledge.reference_labels,
        "knowledge.own_models",
        "true, but all that a language model says is the next tokens of reference texts: set strategy.contribute = \
         [\"reference_logits\"] and knowledge.reference_labels = true, or another model.learner",
    );
    let split = settings.split.cut.is_some();
    rule(
        !(split && knowledge.own_models),
        "knowledge.own_models",
        "true, but the halves of a split model aren't models of their own: leave out split.cut, or set false",
    );
    let fronts = split && settings.node.has(NodeRole::Trainer);
    rule(
        !(fronts && settings.cascade.enabled),
        "cascade.enabled",
        "true, but a device with the front of a model asks its edge each time: take it out (wait_ms, in_flight \
         and safe_default count without it)",
    );
    rule(
        !fronts || settings.split.labels == SplitLabels::Edge || settings.tags.is_empty(),
        "tags",
        "set, but a device with the front of a model and its head gives no answers and reads none: take them out, \
         or set split.labels = \"edge\"",
    );
    rule(
        !split || model.learner == LearnerName::SignalTransformer,
        "split.cut",
        "set, but only the signal transformer can be cut: set model.learner = \"signal-transformer\"",
    );
    rule(
        !split || !aggregates,
        "split.cut",
        "set, but a cloud has no part in it: set it on an edge and on its devices",
    );
    rule(
        !split || strategy.contribute.contains(&Contribute::AdapterDelta),
        "strategy.contribute",
        "lacks adapter_delta: the halves of a split model contribute nothing else",
    );
    rule(
        settings.data.set.is_none() || settings.data.client.is_some(),
        "data.client",
        "missing: data.set needs the client whose part this node holds",
    );
    let data = &settings.data;
    rule(
        data.set.is_none() || data.file.is_none(),
        "data.file",
        "set, but so is data.set: a device learns from one of them",
    );
    rule(
        data.column.is_none() || data.file.is_some(),
        "data.column",
        "set, but data.file isn't: a column of which table?",
    );
    rule(
        data.labels.is_some() == (texts && data.file.is_some()),
        "data.labels",
        "goes with data.file and a model that classifies texts: set them all, or none",
    );
    rule(
        data.labels.is_none() || data.column.is_some(),
        "data.column",
        "missing: data.labels and it are columns of the same table",
    );
    rule(
        !texts || settings.tags.is_empty(),
        "tags",
        "set, but a model that classifies texts takes no samples: take them out",
    );
    let names: Vec<_> = model.adapters.iter().map(|adapter| &adapter.name).collect();
    for (at, name) in names.iter().enumerate() {
        rule(
            model.learner == LearnerName::Language,
            &format!("model.adapters[{at}].name"),
            "set, but only a language model takes adapters by name: model.learner = \"language\"",
        );
        rule(
            !names.iter().take(at).any(|other| other == name),
            &format!("model.adapters[{at}].name"),
            "another adapter has this name already",
        );
    }
    let most = settings.limits.adapters;
    rule(
        names.len() <= most,
        "limits.adapters",
        "below the number of [[model.adapters]]: raise it, or take some of them out",
    );
    for (at, tag) in settings.tags.iter().enumerate() {
        rule(
            tag.pointer.is_none() || matches!(tag.format, None | Some(TagFormat::Json)),
            &format!("tags[{at}].pointer"),
            "set, but only JSON has places to point at",
        );
        rule(
            tag.format != Some(TagFormat::F32le) || tag.binds == TagBinds::Feature,
            &format!("tags[{at}].format"),
            "a label, idle flag or veto is one value, not binary samples",
        );
        rule(
            (tag.binds == TagBinds::Veto) == (tag.above.is_some() || tag.below.is_some()),
            &format!("tags[{at}].binds"),
            "a veto needs above, below or both, and nothing else takes them",
        );
        rule(
            (tag.binds == TagBinds::Feature) == tag.model.is_some(),
            &format!("tags[{at}].model"),
            "a feature needs it, a label, idle flag or veto doesn't take it",
        );
    }
    let schedule = settings.schedule.calendar().err();
    let problem = schedule.map_or_else(String::new, |error| error.to_string());
    rule(problem.is_empty(), "schedule.windows", &problem);
    let problem = settings.schedule.time_zone().err().unwrap_or_default();
    rule(problem.is_empty(), "schedule.zone", &problem);
    let cascade = &settings.cascade;
    rule(
        !cascade.enabled || model.learner != LearnerName::Language,
        "cascade.enabled",
        "set, but a model that writes has no confidence to decide by",
    );
    rule(
        !(cascade.enabled && texts),
        "cascade.enabled",
        "set, but only models of windows answer in a cascade",
    );
    rule(
        cascade.on_no_reply == WithoutReply::Local || cascade.safe_default.is_some(),
        "cascade.safe_default",
        "missing: to abstain is to fall back to this label",
    );
    rule(
        !cascade.to_cloud || (relays && cascade.enabled),
        "cascade.to_cloud",
        "set, but only an edge with cascade.enabled passes requests on to the cloud",
    );
    rule(
        !cascade.to_cloud || data.set.is_some(),
        "data.set",
        "missing: with cascade.to_cloud an edge must measure which of its answers are sure",
    );
    let answers_windows =
        node.has(NodeRole::Inferencer) && !(texts || model.learner == LearnerName::Language);
    rule(
        !settings.drift.watch || answers_windows,
        "drift.watch",
        "set, but only a node that answers windows has inputs to compare",
    );
    let rollout = &settings.rollout;
    rule(
        !rollout.steward || relays || aggregates,
        "rollout.steward",
        "set, but only the edge of a site, or the cloud for all sites, decides about rollouts",
    );
    rule(
        !(rollout.steward && rollout.follow),
        "rollout.follow",
        "not with rollout.steward: either this edge decides for its site, or it passes on what its cloud decides",
    );
    rule(
        !(rollout.steward || rollout.follow) || settings.round.island_after_s == 0,
        if rollout.steward { "rollout.steward" } else { "rollout.follow" },
        "not with round.island_after_s: what a site learns alone is no version that could be rolled out",
    );
    rule(
        !rollout.follow || trains || relays,
        "rollout.follow",
        "set, but only a device follows its edge, or an edge its cloud",
    );
    rule(
        !(rollout.steward || rollout.follow)
            || !(settings.split.cut.is_some() || settings.knowledge.own_models),
        if rollout.steward { "rollout.steward" } else { "rollout.follow" },
        "set, but only whole adapters of one model are rolled out: not with split.cut or knowledge.own_models",
    );
    rule(
        !rollout.follow || !(texts || model.learner == LearnerName::Language),
        "rollout.follow",
        "set, but nothing is counted yet of models that take texts, so no gate could be passed",
    );
    rule(rollout.freezes.len() <= MAX_FREEZES, "rollout.freezes", "more than 64 times");
    for (at, freeze) in rollout.freezes.iter().enumerate() {
        rule(
            freeze.times().is_some_and(|(from, until)| from < until),
            &format!("rollout.freezes[{at}].until"),
            "not after from",
        );
    }
    let meters = settings.node.has(NodeRole::Trainer)
        && !fronts
        && matches!(model.learner, LearnerName::Softmax | LearnerName::SignalTransformer);
    rule(
        !settings.privacy.risk_meter || meters,
        "privacy.risk_meter",
        "set, but only devices that train a whole model of windows are measured",
    );
    let telemetry = &settings.telemetry;
    rule(
        telemetry.metrics_public || telemetry.metrics_listen.is_none_or(|at| at.ip().is_loopback()),
        "telemetry.metrics_listen",
        "not a loopback address, and the page has no password: use 127.0.0.1, or set \
         telemetry.metrics_public = true",
    );
    link_rules("bus.site", &settings.bus.site, &mut rule);
    if let Some(link) = &settings.bus.parent {
        link_rules("bus.parent", link, &mut rule);
        rule(relays, "bus.parent.host", "set, but only a relay has a second broker");
    }
    broken
}

fn link_rules(section: &str, link: &LinkSettings, rule: &mut impl FnMut(bool, &str, &str)) {
    rule(
        link.password_file.is_none() || link.username.is_some(),
        &format!("{section}.username"),
        "missing: password_file needs a user name",
    );
    let tls = &link.tls;
    rule(
        tls.ca.is_some() || (tls.cert.is_none() && tls.key.is_none()),
        &format!("{section}.tls.ca"),
        "missing: cert and key need the authority that signed the broker's certificate",
    );
    rule(
        tls.cert.is_none() || tls.key.is_some(),
        &format!("{section}.tls.key"),
        "missing: cert needs its private key",
    );
    rule(
        tls.key.is_none() || tls.cert.is_some(),
        &format!("{section}.tls.cert"),
        "missing: key needs its certificate",
    );
    rule(
        u64::from(link.chunk_bytes) + CHUNK_HEAD_BYTES <= u64::from(link.max_packet_bytes),
        &format!("{section}.chunk_bytes"),
        "a chunk with its head (2 KiB) doesn't fit into max_packet_bytes",
    );
}

/// Room for a chunk's topic and head.
const CHUNK_HEAD_BYTES: u64 = 2048;

#[cfg(test)]
mod tests {
    use crate::settings::{Layers, Tier};

    /// The key that is reported for a device with these assignments, if any.
    fn broken(tier: Tier, assignments: &[&str]) -> Vec<String> {
        let mut layers = Layers::new();
        layers.tier(tier).set("node.name=n");
        if tier != Tier::Cloud {
            layers.set("node.site=s").set("node.parent=p");
        }
        for assignment in assignments {
            layers.set(assignment);
        }
        match layers.load().into_settings() {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.into_iter().map(|problem| problem.key).collect(),
        }
    }

    /// A model that writes and says so.
    const WRITES: &[&str] = &[
        "model.learner=language",
        "model.base=b",
        "knowledge.own_models=true",
        "strategy.contribute=reference_logits",
        "knowledge.reference_file=t",
        "knowledge.reference_digest=0000000000000000000000000000000000000000000000000000000000000000",
    ];

    /// A plan about how classes sound, without the inputs.
    const SOUNDS: &[&str] = &["knowledge.own_models=true", "strategy.contribute=spectra"];
    const GENERATED: &str = "knowledge.reference=bearing-physics-1";

    #[test]
    fn each_rule_between_keys_names_the_key_and_has_a_valid_twin() {
        let (device, edge, cloud) = (Tier::Device, Tier::Edge, Tier::Cloud);
        let cases: &[(Tier, &[&str], &str, &str)] = &[
            (device, &["node.roles=trainer,relay"], "node.roles", "node.roles=trainer"),
            (device, &["node.roles=[]"], "node.roles", "node.roles=inferencer"),
            (cloud, &["node.parent=x"], "node.parent", "node.roles=inferencer"),
            (edge, &["node.line=l1"], "node.line", "node.line=_"),
            (cloud, &["node.site=s"], "node.site", "node.site=_"),
            (
                edge,
                &["round.deadline_s=30", "round.relay_margin_s=30"],
                "round.relay_margin_s",
                "round.relay_margin_s=29",
            ),
            (
                cloud,
                &["strategy.contribute="],
                "strategy.contribute",
                "strategy.contribute=class_logits",
            ),
            (
                cloud,
                &["strategy.name=fedprox", "strategy.prox_mu=0"],
                "strategy.prox_mu",
                "strategy.prox_mu=0.01",
            ),
            (
                device,
                &["schedule.zone=Europe/Atlantis"],
                "schedule.zone",
                "schedule.zone=Europe/Berlin",
            ),
            (
                device,
                &["round.second_edge_after_s=180"],
                "round.second_edge_after_s",
                "round.second_edge_after_s=181",
            ),
            (device, &["model.learner=signal-transformer"], "model.base", "model.base=b"),
            (device, &["model.learner=language"], "model.base", "model.base=b"),
            (
                device,
                &[WRITES, &["strategy.contribute=class_logits"]].concat(),
                "knowledge.own_models",
                "strategy.contribute=reference_logits",
            ),
            (
                edge,
                &[WRITES, &["knowledge.reference_labels=false"]].concat(),
                "knowledge.own_models",
                "knowledge.reference_labels=true",
            ),
            (cloud, SOUNDS, "knowledge.reference", "knowledge.reference=bearing-physics-1"),
            (
                cloud,
                &[SOUNDS, &[GENERATED, "strategy.contribute=spectra,reference_logits"]].concat(),
                "strategy.contribute",
                "strategy.contribute=spectra,prototypes",
            ),
            (
                cloud,
                &[SOUNDS, &[GENERATED, "strategy.contribute=spectra,generator"]].concat(),
                "strategy.contribute",
                "strategy.contribute=spectra,class_logits",
            ),
            (
                device,
                &[WRITES, &["model.learner=text-softmax", "strategy.contribute=spectra"]].concat(),
                "strategy.contribute",
                "strategy.contribute=prototypes",
            ),
            (device, &["data.set=bearings"], "data.client", "data.client=P1"),
            (
                device,
                &["split.cut=1", "model.base=b"],
                "split.cut",
                "model.learner=signal-transformer",
            ),
            (
                cloud,
                &["split.cut=1", "model.base=b", "model.learner=signal-transformer"],
                "split.cut",
                "node.roles=inferencer",
            ),
            (
                device,
                &[
                    "split.cut=1",
                    "model.base=b",
                    "model.learner=signal-transformer",
                    "strategy.contribute=class_logits",
                ],
                "strategy.contribute",
                "strategy.contribute=adapter_delta",
            ),
            (device, &["data.column=text"], "data.column", "data.file=notes.csv"),
            (
                device,
                &["telemetry.metrics_listen=0.0.0.0:9464"],
                "telemetry.metrics_listen",
                "telemetry.metrics_public=true",
            ),
            (device, &["bus.site.password_file=p"], "bus.site.username", "bus.site.username=u"),
            (
                device,
                &["bus.site.tls.cert=c", "bus.site.tls.key=k"],
                "bus.site.tls.ca",
                "bus.site.tls.ca=ca",
            ),
            (
                device,
                &["bus.site.tls.ca=a", "bus.site.tls.cert=c"],
                "bus.site.tls.key",
                "bus.site.tls.key=k",
            ),
            (
                device,
                &["bus.site.tls.ca=a", "bus.site.tls.key=k"],
                "bus.site.tls.cert",
                "bus.site.tls.cert=c",
            ),
            (
                device,
                &["bus.site.chunk_bytes=262144"],
                "bus.site.chunk_bytes",
                "bus.site.chunk_bytes=131072",
            ),
            (device, &["bus.parent.host=h"], "bus.parent.host", "node.roles=relay"),
            (device, &["round.triggers=on_drift"], "round.triggers", "round.triggers="),
            (
                cloud,
                &["round.triggers=on_drift", "round.auto_start=true"],
                "round.triggers",
                "round.auto_start=false",
            ),
            (
                device,
                &["drift.watch=true", "node.roles=trainer"],
                "drift.watch",
                "drift.watch=false",
            ),
            (device, &["rollout.steward=true"], "rollout.steward", "rollout.steward=false"),
            (cloud, &["rollout.follow=true"], "rollout.follow", "rollout.follow=false"),
            (
                edge,
                &["rollout.follow=true", "rollout.steward=true"],
                "rollout.follow",
                "rollout.follow=false",
            ),
            (
                edge,
                &["rollout.follow=true", "round.island_after_s=3600"],
                "rollout.follow",
                "rollout.follow=false",
            ),
            (
                device,
                &["rollout.follow=true", "model.learner=language", "model.base=b"],
                "rollout.follow",
                "rollout.follow=false",
            ),
            (
                device,
                &["cascade.enabled=true", "model.learner=language", "model.base=b"],
                "cascade.enabled",
                "model.learner=softmax",
            ),
            (
                device,
                &["cascade.on_no_reply=abstain"],
                "cascade.safe_default",
                "cascade.safe_default=stop",
            ),
            (
                edge,
                &["cascade.to_cloud=true", "data.set=bearings", "data.client=P1"],
                "cascade.to_cloud",
                "cascade.enabled=true",
            ),
            (
                edge,
                &["cascade.to_cloud=true", "cascade.enabled=true", "data.client=P1"],
                "data.set",
                "data.set=bearings",
            ),
        ];
        for (tier, wrong, key, twin) in cases {
            assert_eq!(broken(*tier, wrong), [*key], "{wrong:?}");
            let right = [*wrong, &[*twin]].concat();
            assert_eq!(broken(*tier, &right), [""; 0], "{right:?}");
        }
    }

    #[test]
    fn each_rule_of_an_adapter_with_a_name_has_a_valid_twin() {
        let broken = |adapters: &[(&str, &str)], more: &[&str]| {
            let mut layers = Layers::new();
            layers.set("node.name=n").set("node.site=s");
            layers.set("model.learner=language").set("model.base=b");
            let block = |(key, value): &(&str, &str)| format!("[[model.adapters]]\n{key}{value}\n");
            layers.text("adapters", &adapters.iter().map(block).collect::<String>());
            for assignment in more {
                layers.set(assignment);
            }
            let error = layers.load().into_settings().err();
            error.map(|error| error.problems.iter().map(|p| p.key.clone()).collect::<Vec<_>>())
        };
        let path = "path = \"p\"\n";
        let (pumps, belts) = ((path, "name = \"pumps\""), (path, "name = \"belts\""));
        assert_eq!(broken(&[pumps, belts], &[]), None);
        let at = |key: &str| Some(vec![key.to_owned()]);
        assert_eq!(broken(&[pumps, pumps], &[]), at("model.adapters[1].name"));
        assert_eq!(broken(&[pumps], &["model.learner=softmax"]), at("model.adapters[0].name"));
        assert_eq!(broken(&[pumps, belts], &["limits.adapters=1"]), at("limits.adapters"));
        assert_eq!(broken(&[pumps, belts], &["limits.adapters=2"]), None);
        for bad in ["../pumps", "a/b", "", "pumps.v2", "3 4"] {
            let name = format!("name = \"{bad}\"");
            assert_eq!(broken(&[(path, &name)], &[]), at("model.adapters[0].name"), "{bad}");
        }
        assert_eq!(broken(&[("", "name = \"pumps\"")], &[]), at("model.adapters[0].path"));
        assert_eq!(broken(&[(path, "")], &[]), at("model.adapters[0].name"));
    }

    #[test]
    fn each_rule_of_a_tag_has_a_valid_twin() {
        let broken = |tag: &str| {
            let mut layers = Layers::new();
            layers.set("node.name=n").set("node.site=s");
            layers.text("tags", &format!("[[tags]]\ntopic = \"a/b\"\n{tag}"));
            layers.load().into_settings().err().map(|error| error.problems[0].key.clone())
        };
        let feature = "binds = \"feature\"\nmodel = \"m\"\n";
        assert_eq!(broken(feature), None);
        assert_eq!(broken("binds = \"feature\""), Some("tags[0].model".into()));
        assert_eq!(broken("binds = \"idle\"\nmodel = \"m\""), Some("tags[0].model".into()));
        let csv = format!("{feature}format = \"csv\"\n");
        assert_eq!(broken(&csv), None);
        assert_eq!(broken(&format!("{csv}pointer = \"/x\"")), Some("tags[0].pointer".into()));
        let binary = "format = \"f32le\"\n";
        assert_eq!(broken(&format!("{feature}{binary}")), None);
        assert_eq!(broken(&format!("binds = \"label\"\n{binary}")), Some("tags[0].format".into()));
    }

    #[test]
    fn a_front_reads_tags_where_its_edge_has_the_head_and_has_no_cascade_of_its_own() {
        let broken = |labels: &str, more: &str| {
            let mut layers = Layers::new();
            layers.tier(Tier::Device).set("node.name=n").set("node.site=s").set("node.parent=p");
            layers.set("split.cut=1").set("model.learner=signal-transformer").set("model.base=b");
            layers.set(&format!("split.labels={labels}")).set(more);
            layers.text("tags", "[[tags]]\ntopic = \"a/b\"\nbinds = \"feature\"\nmodel = \"m\"");
            layers.load().into_settings().err().map(|error| error.problems[0].key.clone())
        };
        assert_eq!(broken("edge", "cascade.safe_default=stop"), None);
        assert_eq!(broken("device", "cascade.wait_ms=500"), Some("tags".into()));
        assert_eq!(broken("edge", "cascade.enabled=true"), Some("cascade.enabled".into()));
    }

    #[test]
    fn a_wrong_value_does_not_hide_a_broken_rule() {
        let found = broken(Tier::Cloud, &["round.quorum=7", "node.site=north"]);
        assert_eq!(found, ["node.site", "round.quorum"]);
    }
}
