//! The command line: one file a command.
//!
//! A command takes its arguments and a writer, and gives an [`Exit`] or an error; nothing else ends
//! the program. Results go to standard output, logs and errors to standard error, so that `--json`
//! can be piped. Exit codes are told by `gaisnet --help`.

mod acl;
#[cfg(feature = "torch")]
mod adapter;
mod audit;
#[cfg(feature = "broker")]
mod broker;
mod cmd;
mod config;
mod data;
#[cfg(feature = "broker")]
mod demo;
mod doctor;
mod exit;
mod experiment;
mod feed;
#[cfg(feature = "torch")]
mod infer;
mod init;
mod keyring;
mod keys;
#[cfg(feature = "torch")]
mod model;
#[cfg(feature = "torch")]
mod plan;
#[cfg(feature = "torch")]
mod pretrain;
mod reference;
mod rollback;
mod rollout;
mod run;
mod settings_args;
#[cfg(feature = "sim")]
mod sim;
mod trust_files;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

pub use exit::Exit;
pub use settings_args::SettingsArgs;

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(name = "gaisnet", version, about = ABOUT, after_help = AFTER_HELP)]
#[command(propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    /// End in order when standard input closes: whoever holds its other end is gone
    #[arg(long, global = true, hide = true)]
    end_with_stdin: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show or check the settings
    Config(config::ConfigArgs),
    /// Two sites, four machines and a cloud learn together on this machine, on real recordings
    #[cfg(feature = "broker")]
    #[command(after_help = demo::HELP)]
    Demo(demo::DemoArgs),
    /// Write the settings and the key of a new node into a folder
    #[command(after_help = init::HELP)]
    Init(init::InitArgs),
    /// Look for what would keep this node from working, and say what to do
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::DoctorArgs),
    /// Make, show, enrol, rotate and revoke keys
    Keys(keys::KeysArgs),
    /// Start, show and accept the federation's signed keyring
    Keyring(keyring::KeyringArgs),
    /// Read, verify, prove and export a node's audit ledger
    Audit(audit::AuditArgs),
    /// Print the broker's access list, derived from the keyring
    #[command(after_help = acl::HELP)]
    Acl(acl::AclArgs),
    /// Sign a command, or tell its topic
    Cmd(cmd::CmdArgs),
    /// Fetch, list and show real data sets
    Data(data::DataArgs),
    /// Compare ways to learn on this machine, on real texts and recordings
    Experiment(experiment::ExperimentArgs),
    /// Run the protocol of thousands of simulated machines, with faults, and look whether it holds
    #[cfg(feature = "sim")]
    #[command(after_help = sim::HELP)]
    Sim(sim::SimArgs),
    /// Make reference inputs, on which models of different kinds teach each other
    Reference(reference::ReferenceArgs),
    /// Make a base for vibration from a seed, on generated signals
    #[cfg(feature = "torch")]
    #[command(after_help = pretrain::HELP)]
    Pretrain(pretrain::PretrainArgs),
    /// Propose for each member what it should do in a round, from what was measured of it
    #[cfg(feature = "torch")]
    #[command(after_help = plan::HELP)]
    Plan(plan::PlanArgs),
    /// Sign or check a base
    #[cfg(feature = "torch")]
    Model(model::ModelArgs),
    /// Continue a text in the terminal
    #[cfg(feature = "torch")]
    #[command(after_help = infer::HELP)]
    Infer(infer::InferArgs),
    /// Bring a language model's adapter from Python's peft, or to it
    #[cfg(feature = "torch")]
    Adapter(adapter::AdapterArgs),
    /// Let a stopped node serve the version before again
    #[command(after_help = rollback::HELP)]
    Rollback(rollback::RollbackArgs),
    /// Plan the rollout of a version in stages, and steer it
    Rollout(rollout::RolloutArgs),
    /// Run this node until it is told to stop
    #[command(after_help = run::HELP)]
    Run,
    /// Run a small MQTT broker for demos, tests and a single small site
    #[cfg(feature = "broker")]
    #[command(after_help = broker::HELP)]
    Broker(broker::BrokerArgs),
    /// Play recordings onto plant topics
    #[command(after_help = feed::HELP)]
    Feed(feed::FeedArgs),
}

/// Runs the program with these arguments (the first is its name).
pub fn main(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, the rest are mistakes; clap knows which stream.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    exit::conclude(run(cli, out), &mut std::io::stderr().lock()).into()
}

fn run(cli: Cli, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let Cli { settings, end_with_stdin, command } = cli;
    if end_with_stdin {
        exit::end_with_stdin().context("no thread that watches standard input")?;
    }
    match command {
        Command::Config(args) => config::run(&args, &settings, out),
        #[cfg(feature = "broker")]
        Command::Demo(args) => demo::run(&args, out),
        Command::Init(args) => init::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, &settings, out),
        Command::Keys(args) => keys::run(&args, &settings, out),
        Command::Keyring(args) => keyring::run(&args, &settings, out),
        Command::Audit(args) => audit::run(&args, &settings, out),
        Command::Acl(args) => acl::run(&args, &settings, out),
        Command::Cmd(args) => cmd::run(&args, &settings, out, &mut std::io::stderr().lock()),
        Command::Data(args) => data::run(&args, out),
        Command::Experiment(args) => experiment::run(&args, out),
        #[cfg(feature = "sim")]
        Command::Sim(args) => sim::run(&args, out),
        Command::Reference(args) => reference::run(&args, out),
        #[cfg(feature = "torch")]
        Command::Pretrain(args) => pretrain::run(&args, out),
        #[cfg(feature = "torch")]
        Command::Plan(args) => plan::run(&args, &settings, out),
        #[cfg(feature = "torch")]
        Command::Model(args) => model::run(&args, out),
        #[cfg(feature = "torch")]
        Command::Infer(args) => infer::run(&args, out),
        #[cfg(feature = "torch")]
        Command::Adapter(args) => adapter::run(&args, out),
        #[cfg(feature = "broker")]
        Command::Broker(args) => broker::run(&args, out),
        Command::Feed(args) => feed::run(&args, out),
        Command::Rollback(args) => rollback::run(&args, &settings, out),
        Command::Rollout(args) => {
            rollout::run(&args, &settings, out, &mut std::io::stderr().lock())
        }
        Command::Run => run::run(&settings, out),
    }
}

