//! The live plane in Redis: commands over a small pool, news over one connection of its own.
//!
//! No command touches two keys that must agree, so a cluster serves as well as one server.

mod news;

use std::{fmt, sync::Arc, time::Duration};

use deadpool_redis::{
    Manager, Pool, PoolError, Runtime,
    redis::{self, AsyncConnectionConfig, FromRedisValue, Pipeline, streams::StreamRangeReply},
};
use secrecy::ExposeSecret;
use tokio::{sync::mpsc::UnboundedReceiver, time};

use self::news::News;
use super::{LiveError, Piece, Presence, STREAM_LENGTH, StreamId, Taken, Wake};
use crate::{
    clock, config,
    domain::{JobId, Span},
    roll::Roll,
};

/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a command may take, with the wait for a connection.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection may take to prove that it still serves. Short, so that one command can
/// get past several that do not.
const RECYCLE_TIMEOUT: Duration = Duration::from_millis(200);

const CONNECTIONS: usize = 16;

/// Workers by the time at which they are gone unless they say otherwise.
const WORKERS: &str = "sluice:workers";

/// The accounts made at run time, and beside them their revision, which is asked for more often.
const ROLL: &str = "sluice:accounts";
const ROLL_REVISION: &str = "revision";
const ROLL_ACCOUNTS: &str = "accounts";

/// How long a worker that is gone stays in the list of names. Much longer than the clocks of two
/// machines may differ, so that nobody clears away a worker that is there.
const NAMES_LINGER: Duration = Duration::from_secs(3600);

/// Where a piece is in its entry.
const PIECE: &str = "p";

/// How often a waiting reader looks by itself: seldom while there is news of what is appended.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const LOOK_INTERVAL_WITHOUT_NEWS: Duration = Duration::from_millis(200);

/// Redis, shared by all processes.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    pool: Pool,
    news: News,
}

impl Redis {
    pub(super) fn connect(config: &config::Redis) -> Result<Self, LiveError> {
        let url = config.url.expose_secret();
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(COMMAND_TIMEOUT));
        let manager = Manager::new_with_config(url, limits).map_err(|_| malformed())?;
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(RECYCLE_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(unavailable)?;
        let client = redis::Client::open(url).map_err(|_| malformed())?;
        Ok(Self(Arc::new(Inner {
            pool,
            news: News::new(client),
        })))
    }

    pub(super) async fn wake(&self, wake: &Wake) -> Result<(), LiveError> {
        let wake = serde_json::to_string(wake).map_err(unavailable)?;
        self.run(redis::pipe().publish(news::WAKES, wake).ignore())
            .await
    }

    pub(super) fn wakes(&self) -> UnboundedReceiver<Wake> {
        self.0.news.wakes()
    }

    pub(super) async fn beat(&self, presence: &Presence, ttl: Span) -> Result<(), LiveError> {
        let beat = serde_json::to_string(presence).map_err(unavailable)?;
        let worker = &presence.worker;
        let millis = ttl.as_millis().max(1);
        let gone_at = (clock::now() + ttl.0).as_millis();
        let mut commands = redis::pipe();
        commands
            .cmd("SET")
            .arg(worker_key(worker))
            .arg(beat)
            .arg("PX")
            .arg(millis)
            .ignore();
        commands.zadd(WORKERS, worker, gone_at).ignore();
        self.run(&commands).await
    }

    pub(super) async fn leave(&self, worker: &str) -> Result<(), LiveError> {
        self.run(
            redis::pipe()
                .del(worker_key(worker))
                .ignore()
                .zrem(WORKERS, worker)
                .ignore(),
        )
        .await
    }

    pub(super) async fn workers(&self) -> Result<Vec<Presence>, LiveError> {
        let long_gone = (clock::now() - NAMES_LINGER).as_millis();
        let mut commands = redis::pipe();
        commands
            .cmd("ZREMRANGEBYSCORE")
            .arg(WORKERS)
            .arg("-inf")
            .arg(long_gone)
            .ignore();
        commands.zrange(WORKERS, 0, -1);
        let (mut names,): (Vec<String>,) = self.run(&commands).await?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        names.sort_unstable();
        let mut commands = redis::pipe();
        for name in &names {
            commands.get(worker_key(name));
        }
        let beats: Vec<Option<String>> = self.run(&commands).await?;
        // A worker of another version may say what is not understood here.
        Ok(beats
            .iter()
            .flatten()
            .filter_map(|beat| serde_json::from_str(beat).ok())
            .collect())
    }

    pub(super) async fn keep_roll(&self, roll: &Roll) -> Result<(), LiveError> {
        let accounts = serde_json::to_string(roll).map_err(unavailable)?;
        let mut commands = redis::pipe();
        commands
            .cmd("HSET")
            .arg(ROLL)
            .arg(ROLL_REVISION)
            .arg(roll.revision)
            .arg(ROLL_ACCOUNTS)
            .arg(accounts)
            .ignore();
        self.run(&commands).await
    }

    pub(super) async fn roll_revision(&self) -> Result<Option<i64>, LiveError> {
        let mut commands = redis::pipe();
        commands.hget(ROLL, ROLL_REVISION);
        let (revision,): (Option<i64>,) = self.run(&commands).await?;
        Ok(revision)
    }

