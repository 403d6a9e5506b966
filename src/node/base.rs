//! A base from the parent, before the node takes part in anything: over its own links, onto the disk as it comes.
//!
//! What is asked for next, and what is believed of a chunk, is [`BaseFetch`]'s business; what is kept where,
//! [`BaseFiles`]'s. The node says on `status` how far it is, and takes no commands yet. Called by `gaisnet run`; the
//! other half, giving a base to children, is [`HeldFiles`] behind `actors/base_desk.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Identity, NodeError, roles_of, tier_of};
use crate::actors::{Figures, HeldBase, NotGiven, Operator};
use crate::bus::{Border, Bus, BusEvent, Crossing, Delivery, Line};
use crate::data::models::BaseFiles;
use crate::data::partial::Partial;
use crate::data::{Cache, DataError};
use crate::ids::{Digest, NodeId, Side};
use crate::protocol::{BaseFetch, Giving};
use crate::scada::telegram::Status;
use crate::time::{Clock, Mono, Wall};
use crate::topic::{self, Branch, Leaf, Prefix};
use crate::trust::keyring::Keyring;
use crate::trust::pins::FilePin;
use crate::trust::{self, Door, Sealer};
use crate::wire::{BaseChunk, BaseFile, Body, Get, Leaving, Wanted};

/// A base that a signed card pins, and where it goes.
#[derive(Debug, Clone)]
pub struct WantedBase {
    /// Name of the model.
    pub name: String,
    /// Name of its folder in the cache.
    pub folder: String,
    /// Its files, pinned.
    pub files: Vec<FilePin>,
    /// Card and signature, to lie beside the files: names and bytes.
    pub papers: Vec<(String, Vec<u8>)>,
    /// The cache.
    pub cache: Cache,
}

impl WantedBase {
    fn files(&self) -> BaseFiles<'_> {
        let Self { name, folder, files, papers, .. } = self;
        BaseFiles { name, folder, files, source: None, papers }
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// What a node asks with.
pub struct BaseFetchParts {
    /// Who it is.
    pub identity: Identity,
    /// Its links; the one to its parent among them.
    pub links: BTreeMap<Side, (Arc<dyn Bus>, Receiver<BusEvent>)>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
}

/// How far a fetch is. Displays as a sentence that says what to do, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseProgress {
    /// Name of the model.
    pub name: String,
    /// Whom it asks.
    pub parent: NodeId,
    /// Bytes on disk.
    pub have: u64,
    /// Bytes of all files.
    pub of: u64,
    /// How the parent does.
    pub giving: Giving,
    /// What is wrong here, if something is: it is tried again.
    pub problem: Option<String>,
}

impl BaseProgress {
    /// Whole per cent.
    pub fn percent(&self) -> u8 {
        let percent = self.have.saturating_mul(100) / self.of.max(1);
        u8::try_from(percent).unwrap_or(100).min(100)
    }
}

impl fmt::Display for BaseProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, parent, of, .. } = self;
        write!(
            f,
            "the base {name} is being fetched from {parent}: {} % of {of} bytes",
            self.percent()
        )?;
        match (&self.problem, self.giving) {
            (Some(problem), _) => write!(f, "; {problem}"),
            (None, Giving::Chunks) => Ok(()),
            (None, Giving::Absent) => write!(
                f,
                "; {parent} hasn't it: run `gaisnet model fetch {name}` there, name its card in model.base of its \
                 settings, and start it again (or run `gaisnet model fetch {name} --from FOLDER` here)"
            ),
            (None, Giving::Nothing) => write!(
                f,
                "; {parent} doesn't answer: is it running, connected, and of a version that gives bases?"
            ),
        }
    }
}

/// Why a base doesn't come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// All chunks came, and they aren't the file, again and again.
    #[error(
        "{times} times {parent} gave something else than the file that the card of {name} pins: {source}"
    )]
    Wrong {
        /// Name of the model.
        name: String,
        /// Who gave it.
        parent: NodeId,
        /// How often.
        times: u32,
        /// The file.
        source: Box<DataError>,
    },
    /// The link to the parent was closed.
    #[error("the link to the parent has ended")]
    Closed,
}

/// Brings the base into the cache and gives its folder; none when `stop` came first.
///
/// `told` is called about four times a second. What goes wrong on the way is told, counted and tried again; what is on
/// disk stays for the next start.
///
/// # Errors
/// [`BaseError`].
pub async fn fetch_base(
    base: &WantedBase,
    parts: BaseFetchParts,
    told: &mut dyn FnMut(&BaseProgress),
    stop: Pin<&mut dyn Future<Output = ()>>,
) -> Result<Option<PathBuf>, BaseError> {
    let mut asker = Asker::new(base, parts, told)?;
    let outcome = tokio::select! {
        biased;
        () = stop => Ok(None),
        done = asker.fetch_all() => done.map(Some),
    };
    asker.leave().await;
    outcome
}

