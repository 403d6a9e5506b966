//! What can happen to a federation: a fault a variant. Each is done whole here, with its end: who was killed runs
//! again, a wire is clear again. Whether the federation recovers is seen by the caller.

use std::time::{Duration, Instant};

use gaisnet::rng::Stream;

use crate::clouds;
use crate::federation::{Federation, Role, pause, since_now};
use crate::link::Weather;
use crate::machine;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// kill -9 of one that has this part.
    Kill(Role),
    /// kill -9 of both clouds, or of an edge with a device of it: more than one at a time.
    KillTwo,
    /// kill -9 of the broker, which comes back empty.
    KillBroker,
    /// SIGSTOP of the leading cloud until the other one leads, then SIGCONT.
    StopLeader,
    /// The standby hears nothing for a moment; then leader and broker die at once, and the leader stays away.
    KillUnheard,
    /// What the leader says is on its way until the standby leads, and comes after that.
    LateWords,
    /// The standby was away while the leader went on, and is alone then.
    Outdated,
    /// The leader is put back from a backup, and starts before the standby has taken over.
    Backup,
    /// SIGSTOP of an edge or a device for a moment.
    StopMember,
    /// What was said in a moment is said again later, byte for byte, and half the time by a leader that is another one by
    /// then, or has started again.
    Replay,
    /// A wire is slow.
    Slow,
    /// A wire passes a few bytes at a time.
    Sliced,
    /// Of a wire one direction goes nowhere.
    OneWay,
    /// A wire whose far side is gone without a word.
    HalfOpen,
    /// A wire that is cut again and again.
    Drops,
    /// One dies in a place of its program, the n-th time that it comes there; by its index in [`PLACES`].
    DieAt(usize),
    /// One dies at a system call.
    DieAtCall,
    /// A clock is minutes off for a while.
    Clock,
    /// A disk is full.
    DiskFull,
    /// A byte on a disk is another one.
    Rot,
}

/// Places in the program where a node can be made to die, and whose they are.
pub(crate) const PLACES: [(&str, &[Role]); 23] = {
    use Role::{Device, Edge, Leader, Standby};
    const ALL: &[Role] = &[Leader, Standby, Edge, Device];
    const OWNERS: &[Role] = &[Leader, Edge];
    const MEMBERS: &[Role] = &[Edge, Device];
    [
        ("blobs-saved", ALL),
        ("blob-written", OWNERS),
        ("blob-synced", OWNERS),
        ("blob-named", OWNERS),
        ("before-commit", ALL),
        ("transaction-made", ALL),
        ("committed", ALL),
        ("recorded-round_open", OWNERS),
        ("recorded-accept", OWNERS),
        ("recorded-round_close", OWNERS),
        ("recorded-round_commit", OWNERS),
        ("recorded-contribute", MEMBERS),
        ("recorded-receipt_got", MEMBERS),
        ("recorded-rollout", ALL),
        ("publishing-offer", OWNERS),
        ("publishing-contribution", MEMBERS),
        ("publishing-receipt", OWNERS),
        ("publishing-result", OWNERS),
        ("publishing-mirror", &[Leader, Standby]),
        ("publishing-lease", &[Leader]),
        ("publishing-promise", &[Edge]),
        ("published", ALL),
        ("acknowledged", ALL),
    ]
};

/// How it went.
pub(crate) struct Struck {
    /// When it began.
    pub(crate) at: Instant,
    /// Its name in the report.
    pub(crate) kind: String,
    /// What a guard should have done meanwhile, and didn't.
    pub(crate) missed: Option<String>,
}

impl Struck {
    pub(crate) fn new(at: Instant, kind: impl Into<String>) -> Self {
        Self { at, kind: kind.into(), missed: None }
    }
}