    pub(super) async fn roll(&self) -> Result<Option<Roll>, LiveError> {
        let mut commands = redis::pipe();
        commands.hget(ROLL, ROLL_ACCOUNTS);
        let (roll,): (Option<String>,) = self.run(&commands).await?;
        // One of another version may not be understood here: then it is as if there were none.
        Ok(roll.and_then(|roll| serde_json::from_str(&roll).ok()))
    }

    pub(super) async fn append(
        &self,
        job: JobId,
        pieces: &[Piece],
        ttl: Span,
    ) -> Result<(), LiveError> {
        let key = news::stream_key(job);
        // All or nothing, or a stream could be left behind that never expires.
        let mut commands = redis::pipe();
        commands.atomic();
        for piece in pieces {
            let piece = serde_json::to_string(piece).map_err(unavailable)?;
            commands
                .cmd("XADD")
                .arg(&key)
                .arg("MAXLEN")
                .arg("~")
                .arg(STREAM_LENGTH)
                .arg("*")
                .arg(PIECE)
                .arg(piece)
                .ignore();
        }
        commands
            .cmd("PEXPIRE")
            .arg(&key)
            .arg(ttl.as_millis())
            .ignore();
        commands.publish(&key, "").ignore();
        self.run(&commands).await
    }

    pub(super) async fn read(
        &self,
        job: JobId,
        after: StreamId,
        most: usize,
        wait: Span,
    ) -> Result<Vec<(StreamId, Piece)>, LiveError> {
        let pieces = self.read_now(job, after, most).await?;
        if !pieces.is_empty() || wait.0.is_zero() {
            return Ok(pieces);
        }
        // Not by XREAD BLOCK: each reader would hold a connection for as long as it waits.
        let deadline = time::Instant::now() + wait.0;
        let reader = self.0.news.read(job);
        loop {
            let mut more = std::pin::pin!(reader.pieces.notified());
            // Before looking, so that what is appended between looking and waiting is heard of.
            more.as_mut().enable();
            let pieces = self.read_now(job, after, most).await?;
            let now = time::Instant::now();
            if !pieces.is_empty() || now >= deadline {
                return Ok(pieces);
            }
            let interval = if self.0.news.come() {
                LOOK_INTERVAL
            } else {
                LOOK_INTERVAL_WITHOUT_NEWS
            };
            let _ = time::timeout_at(deadline.min(now + interval), more).await;
        }
    }

    pub(super) async fn take(
        &self,
        name: &str,
        quota: u32,
        window: Span,
    ) -> Result<Taken, LiveError> {
        let key = format!("sluice:quota:{name}");
        let millis = window.as_millis().max(1);
        let mut commands = redis::pipe();
        commands
            .cmd("SET")
            .arg(&key)
            .arg(quota)
            .arg("NX")
            .arg("PX")
            .arg(millis)
            .ignore();
        commands.cmd("DECR").arg(&key);
        commands.cmd("PTTL").arg(&key);
        let (left, ttl): (i64, i64) = self.run(&commands).await?;
        if ttl < 0 {
            // It ran out between the commands, and what was counted down is a new key that would
            // stay for ever.
            self.run::<()>(redis::pipe().del(&key).ignore()).await?;
            return Ok(Taken::of(i64::from(quota) - 1, window));
        }
        Ok(Taken::of(left, Span::from_millis(ttl)))
    }

    pub(super) async fn ready(&self) -> Result<(), LiveError> {
        self.run(redis::pipe().cmd("PING").ignore()).await
    }

    async fn read_now(
        &self,
        job: JobId,
        after: StreamId,
        most: usize,
    ) -> Result<Vec<(StreamId, Piece)>, LiveError> {
        let mut commands = redis::pipe();
        commands
            .cmd("XRANGE")
            .arg(news::stream_key(job))
            .arg(format!("({}-{}", after.0, after.1))
            .arg("+")
            .arg("COUNT")
            .arg(most);
        let (range,): (StreamRangeReply,) = self.run(&commands).await?;
        let pieces = range.ids.iter().filter_map(|entry| {
            let (millis, number) = entry.id.split_once('-')?;
            let piece: String = entry.get(PIECE)?;
            let id = StreamId(millis.parse().ok()?, number.parse().ok()?);
            Some((id, serde_json::from_str(&piece).ok()?))
        });
        Ok(pieces.collect())
    }

    /// Sends commands and waits for their answers, but never for long.
    async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, LiveError> {
        // On the heap: it is many kilobytes, and every caller's future would hold them.
        let answer = Box::pin(async {
            let mut connection = self.0.pool.get().await.map_err(|error| match error {
                PoolError::Backend(error) => unavailable(error),
                error => unavailable(error),
            })?;
            commands
                .query_async(&mut connection)
                .await
                .map_err(unavailable)
        });
        time::timeout(COMMAND_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| {
                let millis = COMMAND_TIMEOUT.as_millis();
                Err(LiveError::Unavailable(format!("no answer for {millis} ms")))
            })
    }
}

fn worker_key(worker: &str) -> String {
    format!("sluice:worker:{worker}")
}

/// Not the URL itself: it may hold a password.
fn malformed() -> LiveError {
    LiveError::Unavailable(
        "redis.url is not a URL of the form redis://user:password@host:6379/0".into(),
    )
}

fn unavailable(error: impl fmt::Display) -> LiveError {
    LiveError::Unavailable(error.to_string())
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bad_url_is_not_repeated() {
        for url in [
            "hunter2",
            "http://user:hunter2@host",
            "redis://:hunter2@host:x",
        ] {
            let error = Redis::connect(&config::Redis { url: url.into() })
                .err()
                .unwrap();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
