//! `gaisnet acl`: the broker's access list, derived from the keyring.
//!
//! User name = node name. A node writes its own branch but not its commands and requests, and reads
//! those, its parent's and its children's machine messages and what they send to it. Its branches
//! are written out: a pattern with `+` for the site would let a node write under any site. Groups
//! that only read (SCADA), and operators, have `+` for the node, since people subscribe so.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::trust_files::{path_or_setting, read_keyring, settings_if_named};
use super::{Exit, SettingsArgs};
use crate::ids::Name;
use crate::topic::filter::Filter;
use crate::topic::{Branch, Prefix};
use crate::trust::keyring::{Keyring, NodeEntry, Role};

/// Arguments of `gaisnet acl`.
#[derive(Debug, Args)]
pub(super) struct AclArgs {
    /// The federation's keyring; default: paths.keyring
    #[arg(long)]
    keyring: Option<PathBuf>,
    /// For which broker
    #[arg(long, value_enum, default_value_t = Format::Mosquitto)]
    format: Format,
    /// Only the broker of this site: its edge, its devices, its people
    #[arg(long, conflicts_with = "top")]
    site: Option<Name>,
    /// Only the federation's broker: the cloud and edges, without a site's answers and requests
    #[arg(long)]
    top: bool,
    /// First levels of all topics
    #[arg(long, default_value = "gaisnet")]
    prefix: Prefix,
    /// Sensor topics that devices read and the user `feed` writes; may be repeated
    #[arg(long, value_name = "FILTER")]
    tags: Vec<Filter>,
    /// Devices may ask their edge for answers: with [cascade], and with the front of a split model
    #[arg(long)]
    cascade: bool,
    /// Edges may ask the cloud for answers of this model, so that its inputs leave their site; may be repeated
    #[arg(long, value_name = "MODEL")]
    to_cloud: Vec<Name>,
    /// The list as one JSON object, user -> {read, write}
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The file that `acl_file` names
    Mosquitto,
    /// EMQX 5's acl.conf
    Emqx,
    /// Commands for RabbitMQ's MQTT plugin
    RabbitmqHint,
}

/// What a user may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Rights {
    write: Vec<String>,
    read: Vec<String>,
}

type Rules = BTreeMap<Name, Rights>;

/// Runs `gaisnet acl`.
pub(super) fn run(
    args: &AclArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let named = settings_if_named(settings)?;
    let path = path_or_setting(
        args.keyring.as_ref(),
        named.as_ref(),
        |named| named.paths.keyring.clone(),
        "--keyring FILE",
    )?;
    let keyring = read_keyring(&path)?;
    let scope = match (&args.site, args.top) {
        (Some(site), _) => Scope::Site(site.clone()),
        (None, true) => Scope::Top,
        (None, false) => Scope::All,
    };
    let escalation = Escalation { to_edge: args.cascade, to_cloud: &args.to_cloud };
    let rules = rules(&keyring, &args.prefix, &scope, &args.tags, &escalation)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rules)?)?;
        return Ok(Exit::Ok);
    }
    let (federation, version) = (keyring.federation(), keyring.version());
    let title = format!("gaisnet acl: federation {federation}, keyring version {version}");
    match args.format {
        Format::Mosquitto => mosquitto(&title, &rules, out)?,
        Format::Emqx => emqx(&title, &rules, out)?,
        Format::RabbitmqHint => rabbitmq(&title, &rules, out)?,
    }
    Ok(Exit::Ok)
}

/// Who may ask the node above for answers: nobody, unless it was said.
struct Escalation<'a> {
    /// A device its edge, inside the site.
    to_edge: bool,
    /// An edge the cloud, for these models.
    to_cloud: &'a [Name],
}

/// Whose broker it is.
enum Scope {
    /// One broker for everything.
    All,
    /// A site's.
    Site(Name),
    /// The federation's: only what may leave a site.
    Top,
}

impl Scope {
    fn holds(&self, entry: &NodeEntry) -> bool {
        let is_person = !TIERS.iter().any(|role| entry.roles.contains(role));
        match self {
            Self::All => true,
            Self::Site(site) => entry.site == *site || is_person,
            Self::Top => {
                [Role::Cloud, Role::Edge].iter().any(|role| entry.roles.contains(role)) || is_person
            }
        }
    }

