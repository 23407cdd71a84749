//! The text of a job as it comes, up to its end.
//!
//! A caller of these APIs cannot be told that what it has read is void. So when another attempt
//! begins to write after text was sent, or the answer is not what was sent, the stream ends with a
//! fault; before the first text, attempts and accounts may change unseen.

use std::{
    hash::{DefaultHasher, Hasher},
    sync::Arc,
    time::Duration,
};

use sluice_shared::{
    domain::{Completion, Span},
    live::{Piece, StreamId},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{fault::Fault, run::Running};
use crate::http::events;

/// How long one look into the stream waits.
const LOOK: Span = Span::seconds(5);

/// How long to rest when the live plane is away; the whole text comes with the end.
const REST: Duration = Duration::from_secs(1);

/// Pieces taken at once, at most.
const MOST_PIECES: usize = 200;

/// What comes next.
#[derive(Debug)]
pub(in crate::http) enum Said {
    /// More text.
    Text(String),
    /// The end: what of the text was not sent yet, and the whole answer.
    End(String, Arc<Completion>),
}

/// Follows a job.
#[derive(Debug)]
pub(in crate::http) struct Follow {
    pub(in crate::http) running: Running,
    after: StreamId,
    attempt: u32,
    sent: usize,
    digest: DefaultHasher,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    /// Begins at the start of its text; refused when too many streams are open.
    pub(in crate::http) fn new(running: Running) -> Result<Self, Fault> {
        let permit = events::permit(&running.edge)?;
        Ok(Self {
            running,
            after: StreamId::START,
            attempt: 0,
            sent: 0,
            digest: DefaultHasher::new(),
            _permit: permit,
        })
    }

    /// What comes next; nothing comes after a fault or the end. May be called again when the
    /// future was dropped.
    pub(in crate::http) async fn next(&mut self) -> Result<Said, Fault> {
        loop {
            let (live, job) = (self.running.edge.app.live.clone(), self.running.job);
            let pieces = tokio::select! {
                // What has ended is told at once, and in one piece.
                biased;
                answer = self.running.answer() => return self.end(answer?),
                pieces = live.read(job, self.after, MOST_PIECES, LOOK) => pieces,
            };
            let Ok(pieces) = pieces else {
                tokio::select! {
                    answer = self.running.answer() => return self.end(answer?),
                    () = tokio::time::sleep(REST) => continue,
                }
            };
            let mut text = String::new();
            for (id, piece) in pieces {
                self.after = id;
                if let Piece::Text {
                    attempt,
                    text: more,
                } = piece
                {
                    if attempt != self.attempt {
                        if self.sent > 0 {
                            return Err(Fault::void(job));
                        }
                        text.clear();
                        self.attempt = attempt;
                    }
                    text.push_str(&more);
                }
            }
            if !text.is_empty() {
                self.sent += text.len();
                self.digest.write(text.as_bytes());
                return Ok(Said::Text(text));
            }
        }
    }

    fn end(&self, answer: Arc<Completion>) -> Result<Said, Fault> {
        let cut = answer.text.split_at_checked(self.sent);
        let Some((sent, rest)) = cut else {
            return Err(Fault::void(self.running.job));
        };
        let mut digest = DefaultHasher::new();
        digest.write(sent.as_bytes());
        if digest.finish() != self.digest.finish() {
            return Err(Fault::void(self.running.job));
        }
        Ok(Said::End(rest.to_owned(), answer))
    }
}
