//! Commands from an operator: `cmd/{name}` with `{"id": .., "args": {..}, "exp": ..}`.
//!
//! Strict: a cap before parsing, no unknown fields, an expiry that can only refuse, nothing that the
//! broker had kept. Commands that change what is served or trusted need a signature; the others may
//! come as plain JSON where [`CommandPolicy`] says so. Every refusal becomes a [`Reply`].
//!
//! Whoever calls [`parse`] routes signed payloads ([`is_signed`]) to `trust` first and gives the
//! JSON inside them to [`parse_signed`]. Repeats are the business of
//! [`ReplayWindow`](crate::scada::replay::ReplayWindow).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::ids::{Digest, Name, Version};
use crate::scada::object::{FieldError, Fields, shorten};
use crate::scada::request_id::RequestId;
use crate::scada::telegram::Reply;
use crate::time::Wall;

/// Most bytes of a command's payload.
pub const MAX_COMMAND_BYTES: usize = 16 * 1024;

/// A command that may be carried out, once.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The asker's id, to be echoed.
    pub id: Option<RequestId>,
    /// What to do.
    pub action: Action,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell how the node is.
    Status,
    /// Open a round now.
    RoundStart,
    /// Stop training and taking part in rounds; answers go on.
    Pause,
    /// Undo [`Action::Pause`].
    Resume,
    /// List the models and their versions.
    ModelList,
    /// Change one setting.
    ConfigSet {
        /// Its key, `section.key`.
        key: String,
        /// Its new value: text, number or flag.
        value: Value,
    },
    /// Serve an earlier version again.
    Rollback {
        /// The model.
        model: Name,
        /// The version to go back to; the one before, if none is named.
        version: Option<Version>,
    },
    /// Take over the keyring with this digest, which was put in place of the one in use.
    KeyringUpdate {
        /// Its version.
        version: u64,
        /// SHA-256 of its bytes.
        digest: Digest,
    },
    /// Serve this version and newer ones again, after a rollback.
    VersionRelease {
        /// The model.
        model: Name,
        /// The least version.
        version: Version,
    },
    /// From now on nobody but a signer goes below this version.
    VersionFloor {
        /// The model.
        model: Name,
        /// The least version.
        version: Version,
    },
    /// Something about the rollout of a version in stages.
    Rollout {
        /// The model; a question needs none.
        model: Option<Name>,
        /// What.
        verb: RolloutVerb,
    },
}

/// What a command wants of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum RolloutVerb {
    /// Propose one.
    Plan {
        /// The version.
        version: Version,
        /// A stage that is passed leads to the next by itself.
        automatic: bool,
        /// The stages, as `protocol::rollout` reads them.
        stages: Value,
    },
    /// Begin what was proposed.
    Start,
    /// Approve a stage of a plan.
    Approve {
        /// The plan's digest.
        plan: Digest,
        /// The stage's name.
        stage: String,
    },
    /// Go on to the next stage.
    Promote,
    /// End it here.
    Halt,
    /// Tell how far it is.
    Status,
}

impl RolloutVerb {
    /// The command that says it.
    pub fn command(&self) -> CommandKind {
        match self {
            Self::Plan { .. } => CommandKind::RolloutPlan,
            Self::Start => CommandKind::RolloutStart,
            Self::Approve { .. } => CommandKind::RolloutApprove,
            Self::Promote => CommandKind::RolloutPromote,
            Self::Halt => CommandKind::RolloutHalt,
            Self::Status => CommandKind::RolloutStatus,
        }
    }
}

impl Action {
    /// Whether it only asks and changes nothing.
    pub fn only_asks(&self) -> bool {
        let status = matches!(self, Self::Rollout { verb: RolloutVerb::Status, .. });
        status || matches!(self, Self::Status | Self::ModelList)
    }
}

/// The commands by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the action of its name")]
pub enum CommandKind {
    Status,
    RoundStart,
    Pause,
    Resume,
    ModelList,
    ConfigSet,
    Rollback,
    KeyringUpdate,
    VersionRelease,
    VersionFloor,
    RolloutPlan,
    RolloutStart,
    RolloutApprove,
    RolloutPromote,
    RolloutHalt,
    RolloutStatus,
}