    /// The levels site, line and node for groups.
    fn nodes(&self) -> String {
        match self {
            Self::Site(site) => format!("{site}/+/+"),
            Self::All | Self::Top => "+/+/+".to_owned(),
        }
    }
}

fn rules(
    keyring: &Keyring,
    prefix: &Prefix,
    scope: &Scope,
    tags: &[Filter],
    escalation: &Escalation<'_>,
) -> anyhow::Result<Rules> {
    let mut rules = Rules::new();
    let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
    let everybody = format!("{prefix}/v1/{}", scope.nodes());
    let scada = Name::new("scada")?;
    let operator = Name::new("operator")?;
    let feed = Name::new("feed")?;
    for entry in keyring.nodes().filter(|entry| scope.holds(entry)) {
        let mut rights = Rights::default();
        if TIERS.iter().any(|role| entry.roles.contains(role)) {
            rights = node_rights(keyring, prefix, scope, entry);
            ask_above(keyring, prefix, scope, entry, escalation, &mut rights);
        }
        if entry.roles.contains(&Role::Device) {
            rights.read.extend(tags.iter().cloned());
        }
        if [Role::Operator, Role::Approver].iter().any(|role| entry.roles.contains(role)) {
            let more = operator_rights(&everybody, scope);
            rights.read.extend(more.read);
            rights.write.extend(more.write);
        }
        if rights != Rights::default() {
            rules.insert(entry.node.clone(), rights);
        }
    }
    let groups = [
        (operator, operator_rights(&everybody, scope)),
        (scada, scada_rights(&everybody, scope)),
        (feed, Rights { write: tags, read: Vec::new() }),
    ];
    for (name, rights) in groups {
        if rights == Rights::default() || rules.get(&name) == Some(&rights) {
            continue;
        }
        if rules.insert(name.clone(), rights).is_some() {
            bail!("a node is called {name}, which is the name of a group of users: rename it");
        }
    }
    Ok(rules)
}

fn node_rights(keyring: &Keyring, prefix: &Prefix, scope: &Scope, entry: &NodeEntry) -> Rights {
    let own = branch(prefix, entry);
    let leaves: &[&str] = if matches!(scope, Scope::Top) {
        // A site's answers, streams and replies stay inside its zone.
        if entry.roles.contains(&Role::Cloud) {
            OWN_LEAVES
        } else {
            &["status", "meta", "kpi", "event/#", "m/#", "to/#"]
        }
    } else {
        OWN_LEAVES
    };
    let write = leaves.iter().map(|leaf| format!("{own}/{leaf}")).collect();
    let mut read = vec![format!("{own}/status"), format!("{own}/m/checkpoint")];
    if !matches!(scope, Scope::Top) || entry.roles.contains(&Role::Cloud) {
        read.extend([format!("{own}/cmd/#"), format!("{own}/infer/#")]);
        if !entry.roles.contains(&Role::Cloud) {
            read.push(format!("{own}/feedback/#"));
        }
    }
    let owners = keyring.owners_of(&entry.node);
    let peer = keyring.peer_of(&entry.node).and_then(|peer| keyring.node(peer));
    let below = keyring.members_of(&entry.node).chain(peer);
    let neighbours = owners.chain(below);
    for neighbour in neighbours.filter(|neighbour| scope.holds(neighbour)) {
        let there = branch(prefix, neighbour);
        read.extend([format!("{there}/m/#"), format!("{there}/to/{}/#", entry.node)]);
    }
    // Of a guest only what it sends here, of a second edge what a member of its rounds hears.
    let to_us = |there: &Branch| format!("{there}/to/{}/#", entry.node);
    if let Some(second) = keyring.second_edge_of(&entry.node) {
        let there = branch(prefix, second);
        read.extend([format!("{there}/m/offer"), format!("{there}/m/result"), to_us(&there)]);
    }
    let guests = keyring.guests_of(&entry.node).filter(|guest| scope.holds(guest));
    read.extend(guests.map(|guest| to_us(&branch(prefix, guest))));
    Rights { write, read }
}

