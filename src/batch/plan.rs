//! Which lines go into which chunk, and under which key a chunk is submitted. Pure.
//!
//! A chunk that was sent before keeps its lines, whatever the limits are now: its size comes from
//! the journal, and its content must be the same. What was not sent is planned anew, so that bad
//! lines can be mended and new lines added between two runs.

use std::fmt::Write;

use sha2::{Digest, Sha256};
use sluice_shared::domain::JobId;
use uuid::Uuid;

/// How large a chunk may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Jobs in it, at most.
    pub(super) jobs: usize,
    /// Bytes of JSON, at most; a job that is larger by itself goes alone.
    pub(super) bytes: usize,
}

/// Jobs that are submitted together, in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// The line of each job.
    pub(super) lines: Vec<u64>,
    /// What is in it.
    pub(super) hash: String,
}

impl Chunk {
    /// The lines for people: `lines 1 to 500`.
    pub(super) fn describe(&self) -> String {
        match (self.lines.first(), self.lines.last()) {
            (Some(first), Some(last)) if first != last => format!("lines {first} to {last}"),
            (Some(only), _) => format!("line {only}"),
            _ => "no line".into(),
        }
    }
}

/// A chunk as the journal knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// How many jobs it has.
    pub(super) jobs: usize,
    /// What is in it.
    pub(super) hash: String,
    /// The ids of its jobs, once they are known.
    pub(super) ids: Option<Vec<JobId>>,
}

/// The key of a chunk: the same for the same content at the same place of the same batch.
pub(super) fn idempotency_key(batch: Uuid, number: usize, hash: &str) -> String {
    format!("batch-{batch}-{number}-{}", hash.get(..32).unwrap_or(hash))
}

/// The hash of a chunk's content, job by job.
#[derive(Clone, Debug, Default)]
pub(super) struct Content(Sha256);

impl Content {
    pub(super) fn add(&mut self, body: &[u8]) {
        self.0.update((body.len() as u64).to_be_bytes());
        self.0.update(body);
    }

    pub(super) fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .fold(String::with_capacity(64), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }
}

/// Makes the chunks out of the jobs, one after the other.
#[derive(Debug)]
pub(super) struct Planner {
    limits: Limits,
    sizes: Vec<usize>,
    chunks: Vec<Chunk>,
    offset: u64,
    lines: Vec<u64>,
    bytes: usize,
    content: Content,
}

impl Planner {
    /// Keeps the chunks that were sent as they were.
    pub(super) fn new(limits: Limits, sent: &[Sent]) -> Self {
        Self {
            limits,
            sizes: sent.iter().map(|chunk| chunk.jobs).collect(),
            chunks: Vec::new(),
            offset: 0,
            lines: Vec::new(),
            bytes: 0,
            content: Content::default(),
        }
    }

    /// The next job of the file.
    pub(super) fn add(&mut self, line: u64, offset: u64, body: &[u8]) {
        let is_full = match self.sizes.get(self.chunks.len()) {
            Some(size) => self.lines.len() == *size,
            None => {
                self.lines.len() == self.limits.jobs || self.bytes + body.len() > self.limits.bytes
            }
        };
        if is_full {
            self.close();
        }
        if self.lines.is_empty() {
            self.offset = offset;
        }
        self.lines.push(line);
        self.bytes += body.len() + 1;
        self.content.add(body);
    }

    /// Every chunk.
    pub(super) fn finish(mut self) -> Vec<Chunk> {
        self.close();
        self.chunks
    }

    fn close(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        self.chunks.push(Chunk {
            offset: self.offset,
            lines: std::mem::take(&mut self.lines),
            hash: std::mem::take(&mut self.content).finish(),
        });
        self.bytes = 0;
    }
}