/// What the links brought.
enum Heard {
    /// The link to the parent is up.
    Up,
    /// The parent answered.
    Told(BaseFile),
    /// A moment has passed.
    Tick,
}

/// Why a try ended.
enum Trouble {
    /// The disk, or another process that fetches the same.
    Data(DataError),
    /// No more tries.
    Over(BaseError),
}

impl From<DataError> for Trouble {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

struct Asker<'a> {
    base: &'a WantedBase,
    me: NodeId,
    prefix: Prefix,
    keyring: Arc<Keyring>,
    branch: Branch,
    sealer: Sealer,
    up: (Arc<dyn Bus>, Receiver<BusEvent>),
    down: Option<(Arc<dyn Bus>, Receiver<BusEvent>)>,
    clock: Arc<dyn Clock>,
    figures: Arc<Figures>,
    /// Whether the link to the parent is up.
    is_up: bool,
    ticks: Interval,
    told: &'a mut dyn FnMut(&BaseProgress),
    progress: BaseProgress,
    roles: Vec<String>,
    started: Wall,
    /// The per cent that `status` says, and since when.
    said: Option<(u8, Mono)>,
}

impl<'a> Asker<'a> {
    const TICK: Duration = Duration::from_millis(250);
    const STATUS_EVERY_MS: u64 = 2_000;
    /// Whole files that turned out wrong, before it is given up.
    const MAX_WRONG: u32 = 3;
    /// Pause after trouble with the disk.
    const PAUSE_MS: u64 = 5_000;
    const GOODBYE_MS: u64 = 1_000;

