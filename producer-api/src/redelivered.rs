//! Redelivered attempts: is their worker gone, or has it only lost its connection?
//!
//! A broker that restarts delivers again all that was unacked, and to anyone, while the workers
//! that have it in hand go on. So a redelivery is only a reason to ask. An attempt that another
//! worker says again it has in hand goes on; one that nobody claims in time is lost. Should this
//! process die while it asks, the reaper finds the attempt.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sluice_shared::{
    clock,
    domain::{JobId, Time},
    live::Presence,
    message::Reply,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{app::App, store::Verdict};

/// How often workers are asked while there is something to ask for.
const LOOK: Duration = Duration::from_millis(250);

/// Heartbeats in which a worker that is there is sure to be heard of.
const BEATS: u32 = 3;

/// A redelivery that may be a loss.
#[derive(Debug)]
struct Doubt {
    reply: Reply,
    since: Time,
    /// What each worker had said last, by its own clock, when the doubt arose.
    beats: HashMap<String, Time>,
}

impl Doubt {
    fn attempt(&self) -> (JobId, u32) {
        (self.reply.job, self.reply.attempt)
    }

    /// Whether a worker other than the one that was handed the redelivery has said since that the
    /// attempt is in its hands.
    fn is_dispelled(&self, workers: &[Presence]) -> bool {
        workers.iter().any(|presence| {
            presence.worker != self.reply.worker
                && self.beats.get(&presence.worker) != Some(&presence.beat_at)
                && presence.in_flight.contains(&self.attempt())
        })
    }
}

/// Weighs redeliveries until `shutdown`.
pub async fn run(
    app: Arc<App>,
    mut redelivered: mpsc::UnboundedReceiver<Reply>,
    shutdown: CancellationToken,
) {
    let patience = app.config.worker.heartbeat.0 * BEATS;
    let mut doubts: Vec<Doubt> = Vec::new();
    loop {
        let wait = if doubts.is_empty() {
            Duration::MAX
        } else {
            LOOK
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(reply) = redelivered.recv() => {
                let mut replies = vec![reply];
                while let Ok(reply) = redelivered.try_recv() {
                    replies.push(reply);
                }
                let beats: HashMap<String, Time> = app
                    .workers
                    .last_heard()
                    .into_iter()
                    .map(|presence| (presence.worker, presence.beat_at))
                    .collect();
                let since = clock::now();
                doubts.extend(replies.into_iter().map(|reply| Doubt {
                    reply,
                    since,
                    beats: beats.clone(),
                }));
            }
            () = tokio::time::sleep(wait) => {}
        }
        if let Err(error) = app.workers.refresh(&app.live).await {
            tracing::debug!(%error, "workers cannot be asked about redeliveries");
        }
        let workers = app.workers.last_heard();
        let now = clock::now();
        doubts.retain(|doubt| !doubt.is_dispelled(&workers));
        let (lost, open): (Vec<Doubt>, Vec<Doubt>) = doubts
            .into_iter()
            .partition(|doubt| now.since(doubt.since) >= patience);
        doubts = open;
        let verdicts: Vec<Verdict> = lost
            .into_iter()
            .map(|doubt| Verdict::Report(doubt.reply))
            .collect();
        if !app.settle_until(&verdicts, &shutdown).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_shared::message::Report;

    use super::*;

    fn presence(worker: &str, beat: i64, in_flight: Vec<(JobId, u32)>) -> Presence {
        Presence {
            worker: worker.into(),
            host: "h".into(),
            pid: 1,
            version: String::new(),
            since: Time::EPOCH,
            beat_at: Time::from_millis(beat),
            accounts: vec![],
            serves_all: false,
            troubles: Default::default(),
            in_flight,
        }
    }

    fn doubt(job: JobId) -> Doubt {
        Doubt {
            reply: Reply {
                learned: Box::default(),
                job,
                attempt: 1,
                account: "a".parse().unwrap(),
                worker: "second".into(),
                report: Report::Redelivered,
            },
            since: Time::EPOCH,
            beats: HashMap::from([("first".into(), Time::from_millis(7))]),
        }
    }

    #[test]
    fn only_a_new_word_of_another_worker_dispels_a_doubt() {
        let job = JobId::generate();
        let held = vec![(job, 1)];
        let doubt = doubt(job);
        assert!(doubt.is_dispelled(&[presence("first", 8, held.clone())]));
        assert!(doubt.is_dispelled(&[presence("third", 1, held.clone())]));
        assert!(
            !doubt.is_dispelled(&[presence("first", 7, held.clone())]),
            "an old word"
        );
        assert!(
            !doubt.is_dispelled(&[presence("second", 9, held)]),
            "who was handed it"
        );
        assert!(
            !doubt.is_dispelled(&[presence("first", 8, vec![(job, 2)])]),
            "another attempt"
        );
        assert!(!doubt.is_dispelled(&[]));
    }
}
