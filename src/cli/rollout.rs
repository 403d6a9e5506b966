//! `gaisnet rollout`: plan a rollout in stages and steer it, by commands that are signed here and piped into
//! `mosquitto_pub`, as `gaisnet cmd sign` does.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cmd::{Place, TargetArgs, sign};
use super::exit::Misuse;
use super::trust_files::{path_or_setting, read_keyring, settings_if_named};
use super::{Exit, SettingsArgs};
use crate::ids::{Digest, Name, Version};
use crate::node::{RolloutTerms, rollout_config};
use crate::protocol::rollout::Plan;
use crate::store::keyfile::read_signing_key;
use crate::topic::{CommandName, Prefix};
use crate::trust::keyring::{Keyring, Role};
use crate::wire::Kind;

/// Arguments of `gaisnet rollout`.
#[derive(Debug, Args)]
pub(super) struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Propose a rollout; says beforehand if a gate can't be met
    #[command(after_help = PLAN_HELP)]
    Plan {
        /// The plan: model, version, automatic, stages with their gates
        #[arg(long)]
        file: PathBuf,
        /// Only look whether it could be met, and print its digest; needs no key
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        steward: StewardArgs,
    },
    /// Begin what was proposed
    #[command(after_help = START_HELP)]
    Start(NamedArgs),
    /// Ask how far it is
    #[command(after_help = STATUS_HELP)]
    Status(NamedArgs),
    /// Approve a stage of a plan
    #[command(after_help = APPROVE_HELP)]
    Approve {
        /// The plan that was read
        #[arg(long, conflicts_with = "digest", required_unless_present = "digest")]
        file: Option<PathBuf>,
        /// Its digest, as the status tells it
        #[arg(long)]
        digest: Option<Digest>,
        /// shadow, canary, area, site or federation
        #[arg(long)]
        stage: Name,
        #[command(flatten)]
        named: NamedArgs,
    },
    /// End it: everybody serves the version before
    #[command(after_help = HALT_HELP)]
    Halt(NamedArgs),
    /// Go on to the next stage, where the plan isn't automatic
    #[command(after_help = PROMOTE_HELP)]
    Promote(NamedArgs),
}

#[derive(Debug, Args)]
struct StewardArgs {
    /// Who decides: a site's edge, site/_/edge, or the cloud, _/_/cloud
    #[arg(long, value_name = "SITE/_/EDGE")]
    to: Place,
    /// Private key of the operator or approver
    #[arg(long)]
    key: Option<PathBuf>,
    /// The keyring, which knows whose key that is; default: paths.keyring
    #[arg(long)]
    keyring: Option<PathBuf>,
    /// First levels of all topics
    #[arg(long, default_value = "gaisnet")]
    prefix: Prefix,
}

#[derive(Debug, Args)]
struct NamedArgs {
    /// The model
    #[arg(long)]
    model: Name,
    #[command(flatten)]
    steward: StewardArgs,
}

/// A plan's file: the arguments of the command `rollout.plan`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    model: Name,
    version: Version,
    automatic: bool,
    stages: Value,
}

