//! The federation while it runs: children are started, the brokers heard, versions written down.

use std::collections::BTreeSet;
use std::time::Duration;

use indicatif::ProgressBar;

use super::brokers::{Brokers, called};
use super::children::Children;
use super::heard::{Counts, News};
use super::listener::Listener;
use super::plant::{PLACES, Place, place_of};
use super::progress::{self, Seen};
use super::run::{Interrupt, bar, say};
use super::{DemoError, DemoOptions, feeder};
use crate::data::bearings::Bearings;
use crate::ids::{KeyId, Version};
use crate::node::SystemClock;
use crate::store::{SqliteStore, Store};
use crate::time::Clock;
use crate::trust::keyring::Keyring;
use crate::wire::Blob;

/// What a run leaves behind.
pub(super) struct Outcome {
    /// The versions, oldest first, also those of an earlier start.
    pub(super) versions: Vec<Seen>,
    /// What was heard at the brokers.
    pub(super) counts: Counts,
}

/// A federation's parts.
pub(super) struct Federation<'a> {
    pub(super) options: &'a DemoOptions,
    pub(super) brokers: &'a Brokers,
    pub(super) keyring: &'a Keyring,
    pub(super) clock: &'a SystemClock,
}

/// What is known while waiting for the last version.
struct Watch<'a> {
    options: &'a DemoOptions,
    versions: Vec<Seen>,
    counts: Counts,
    /// Who has the last version.
    ready: BTreeSet<&'static str>,
    bar: ProgressBar,
}