    fn new(
        base: &'a WantedBase,
        parts: BaseFetchParts,
        told: &'a mut dyn FnMut(&BaseProgress),
    ) -> Result<Self, BaseError> {
        let BaseFetchParts { identity, mut links, clock, figures } = parts;
        let Identity { me, keyring, prefix, key, boot, .. } = identity;
        let branch_of = |node: &NodeId| {
            let entry = keyring.node(node)?;
            let (site, line) = (entry.site.clone(), entry.line.clone());
            Some(Branch { prefix: prefix.clone(), site, line, node: node.clone() })
        };
        let entry = keyring.node(&me).ok_or_else(|| NodeError::NotEnrolled(me.clone()))?;
        if entry.key != *key.public() {
            return Err(NodeError::WrongKey(me).into());
        }
        let no_link = || NodeError::NoLink(me.clone(), "to its parent's broker", "bus.parent");
        let parent = entry.parent.clone().ok_or_else(no_link)?;
        let up = links.remove(&Side::Up).ok_or_else(no_link)?;
        let (branch, above) = branch_of(&me).zip(branch_of(&parent)).ok_or_else(no_link)?;
        let filter = format!("{above}/to/{me}/base"); // among those that the node subscribes to later
        up.0.subscribe(&[filter]).map_err(|_| BaseError::Closed)?;
        for side in links.keys().copied().chain([Side::Up]) {
            figures.update(|view| drop(view.down.insert(side, "not connected yet".to_owned())));
        }
        let sealer = Sealer::new(key, keyring.federation().clone(), branch.clone(), boot);
        let mut ticks = interval(Self::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            base,
            branch,
            sealer,
            up,
            down: links.remove(&Side::Down),
            figures,
            is_up: false,
            ticks,
            told,
            progress: BaseProgress {
                name: base.name.clone(),
                parent,
                have: 0,
                of: base.bytes(),
                giving: Giving::Chunks,
                problem: None,
            },
            roles: tier_of(entry).map(|tier| roles_of(tier, true)).unwrap_or_default(),
            started: clock.now().wall,
            clock,
            said: None,
            me,
            prefix,
            keyring,
        })
    }

    async fn fetch_all(&mut self) -> Result<PathBuf, BaseError> {
        let mut wrong = 0;
        loop {
            if self.base.files().is_cached(&self.base.cache) {
                return Ok(self.base.files().folder(&self.base.cache));
            }
            let error = match self.fetch_once().await {
                Ok(folder) => return Ok(folder),
                Err(Trouble::Over(error)) => return Err(error),
                Err(Trouble::Data(error)) => error,
            };
            if let DataError::HashMismatch { .. } = &error {
                wrong += 1;
                self.figures.count("base_wrong");
                if wrong == Self::MAX_WRONG {
                    let (name, parent) = (self.base.name.clone(), self.progress.parent.clone());
                    let source = Box::new(error);
                    return Err(BaseError::Wrong { name, parent, times: wrong, source });
                }
            }
            tracing::warn!(%error, "the base doesn't come; it is tried again");
            self.progress.problem = Some(error.to_string());
            let until = self.clock.now().mono.0 + Self::PAUSE_MS;
            while self.clock.now().mono.0 < until {
                self.hear().await?;
            }
            self.progress.problem = None;
        }
    }

    /// All files, one after the other, and then their folder.
    async fn fetch_once(&mut self) -> Result<PathBuf, Trouble> {
        let mut held = Vec::new(); // nobody else may have them until they are moved
        let mut before = 0;
        for pin in &self.base.files {
            let path = BaseFiles::unfinished(pin, &self.base.cache)?;
            let mut partial = Partial::open(&path, pin.bytes)?;
            self.fetch_file(pin, &mut partial, before).await?;
            partial.sync()?;
            before += pin.bytes;
            held.push(partial);
        }
        let base = self.base.clone();
        let finish = move || base.files().finish(&base.cache, &mut |_| {});
        let mut finished = tokio::task::spawn_blocking(finish);
        loop {
            tokio::select! {
                biased;
                done = &mut finished => {
                    let done = done.map_err(|_| Trouble::Over(BaseError::Closed))?;
                    return Ok(done?);
                }
                heard = self.hear() => drop(heard.map_err(Trouble::Over)?),
            }
        }
    }

    /// `before` are the bytes of the files before this one.
    async fn fetch_file(
        &mut self,
        pin: &FilePin,
        partial: &mut Partial,
        before: u64,
    ) -> Result<(), Trouble> {
        let mut fetch = BaseFetch::new(pin.sha256, pin.bytes, partial.bytes());
        if self.is_up {
            let first = fetch.ask(self.clock.now().mono);
            self.ask(pin, first);
        }
        while !fetch.is_complete() {
            self.progress.have = before + fetch.have();
            self.progress.giving = fetch.giving();
            let heard = self.hear().await.map_err(Trouble::Over)?;
            let now = self.clock.now().mono;
            match heard {
                Heard::Up => self.ask(pin, fetch.ask(now)),
                Heard::Tick if self.is_up => self.ask(pin, fetch.overdue(now)),
                Heard::Tick => {}
                Heard::Told(file) => match fetch.take(now, file) {
                    Ok(step) => {
                        step.keep.map_or(Ok(()), |bytes| partial.keep(bytes))?;
                        step.append.iter().try_for_each(|data| partial.append(data))?;
                        self.ask(pin, step.ask);
                    }
                    Err(reason) => self.figures.count(reason),
                },
            }
        }
        self.progress.have = before + pin.bytes;
        Ok(())
    }

    fn ask(&mut self, pin: &FilePin, indices: Vec<u32>) {
        if indices.is_empty() {
            return;
        }
        let wanted = Wanted::Base { sha256: pin.sha256, indices };
        let to = trust::To::Directly(self.progress.parent.clone());
        let now = self.clock.now().wall;
        let leaving = Leaving::new(Get { wanted });
        match Crossing::seal(&mut self.sealer, &to, &leaving, 0, 0, now) {
            Ok(crossing) => self.publish(Side::Up, crossing),
            Err(error) => tracing::error!(%error, "a request can't be sealed"),
        }
    }

    fn publish(&self, side: Side, crossing: Crossing) {
        let line = match side {
            // Whichever zone the parent is in: nothing else is said here.
            Side::Up => Some(Line::Border(Border::new(Arc::clone(&self.up.0)))),
            Side::Down => self.down.as_ref().map(|(bus, _)| Line::Inside(Arc::clone(bus))),
        };
        if let Some(Err(error)) = line.map(|line| line.publish(crossing.into())) {
            self.figures.count(error.kind());
        }
    }

    fn status(&self, side: Side, online: bool) {
        let now = self.clock.now().wall;
        let fetching_base = online.then(|| self.progress.percent());
        let status = Operator::status(&self.roles, online, 0, self.started, now);
        let status = Status { fetching_base, ..status };
        if let Ok(crossing) = Crossing::presence(&self.branch, &status) {
            self.publish(side, crossing);
        }
    }

    async fn hear(&mut self) -> Result<Heard, BaseError> {
        loop {
            let (side, event) = tokio::select! {
                biased;
                event = self.up.1.recv() => (Side::Up, event),
                event = next(&mut self.down) => (Side::Down, event),
                _ = self.ticks.tick() => {
                    self.tick();
                    return Ok(Heard::Tick);
                }
            };
            match event.ok_or(BaseError::Closed)? {
                BusEvent::Connected { .. } => {
                    self.figures.update(|view| {
                        view.down.remove(&side);
                        view.refused_filters.remove(&side);
                    });
                    self.status(side, true);
                    if side == Side::Up {
                        self.is_up = true;
                        return Ok(Heard::Up);
                    }
                }
                BusEvent::Disconnected { reason } => {
                    tracing::warn!(?side, reason, "the link is down; trying again");
                    self.is_up &= side != Side::Up;
                    self.figures.update(|view| drop(view.down.insert(side, reason)));
                }
                BusEvent::SubscriptionRefused { filter } => {
                    tracing::error!(
                        ?side,
                        filter,
                        "the broker refuses a subscription (gaisnet acl prints the lines)"
                    );
                    self.figures.update(|view| {
                        view.refused_filters.entry(side).or_default().insert(filter);
                    });
                }
                BusEvent::Delivery(delivery) => {
                    if let Some(file) = self.open(side, delivery) {
                        return Ok(Heard::Told(file));
                    }
                }
            }
        }
    }

    fn tick(&mut self) {
        (self.told)(&self.progress);
        let (now, percent) = (self.clock.now().mono, self.progress.percent());
        let due = |at: Mono| now.0.saturating_sub(at.0) >= Self::STATUS_EVERY_MS;
        if self.said.is_none_or(|(said, at)| said != percent && due(at)) {
            self.said = Some((percent, now));
            tracing::info!("{}", self.progress);
            for side in [Side::Up, Side::Down] {
                self.status(side, true);
            }
        }
    }

    /// What the parent says of a base. All else is acknowledged unread: what matters comes again.
    fn open(&self, side: Side, delivery: Delivery) -> Option<BaseFile> {
        let Delivery { topic, payload, ack, .. } = delivery;
        ack.release();
        let Self { me, keyring, prefix, .. } = self;
        match topic::parse(prefix, &topic)?.leaf {
            Leaf::To(node, kind) if node == *me && kind.as_str() == "base" => {}
            _ => return None,
        }
        let bytes = payload.len() as u64;
        self.figures.update(|view| *view.bytes_in.entry(side).or_default() += bytes);
        let federation = keyring.federation();
        let door = Door { federation, prefix, me, keyring };
        match trust::open(door, side, &topic, &payload, self.clock.now().wall) {
            Ok(message) => {
                let Body::Base(file) = message.body() else { return None };
                self.figures.update(|view| *view.received.entry("base").or_default() += 1);
                Some(file.clone())
            }
            Err(refusal) => {
                tracing::warn!(reason = refusal.kind(), %refusal, "a message was refused");
                self.figures.count(refusal.kind());
                None
            }
        }
    }

    /// Says goodbye; back when the links are closed.
    async fn leave(mut self) {
        for side in [Side::Up, Side::Down] {
            self.status(side, false);
        }
        let limit = Duration::from_millis(2 * Self::GOODBYE_MS);
        for (bus, mut events) in [Some(self.up), self.down.take()].into_iter().flatten() {
            bus.close(Self::GOODBYE_MS);
            drop(bus);
            let over = async { while events.recv().await.is_some() {} };
            let _ = tokio::time::timeout(limit, over).await;
        }
    }
}

