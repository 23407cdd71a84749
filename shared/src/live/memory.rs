//! The live plane in this process's memory, with bounds, since nothing else bounds it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::mpsc::UnboundedReceiver, time};

use super::{
    LiveError, Piece, Presence, STREAM_LENGTH, StreamId, Taken, Wake,
    waiting::{Listeners, Waiting},
};
use crate::{
    clock,
    domain::{JobId, Span, Time},
    roll::Roll,
};

/// What all streams together may hold. Then the oldest go first.
const MOST_BYTES: usize = 128 * 1024 * 1024;

/// What a piece takes beside its text, roughly.
const BYTES_PER_PIECE: usize = 64;

/// What a stream takes beside its pieces, roughly.
const BYTES_PER_STREAM: usize = 256;

/// Quotas remembered before those that are over are cleared away.
const QUOTAS: usize = 1000;

/// This process's memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    listeners: Listeners,
    workers: Mutex<HashMap<String, (Presence, Instant)>>,
    roll: Mutex<Option<Roll>>,
    streams: Mutex<Streams>,
    /// What is left of each quota, and when it starts anew.
    quotas: Mutex<HashMap<String, (i64, Instant)>>,
    waiting: Waiting,
}

#[derive(Debug)]
struct Streams {
    /// When this memory began, in milliseconds since 1970: what its places begin with, as those of
    /// Redis do, so that a place of an earlier life is none of this one.
    epoch: u64,
    by_job: HashMap<JobId, Stream>,
    /// When to look whether a stream is over; the oldest streams first.
    expiries: VecDeque<(Instant, JobId)>,
    bytes: usize,
}

#[derive(Debug)]
struct Stream {
    pieces: VecDeque<Piece>,
    /// How many pieces there ever were; the number of the last.
    count: u64,
    bytes: usize,
    expires: Instant,
}

impl Memory {
    pub(super) fn wake(&self, wake: &Wake) -> Result<(), LiveError> {
        self.0.listeners.tell(wake);
        Ok(())
    }

    pub(super) fn wakes(&self) -> UnboundedReceiver<Wake> {
        self.0.listeners.join()
    }

    pub(super) fn beat(&self, presence: &Presence, ttl: Span) -> Result<(), LiveError> {
        let expires = Instant::now() + ttl.0;
        lock(&self.0.workers).insert(presence.worker.clone(), (presence.clone(), expires));
        Ok(())
    }

    pub(super) fn leave(&self, worker: &str) -> Result<(), LiveError> {
        lock(&self.0.workers).remove(worker);
        Ok(())
    }

    pub(super) fn workers(&self) -> Result<Vec<Presence>, LiveError> {
        let now = Instant::now();
        let mut workers = lock(&self.0.workers);
        workers.retain(|_, (_, expires)| *expires > now);
        let mut present: Vec<_> = workers
            .values()
            .map(|(presence, _)| presence.clone())
            .collect();
        drop(workers);
        present.sort_unstable_by(|one, other| one.worker.cmp(&other.worker));
        Ok(present)
    }

    pub(super) fn take(&self, name: &str, quota: u32, window: Span) -> Taken {
        let now = Instant::now();
        let mut quotas = lock(&self.0.quotas);
        if quotas.len() > QUOTAS {
            quotas.retain(|_, (_, resets)| *resets > now);
        }
        let (left, resets) = quotas
            .entry(name.to_owned())
            .and_modify(|entry| {
                if entry.1 <= now {
                    *entry = (quota.into(), now + window.0);
                }
            })
            .or_insert_with(|| (quota.into(), now + window.0));
        *left = left.saturating_sub(1);
        Taken::of(*left, Span(resets.saturating_duration_since(now)))
    }

    pub(super) fn keep_roll(&self, roll: &Roll) -> Result<(), LiveError> {
        *lock(&self.0.roll) = Some(roll.clone());
        Ok(())
    }

    pub(super) fn roll_revision(&self) -> Result<Option<i64>, LiveError> {
        Ok(lock(&self.0.roll).as_ref().map(|roll| roll.revision))
    }

    pub(super) fn roll(&self) -> Result<Option<Roll>, LiveError> {
        Ok(lock(&self.0.roll).clone())
    }

    pub(super) fn append(&self, job: JobId, pieces: &[Piece], ttl: Span) -> Result<(), LiveError> {
        lock(&self.0.streams).append(job, pieces, ttl.0, Instant::now());
        self.0.waiting.notify(job);
        Ok(())
    }

    pub(super) async fn read(
        &self,
        job: JobId,
        after: StreamId,
        most: usize,
        wait: Span,
    ) -> Result<Vec<(StreamId, Piece)>, LiveError> {
        let now = || lock(&self.0.streams).read(job, after, most, Instant::now());
        let pieces = now();
        if !pieces.is_empty() || wait.0.is_zero() {
            return Ok(pieces);
        }
        let (reader, _) = self.0.waiting.read(job);
        let deadline = time::Instant::now() + wait.0;
        loop {
            let mut more = std::pin::pin!(reader.pieces.notified());
            // Before looking, so that what is appended between looking and waiting is heard of.
            more.as_mut().enable();
            let pieces = now();
            if !pieces.is_empty() || time::timeout_at(deadline, more).await.is_err() {
                return Ok(pieces);
            }
        }
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self::since(clock::now())
    }
}

impl Streams {
    fn since(now: Time) -> Self {
        Self {
            epoch: u64::try_from(now.as_millis()).unwrap_or_default(),
            by_job: HashMap::new(),
            expiries: VecDeque::new(),
            bytes: 0,
        }
    }