/// Requests to the node above, and its replies.
fn ask_above(
    keyring: &Keyring,
    prefix: &Prefix,
    scope: &Scope,
    entry: &NodeEntry,
    escalation: &Escalation<'_>,
    rights: &mut Rights,
) {
    let parent = entry.parent.as_ref().and_then(|parent| keyring.node(parent));
    let Some(parent) = parent.filter(|parent| scope.holds(parent)) else { return };
    let there = branch(prefix, parent);
    let is_device = entry.roles.contains(&Role::Device);
    let asks: Vec<String> = if is_device && escalation.to_edge {
        vec![format!("{there}/infer/#")]
    } else if !is_device {
        escalation.to_cloud.iter().map(|model| format!("{there}/infer/{model}")).collect()
    } else {
        Vec::new()
    };
    if !asks.is_empty() {
        rights.write.extend(asks);
        rights.read.push(format!("{there}/reply/infer"));
    }
}

fn operator_rights(everybody: &str, scope: &Scope) -> Rights {
    let all = |leaves: &[&str]| leaves.iter().map(|leaf| format!("{everybody}/{leaf}")).collect();
    match scope {
        Scope::Top => Rights { write: all(&["cmd/#"]), read: all(&["reply/#", "status", "kpi"]) },
        Scope::All | Scope::Site(_) => Rights {
            write: all(&["cmd/#", "infer/#", "feedback/#"]),
            read: all(&["reply/#", "stream/#", "status", "kpi"]),
        },
    }
}

fn scada_rights(everybody: &str, scope: &Scope) -> Rights {
    let leaves: &[&str] = match scope {
        Scope::Top => &["event/#", "status", "meta", "kpi"],
        Scope::All | Scope::Site(_) => &["inference/#", "event/#", "status", "meta", "kpi"],
    };
    let read = leaves.iter().map(|leaf| format!("{everybody}/{leaf}")).collect();
    Rights { write: Vec::new(), read }
}

fn branch(prefix: &Prefix, entry: &NodeEntry) -> Branch {
    let (site, line, node) = (entry.site.clone(), entry.line.clone(), entry.node.clone());
    Branch { prefix: prefix.clone(), site, line, node }
}

fn mosquitto(title: &str, rules: &Rules, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "# {title}")?;
    writeln!(out, "# Every user needs a password: mosquitto_passwd FILE NAME")?;
    for (user, Rights { write, read }) in rules {
        writeln!(out, "\nuser {user}")?;
        for (verb, filters) in [("write", write), ("read", read)] {
            for filter in filters {
                writeln!(out, "topic {verb} {filter}")?;
            }
        }
    }
    Ok(())
}

fn emqx(title: &str, rules: &Rules, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "%% {title}")?;
    for (user, Rights { write, read }) in rules {
        writeln!(out)?;
        for (verb, filters) in [("publish", write), ("subscribe", read)] {
            if filters.is_empty() {
                continue;
            }
            let filters: Vec<String> = filters.iter().map(|filter| format!("{filter:?}")).collect();
            let filters = filters.join(",\n  ");
            writeln!(out, "{{allow, {{username, {{eq, \"{user}\"}}}}, {verb}, [\n  {filters}]}}.")?;
        }
    }
    writeln!(out, "\n{{deny, all}}.")
}

/// RabbitMQ keeps topic permissions as one pair of regular expressions a user, over routing keys in
/// which `/` has become `.`.
fn rabbitmq(title: &str, rules: &Rules, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "# {title}")?;
    writeln!(
        out,
        "# Run on a RabbitMQ node, after `rabbitmqctl add_user NAME PASSWORD` for each."
    )?;
    for (user, Rights { write, read }) in rules {
        let (write, read) = (routing_keys(write), routing_keys(read));
        writeln!(
            out,
            "\nrabbitmqctl set_permissions {user} '^mqtt-subscription-' \
             '^(mqtt-subscription-.*|amq\\.topic)$' '^(mqtt-subscription-.*|amq\\.topic)$'"
        )?;
        writeln!(out, "rabbitmqctl set_topic_permissions {user} amq.topic '{write}' '{read}'")?;
    }
    Ok(())
}