impl CommandKind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Status,
        Self::RoundStart,
        Self::Pause,
        Self::Resume,
        Self::ModelList,
        Self::ConfigSet,
        Self::Rollback,
        Self::KeyringUpdate,
        Self::VersionRelease,
        Self::VersionFloor,
        Self::RolloutPlan,
        Self::RolloutStart,
        Self::RolloutApprove,
        Self::RolloutPromote,
        Self::RolloutHalt,
        Self::RolloutStatus,
    ];

    /// Last level of its topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::RoundStart => "round.start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::ModelList => "model.list",
            Self::ConfigSet => "config.set",
            Self::Rollback => "rollback",
            Self::KeyringUpdate => "keyring.update",
            Self::VersionRelease => "version.release",
            Self::VersionFloor => "version.floor",
            Self::RolloutPlan => "rollout.plan",
            Self::RolloutStart => "rollout.start",
            Self::RolloutApprove => "rollout.approve",
            Self::RolloutPromote => "rollout.promote",
            Self::RolloutHalt => "rollout.halt",
            Self::RolloutStatus => "rollout.status",
        }
    }

    /// The command of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it only asks and changes nothing.
    pub fn only_asks(self) -> bool {
        matches!(self, Self::Status | Self::ModelList | Self::RolloutStatus)
    }

    /// Whether it changes what is served or trusted, so that no setting makes it plain.
    pub fn needs_signature(self) -> bool {
        match self {
            Self::Status
            | Self::RoundStart
            | Self::Pause
            | Self::Resume
            | Self::ModelList
            | Self::RolloutStatus => false,
            Self::ConfigSet
            | Self::Rollback
            | Self::KeyringUpdate
            | Self::VersionRelease
            | Self::VersionFloor
            | Self::RolloutPlan
            | Self::RolloutStart
            | Self::RolloutApprove
            | Self::RolloutPromote
            | Self::RolloutHalt => true,
        }
    }
}

/// Which commands may come without a signature. The broker's ACL is then their only guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandPolicy {
    unsigned: BTreeSet<CommandKind>,
    infer: bool,
    feedback: bool,
}

impl CommandPolicy {
    /// Takes the names of the setting `commands.unsigned`; `infer` stands for `infer/{model}`, `feedback`
    /// for `feedback/{model}`.
    ///
    /// # Errors
    /// [`PolicyError`] for a name that isn't known or that always needs a signature.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for name in names {
            match CommandKind::parse(name) {
                Some(kind) if kind.needs_signature() => {
                    return Err(PolicyError::AlwaysSigned { name: kind.as_str() });
                }
                Some(kind) => {
                    policy.unsigned.insert(kind);
                }
                None if name == "infer" => policy.infer = true,
                None if name == "feedback" => policy.feedback = true,
                None => return Err(PolicyError::Unknown { name: shorten(name) }),
            }
        }
        Ok(policy)
    }

    /// Whether a command may come as plain JSON.
    pub fn allows(&self, kind: CommandKind) -> bool {
        self.unsigned.contains(&kind)
    }

    /// Whether requests on `infer/{model}` are answered.
    pub fn allows_infer(&self) -> bool {
        self.infer
    }

    /// Whether labels on `feedback/{model}` are taken.
    pub fn allows_feedback(&self) -> bool {
        self.feedback
    }
}

/// What is wrong with the setting `commands.unsigned`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No command has this name.
    #[error("commands.unsigned: no command is called {name:?}")]
    Unknown {
        /// The name, shortened.
        name: String,
    },
    /// This command changes what is served or trusted.
    #[error("commands.unsigned: {name:?} always needs a signature, remove it from the list")]
    AlwaysSigned {
        /// The command.
        name: &'static str,
    },
}

impl PolicyError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "policy_unknown",
            Self::AlwaysSigned { .. } => "policy_always_signed",
        }
    }
}