impl Fault {
    /// A deck in which each has its weight.
    pub(crate) fn deck() -> Vec<Self> {
        use Fault::{
            Backup, Clock, DieAtCall, DiskFull, Drops, HalfOpen, Kill, KillBroker, KillTwo,
            KillUnheard, LateWords, OneWay, Outdated, Replay, Rot, Sliced, Slow, StopLeader,
            StopMember,
        };
        let weighed = [
            (Kill(Role::Leader), 5),
            (Kill(Role::Standby), 3),
            (Kill(Role::Edge), 5),
            (Kill(Role::Device), 5),
            (KillTwo, 2),
            (KillBroker, 9),
            (StopLeader, 2),
            (KillUnheard, 1),
            (LateWords, 1),
            (Outdated, 1),
            (Backup, 1),
            (StopMember, 1),
            (Replay, 1),
            (Slow, 1),
            (Sliced, 1),
            (OneWay, 1),
            (HalfOpen, 1),
            (Drops, 1),
            (DieAtCall, 3),
            (Clock, 1),
            (DiskFull, 1),
            (Rot, 1),
        ];
        let places = if cfg!(feature = "failpoints") { PLACES.len() } else { 0 };
        let all = weighed.into_iter().flat_map(|(fault, times)| std::iter::repeat_n(fault, times));
        all.chain((0..places).map(Self::DieAt)).collect()
    }

    /// Those that make it likely that a missing guard is missed.
    pub(crate) fn deck_without(guard: &str) -> Vec<Self> {
        let at =
            |name: &str| Self::DieAt(PLACES.iter().position(|(place, _)| *place == name).unwrap());
        match guard.split(',').next().unwrap() {
            "repeats" => vec![at("publishing-receipt"), Self::KillBroker, Self::Kill(Role::Edge)],
            "takeovers" => vec![Self::StopLeader, Self::Kill(Role::Standby)],
            "epochs" => vec![Self::LateWords],
            "promises" => vec![Self::Outdated],
            "told" => vec![Self::Backup],
            // What was said is out, and what it rests on isn't on disk.
            "commit" => vec![at("published"), at("acknowledged")],
            "copies" => vec![Self::KillUnheard],
            "versions" => vec![Self::Replay],
            _ => vec![Self::Kill(Role::Edge), Self::Kill(Role::Leader), Self::Kill(Role::Device)],
        }
    }

    /// Brings it about, and its end.
    ///
    /// # Errors
    /// Why this machine can't do it.
    pub(crate) fn strike(
        self,
        federation: &mut Federation,
        draw: &mut Stream,
    ) -> Result<Struck, String> {
        let at = since_now();
        federation.mark();
        let kind = match self {
            Self::Kill(role) => {
                let name = one_of(&federation.with(role), draw);
                down(federation, &[name], draw);
                match role {
                    Role::Leader => "kill_leader",
                    Role::Standby => "kill_standby",
                    Role::Edge => "kill_edge",
                    Role::Device => "kill_device",
                }
            }
            Self::KillTwo => {
                let mut names = federation.names();
                draw.shuffle(&mut names);
                down(federation, &names[..2], draw);
                "kill_two"
            }
            Self::KillBroker => {
                federation.kill_broker();
                pause(moment(draw, 1_000));
                federation.start_broker();
                "kill_broker"
            }
            Self::StopLeader => clouds::stop_leader(federation),
            Self::KillUnheard => clouds::kill_unheard(federation, draw),
            Self::LateWords => return Ok(clouds::late_words(federation)),
            Self::Outdated => return Ok(clouds::outdated(federation)),
            Self::Backup => return Ok(clouds::backup(federation)),
            Self::StopMember => {
                let role = one_of(&[Role::Edge, Role::Device], draw);
                let name = one_of(&federation.with(role), draw);
                federation.signal(name, "-STOP");
                pause(moment(draw, 4_000));
                federation.signal(name, "-CONT");
                "stop_member"
            }
            Self::Replay => {
                let said = federation.hear(Duration::from_millis(2_500));
                if draw.below(2) == 0 {
                    down(federation, &[federation.leader()], draw);
                }
                pause(Duration::from_secs(3));
                federation.say_again(&said, draw.below(2) == 0)?;
                federation.mark();
                return Ok(Struck::new(since_now(), "replay"));
            }
            Self::Slow => weather(federation, Weather::Slow, draw, "wire_slow"),
            Self::Sliced => weather(federation, Weather::Sliced, draw, "wire_sliced"),
            Self::OneWay => {
                let deaf = one_of(&[Weather::DeafBroker, Weather::DeafNode], draw);
                weather(federation, deaf, draw, "wire_one_way")
            }
            Self::HalfOpen => weather(federation, Weather::HalfOpen, draw, "wire_half_open"),
            Self::Drops => {
                let name = one_of(&federation.names(), draw);
                for _ in 0..5 {
                    federation.link(name).cut();
                    pause(moment(draw, 600));
                }
                "wire_drops"
            }
            Self::DieAt(place) => return Ok(die_at(federation, PLACES[place], draw)),
            Self::DieAtCall | Self::Clock | Self::DiskFull | Self::Rot => {
                let name = one_of(&federation.names(), draw);
                let kind = match self {
                    Self::DieAtCall => machine::dies_at_call(federation, name, draw),
                    Self::Clock => machine::clock_jumps(federation, name, draw),
                    Self::DiskFull => machine::disk_full(federation, draw),
                    _ => machine::bytes_rot(federation, name, draw),
                };
                return Ok(Struck::new(at, kind?));
            }
        };
        Ok(Struck::new(at, kind))
    }
}

