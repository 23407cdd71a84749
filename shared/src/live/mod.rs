//! The live plane: what is of use only now. Token streams with replay, wake-ups, presence.
//!
//! **The promise.** It is fast, and it is expendable: losing all of it loses no job, no result and
//! no limit. So no caller waits long for it, every call may fail, and nobody decides on silence:
//! an empty answer is no evidence that something is not there.

mod memory;
mod redis;
mod waiting;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::{
    api::JobChange,
    config,
    domain::{AccountId, JobId, Span, Time},
    roll::Roll,
};

pub use self::{memory::Memory, redis::Redis};

/// Pieces that a stream keeps, at least in Redis, which rounds up. A reader that is further behind
/// misses the oldest.
const STREAM_LENGTH: usize = 10_000;

/// The live plane.
#[derive(Clone, Debug)]
pub enum Live {
    /// Redis, shared by all processes.
    Redis(Redis),
    /// This process's memory.
    Memory(Memory),
}

/// Why the live plane did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LiveError {
    /// It cannot be reached now.
    #[error("the live plane cannot be reached: {0}")]
    Unavailable(String),
}

/// Something that other processes may be waiting for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wake", rename_all = "snake_case")]
pub enum Wake {
    /// These jobs have reached a terminal state.
    Ended {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Jobs of these sessions ran on these accounts last.
    Homes {
        /// Session and account.
        sessions: Vec<(String, AccountId)>,
    },
    /// An account was made, changed or removed: the truth plane has a newer [`Roll`], or the live
    /// plane has.
    Accounts,
    /// Someone watches state changes for some seconds from now: tell them.
    Watched,
    /// Jobs have come into these states. Told only while someone watches.
    Changed {
        /// Which process tells it.
        from: Uuid,
        /// In order.
        changes: Vec<JobChange>,
    },
}

/// What a worker says of itself with each heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Its unique name.
    pub worker: String,
    /// The machine it is on.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its version of Sluice.
    pub version: String,
    /// When it started.
    pub since: Time,
    /// When it said this, by its own clock.
    pub beat_at: Time,
    /// The accounts whose queues it consumes.
    pub accounts: Vec<AccountId>,
    /// Whether it serves every account that is made at run time.
    #[serde(default)]
    pub serves_all: bool,
    /// The accounts that it should serve and cannot, each with the reason; no secret is in it.
    #[serde(default)]
    pub troubles: BTreeMap<AccountId, String>,
    /// Every attempt in its hands, running or about to, or ended and not yet replied.
    pub in_flight: Vec<(JobId, u32)>,
}

/// One piece of a job's live stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "piece", rename_all = "snake_case")]
pub enum Piece {
    /// More text of this attempt.
    Text {
        /// Which attempt wrote it.
        attempt: u32,
        /// The text.
        text: String,
    },
    /// The job has ended; nothing follows.
    End,
}

/// A place in a stream; grows with each piece. `StreamId::START` is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct StreamId(pub u64, pub u64);

/// What was taken of a quota, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many more there are until the reset; `None` when there was none left to take.
    pub left: Option<u32>,
    /// How long until the quota starts anew.
    pub resets_in: Span,
}

impl Taken {
    /// From a count that was `quota` at the start and may have gone below zero.
    fn of(left: i64, resets_in: Span) -> Self {
        Self {
            left: u32::try_from(left).ok(),
            resets_in,
        }
    }
}

impl StreamId {
    /// Before the first piece.
    pub const START: StreamId = StreamId(0, 0);
}

impl Live {
    /// Connects to Redis. Fails only when the URL cannot work; a Redis that is away is connected
    /// to when it is there.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn connect(config: &config::Redis) -> Result<Self, LiveError> {
        Ok(Self::Redis(Redis::connect(config)?))
    }

    /// A live plane in this process.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(Memory::default())
    }

    /// Tells all processes that listen. Those that do not listen now never hear it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn wake(&self, wake: &Wake) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.wake(wake).await,
            Self::Memory(memory) => memory.wake(wake),
        }
    }

    /// Hears every wake-up from now on, this process's own included; goes on after a lost
    /// connection, with what was said meanwhile missed.
    #[must_use]
    pub fn wakes(&self) -> tokio::sync::mpsc::UnboundedReceiver<Wake> {
        match self {
            Self::Redis(redis) => redis.wakes(),
            Self::Memory(memory) => memory.wakes(),
        }
    }

    /// A worker's heartbeat: it is held to be there for `ttl` from now.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn beat(&self, presence: &Presence, ttl: Span) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.beat(presence, ttl).await,
            Self::Memory(memory) => memory.beat(presence, ttl),
        }
    }

    /// A worker says goodbye.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn leave(&self, worker: &str) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.leave(worker).await,
            Self::Memory(memory) => memory.leave(worker),
        }
    }

    /// The workers that are there, by name.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn workers(&self) -> Result<Vec<Presence>, LiveError> {
        match self {
            Self::Redis(redis) => redis.workers().await,
            Self::Memory(memory) => memory.workers(),
        }
    }

    /// Keeps the accounts made at run time for the workers, in the place of those kept before.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn keep_roll(&self, roll: &Roll) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.keep_roll(roll).await,
            Self::Memory(memory) => memory.keep_roll(roll),
        }
    }

    /// The revision of the accounts that are kept; `None` when none are, which says nothing about
    /// whether there are any.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn roll_revision(&self) -> Result<Option<i64>, LiveError> {
        match self {
            Self::Redis(redis) => redis.roll_revision().await,
            Self::Memory(memory) => memory.roll_revision(),
        }
    }

    /// The accounts that are kept.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn roll(&self) -> Result<Option<Roll>, LiveError> {
        match self {
            Self::Redis(redis) => redis.roll().await,
            Self::Memory(memory) => memory.roll(),
        }
    }

    /// Appends to a job's stream, which is kept for `ttl` from its last piece.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn append(&self, job: JobId, pieces: &[Piece], ttl: Span) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.append(job, pieces, ttl).await,
            Self::Memory(memory) => memory.append(job, pieces, ttl),
        }
    }

    /// What follows `after` in a job's stream, at most `most` pieces; waits up to `wait` for the
    /// first when there is none yet.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn read(
        &self,
        job: JobId,
        after: StreamId,
        most: usize,
        wait: Span,
    ) -> Result<Vec<(StreamId, Piece)>, LiveError> {
        match self {
            Self::Redis(redis) => redis.read(job, after, most, wait).await,
            Self::Memory(memory) => memory.read(job, after, most, wait).await,
        }
    }

    /// Takes one of `quota` under this name. The quota starts anew one `window` after the first
    /// that was taken.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn take(&self, name: &str, quota: u32, window: Span) -> Result<Taken, LiveError> {
        match self {
            Self::Redis(redis) => redis.take(name, quota, window).await,
            Self::Memory(memory) => Ok(memory.take(name, quota, window)),
        }
    }

    /// Whether it can be used now.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), LiveError> {
        match self {
            Self::Redis(redis) => redis.ready().await,
            Self::Memory(_) => Ok(()),
        }
    }
}