/// Runs `gaisnet rollout`.
pub(super) fn run(
    args: &RolloutArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let named = settings_if_named(settings)?;
    let keyring_of = |steward: &StewardArgs| {
        let path = path_or_setting(
            steward.keyring.as_ref(),
            named.as_ref(),
            |named| named.paths.keyring.clone(),
            "--keyring FILE",
        )?;
        read_keyring(&path)
    };
    let (verb, steward, args) = match &args.command {
        RolloutCommand::Plan { file, check, steward } => {
            let (plan, args) = read_plan(file)?;
            let terms = RolloutTerms {
                four_eyes: named.as_ref().is_some_and(|named| named.rollout.four_eyes),
                ..RolloutTerms::default()
            };
            if let Some(problem) = cannot_be(&plan, steward, &keyring_of(steward)?, &terms)? {
                writeln!(out, "refused: {problem}")?;
                return Ok(Exit::Refused);
            }
            let bytes = json!({ "args": args }).to_string().len();
            let most = Kind::Command.cap_bytes() - AROUND;
            if bytes > most {
                writeln!(
                    out,
                    "refused: the plan takes {bytes} bytes, a command has {most}: name fewer nodes, or less often"
                )?;
                return Ok(Exit::Refused);
            }
            if *check {
                writeln!(out, "it can be met; its digest is {}", plan.digest())?;
                return Ok(Exit::Ok);
            }
            ("rollout.plan", steward, args)
        }
        RolloutCommand::Approve { file, digest, stage, named } => {
            let digest = match (file, digest) {
                (Some(file), _) => read_plan(file)?.0.digest(),
                (None, Some(digest)) => *digest,
                (None, None) => return Err(Misuse("give --file or --digest".to_owned()).into()),
            };
            let args = json!({ "model": named.model, "plan": digest, "stage": stage });
            ("rollout.approve", &named.steward, args)
        }
        RolloutCommand::Start(named) => ("rollout.start", &named.steward, model_of(named)),
        RolloutCommand::Status(named) => ("rollout.status", &named.steward, model_of(named)),
        RolloutCommand::Halt(named) => ("rollout.halt", &named.steward, model_of(named)),
        RolloutCommand::Promote(named) => ("rollout.promote", &named.steward, model_of(named)),
    };
    let Some(key) = &steward.key else {
        return Err(Misuse("give --key with an operator's key".to_owned()).into());
    };
    let name = CommandName::new(verb).map_err(|error| Misuse(error.to_string()))?;
    let target = TargetArgs { name, to: steward.to.clone(), prefix: steward.prefix.clone() };
    let (keyring, key) = (keyring_of(steward)?, read_signing_key(key, None)?);
    let (topic, bytes) = sign(&target, &json!({ "args": args }).to_string(), key, &keyring)?;
    writeln!(err, "{topic}")?;
    out.write_all(&bytes)?;
    Ok(Exit::Ok)
}

/// Bytes around a command's arguments: signature, head and envelope.
const AROUND: usize = 1024;

fn model_of(named: &NamedArgs) -> Value {
    json!({ "model": named.model })
}

fn read_plan(path: &Path) -> anyhow::Result<(Plan, Value)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let misuse = |error: &dyn std::fmt::Display| Misuse(format!("{}: {error}", path.display()));
    let args: Value = serde_json::from_str(&text).map_err(|error| misuse(&error))?;
    let file = PlanFile::deserialize(&args).map_err(|error| misuse(&error))?;
    let PlanFile { model, version, automatic, stages } = file;
    let plan = Plan::read(model, version, automatic, &stages).map_err(|error| misuse(&error))?;
    Ok((plan, args))
}

/// Why the steward would refuse a plan, as far as the keyring tells it.
fn cannot_be(
    plan: &Plan,
    steward: &StewardArgs,
    keyring: &Keyring,
    terms: &RolloutTerms,
) -> anyhow::Result<Option<String>> {
    let decides = &steward.to.node;
    let roles = keyring.node(decides).map(|entry| entry.roles.clone()).unwrap_or_default();
    if !(roles.contains(&Role::Edge) || roles.contains(&Role::Cloud)) {
        return Err(Misuse(format!("{decides} is no edge or cloud of the keyring")).into());
    }
    // Whoever signs it proposes it; without a key any operator may be meant.
    let by = match &steward.key {
        Some(path) => {
            let id = read_signing_key(path, None)?.public().key_id();
            keyring.by_key(id).map(|entry| entry.node.clone())
        }
        None => None,
    };
    let by = by.unwrap_or_else(|| decides.clone());
    let answers = plan.stages.iter().any(|stage| stage.nodes.contains(decides));
    let learned = (&plan.model, Digest([0; 32]));
    let config = rollout_config(keyring, decides, learned, (answers, 0), terms);
    let checked = plan.check_beforehand(&by, &config);
    Ok(checked.err().map(|error| error.to_string()))
}

