//! Text on its way to the live plane while a prompt runs.
//!
//! The attempt polls [`Streams::pump`] beside its provider, so that a stream costs no task, and a
//! quick job not even a timer. **The promise.** A slow or dead live plane slows no attempt: text
//! that it does not take is dropped with the job's stream, and is in the result anyway.

use std::{future::Future, pin::pin, time::Duration};

use futures::future::BoxFuture;
use sluice_shared::{
    domain::{JobId, Span},
    live::{Live, Piece},
};
use tokio::{
    sync::{Semaphore, mpsc::UnboundedReceiver},
    time::{Instant, sleep_until, timeout},
};

use crate::outage::Outage;

/// The least time between two appends of one job, and between its first text and its first
/// append: a job that ends before that writes nothing.
const PACE: Duration = Duration::from_millis(20);

/// Text of one job that may wait for the live plane, in bytes.
const MOST_WAITING: usize = 1 << 20;

/// Appends under way at once. One takes kilobytes while it is, which thousands of attempts that
/// stream at once would all hold while they wait for one of the live plane's connections.
const MOST_APPENDS: usize = 64;

/// How long one append may take, with the wait for its turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a stream is kept after its last piece.
const KEPT: Span = Span::seconds(15 * 60);

/// Where the streams go.
#[derive(Debug)]
pub(crate) struct Streams {
    live: Live,
    outage: Outage,
    room: Semaphore,
}

/// What came first.
enum First<T> {
    /// What was waited for.
    Due(T),
    /// The end of the text.
    End,
    /// More text than may wait.
    TooMuch,
}

impl Streams {
    pub(crate) fn new(live: Live) -> Self {
        Self {
            live,
            outage: Outage::of("the live plane, for streams,"),
            room: Semaphore::new(MOST_APPENDS),
        }
    }

    /// Whether the last append of any job failed.
    pub(crate) fn are_down(&self) -> bool {
        self.outage.is_on()
    }

    /// Appends an attempt's text as it comes, in pieces, until it ends. Ends early when the live
    /// plane does not take it; what is sent from then on is dropped.
    pub(crate) async fn pump(&self, job: JobId, attempt: u32, mut text: UnboundedReceiver<String>) {
        let Some(mut waiting) = text.recv().await else {
            return;
        };
        let first = sleep_until(Instant::now() + PACE);
        if !matches!(gather(&mut text, &mut waiting, first).await, First::Due(())) {
            return;
        }
        loop {
            let next = Instant::now() + PACE;
            let piece = [Piece::Text {
                attempt,
                text: std::mem::take(&mut waiting),
            }];
            let mut append = self.append(job, &piece);
            match gather(&mut text, &mut waiting, &mut append).await {
                First::Due(true) => {}
                First::End if append.await => break,
                First::Due(false) | First::End | First::TooMuch => return,
            }
            if waiting.is_empty() {
                match text.recv().await {
                    Some(more) => waiting = more,
                    None => return,
                }
            }
            match gather(&mut text, &mut waiting, sleep_until(next)).await {
                First::Due(()) => {}
                First::End => break,
                First::TooMuch => return,
            }
        }
        if !waiting.is_empty() {
            self.append(
                job,
                &[Piece::Text {
                    attempt,
                    text: waiting,
                }],
            )
            .await;
        }
    }

    /// Whether the live plane took it. In a box, so that an attempt that never streams keeps no
    /// room for it.
    fn append<'a>(&'a self, job: JobId, pieces: &'a [Piece]) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let append = async {
                // Never closed, so that there is always room in the end.
                let _room = self.room.acquire().await;
                // In a box of its own, which is not there before its turn.
                Box::pin(self.live.append(job, pieces, KEPT)).await
            };
            match timeout(PATIENCE, append).await {
                Ok(Ok(())) => {
                    self.outage.worked();
                    return true;
                }
                Ok(Err(error)) => self.outage.failed(&error),
                Err(_) => self.outage.failed(&"it did not answer in time"),
            }
            false
        })
    }
}

