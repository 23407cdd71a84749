//! What has been sent, kept beside the file: one JSON entry a line, only ever added to.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sluice_shared::domain::{JobId, Time};
use uuid::Uuid;

use super::plan::{Chunk, Sent};
use crate::Failure;

const VERSION: u32 = 1;

/// How long a server remembers an idempotency key, unless it is configured otherwise.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Something that happened to a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Entry {
    /// It was begun. Always the first entry.
    Begun {
        version: u32,
        batch: Uuid,
        url: String,
        at: Time,
    },
    /// A chunk is about to be sent.
    Sending {
        chunk: usize,
        jobs: usize,
        hash: String,
        at: Time,
    },
    /// It was accepted.
    Accepted { chunk: usize, ids: Vec<JobId> },
    /// It was refused, so none of it was accepted.
    Refused { chunk: usize },
    /// Every job has ended and the results are written.
    Finished {
        at: Time,
        succeeded: u64,
        failed: u64,
    },
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) at: Time,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
}

/// Where a batch stands: what its entries amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) batch: Uuid,
    pub(super) url: String,
    pub(super) begun_at: Time,
    /// The chunks that were sent; only of the last one may it be unknown whether it arrived.
    pub(super) sent: Vec<Sent>,
    /// When the last chunk was first sent.
    pub(super) sent_at: Time,
    pub(super) finished: Option<Finished>,
}

impl Standing {
    /// The last chunk, if it was sent so long ago that the server has forgotten its key, and it
    /// is not known whether it arrived.
    pub(super) fn doubtful(&self, now: Time) -> Option<usize> {
        let is_unknown = self.sent.last().is_some_and(|last| last.ids.is_none());
        (is_unknown && now.since(self.sent_at) >= REMEMBERED).then(|| self.sent.len() - 1)
    }

    fn begin(batch: Uuid, url: String, at: Time) -> Self {
        Self {
            batch,
            url,
            begun_at: at,
            sent: Vec::new(),
            sent_at: at,
            finished: None,
        }
    }

    fn apply(&mut self, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Begun { .. } => return Err("begins twice".into()),
            Entry::Sending {
                chunk,
                jobs,
                hash,
                at,
            } => {
                if chunk != self.sent.len() || self.sent.iter().any(|sent| sent.ids.is_none()) {
                    return Err(format!("sends chunk {chunk} out of turn"));
                }
                self.sent.push(Sent {
                    jobs,
                    hash,
                    ids: None,
                });
                self.sent_at = at;
                self.finished = None;
            }
            Entry::Accepted { chunk, ids } => match self.sent.get_mut(chunk) {
                Some(sent) if sent.ids.is_none() && sent.jobs == ids.len() => sent.ids = Some(ids),
                _ => return Err(format!("accepts a chunk {chunk} that was not sent")),
            },
            Entry::Refused { chunk } => {
                if chunk + 1 != self.sent.len() || self.sent[chunk].ids.is_some() {
                    return Err(format!("refuses a chunk {chunk} that was not sent"));
                }
                self.sent.pop();
            }
            Entry::Finished {
                at,
                succeeded,
                failed,
            } => {
                self.finished = Some(Finished {
                    at,
                    succeeded,
                    failed,
                });
            }
        }
        Ok(())
    }
}

/// What the whole lines of `text` amount to, and how many bytes of it they are. The last line may
/// have been cut short by a crash; then it never happened.
fn replay(text: &str) -> Result<(Option<Standing>, usize), String> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut standing: Option<Standing> = None;
    for (index, line) in text[..whole].lines().enumerate() {
        let fault = |problem: String| format!("line {}: {problem}", index + 1);
        let entry: Entry = serde_json::from_str(line).map_err(|error| fault(error.to_string()))?;
        match (&mut standing, entry) {
            (
                None,
                Entry::Begun {
                    version: VERSION,
                    batch,
                    url,
                    at,
                },
            ) => {
                standing = Some(Standing::begin(batch, url, at));
            }
            (None, Entry::Begun { version, .. }) => {
                return Err(fault(format!("version {version} is of a newer sluice")));
            }
            (None, _) => return Err(fault("does not begin a batch".into())),
            (Some(standing), entry) => standing.apply(entry).map_err(fault)?,
        }
    }
    Ok((standing, whole))
}