    fn append(&mut self, job: JobId, pieces: &[Piece], ttl: Duration, now: Instant) {
        self.expire(now);
        let expires = now + ttl;
        let stream = self.by_job.entry(job).or_insert_with(|| {
            self.expiries.push_back((expires, job));
            self.bytes += BYTES_PER_STREAM;
            let (pieces, count, bytes) = (VecDeque::new(), 0, BYTES_PER_STREAM);
            Stream {
                pieces,
                count,
                bytes,
                expires,
            }
        });
        let before = stream.bytes;
        stream.expires = expires;
        for piece in pieces {
            stream.push(piece.clone());
        }
        self.bytes = self.bytes - before + stream.bytes;
        while self.bytes > MOST_BYTES {
            let Some((_, oldest)) = self.expiries.pop_front() else {
                break;
            };
            self.remove(oldest);
        }
    }

    fn read(
        &self,
        job: JobId,
        after: StreamId,
        most: usize,
        now: Instant,
    ) -> Vec<(StreamId, Piece)> {
        let Some(stream) = self.by_job.get(&job).filter(|stream| stream.expires > now) else {
            return Vec::new();
        };
        let first = stream.count - stream.pieces.len() as u64;
        let numbered = (first + 1..)
            .map(|number| StreamId(self.epoch, number))
            .zip(&stream.pieces);
        // Who read in an earlier life, or in Redis, has read nothing of what is here.
        let seen = match after.0 == self.epoch {
            true => usize::try_from(after.1.saturating_sub(first)).unwrap_or(usize::MAX),
            false => 0,
        };
        numbered
            .skip(seen)
            .take(most)
            .map(|(id, piece)| (id, piece.clone()))
            .collect()
    }

    /// Removes the streams whose time is over. One that was appended to meanwhile is looked at
    /// again when its new time is over.
    fn expire(&mut self, now: Instant) {
        while let Some((_, job)) = self.expiries.pop_front_if(|(expires, _)| *expires <= now) {
            match self.by_job.get(&job) {
                Some(stream) if stream.expires > now => {
                    self.expiries.push_back((stream.expires, job));
                }
                _ => self.remove(job),
            }
        }
    }

    fn remove(&mut self, job: JobId) {
        if let Some(stream) = self.by_job.remove(&job) {
            self.bytes -= stream.bytes;
        }
    }
}

impl Stream {
    fn push(&mut self, piece: Piece) {
        self.bytes += bytes_of(&piece);
        self.pieces.push_back(piece);
        self.count += 1;
        if self.pieces.len() > STREAM_LENGTH
            && let Some(oldest) = self.pieces.pop_front()
        {
            self.bytes -= bytes_of(&oldest);
        }
    }
}

fn bytes_of(piece: &Piece) -> usize {
    BYTES_PER_PIECE
        + match piece {
            Piece::Text { text, .. } => text.len(),
            Piece::End => 0,
        }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn text(length: usize) -> [Piece; 1] {
        [Piece::Text {
            attempt: 1,
            text: "x".repeat(length),
        }]
    }

    #[test]
    fn streams_are_bounded_in_length() {
        let (mut streams, now, job) = (Streams::default(), Instant::now(), JobId::generate());
        for _ in 0..STREAM_LENGTH + 5 {
            streams.append(job, &text(1), TTL, now);
        }
        let pieces = streams.read(job, StreamId::START, usize::MAX, now);
        assert_eq!(pieces.len(), STREAM_LENGTH);
        let place = |number| StreamId(streams.epoch, number);
        assert_eq!(pieces[0].0, place(6));
        assert_eq!(streams.read(job, place(9), 1, now)[0].0, place(10));
    }

    #[test]
    fn a_place_of_an_earlier_life_is_before_all_that_is_here() {
        let (now, job) = (Instant::now(), JobId::generate());
        let life = |millis| {
            let mut streams = Streams::since(Time::from_millis(millis));
            streams.append(job, &[text(1), text(2)].concat(), TTL, now);
            streams
        };
        let (before, after) = (life(1_000), life(2_000));
        let last = before.read(job, StreamId::START, 9, now)[1].0;
        assert!(before.read(job, last, 9, now).is_empty());
        let all = after.read(job, last, 9, now);
        assert_eq!(all.len(), 2);
        assert!(all[0].0 > last, "a place grows over lives, too");
    }

    #[test]
    fn the_oldest_streams_make_room() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        let jobs: Vec<_> = (0..10).map(|_| JobId::generate()).collect();
        for job in &jobs {
            streams.append(*job, &text(MOST_BYTES / 4), TTL, now);
        }
        assert!(streams.bytes <= MOST_BYTES);
        let there = |job| !streams.read(job, StreamId::START, 1, now).is_empty();
        assert!(!there(jobs[0]) && there(jobs[9]));
    }

    #[test]
    fn a_stream_lives_from_its_last_piece() {
        let (mut streams, start, job) = (Streams::default(), Instant::now(), JobId::generate());
        streams.append(job, &text(1), TTL, start);
        streams.append(job, &text(1), TTL, start + TTL / 2);
        let read = |streams: &Streams, at| streams.read(job, StreamId::START, 9, at).len();
        assert_eq!(read(&streams, start + TTL), 2);
        assert_eq!(read(&streams, start + TTL * 2), 0);
        streams.append(JobId::generate(), &text(1), TTL, start + TTL);
        streams.append(JobId::generate(), &text(1), TTL, start + TTL / 2 * 3);
        assert_eq!(streams.by_job.len(), 2, "the first is gone from memory too");
    }
}
