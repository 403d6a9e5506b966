//! Gives a node's children the files of its base, chunk by chunk.
//!
//! What is asked for has passed the gateway: it is signed by a child of this node's keyring. What is given is what the
//! [`HeldBase`] of the wiring name by digest, so the files of the node's own signed card and no path. Children get
//! one chunk each in turn, and a chunk goes out only when nothing else waits for the link ([`Priority::Idle`]).
//!
//! [`Priority::Idle`]: crate::bus::Priority::Idle

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::MAILBOX;
use super::figures::Figures;
use super::runner::{Lend, Runner};
use crate::bus::BusError;
use crate::ids::{Digest, NodeId};
use crate::wire::{BaseChunk, BaseFile, Body, Wanted};

/// The files of the base that a node has.
pub trait HeldBase: Send + Sync {
    /// A chunk of the file with this digest.
    ///
    /// # Errors
    /// [`NotGiven`].
    fn chunk(&self, sha256: &Digest, index: u32) -> Result<BaseChunk, NotGiven>;
}

/// Why a chunk isn't given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotGiven {
    /// No card of this node pins the file, or it isn't whole on disk.
    Absent,
    /// It has fewer chunks.
    OutOfRange,
}

/// A child asks for chunks of a base's file.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct WantsBase {
    /// Who.
    pub child: NodeId,
    /// The file.
    pub sha256: Digest,
    /// Its chunks.
    pub indices: Vec<u32>,
}

/// See the module.
pub struct BaseDesk {
    files: Option<Arc<dyn HeldBase>>,
    runner: Addr<Runner>,
    figures: Arc<Figures>,
    waiting: BTreeMap<NodeId, VecDeque<(Digest, u32)>>,
    /// Who got the last chunk.
    last: Option<NodeId>,
    giving: bool,
    /// How long the link is left alone when its queue is full.
    pause: Duration,
}

/// Give the next chunk.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Next;

impl BaseDesk {
    /// Chunks that a child can wait for: two requests.
    const WAITING: usize = 2 * Wanted::MAX_CHUNKS;
    /// How long a link whose queue is full is left alone: at first, and when it stays full.
    const PAUSE: Duration = Duration::from_millis(20);
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);

    /// A desk; without files it says so to each who asks.
    pub fn new(
        files: Option<Arc<dyn HeldBase>>,
        runner: Addr<Runner>,
        figures: Arc<Figures>,
    ) -> Self {
        Self {
            files,
            runner,
            figures,
            waiting: BTreeMap::new(),
            last: None,
            giving: false,
            pause: Self::PAUSE,
        }
    }

    /// The child whose turn it is.
    fn turn(&self) -> Option<NodeId> {
        let after = self.waiting.keys().find(|child| Some(*child) > self.last.as_ref());
        after.or_else(|| self.waiting.keys().next()).cloned()
    }

    fn pop(&mut self, child: &NodeId) -> Option<(Digest, u32)> {
        let waiting = self.waiting.get_mut(child)?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(child);
        }
        next
    }

    fn give(&mut self, ctx: &mut Context<Self>) {
        let turn = self.turn().and_then(|child| Some((self.pop(&child)?, child)));
        let Some(((sha256, index), child)) = turn else {
            self.giving = false;
            return;
        };
        self.giving = true;
        let held = self.files.as_ref().map_or(Err(NotGiven::Absent), |f| f.chunk(&sha256, index));
        let chunk = match held {
            Ok(chunk) => Some(chunk),
            Err(NotGiven::Absent) => {
                self.figures.count("base_absent");
                let others = |(file, _): &(Digest, u32)| *file != sha256;
                if let Some(waiting) = self.waiting.get_mut(&child) {
                    waiting.retain(others); // once is enough
                }
                self.waiting.retain(|_, waiting| !waiting.is_empty());
                None
            }
            Err(NotGiven::OutOfRange) => {
                self.figures.count("base_chunk_out_of_range");
                return ctx.notify(Next);
            }
        };
        let body = Body::Base(BaseFile { sha256, chunk });
        let lend = self.runner.send(Lend { to: child.clone(), body }).into_actor(self);
        ctx.spawn(lend.map(move |lent, this, ctx| {
            if let Ok(Err(BusError::Full { .. })) = lent {
                this.waiting.entry(child).or_default().push_front((sha256, index));
                ctx.notify_later(Next, this.pause);
                this.pause = (this.pause * 2).min(Self::LONGEST_PAUSE);
            } else {
                if let Ok(Err(error)) = lent {
                    this.figures.count(error.kind()); // the child asks again
                }
                this.pause = Self::PAUSE;
                this.last = Some(child);
                ctx.notify(Next);
            }
        }));
    }
}

impl Actor for BaseDesk {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<WantsBase> for BaseDesk {
    type Result = ();

    fn handle(&mut self, asked: WantsBase, ctx: &mut Self::Context) {
        let WantsBase { child, sha256, indices } = asked;
        let waiting = self.waiting.entry(child).or_default();
        for index in indices.into_iter().take(Wanted::MAX_CHUNKS) {
            if waiting.len() < Self::WAITING && !waiting.contains(&(sha256, index)) {
                waiting.push_back((sha256, index));
            }
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        if !self.giving {
            self.give(ctx);
        }
    }
}

impl Handler<Next> for BaseDesk {
    type Result = ();

    fn handle(&mut self, _: Next, ctx: &mut Self::Context) {
        self.give(ctx);
    }
}