impl Federation<'_> {
    /// Starts the nodes and waits until all of them have the last version.
    ///
    /// # Errors
    /// [`DemoError`]; the children run on until the caller stops them.
    pub(super) async fn learn(
        &self,
        children: &mut Children,
        data: &Bearings,
        interrupt: &mut Interrupt,
    ) -> Result<Outcome, DemoError> {
        let keys = self.keyring.nodes().map(|entry| entry.key.key_id()).collect();
        let mut watch = Watch::new(self.options, keys)?;
        let mut listener = tokio::select! {
            biased;
            () = interrupt.asked() => return Err(watch.interrupted()),
            listener = Listener::start(self.brokers) => listener?,
        };
        for (site, at) in self.brokers {
            say(self.options, &format!("broker of {}: {}:{}", called(site), at.host, at.port));
        }
        // Reading the recordings takes a while; nothing is to be missed meanwhile.
        let wall = self.clock.now().wall;
        let gateways = feeder::start(data, self.brokers, (self.options.speed, false), wall)?;
        for place in &PLACES {
            children.start_node(place.name, &place.settings_file(self.options))?;
        }
        let watched = self.watch(&mut watch, &mut listener, children, interrupt).await;
        for gateway in &gateways {
            gateway.abort();
        }
        watched?;
        watch.bar.finish();
        Ok(Outcome { versions: watch.versions, counts: watch.counts })
    }

    async fn watch(
        &self,
        watch: &mut Watch<'_>,
        listener: &mut Listener,
        children: &mut Children,
        interrupt: &mut Interrupt,
    ) -> Result<(), DemoError> {
        let patience_ms = self.options.patience_s.saturating_mul(1_000);
        let (mut progressed, mut asked) = (self.clock.now().mono, self.clock.now().mono);
        let mut ticks = tokio::time::interval(TICK);
        while !watch.is_over() {
            tokio::select! {
                biased;
                () = interrupt.asked() => return Err(watch.interrupted()),
                _ = ticks.tick() => {
                    for news in children.tend()? {
                        watch.bar.suspend(|| say(self.options, &news));
                    }
                    let now = self.clock.now();
                    if now.mono.0.saturating_sub(progressed.0) > patience_ms {
                        return Err(watch.stuck());
                    }
                    if watch.version() >= self.options.rounds
                        && now.mono.0.saturating_sub(asked.0) >= ASK_EVERY_MS
                    {
                        asked = now.mono;
                        for place in watch.not_ready() {
                            listener.ask(place, now.wall);
                        }
                    }
                }
                heard = listener.next() => {
                    let heard = heard?;
                    let message = heard.delivery;
                    let news = watch.counts.hear(
                        heard.site, &message.topic, &message.payload, message.retained,
                    );
                    message.ack.release();
                    if let Some(news) = news && watch.take(news)? {
                        progressed = self.clock.now().mono;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<'a> Watch<'a> {
    fn new(options: &'a DemoOptions, keys: BTreeSet<KeyId>) -> Result<Self, DemoError> {
        let versions = progress::load(options)?;
        let bar = bar(options.quiet, options.rounds, "federation");
        let counts = versions.last().map(|seen| seen.counts.clone()).unwrap_or_default();
        let counts = counts.with(keys);
        let this = Self { options, versions, counts, ready: BTreeSet::new(), bar };
        if this.version() > 0 {
            say(options, &format!("goes on from version {}", this.version()));
        }
        this.bar.set_position(this.version());
        Ok(this)
    }

    /// The last version that came out.
    fn version(&self) -> Version {
        self.versions.last().map_or(0, |seen| seen.version)
    }

    fn is_over(&self) -> bool {
        self.version() >= self.options.rounds && self.ready.len() == PLACES.len()
    }

    fn not_ready(&self) -> impl Iterator<Item = &'static Place> {
        PLACES.iter().filter(|place| !self.ready.contains(place.name))
    }

    /// Whether it was progress.
    fn take(&mut self, news: News) -> Result<bool, DemoError> {
        match news {
            News::Out { version, adapter } if version > self.version() => {
                let Some(adapter) = self.bytes_of(&adapter)? else { return Ok(false) };
                let (loss, counts) = (self.counts.loss(), self.counts.clone());
                let seen = Seen { version, loss, counts, adapter };
                progress::save(self.options, &seen)?;
                self.tell(&seen);
                self.versions.push(seen);
                Ok(true)
            }
            News::Has { node, version } if version >= self.options.rounds => {
                Ok(self.ready.insert(node))
            }
            News::Out { .. } | News::Has { .. } => Ok(false),
        }
    }

    /// An adapter that is too big for its message lies in the cloud's store by now; if not, the
    /// cloud will tell of it again.
    fn bytes_of(&self, adapter: &Blob) -> Result<Option<Vec<u8>>, DemoError> {
        if let Blob::Inline(bytes) = adapter {
            return Ok(Some(bytes.clone()));
        }
        let Some(cloud) = place_of("cloud") else { return Ok(None) };
        let store = SqliteStore::open_read_only(&cloud.folder(self.options).join("store"))?;
        Ok(store.blob(&adapter.sha256())?)
    }

    fn tell(&self, seen: &Seen) {
        let loss = seen.loss.map_or(String::new(), |loss| format!("loss {loss:.3}, "));
        let text = format!(
            "{loss}{} of {} nodes up, {} kB from the sites",
            self.counts.num_online(),
            PLACES.len(),
            self.counts.federation.up / 1_000,
        );
        if self.bar.is_hidden() {
            let of = self.options.rounds;
            say(self.options, &format!("version {} of {of}: {text}", seen.version));
        }
        self.bar.set_position(seen.version);
        self.bar.set_message(text);
    }

    fn interrupted(&self) -> DemoError {
        self.bar.abandon();
        DemoError::Interrupted { version: self.version() }
    }

    fn stuck(&self) -> DemoError {
        self.bar.abandon();
        let (seconds, version) = (self.options.patience_s, self.version());
        let hint = match self.not_ready().next() {
            Some(place) if version >= self.options.rounds => {
                let (name, branch) = (place.name, place.branch());
                format!(
                    "{name} hasn't the last version, or gives no answer on {branch}/reply/status"
                )
            }
            _ => self.counts.silence(),
        };
        DemoError::Stuck { seconds, version, hint }
    }
}

const TICK: Duration = Duration::from_millis(200);
const ASK_EVERY_MS: u64 = 1_000;
