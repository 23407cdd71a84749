//! The live plane: what is of use only now. Token streams with replay, wake-ups, presence.
//!
//! **The promise.** It is fast, and it is expendable: losing all of it loses no job, no result and
//! no limit. So no caller waits long for it, every call may fail, and nobody decides on silence:
//! an empty answer is no evidence that something is not there.

mod memory;
mod redis;
mod waiting;

use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::{
    api::JobChange,
    config,
    domain::{AccountId, JobId, Span, Time},
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