/// Starts one anew that is to die in a place, and waits for that. Who is to die as the leader has to lead first.
fn die_at(
    federation: &mut Federation,
    (place, roles): (&str, &[Role]),
    draw: &mut Stream,
) -> Struck {
    let role = one_of(roles, draw);
    let (name, n) = (one_of(&federation.with(role), draw), 1 + draw.below(3));
    federation.kill(name);
    federation.spawn(name, &[format!("GAISNET_FAILPOINT={place}:{n}")]);
    // An edge is asked for its promise when nobody leads.
    let gone = (place == "publishing-promise").then(|| federation.leader());
    if let Some(leader) = gone {
        federation.kill(leader);
    }
    let begun = since_now();
    let mut may_lead = role == Role::Leader;
    let mut dies = false;
    while !dies && begun.elapsed() < COMES_THERE_WITHIN {
        pause(Duration::from_millis(20));
        federation.listen();
        dies = federation.has_ended(name);
        if !dies && may_lead && federation.leader() != name {
            may_lead = false;
            down(federation, &[federation.leader()], draw);
        }
    }
    let at = since_now();
    federation.mark();
    federation.kill(name);
    for dead in [name].into_iter().chain(gone) {
        federation.spawn(dead, &[]);
    }
    let kind = if dies { format!("at_{place}") } else { "place_not_reached".to_owned() };
    Struck::new(at, kind)
}

/// Kills some, and starts them again after a while.
fn down(federation: &mut Federation, names: &[&'static str], draw: &mut Stream) {
    for name in names {
        federation.kill(name);
    }
    for name in names {
        pause(moment(draw, 800));
        federation.spawn(name, &[]);
    }
}

fn weather(
    federation: &mut Federation,
    weather: Weather,
    draw: &mut Stream,
    kind: &'static str,
) -> &'static str {
    let name = one_of(&federation.names(), draw);
    eprintln!("{name}: {weather:?}");
    federation.link(name).set(weather);
    pause(Duration::from_millis(500) + moment(draw, 3_000));
    federation.link(name).set(Weather::Clear);
    kind
}

fn one_of<T: Copy>(all: &[T], draw: &mut Stream) -> T {
    all[draw.below(all.len())]
}

pub(crate) fn moment(draw: &mut Stream, most_ms: usize) -> Duration {
    Duration::from_millis(draw.below(most_ms) as u64)
}

const COMES_THERE_WITHIN: Duration = Duration::from_secs(30);