/// A command that isn't carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct CommandError {
    /// The asker's id, where it could be read.
    pub id: Option<RequestId>,
    /// Why not.
    pub fault: CommandFault,
}

/// Why a command isn't carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandFault {
    /// Larger than any command; it wasn't parsed.
    #[error("the command has {bytes} bytes, at most {MAX_COMMAND_BYTES} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payload's form.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// An empty payload for a command that changes something.
    #[error("command {name:?} came with an empty payload; it was not carried out")]
    Empty {
        /// The command.
        name: &'static str,
    },
    /// The broker had kept it from before we connected: nobody knows how old it is.
    #[error("the command was retained by the broker, so it may be old; it was not carried out")]
    Retained,
    /// No command has this name.
    #[error("no command is called {name:?}")]
    Unknown {
        /// The name, shortened.
        name: String,
    },
    /// It came as plain JSON and mustn't.
    #[error("command {name:?} needs a signature here")]
    NeedsSignature {
        /// The command.
        name: &'static str,
    },
    /// Its time is over.
    #[error("the command expired {late_ms} ms ago (exp {exp_ms}, this node's clock {now_ms})")]
    Expired {
        /// What it says, epoch milliseconds.
        exp_ms: u64,
        /// This node's time, epoch milliseconds.
        now_ms: u64,
        /// The difference.
        late_ms: u64,
    },
    /// A command with this id was taken already.
    #[error("a command with the id {id:?} was taken already; it was not carried out again")]
    Repeated {
        /// The id.
        id: String,
    },
    /// This version can't do it while it runs.
    #[error("{name:?} can't be done over MQTT by this version; nothing was changed")]
    NotSupported {
        /// The command.
        name: &'static str,
        /// How it is done instead.
        instead: &'static str,
    },
    /// The keyring that lies ready isn't the one, or may not follow the one in use.
    #[error("the keyring was not taken over: {problem}")]
    Keyring {
        /// What is wrong.
        problem: String,
    },
    /// What is served stays as it is.
    #[error("{problem}; nothing was changed")]
    Version {
        /// A short word.
        kind: &'static str,
        /// What is wrong.
        problem: String,
        /// The way out.
        hint: &'static str,
    },
    /// It couldn't be recorded, so it must not be carried out.
    #[error("the node's disk is full, so the command can't be recorded; it was not carried out")]
    DiskFull,
}

impl CommandError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match &self.fault {
            CommandFault::TooLarge { .. } => "too_large",
            CommandFault::Field(error) => error.kind(),
            CommandFault::Empty { .. } => "empty",
            CommandFault::Retained => "retained",
            CommandFault::Unknown { .. } => "unknown_command",
            CommandFault::NeedsSignature { .. } => "needs_signature",
            CommandFault::Expired { .. } => "expired",
            CommandFault::Repeated { .. } => "repeated",
            CommandFault::NotSupported { .. } => "not_supported",
            CommandFault::Keyring { .. } => "keyring_refused",
            CommandFault::Version { kind, .. } => kind,
            CommandFault::DiskFull => "disk_full",
        }
    }

    /// The way out, for the person who sent it.
    pub fn hint(&self) -> String {
        match &self.fault {
            CommandFault::TooLarge { .. } => {
                "send a short JSON object like {\"id\":\"1\"}".to_owned()
            }
            CommandFault::Field(error) => error.hint().to_owned(),
            CommandFault::Empty { .. } => {
                "send {} if you mean it: an empty payload is also what clearing a retained message \
                 looks like"
                    .to_owned()
            }
            CommandFault::Retained => {
                "publish it again without the retain flag (no -r), and clear the kept one with an \
                 empty retained message (-r -n)"
                    .to_owned()
            }
            CommandFault::Unknown { .. } => {
                let known = CommandKind::ALL.map(CommandKind::as_str).join(", ");
                format!("commands are {known}")
            }
            CommandFault::NeedsSignature { name } => format!(
                "pipe it through `gaisnet cmd sign {name} ... | mosquitto_pub -s -t ...`, or, for a \
                 harmless one, allow it in commands.unsigned"
            ),
            CommandFault::Expired { .. } => {
                "exp counts milliseconds since 1970-01-01 UTC; check both clocks and send it again"
                    .to_owned()
            }
            CommandFault::Repeated { .. } => "use a new id for a new command".to_owned(),
            CommandFault::NotSupported { instead, .. } => (*instead).to_owned(),
            CommandFault::Version { hint, .. } => (*hint).to_owned(),
            CommandFault::Keyring { .. } => {
                "put the newer one in place first, by gaisnet keyring accept on the node; the command \
                 names its version and the SHA-256 of the file"
                    .to_owned()
            }
            CommandFault::DiskFull => {
                "free space on the node's disk, it recovers by itself; then send it again"
                    .to_owned()
            }
        }
    }

    /// The answer for the asker.
    pub fn reply(&self) -> Reply {
        Reply::error(self.id.clone(), self.kind(), self.to_string(), self.hint())
    }
}