/// The journal of one file. While it is open, no other process works on the same file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    standing: Standing,
    /// Whether this run began the batch.
    pub(super) is_new: bool,
}

impl Journal {
    /// Opens the journal, or begins a batch when there is none, or `again` asks for a new one.
    pub(super) fn open(path: &Path, url: &str, again: bool, now: Time) -> Result<Self, Failure> {
        let io = || Failure::io(path.display().to_string());
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::usage(format!(
                    "another `sluice batch` is at work on this file ({} is locked)",
                    path.display()
                )));
            }
            Err(TryLockError::Error(source)) => return Err(io()(source)),
        }
        let mut text = String::new();
        if !again {
            file.read_to_string(&mut text).map_err(io())?;
        }
        let (standing, whole) = replay(&text).map_err(|problem| {
            Failure::usage(format!(
                "{}: {problem}; mend or remove it, or begin anew with --again",
                path.display()
            ))
        })?;
        let is_new = standing.is_none();
        if !is_new {
            file.set_len(whole as u64).map_err(io())?;
            file.seek(SeekFrom::End(0)).map_err(io())?;
        }
        let standing = standing.unwrap_or_else(|| Standing::begin(Uuid::now_v7(), url.into(), now));
        Ok(Self {
            path: path.to_owned(),
            file,
            standing,
            is_new,
        })
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Leaves nothing behind of a batch that was never begun.
    pub(super) fn abandon(self) {
        if self
            .file
            .metadata()
            .is_ok_and(|metadata| metadata.len() == 0)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// A chunk is about to be sent. One that is sent again is in the journal already.
    pub(super) fn sending(
        &mut self,
        number: usize,
        chunk: &Chunk,
        now: Time,
    ) -> Result<(), Failure> {
        if self.standing.sent.len() > number {
            return Ok(());
        }
        if self.is_new {
            // Only now does the journal of an earlier batch make room for this one.
            let io = || Failure::io(self.path.display().to_string());
            self.file.set_len(0).map_err(io())?;
            self.file.rewind().map_err(io())?;
            self.write(&Entry::Begun {
                version: VERSION,
                batch: self.standing.batch,
                url: self.standing.url.clone(),
                at: self.standing.begun_at,
            })?;
            self.is_new = false;
        }
        self.add(Entry::Sending {
            chunk: number,
            jobs: chunk.lines.len(),
            hash: chunk.hash.clone(),
            at: now,
        })
    }

    /// A chunk was accepted.
    pub(super) fn accepted(&mut self, number: usize, ids: Vec<JobId>) -> Result<(), Failure> {
        self.add(Entry::Accepted { chunk: number, ids })
    }

    /// A chunk was refused as a whole.
    pub(super) fn refused(&mut self, number: usize) -> Result<(), Failure> {
        self.add(Entry::Refused { chunk: number })
    }

    /// Every job has ended and the results are written.
    pub(super) fn finished(&mut self, finished: Finished) -> Result<(), Failure> {
        let Finished {
            at,
            succeeded,
            failed,
        } = finished;
        self.add(Entry::Finished {
            at,
            succeeded,
            failed,
        })
    }

    fn add(&mut self, entry: Entry) -> Result<(), Failure> {
        self.write(&entry)?;
        self.standing
            .apply(entry)
            .map_err(|problem| Failure::usage(format!("{}: {problem}", self.path.display())))
    }

    fn write(&mut self, entry: &Entry) -> Result<(), Failure> {
        let mut line =
            serde_json::to_vec(entry).map_err(|error| Failure::Role(anyhow::Error::from(error)))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(Failure::io(self.path.display().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);
    const URL: &str = "http://127.0.0.1:3000/";

    fn chunk(lines: &[u64], hash: &str) -> Chunk {
        Chunk {
            offset: 0,
            lines: lines.to_vec(),
            hash: hash.into(),
        }
    }

    fn ids(count: usize) -> Vec<JobId> {
        (0..count).map(|_| JobId::generate()).collect()
    }

    fn path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("f.sluice-state.jsonl")
    }

    fn open(dir: &tempfile::TempDir) -> Journal {
        Journal::open(&path(dir), URL, false, NOW).unwrap()
    }

    #[test]
    fn a_batch_goes_on_where_it_stood() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        let batch = journal.standing().batch;
        let first = ids(2);
        journal.sending(0, &chunk(&[1, 2], "a"), NOW).unwrap();
        journal.accepted(0, first.clone()).unwrap();
        journal.sending(1, &chunk(&[3], "b"), NOW).unwrap();
        drop(journal);

        let mut journal = open(&dir);
        let expected = [
            Sent {
                jobs: 2,
                hash: "a".into(),
                ids: Some(first),
            },
            Sent {
                jobs: 1,
                hash: "b".into(),
                ids: None,
            },
        ];
        assert_eq!(journal.standing().sent, expected);
        assert_eq!(journal.standing().batch, batch);
        journal.sending(1, &chunk(&[3], "b"), NOW).unwrap();
        journal.refused(1).unwrap();
        drop(journal);
        assert_eq!(open(&dir).standing().sent, expected[..1]);
    }

    #[test]
    fn an_entry_that_was_cut_short_never_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        journal.sending(0, &chunk(&[1], "a"), NOW).unwrap();
        drop(journal);
        let whole = std::fs::read_to_string(path(&dir)).unwrap();
        std::fs::write(path(&dir), format!("{whole}{{\"event\":\"acc")).unwrap();
        let mut journal = open(&dir);
        assert_eq!(journal.standing().sent.len(), 1);
        journal.accepted(0, ids(1)).unwrap();
        drop(journal);
        assert!(open(&dir).standing().sent[0].ids.is_some());
    }

    #[test]
    fn a_new_batch_replaces_the_old_one_only_when_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        journal.sending(0, &chunk(&[1], "a"), NOW).unwrap();
        let old = journal.standing().batch;
        drop(journal);

        Journal::open(&path(&dir), URL, true, NOW)
            .unwrap()
            .abandon();
        assert_eq!(open(&dir).standing().batch, old);

        let mut again = Journal::open(&path(&dir), URL, true, NOW).unwrap();
        again.sending(0, &chunk(&[1], "z"), NOW).unwrap();
        drop(again);
        let journal = open(&dir);
        assert_ne!(journal.standing().batch, old);
        assert_eq!(journal.standing().sent[0].hash, "z");
    }

    #[test]
    fn what_was_never_begun_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).abandon();
        assert!(!path(&dir).exists());
    }

    #[test]
    fn one_process_works_on_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(&dir);
        let second = Journal::open(&path(&dir), URL, false, NOW);
        assert!(matches!(second, Err(Failure::Usage(_))), "{second:?}");
    }

    #[test]
    fn a_file_that_is_no_journal_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["hello\n", "{\"event\":\"refused\",\"chunk\":0}\n"] {
            std::fs::write(path(&dir), text).unwrap();
            let opened = Journal::open(&path(&dir), URL, false, NOW);
            assert!(matches!(opened, Err(Failure::Usage(_))), "{opened:?}");
            assert_eq!(std::fs::read_to_string(path(&dir)).unwrap(), text);
        }
    }

    #[test]
    fn a_chunk_in_doubt_is_told_once_its_key_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        journal.sending(0, &chunk(&[1], "a"), NOW).unwrap();
        assert_eq!(
            journal.standing().doubtful(NOW + Duration::from_secs(60)),
            None
        );
        assert_eq!(journal.standing().doubtful(NOW + REMEMBERED), Some(0));
        journal.accepted(0, ids(1)).unwrap();
        assert_eq!(journal.standing().doubtful(NOW + REMEMBERED), None);
    }

    #[test]
    fn lines_that_are_added_to_a_finished_batch_open_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        journal.sending(0, &chunk(&[1], "a"), NOW).unwrap();
        journal.accepted(0, ids(1)).unwrap();
        let end = Finished {
            at: NOW,
            succeeded: 1,
            failed: 0,
        };
        journal.finished(end).unwrap();
        assert_eq!(journal.standing().finished, Some(end));
        journal.sending(1, &chunk(&[2], "b"), NOW).unwrap();
        assert_eq!(journal.standing().finished, None);
    }
}