/// Whether what was sent is still what the file says.
///
/// # Errors
/// The first chunk that differs: its number, and its lines now, if there are any.
pub(super) fn check(chunks: &[Chunk], sent: &[Sent]) -> Result<(), (usize, Option<String>)> {
    for (number, before) in sent.iter().enumerate() {
        match chunks.get(number) {
            Some(now) if now.hash == before.hash => {}
            now => return Err((number, now.map(Chunk::describe))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        jobs: 3,
        bytes: 100,
    };

    fn plan(bodies: &[String], limits: Limits, sent: &[Sent]) -> Vec<Chunk> {
        let mut planner = Planner::new(limits, sent);
        for (index, body) in bodies.iter().enumerate() {
            planner.add(index as u64 + 1, index as u64 * 10, body.as_bytes());
        }
        planner.finish()
    }

    fn sent(chunks: &[Chunk]) -> Vec<Sent> {
        chunks
            .iter()
            .map(|chunk| Sent {
                jobs: chunk.lines.len(),
                hash: chunk.hash.clone(),
                ids: None,
            })
            .collect()
    }

    fn bodies(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn chunks_are_cut_by_number_and_by_size() {
        let by_number = plan(&bodies(&["a", "b", "c", "d"]), LIMITS, &[]);
        assert_eq!(
            by_number
                .iter()
                .map(|c| c.lines.clone())
                .collect::<Vec<_>>(),
            [vec![1, 2, 3], vec![4]]
        );
        assert_eq!(by_number[1].offset, 30);
        let large = "x".repeat(150);
        let by_size = plan(&bodies(&["a", &large, "b"]), LIMITS, &[]);
        assert_eq!(
            by_size.iter().map(|c| c.lines.clone()).collect::<Vec<_>>(),
            [vec![1], vec![2], vec![3]]
        );
        assert!(plan(&[], LIMITS, &[]).is_empty());
    }

    #[test]
    fn lines_that_were_added_are_new_chunks() {
        let before = plan(&bodies(&["a", "b", "c", "d"]), LIMITS, &[]);
        let after = plan(&bodies(&["a", "b", "c", "d", "e"]), LIMITS, &sent(&before));
        assert_eq!(check(&after, &sent(&before)), Ok(()));
        assert_eq!(after[..2], before[..]);
        assert_eq!(after[2].lines, [5]);
    }

    #[test]
    fn a_line_that_was_sent_cannot_change_and_a_later_one_can() {
        let before = plan(&bodies(&["a", "b", "c", "d"]), LIMITS, &[]);
        let changed = bodies(&["a", "b", "c", "D"]);
        let first_only = sent(&before[..1]);
        assert_eq!(
            check(&plan(&changed, LIMITS, &first_only), &first_only),
            Ok(())
        );
        let both = sent(&before);
        let found = check(&plan(&changed, LIMITS, &both), &both);
        assert_eq!(found, Err((1, Some("line 4".into()))));
        let shorter = bodies(&["a", "b", "c"]);
        assert_eq!(check(&plan(&shorter, LIMITS, &both), &both), Err((1, None)));
    }

    #[test]
    fn a_key_names_batch_place_and_content() {
        let chunks = plan(&bodies(&["a", "b", "c", "a", "b", "c"]), LIMITS, &[]);
        assert_eq!(chunks[0].hash, chunks[1].hash);
        let batch = Uuid::nil();
        let key = idempotency_key(batch, 0, &chunks[0].hash);
        assert_eq!(key, idempotency_key(batch, 0, &chunks[1].hash));
        assert_ne!(key, idempotency_key(batch, 1, &chunks[1].hash));
        assert_ne!(key, idempotency_key(Uuid::max(), 0, &chunks[0].hash));
        assert!(key.len() < 100, "{key}");
    }

    #[test]
    fn the_border_between_two_jobs_is_part_of_the_content() {
        let one = plan(&bodies(&["ab", "c"]), LIMITS, &[]);
        let other = plan(&bodies(&["a", "bc"]), LIMITS, &[]);
        assert_ne!(one[0].hash, other[0].hash);
    }

    proptest! {
        /// Wherever a run ends, and whatever limits the next one has: what was sent keeps its
        /// chunks, and every line is in exactly one chunk, in order.
        #[test]
        fn a_second_run_sends_each_line_once(
            bodies in proptest::collection::vec("[a-z]{0,40}", 1..60),
            first in (1usize..10, 10usize..200),
            second in (1usize..10, 10usize..200),
            done in 0usize..20,
        ) {
            let before = plan(&bodies, Limits { jobs: first.0, bytes: first.1 }, &[]);
            let done = sent(&before[..done.min(before.len())]);
            let after = plan(&bodies, Limits { jobs: second.0, bytes: second.1 }, &done);
            prop_assert_eq!(check(&after, &done), Ok(()));
            let lines: Vec<u64> = after.iter().flat_map(|chunk| chunk.lines.clone()).collect();
            let every: Vec<u64> = (1..=bodies.len() as u64).collect();
            prop_assert_eq!(lines, every);
        }
    }
}
