//! State changes as they happen, for whoever watches. **The promise.** It costs next to nothing
//! while nobody does, and a watcher that falls behind is told how much it missed.
//!
//! It is news, not truth: a change may be missed while the live plane is away, and whoever must
//! not miss one looks at the truth plane too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use sluice_shared::{
    api::JobChange,
    clock,
    domain::Time,
    live::{Live, Wake},
};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Batches that a watcher may be behind.
const BEHIND: usize = 1024;

/// How often the other processes are told that someone watches here.
const TELL: Duration = Duration::from_secs(2);

/// How long they go on without hearing it again.
const LISTEN: Duration = Duration::from_secs(10);

/// Changes in one message to other processes, at most.
const MOST: usize = 1000;

type Batch = Arc<[JobChange]>;

/// The news of state changes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    here: broadcast::Sender<Batch>,
    /// Another process is told until then; milliseconds since the Unix epoch.
    watched_until: AtomicI64,
    away: mpsc::UnboundedSender<Batch>,
    id: Uuid,
}

/// What waits to be told to other processes.
#[derive(Debug)]
pub struct Outbox(mpsc::UnboundedReceiver<Batch>);

impl Feed {
    /// A feed, and what [`Feed::run`] needs.
    #[must_use]
    pub fn new() -> (Self, Outbox) {
        let (away, outbox) = mpsc::unbounded_channel();
        let inner = Inner {
            here: broadcast::Sender::new(BEHIND),
            watched_until: AtomicI64::new(0),
            away,
            id: Uuid::now_v7(),
        };
        let feed = Self {
            inner: Arc::new(inner),
        };
        (feed, Outbox(outbox))
    }

    /// Watches from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Batch> {
        self.inner.here.subscribe()
    }

    /// Tells changes, which are only made when someone watches.
    pub fn tell(&self, changes: impl FnOnce() -> Vec<JobChange>) {
        let here = self.inner.here.receiver_count() > 0;
        let away = clock::now().as_millis() < self.inner.watched_until.load(Ordering::Relaxed);
        if !here && !away {
            return;
        }
        let changes: Batch = changes().into();
        if changes.is_empty() {
            return;
        }
        if away {
            drop(self.inner.away.send(changes.clone()));
        }
        if here {
            drop(self.inner.here.send(changes));
        }
    }

    /// Exchanges news with other processes until `shutdown`.
    pub async fn run(self, live: Live, mut outbox: Outbox, shutdown: CancellationToken) {
        if matches!(live, Live::Memory(_)) {
            return; // There is no other process.
        }
        let mut wakes = live.wakes();
        let mut tick = tokio::time::interval(TELL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let said = tokio::select! {
                () = shutdown.cancelled() => return,
                Some(wake) = wakes.recv() => {
                    self.hear(wake, clock::now());
                    continue;
                }
                Some(batch) = outbox.0.recv() => self.say(&live, &batch).await,
                _ = tick.tick(), if self.inner.here.receiver_count() > 0 => {
                    live.wake(&Wake::Watched).await
                }
            };
            if let Err(error) = said {
                tracing::debug!(%error, "news of state changes could not be told");
            }
        }
    }

    async fn say(&self, live: &Live, batch: &Batch) -> Result<(), sluice_shared::live::LiveError> {
        for chunk in batch.chunks(MOST) {
            let changed = Wake::Changed {
                from: self.inner.id,
                changes: chunk.to_vec(),
            };
            live.wake(&changed).await?;
        }
        Ok(())
    }

    fn hear(&self, wake: Wake, now: Time) {
        match wake {
            Wake::Watched => {
                let until = (now + LISTEN).as_millis();
                self.inner.watched_until.store(until, Ordering::Relaxed);
            }
            Wake::Changed { from, changes } if from != self.inner.id => {
                drop(self.inner.here.send(changes.into()));
            }
            Wake::Changed { .. } | Wake::Ended { .. } | Wake::Homes { .. } | Wake::Accounts => {}
        }
    }
}