const PLAN_HELP: &str = "\
Example:
  gaisnet rollout plan --file plan.json --check --to north/_/edge-n --keyring keyring
  gaisnet rollout plan --file plan.json --to north/_/edge-n --key op/anna.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"

With --to _/_/cloud the cloud decides for all sites: the last stage is then the federation, with all devices.
docs/rollout.md has a plan to start from.";

const START_HELP: &str = "\
Example:
  gaisnet rollout start --model bearing --to north/_/edge-n --key op/anna.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"";

const STATUS_HELP: &str = "\
Example:
  gaisnet rollout status --model bearing --to north/_/edge-n --key op/anna.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"

The reply comes on gaisnet/v1/north/_/edge-n/reply/rollout.status.";

const APPROVE_HELP: &str = "\
Example:
  gaisnet rollout approve --file plan.json --stage site --model bearing --to north/_/edge-n \\
      --key op/ben.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"

What is approved is the digest of the plan that lies here: one that was changed since is refused.";

const HALT_HELP: &str = "\
Example:
  gaisnet rollout halt --model bearing --to north/_/edge-n --key op/anna.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"";

const PROMOTE_HELP: &str = "\
Example:
  gaisnet rollout promote --model bearing --to north/_/edge-n --key op/anna.pem --keyring keyring 2> topic |
    mosquitto_pub -h localhost -q 1 -s -t \"$(cat topic)\"";

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet, gaisnet_bytes};
    use super::*;
    use crate::ids::Side;
    use crate::trust::{Door, open};
    use crate::wire::Body;

    const GOOD: &str = r#"{"model":"bearing","version":12,"automatic":true,"stages":[
        {"stage":"canary","nodes":["press-7"],"gate":{"least_answers":64,"least_nodes":1,"least_ms":60000,
         "most_ms":3600000,"delta":0.05,"max_errors":0.1,"expected":{"answers":1000}}},
        {"stage":"site","nodes":["press-7","press-8"],"approvals":1,"gate":{"least_answers":64,"least_nodes":2,
         "least_ms":60000,"most_ms":3600000,"delta":0.05,"max_errors":0.1,"expected":{"answers":1000}}}]}"#;

    fn federation(plan: &str) -> Federation {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        let edge = ["--role", "edge", "--site", "north", "--parent", "cloud"];
        federation.enrol("edge-n", &edge);
        for device in ["press-7", "press-8"] {
            let place =
                ["--role", "device", "--site", "north", "--line", "press", "--parent", "edge-n"];
            federation.enrol(device, &place);
        }
        federation.enrol("anna", &["--role", "operator"]);
        federation.enrol("ben", &["--role", "approver"]);
        std::fs::write(federation.path("plan.json"), plan).unwrap();
        federation
    }

    fn line<'a>(verb: &[&'a str], paths: &'a [String; 3]) -> Vec<&'a str> {
        let [key, ring, _] = paths;
        let place = ["--to", "north/_/edge-n", "--key", key, "--keyring", ring];
        [&["rollout"], verb, &place].concat()
    }

    fn paths(federation: &Federation, who: &str) -> [String; 3] {
        [format!("keys/{who}.pem"), "keyring".to_owned(), "plan.json".to_owned()]
            .map(|name| federation.path(&name))
    }

    #[test]
    fn each_verb_is_a_signed_command_that_the_edge_opens() {
        let federation = federation(GOOD);
        let (anna, ben) = (paths(&federation, "anna"), paths(&federation, "ben"));
        let keyring = federation.keyring();
        let (prefix, me) = (Prefix::new("gaisnet").unwrap(), Name::new("edge-n").unwrap());
        let door =
            Door { federation: keyring.federation(), prefix: &prefix, me: &me, keyring: &keyring };
        let model = ["--model", "bearing"];
        let verbs = [
            (vec!["plan", "--file", &anna[2]], &anna),
            ([&["start"], &model[..]].concat(), &anna),
            ([&["status"], &model[..]].concat(), &anna),
            ([&["promote"], &model[..]].concat(), &anna),
            ([&["halt"], &model[..]].concat(), &anna),
            ([&["approve", "--file", &ben[2], "--stage", "site"], &model[..]].concat(), &ben),
        ];
        for (verb, paths) in verbs {
            let (exit, bytes) = gaisnet_bytes(&line(&verb, paths));
            assert_eq!(exit.unwrap(), Exit::Ok, "{verb:?}");
            let topic = format!("gaisnet/v1/north/_/edge-n/cmd/rollout.{}", verb[0]);
            let now = super::super::trust_files::now();
            let verified = open(door, Side::Down, &topic, &bytes, now).unwrap();
            assert!(matches!(verified.body(), Body::Command(_)));
        }
        // For all sites it is the cloud that is told, and opens it.
        let model = ["--model", "bearing", "--to", "_/_/cloud"];
        let to_cloud =
            [&["rollout", "start"], &model[..], &["--key", &anna[0], "--keyring", &anna[1]]];
        let (exit, bytes) = gaisnet_bytes(&to_cloud.concat());
        assert_eq!(exit.unwrap(), Exit::Ok);
        let me = Name::new("cloud").unwrap();
        let (topic, door) = ("gaisnet/v1/_/_/cloud/cmd/rollout.start", Door { me: &me, ..door });
        let now = super::super::trust_files::now();
        assert!(open(door, Side::Down, topic, &bytes, now).is_ok());
        // An approver proposes and halts nothing.
        let model = ["--model", "bearing"];
        let (exit, _) = gaisnet(&line(&[&["halt"], &model[..]].concat(), &ben));
        assert!(exit.unwrap_err().to_string().contains("no operator"));
    }

    #[test]
    fn a_plan_that_cannot_be_met_is_not_signed_and_says_why() {
        for (from, to, says) in [
            ("0.1,\"expected\"", "0.0001,\"expected\"", "errors stays open"),
            ("\"press-8\"", "\"press-9\"", "serve this model"),
            ("\"approvals\":1", "\"approvals\":3", "people could give one"),
            ("\"stage\":\"site\"", "\"stage\":\"federation\"", "the last one is the site"),
        ] {
            let federation = federation(&GOOD.replacen(from, to, 1));
            let anna = paths(&federation, "anna");
            let (exit, printed) = gaisnet(&line(&["plan", "--file", &anna[2]], &anna));
            assert_eq!(exit.unwrap(), Exit::Refused);
            assert!(printed.contains(says), "{printed}");
        }
        // The cloud's plans end with the federation, an edge's with its site.
        for (plan, expected) in [
            (GOOD.to_owned(), Exit::Refused),
            (GOOD.replace("\"site\"", "\"federation\""), Exit::Ok),
        ] {
            let federation = federation(&plan);
            let [key, ring, file] = &paths(&federation, "anna");
            let line = ["rollout", "plan", "--check", "--file", file, "--to", "_/_/cloud"];
            let (exit, printed) =
                gaisnet(&[&line[..], &["--key", key, "--keyring", ring]].concat());
            assert_eq!(exit.unwrap(), expected, "{printed}");
        }
        // What no command can carry is said before it is signed: here a name two thousand times.
        let often = format!("[{}]", vec!["\"press-7\""; 2_000].join(","));
        let federation = federation(&GOOD.replacen("[\"press-7\"]", &often, 1));
        let anna = paths(&federation, "anna");
        let (exit, printed) = gaisnet(&line(&["plan", "--file", &anna[2]], &anna));
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(printed.contains("name fewer nodes"), "{printed}");
        let federation = self::federation(GOOD);
        let anna = paths(&federation, "anna");
        let (exit, printed) = gaisnet(&line(&["plan", "--check", "--file", &anna[2]], &anna));
        assert_eq!(exit.unwrap(), Exit::Ok);
        let digest = read_plan(anna[2].as_ref()).unwrap().0.digest().to_string();
        assert!(printed.contains(&digest), "{printed}");
    }
}