/// Whether a payload on `cmd/{name}` is a signed envelope (a msgpack array) rather than JSON.
pub fn is_signed(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| (0x90..=0x9f).contains(first))
}

/// Reads a plain command.
///
/// An empty payload is a question without id and arguments (`status`, `model.list`). A command that
/// changes something wants at least `{}`: brokers pass the empty message that clears a retained one
/// on to whoever is subscribed, and clearing an old `pause` must not pause anybody.
///
/// `retained` is the broker's flag: such a command is older than the connection.
///
/// # Errors
/// [`CommandError`]; its [`reply`](CommandError::reply) is for the asker.
pub fn parse(
    name: &str,
    payload: &[u8],
    retained: bool,
    now: Wall,
    policy: &CommandPolicy,
) -> Result<Command, CommandError> {
    read(name, payload, now, |kind| {
        if retained {
            return Err(CommandFault::Retained);
        }
        let Some(kind) = kind else { return Ok(()) };
        if !policy.allows(kind) {
            return Err(CommandFault::NeedsSignature { name: kind.as_str() });
        }
        if payload.trim_ascii().is_empty() && !kind.only_asks() {
            return Err(CommandFault::Empty { name: kind.as_str() });
        }
        Ok(())
    })
}

/// Reads the JSON of a command whose signature, sender, sequence and age were found good.
///
/// # Errors
/// [`CommandError`]; its [`reply`](CommandError::reply) is for the asker.
pub fn parse_signed(name: &str, json: &[u8], now: Wall) -> Result<Command, CommandError> {
    read(name, json, now, |_| Ok(()))
}

/// `permit` decides on the command, `None` when no command has the name.
fn read(
    name: &str,
    payload: &[u8],
    now: Wall,
    permit: impl FnOnce(Option<CommandKind>) -> Result<(), CommandFault>,
) -> Result<Command, CommandError> {
    let fail = |id: &Option<RequestId>, fault| CommandError { id: id.clone(), fault };
    if payload.len() > MAX_COMMAND_BYTES {
        return Err(fail(&None, CommandFault::TooLarge { bytes: payload.len() }));
    }
    let mut fields = Fields::parse(payload).map_err(|error| fail(&None, error.into()))?;
    let id = fields.id().map_err(|error| fail(&None, error.into()))?;
    let action = permit(CommandKind::parse(name)).and_then(|()| {
        let kind = CommandKind::parse(name)
            .ok_or_else(|| CommandFault::Unknown { name: shorten(name) })?;
        check_expiry(&mut fields, now)?;
        let args = fields.args()?;
        fields.finish()?;
        Ok(read_action(kind, args)?)
    });
    match action {
        Ok(action) => Ok(Command { id, action }),
        Err(fault) => Err(fail(&id, fault)),
    }
}

fn check_expiry(fields: &mut Fields, now: Wall) -> Result<(), CommandFault> {
    let expected = "a whole number of milliseconds since 1970-01-01 UTC";
    match fields.whole_number("exp", expected)? {
        Some(exp_ms) if exp_ms < now.0 => {
            Err(CommandFault::Expired { exp_ms, now_ms: now.0, late_ms: now.0 - exp_ms })
        }
        _ => Ok(()),
    }
}

