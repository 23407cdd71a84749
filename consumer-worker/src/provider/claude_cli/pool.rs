//! The processes of one account that are kept for its next prompts.
//!
//! A process serves one [`Key`] for all its life: what it was started with, and who it is logged
//! in as. The pool has a number of places, and a process holds one whether it runs a prompt or
//! waits; when all are taken, the one that has waited longest makes room, and when all run, the
//! prompt gets a process of its own. Nothing is started before there is a prompt for it, so that
//! an account that does nothing holds nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use semver::Version;
use sluice_shared::{config::WarmCli, domain::AccountId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Stamp, arguments::Arguments, warm::Warm};

/// What a process was started with. One whose key is another is of no use to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) arguments: Arguments,
    /// The program, which may be updated at any time.
    pub(super) version: Version,
    /// The login in the config directory, which someone may have changed.
    pub(super) login: Option<Stamp>,
}

/// The processes of one account. Dropped, it ends them.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    account: AccountId,
    turns: u32,
    idle: Duration,
    places: Arc<Semaphore>,
    /// Those that wait, the one that has waited longest first.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    processes: Vec<Idle>,
    /// Someone looks after those that wait too long.
    is_swept: bool,
}

#[derive(Debug)]
struct Idle {
    key: Key,
    warm: Warm,
    place: Place,
    since: Instant,
}

/// The right to have one process.
pub(super) type Place = OwnedSemaphorePermit;

impl Pool {
    /// `None` when the account keeps no process.
    pub(super) fn new(account: &AccountId, settings: WarmCli) -> Option<Self> {
        if settings.processes == 0 {
            return None;
        }
        let stop = CancellationToken::new();
        Some(Self {
            shared: Arc::new(Shared {
                account: account.clone(),
                turns: settings.turns,
                idle: settings.idle.0,
                places: Arc::new(Semaphore::new(usize::from(settings.processes))),
                waiting: Mutex::default(),
            }),
            tasks: TaskTracker::new(),
            _stop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// A place for a prompt of this key, with the process in it if one waits; `None` when all run.
    pub(super) fn take(&self, key: &Key) -> Option<(Place, Option<Warm>)> {
        let mut waiting = self.shared.waiting();
        // The last that was used: those that are not needed are left to grow old.
        while let Some(at) = waiting.processes.iter().rposition(|idle| idle.key == *key) {
            let Idle {
                mut warm, place, ..
            } = waiting.processes.remove(at);
            if warm.is_waiting() {
                return Some((place, Some(warm)));
            }
            self.retire(warm, "it did not wait quietly");
        }
        if let Ok(place) = Arc::clone(&self.shared.places).try_acquire_owned() {
            return Some((place, None));
        }
        if waiting.processes.is_empty() {
            return None;
        }
        let Idle { warm, place, .. } = waiting.processes.remove(0);
        self.retire(
            warm,
            "its place is needed for another model or system prompt",
        );
        Some((place, None))
    }

    /// Whether this process has had its turns.
    pub(super) fn is_worn(&self, warm: &Warm) -> bool {
        warm.turns() >= self.shared.turns
    }

    /// Has a process that has run a prompt well forget it, and keeps it for the next. The prompt's
    /// slot is held until then, some 15 ms: freed earlier, its successor would find no process.
    pub(super) async fn give_back(&self, key: Key, mut warm: Warm, place: Place) {
        if warm.reset().await {
            self.shared.park(key, warm, place);
            self.sweep();
            return;
        }
        tracing::info!(
            account = %self.shared.account,
            "a process of the CLI is ended: it could not be shown to have forgotten its last prompt"
        );
        warm.stop().await;
    }

    /// Keeps a process that has not run a prompt yet.
    pub(super) fn keep_new(&self, key: Key, warm: Warm, place: Place) {
        self.shared.park(key, warm, place);
        self.sweep();
    }

    /// Ends a process in good order.
    pub(super) fn retire(&self, warm: Warm, reason: &str) {
        tracing::debug!(account = %self.shared.account, reason, "a process of the CLI is ended");
        self.spawn(warm.end());
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // Dropped with its process when the pool is.
            stop.run_until_cancelled_owned(work).await;
        });
    }

    /// Sees to it that those that wait too long are ended.
    fn sweep(&self) {
        let is_swept = std::mem::replace(&mut self.shared.waiting().is_swept, true);
        if !is_swept {
            self.spawn(sweep(Arc::downgrade(&self.shared), self.shared.idle));
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here can leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn park(&self, key: Key, warm: Warm, place: Place) {
        self.waiting().processes.push(Idle {
            key,
            warm,
            place,
            since: Instant::now(),
        });
    }

    /// Those that have waited too long, and when to look again. When none waits or runs, nobody
    /// needs to.
    fn expired(&self, now: Instant) -> (Vec<Idle>, Option<Instant>) {
        let mut waiting = self.waiting();
        let processes = &mut waiting.processes;
        let fresh = processes
            .iter()
            .position(|idle| now.duration_since(idle.since) < self.idle)
            .unwrap_or(processes.len());
        let expired = processes.drain(..fresh).collect();
        let next = processes.first().map(|idle| idle.since + self.idle);
        (expired, next)
    }
}

/// Ends those that wait too long, as long as there is a pool. It looks once each time that one
/// may wait: nothing hangs on the moment.
async fn sweep(shared: Weak<Shared>, idle: Duration) {
    loop {
        let Some(pool) = shared.upgrade() else {
            return;
        };
        let (expired, next) = pool.expired(Instant::now());
        drop(pool);
        for old in expired {
            old.warm.end().await;
            drop(old.place);
        }
        let next = next.unwrap_or_else(|| Instant::now() + idle);
        tokio::time::sleep_until(next).await;
    }
}