async fn next(link: &mut Option<(Arc<dyn Bus>, Receiver<BusEvent>)>) -> Option<BusEvent> {
    match link {
        Some((_, events)) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// Files of a base, for children.
#[derive(Debug)]
pub struct HeldFiles {
    files: BTreeMap<Digest, (PathBuf, u64)>,
    chunk_bytes: u32,
}

impl HeldFiles {
    /// The files that a card pins, in this folder, in chunks of `chunk_bytes` or less.
    pub fn new(folder: &std::path::Path, files: &[FilePin], chunk_bytes: u32) -> Self {
        let most = u32::try_from(BaseChunk::MAX_BYTES).unwrap_or(u32::MAX);
        let file = |pin: &FilePin| (pin.sha256, (folder.join(&pin.name), pin.bytes));
        Self { files: files.iter().map(file).collect(), chunk_bytes: chunk_bytes.clamp(1, most) }
    }
}

impl HeldBase for HeldFiles {
    fn chunk(&self, sha256: &Digest, index: u32) -> Result<BaseChunk, NotGiven> {
        let (path, bytes) = self.files.get(sha256).ok_or(NotGiven::Absent)?;
        let chunk_bytes = self.chunk_bytes;
        let from = u64::from(index) * u64::from(chunk_bytes);
        let left = bytes.checked_sub(from).filter(|left| *left > 0).ok_or(NotGiven::OutOfRange)?;
        let len = usize::try_from(left.min(u64::from(chunk_bytes))).unwrap_or_default();
        let mut data = vec![0; len];
        let read = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(&mut data)
        };
        match { read }() {
            Ok(()) => Ok(BaseChunk { index, chunk_bytes, data }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file of the base can't be read");
                Err(NotGiven::Absent)
            }
        }
    }
}