fn read_action(kind: CommandKind, mut args: Fields) -> Result<Action, FieldError> {
    const VERSION: &str = "a whole number, 0 or more";
    let action = match kind {
        CommandKind::Status => Action::Status,
        CommandKind::RoundStart => Action::RoundStart,
        CommandKind::Pause => Action::Pause,
        CommandKind::Resume => Action::Resume,
        CommandKind::ModelList => Action::ModelList,
        CommandKind::ConfigSet => {
            let (key, value) = ("a setting's key like section.key", "a text, number or flag");
            let key_found = args.convert("key", key, |v| Some(v.as_str()?.to_owned()))?;
            let is_scalar = |v: &Value| v.is_string() || v.is_number() || v.is_boolean();
            let value_found = args.convert("value", value, |v| is_scalar(v).then(|| v.clone()))?;
            Action::ConfigSet {
                key: args.need(key_found, "key", key)?,
                value: args.need(value_found, "value", value)?,
            }
        }
        CommandKind::Rollback => {
            let model = args.name("model")?;
            let version = args.whole_number("version", VERSION)?;
            Action::Rollback { model: args.need(model, "model", "a model's name")?, version }
        }
        CommandKind::VersionRelease | CommandKind::VersionFloor => {
            let model = args.name("model")?;
            let version = args.whole_number("version", VERSION)?;
            let model = args.need(model, "model", "a model's name")?;
            let version = args.need(version, "version", VERSION)?;
            match kind {
                CommandKind::VersionRelease => Action::VersionRelease { model, version },
                _ => Action::VersionFloor { model, version },
            }
        }
        CommandKind::RolloutPlan
        | CommandKind::RolloutStart
        | CommandKind::RolloutApprove
        | CommandKind::RolloutPromote
        | CommandKind::RolloutHalt
        | CommandKind::RolloutStatus => read_rollout(kind, &mut args)?,
        CommandKind::KeyringUpdate => {
            let hex = "64 hexadecimal digits";
            let version = args.whole_number("version", VERSION)?;
            let digest = args.convert("digest", hex, |v| v.as_str()?.parse().ok())?;
            Action::KeyringUpdate {
                version: args.need(version, "version", VERSION)?,
                digest: args.need(digest, "digest", hex)?,
            }
        }
    };
    args.finish()?;
    Ok(action)
}

fn read_rollout(kind: CommandKind, args: &mut Fields) -> Result<Action, FieldError> {
    let (whole, flag) = ("a whole number, 1 or more", "true or false");
    let (list, hex) = ("a list of stages", "64 hexadecimal digits");
    let model = args.name("model")?;
    if !kind.only_asks() {
        args.need(model.as_ref(), "model", "a model's name")?;
    }
    let verb = match kind {
        CommandKind::RolloutPlan => {
            let version = args.whole_number("version", whole)?;
            let automatic = args.convert("automatic", flag, Value::as_bool)?;
            let stages = args.convert("stages", list, |v| v.is_array().then(|| v.clone()))?;
            RolloutVerb::Plan {
                version: args.need(version, "version", whole)?,
                automatic: args.need(automatic, "automatic", flag)?,
                stages: args.need(stages, "stages", list)?,
            }
        }
        CommandKind::RolloutApprove => {
            let plan = args.convert("plan", hex, |v| v.as_str()?.parse().ok())?;
            let stage = args.name("stage")?;
            let plan = args.need(plan, "plan", hex)?;
            let stage = args.need(stage, "stage", "a stage's name")?;
            RolloutVerb::Approve { plan, stage: stage.as_str().to_owned() }
        }
        CommandKind::RolloutStart => RolloutVerb::Start,
        CommandKind::RolloutPromote => RolloutVerb::Promote,
        CommandKind::RolloutHalt => RolloutVerb::Halt,
        _ => RolloutVerb::Status,
    };
    Ok(Action::Rollout { model, verb })
}

#[cfg(test)]
mod tests;