const ABOUT: &str = "A plant's small models and a company's large model teach each other over the \
                     plant's own MQTT broker";

const AFTER_HELP: &str = "\
Examples:
  gaisnet init device --name press-7 --site north --parent edge-north ./press-7
  gaisnet doctor --config ./press-7/gaisnet.toml
  gaisnet config print --config ./press-7/gaisnet.toml --set round.quorum=0.8

Exit codes:
  0  done
  1  failed: disk, network, broker; the message names the cause
  2  wrong usage or settings; nothing was done
  3  a check said no (doctor, keys, keyring, audit verify, rollback)
  4  an invariant was broken (sim)";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Runs a command line as a user would; gives the exit and what was printed.
    pub(super) fn gaisnet(line: &[&str]) -> (anyhow::Result<Exit>, String) {
        let (exit, out) = gaisnet_bytes(line);
        (exit, String::from_utf8(out).unwrap())
    }

    /// The same for a command that writes bytes.
    pub(super) fn gaisnet_bytes(line: &[&str]) -> (anyhow::Result<Exit>, Vec<u8>) {
        let cli = Cli::try_parse_from([&["gaisnet"], line].concat()).unwrap();
        let mut out = Vec::new();
        let exit = run(cli, &mut out);
        (exit, out)
    }

    /// A folder with a root key, a keyring and whoever was enrolled, made by the commands.
    pub(super) struct Federation {
        folder: tempfile::TempDir,
    }

    impl Federation {
        pub(super) fn new() -> Self {
            let this = Self { folder: tempfile::tempdir().unwrap() };
            let (root, keyring) = (this.path("root/root.pem"), this.path("keyring"));
            gaisnet(&["keys", "new", &root]).0.unwrap();
            let line = ["keyring", "new", &keyring, "--federation", "pilot", "--root", &root];
            gaisnet(&line).0.unwrap();
            this
        }

        pub(super) fn path(&self, name: &str) -> String {
            self.folder.path().join(name).to_str().unwrap().to_owned()
        }

        pub(super) fn keyring(&self) -> crate::trust::keyring::Keyring {
            trust_files::read_keyring(self.path("keyring").as_ref()).unwrap()
        }

        /// Makes `keys/{key}.pem` and the request of `node` with it; gives the request's path.
        pub(super) fn request(&self, key: &str, node: &str, place: &[&str]) -> String {
            let (file, request) =
                (self.path(&format!("keys/{key}.pem")), self.path(&format!("{key}.json")));
            gaisnet(&["keys", "new", &file]).0.unwrap();
            let who = ["keys", "prove", "--key", &file, "--name", node, "--federation", "pilot"];
            gaisnet(&[&who[..], &["--out", &request], place].concat()).0.unwrap();
            request
        }

        pub(super) fn enrol(&self, node: &str, place: &[&str]) {
            let request = self.request(node, node, place);
            self.change(&["keys", "enrol", &request]).unwrap();
        }

        pub(super) fn change(&self, line: &[&str]) -> anyhow::Result<Exit> {
            let (root, keyring) = (self.path("root/root.pem"), self.path("keyring"));
            gaisnet(&[line, &["--root", &root, "--keyring", &keyring]].concat()).0
        }
    }

    #[test]
    fn every_command_is_well_formed_and_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        let mut open: Vec<&clap::Command> = command.get_subcommands().collect();
        while let Some(command) = open.pop() {
            if command.get_name() == "help" {
                continue;
            }
            open.extend(command.get_subcommands());
            if command.has_subcommands() {
                continue;
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
        }
    }

    /// clap takes the one for the other and panics.
    #[test]
    fn no_command_has_an_argument_with_the_id_of_a_global_one() {
        let command = Cli::command();
        let ids = |command: &clap::Command| -> Vec<String> {
            command.get_arguments().map(|argument| argument.get_id().to_string()).collect()
        };
        let global = ids(&command);
        assert!(!global.is_empty());
        let mut open: Vec<&clap::Command> = command.get_subcommands().collect();
        while let Some(command) = open.pop() {
            open.extend(command.get_subcommands());
            let both: Vec<_> = ids(command).into_iter().filter(|id| global.contains(id)).collect();
            assert!(both.is_empty(), "{}: {both:?}", command.get_name());
        }
    }

    #[test]
    fn wrong_usage_ends_with_2_and_help_with_0() {
        let code = |line: &[&str]| {
            let args = line.iter().map(OsString::from);
            format!("{:?}", main(args, &mut Vec::new()))
        };
        assert_eq!(code(&["gaisnet", "fly"]), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code(&["gaisnet", "--help"]), format!("{:?}", ExitCode::SUCCESS));
    }
}