/// Adds text to `waiting` as it comes, until `until` is over.
async fn gather<T>(
    text: &mut UnboundedReceiver<String>,
    waiting: &mut String,
    until: impl Future<Output = T>,
) -> First<T> {
    let mut until = pin!(until);
    loop {
        tokio::select! {
            value = &mut until => return First::Due(value),
            more = text.recv() => match more {
                None => return First::End,
                Some(more) if waiting.len() + more.len() > MOST_WAITING => return First::TooMuch,
                Some(more) => waiting.push_str(&more),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_shared::live::StreamId;
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        provider::Sink,
        testing::{in_time, until},
    };

    async fn appended(live: &Live, job: JobId) -> Vec<String> {
        let pieces = live
            .read(job, StreamId::START, 10_000, Span::seconds(0))
            .await
            .unwrap();
        let text = |piece| match piece {
            Piece::Text { attempt: 1, text } => text,
            other => panic!("not a text of the first attempt: {other:?}"),
        };
        pieces.into_iter().map(|(_, piece)| text(piece)).collect()
    }

    fn streams(live: &Live) -> Streams {
        Streams::new(live.clone())
    }

    #[tokio::test]
    async fn a_quick_job_writes_nothing() {
        let (live, job) = (Live::memory(), JobId::generate());
        let (sink, text) = Sink::new();
        sink.text("all ");
        sink.text("at once");
        drop(sink);
        streams(&live).pump(job, 1, text).await;
        assert_eq!(appended(&live, job).await, [""; 0]);
    }

    #[tokio::test]
    async fn text_is_appended_whole_and_in_few_pieces() {
        let (live, job) = (Live::memory(), JobId::generate());
        let (sink, text) = Sink::new();
        let mut pump = JoinSet::new();
        let streams = streams(&live);
        pump.spawn(async move { streams.pump(job, 1, text).await });
        let begun = Instant::now();
        let mut whole = String::new();
        for number in 0..150 {
            sink.text(format!("{number} "));
            whole += &format!("{number} ");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = begun.elapsed();
        drop(sink);
        pump.join_next().await.unwrap().unwrap();
        let pieces = appended(&live, job).await;
        assert_eq!(pieces.concat(), whole);
        let most = took.as_millis() / PACE.as_millis() + 1;
        assert!(
            pieces.len() > 1 && pieces.len() as u128 <= most,
            "{} in {took:?}",
            pieces.len()
        );
    }

    #[tokio::test]
    async fn the_rest_follows_at_the_end() {
        let (live, job) = (Live::memory(), JobId::generate());
        let (sink, text) = Sink::new();
        let mut pump = JoinSet::new();
        let pumping = streams(&live);
        pump.spawn(async move { pumping.pump(job, 1, text).await });
        sink.text("first");
        until(async || !appended(&live, job).await.is_empty()).await;
        sink.text(" and last");
        drop(sink);
        pump.join_next().await.unwrap().unwrap();
        assert_eq!(appended(&live, job).await, ["first", " and last"]);
    }

    #[tokio::test]
    async fn a_live_plane_that_fails_ends_the_stream() {
        let config = sluice_shared::config::Redis {
            url: "redis://127.0.0.1:1/".into(),
        };
        let live = Live::connect(&config).unwrap();
        let streams = streams(&live);
        let (sink, text) = Sink::new();
        sink.text("nobody will hear this");
        // It ends although the sink is open.
        in_time(streams.pump(JobId::generate(), 1, text)).await;
        assert!(streams.are_down());
        sink.text("nor this");
    }

    #[tokio::test]
    async fn more_text_than_may_wait_ends_the_stream() {
        let (live, job) = (Live::memory(), JobId::generate());
        let (sink, text) = Sink::new();
        sink.text("x".repeat(MOST_WAITING));
        sink.text("x");
        in_time(streams(&live).pump(job, 1, text)).await;
        assert_eq!(appended(&live, job).await, [""; 0]);
    }
}