fn routing_keys(filters: &[String]) -> String {
    let keys = filters.iter().map(|filter| {
        let levels = filter.split('/').map(|level| match level {
            "#" => ".*".to_owned(),
            "+" => "[^.]+".to_owned(),
            _ => level.replace('.', "\\."),
        });
        levels.collect::<Vec<_>>().join("\\.")
    });
    let keys: Vec<String> = keys.collect();
    // An empty list must match nothing.
    if keys.is_empty() { "^$".to_owned() } else { format!("^({})$", keys.join("|")) }
}

const TIERS: [Role; 3] = [Role::Cloud, Role::Edge, Role::Device];

/// What a node writes: everything below its branch but `cmd`, `infer` and `feedback`.
const OWN_LEAVES: &[&str] =
    &["status", "meta", "kpi", "inference/#", "reply/#", "event/#", "stream/#", "m/#", "to/#"];

/// Examples for `--help`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet acl --keyring keyring > /etc/mosquitto/gaisnet.acl
  gaisnet acl --keyring keyring --site north --tags 'plant/north/#'
  gaisnet acl --keyring keyring --top --format emqx
  gaisnet acl --keyring keyring --site north --cascade       devices may ask their edge

Users are the nodes by their names, the operators of the keyring, and scada, operator and feed.";

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet};
    use super::*;
    use crate::topic::Leaf;
    use crate::topic::spec::TOPICS;

    fn federation() -> Federation {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        for (edge, site, device) in [("edge-n", "north", "p1"), ("edge-s", "south", "p2")] {
            federation.enrol(edge, &["--role", "edge", "--site", site, "--parent", "cloud"]);
            let place = ["--role", "device", "--site", site, "--line", "l1", "--parent", edge];
            federation.enrol(device, &place);
        }
        federation.enrol("anna", &["--role", "operator"]);
        federation
    }

    fn json(federation: &Federation, more: &[&str]) -> serde_json::Value {
        let keyring = federation.path("keyring");
        let line = [&["acl", "--json", "--keyring", keyring.as_str()], more].concat();
        let (exit, text) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_device_writes_its_own_branch_and_reads_what_is_meant_for_it() {
        let rules = json(&federation(), &["--tags", "plant/north/#"]);
        let b = "gaisnet/v1/north/l1/p1";
        let write = [
            "status",
            "meta",
            "kpi",
            "inference/#",
            "reply/#",
            "event/#",
            "stream/#",
            "m/#",
            "to/#",
        ];
        let write: Vec<String> = write.iter().map(|leaf| format!("{b}/{leaf}")).collect();
        assert_eq!(rules["p1"]["write"], serde_json::json!(write));
        let edge = "gaisnet/v1/north/_/edge-n";
        let read = [
            format!("{b}/status"),
            format!("{b}/m/checkpoint"),
            format!("{b}/cmd/#"),
            format!("{b}/infer/#"),
            format!("{b}/feedback/#"),
            format!("{edge}/m/#"),
            format!("{edge}/to/p1/#"),
            "plant/north/#".to_owned(),
        ];
        assert_eq!(rules["p1"]["read"], serde_json::json!(read));
        assert_eq!(rules["anna"], rules["operator"]);
        assert_eq!(rules["feed"]["write"], serde_json::json!(["plant/north/#"]));
        assert_eq!(rules["scada"]["write"], serde_json::json!([]));
    }

    #[test]
    fn the_shipped_example_is_what_is_printed() {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        let edge = ["--role", "edge", "--site", "north", "--parent", "cloud"];
        federation.enrol("edge", &edge);
        let device =
            ["--role", "device", "--site", "north", "--line", "line-1", "--parent", "edge"];
        federation.enrol("press-3", &device);
        let keyring = federation.path("keyring");
        let line = ["acl", "--keyring", &keyring, "--site", "north", "--tags", "plant/press-3/#"];
        let (exit, text) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let rules = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.map(str::to_owned).collect()
        };
        let example = include_str!("../../brokers/mosquitto/acl.example");
        assert_eq!(rules(&text), rules(example));
    }

    #[test]
    fn what_a_node_may_write_is_what_the_table_of_topics_gives_it() {
        for spec in TOPICS {
            let example = spec.pattern.replace(['{', '}'], "");
            let leaf: Leaf = example.parse().unwrap();
            let covered = OWN_LEAVES
                .iter()
                .any(|own| Filter::new(format!("b/{own}")).unwrap().covers(&format!("b/{leaf}")));
            assert_eq!(covered, !spec.is_to_owner(), "{example}");
        }
    }

    #[test]
    fn a_sites_broker_and_the_federations_have_just_their_own() {
        let federation = federation();
        let site = json(&federation, &["--site", "north"]);
        let users: Vec<&String> = site.as_object().unwrap().keys().collect();
        assert_eq!(users, ["anna", "edge-n", "operator", "p1", "scada"]);
        assert!(!site.to_string().contains("south") && !site.to_string().contains("cloud"));
        let top = json(&federation, &["--top"]);
        let users: Vec<&String> = top.as_object().unwrap().keys().collect();
        assert_eq!(users, ["anna", "cloud", "edge-n", "edge-s", "operator", "scada"]);
        let edge = top["edge-n"].to_string();
        for inside in ["infer", "stream", "reply", "cmd", "/p1"] {
            assert!(!edge.contains(inside), "{inside}: {edge}");
        }
    }

    #[test]
    fn nobody_asks_the_node_above_unless_it_was_said_and_then_just_there() {
        let federation = federation();
        let edge = "gaisnet/v1/north/_/edge-n";
        let north = json(&federation, &["--site", "north", "--cascade", "--to-cloud", "bearing"]);
        let has = |rights: &serde_json::Value, filter: &str| {
            rights.as_array().unwrap().iter().any(|known| known == filter)
        };
        assert!(has(&north["p1"]["write"], &format!("{edge}/infer/#")));
        assert!(has(&north["p1"]["read"], &format!("{edge}/reply/infer")));
        assert!(!north["edge-n"].to_string().contains("cloud"), "not at the site's broker");
        let cloud = "gaisnet/v1/_/_/cloud";
        let top = json(&federation, &["--top", "--cascade", "--to-cloud", "bearing"]);
        assert!(has(&top["edge-n"]["write"], &format!("{cloud}/infer/bearing")));
        assert!(has(&top["edge-n"]["read"], &format!("{cloud}/reply/infer")));
        for (scope, user) in [(&["--site", "north"][..], "p1"), (&["--top", "--cascade"], "edge-n")]
        {
            let rights = json(&federation, scope)[user].to_string();
            let above = if user == "p1" { edge } else { cloud };
            for leaf in ["infer", "reply"] {
                assert!(!rights.contains(&format!("{above}/{leaf}")), "{user}: {rights}");
            }
        }
    }

    #[test]
    fn each_format_names_each_user_and_nothing_of_the_revoked() {
        let federation = federation();
        federation.change(&["keys", "revoke", "p2"]).unwrap();
        let keyring = federation.path("keyring");
        for (format, mark) in [
            ("mosquitto", "user p1\ntopic write gaisnet/v1/north/l1/p1/status"),
            (
                "emqx",
                "{allow, {username, {eq, \"p1\"}}, publish, [\n  \"gaisnet/v1/north/l1/p1/status\"",
            ),
            (
                "rabbitmq-hint",
                "set_topic_permissions p1 amq.topic '^(gaisnet\\.v1\\.north\\.l1\\.p1\\.status|",
            ),
        ] {
            let (exit, text) = gaisnet(&["acl", "--keyring", &keyring, "--format", format]);
            assert_eq!(exit.unwrap(), Exit::Ok);
            assert!(text.contains(mark), "{text}");
            assert!(!text.contains("p2") && text.contains("scada"), "{text}");
        }
    }

    #[test]
    fn a_node_with_the_name_of_a_group_is_refused() {
        let federation = Federation::new();
        federation.enrol("scada", &["--role", "cloud"]);
        let refused = gaisnet(&["acl", "--keyring", &federation.path("keyring")]).0.unwrap_err();
        assert!(refused.to_string().contains("rename it"), "{refused:#}");
    }
}
