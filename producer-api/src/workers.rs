//! Which workers are there: the live plane's presence, as last heard.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    api::AccountTrouble,
    clock,
    domain::{AccountId, Time},
    live::{Live, LiveError, Presence},
};
use tokio_util::sync::CancellationToken;

/// How often the live plane is asked.
const REFRESH: Duration = Duration::from_millis(500);

/// How long a worker is held to be there after it was last heard of. The live plane may forget
/// everything for a moment, and that moment must not stop the dispatcher.
const GRACE: Duration = Duration::from_secs(10);

/// Workers as last heard of; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By name: when this process last saw it, and what it said.
    workers: HashMap<String, (Time, Presence)>,
    /// The live plane could not be asked the last time.
    blind: bool,
}

impl Workers {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the live plane once.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn refresh(&self, live: &Live) -> Result<Vec<Presence>, LiveError> {
        let answer = live.workers().await;
        let now = clock::now();
        let mut seen = self.seen();
        match &answer {
            Ok(workers) => {
                seen.blind = false;
                for presence in workers {
                    seen.workers
                        .insert(presence.worker.clone(), (now, presence.clone()));
                }
                seen.workers.retain(|_, (at, _)| now.since(*at) < GRACE);
            }
            Err(_) => seen.blind = true,
        }
        answer
    }

    /// Asks again and again; `changed` is called when an account has become served.
    pub async fn run(self, live: Live, changed: impl Fn() + Send, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut served = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Err(error) = self.refresh(&live).await {
                tracing::debug!(%error, "presence is unknown");
            }
            let now_served = self.served();
            if now_served != served {
                served = now_served;
                changed();
            }
        }
    }

    /// What each worker said last.
    #[must_use]
    pub fn last_heard(&self) -> Vec<Presence> {
        self.seen()
            .workers
            .values()
            .map(|(_, presence)| presence.clone())
            .collect()
    }

    fn served(&self) -> Vec<AccountId> {
        let seen = self.seen();
        let mut accounts: Vec<AccountId> = seen
            .workers
            .values()
            .flat_map(|(_, presence)| presence.accounts.iter().cloned())
            .collect();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    /// How many workers serve the account; `None` when the live plane cannot tell.
    #[must_use]
    pub fn serving(&self, account: &AccountId) -> Option<u32> {
        let seen = self.seen();
        let count = seen
            .workers
            .values()
            .filter(|(_, presence)| presence.accounts.contains(account))
            .count();
        if seen.blind {
            None
        } else {
            Some(u32::try_from(count).unwrap_or(u32::MAX))
        }
    }

    /// The workers that should serve the account and cannot.
    #[must_use]
    pub fn troubles(&self, account: &AccountId) -> Vec<AccountTrouble> {
        let seen = self.seen();
        let mut troubles: Vec<AccountTrouble> = seen
            .workers
            .values()
            .filter_map(|(_, presence)| {
                let problem = presence.troubles.get(account)?.clone();
                let worker = presence.worker.clone();
                Some(AccountTrouble { worker, problem })
            })
            .collect();
        troubles.sort_unstable_by(|one, other| one.worker.cmp(&other.worker));
        troubles
    }

    /// Whether the live plane could be asked the last time.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.seen().blind
    }

    /// Whether jobs may be sent to the account's queue: a worker serves it, or nobody can tell.
    #[must_use]
    pub fn may_serve(&self, account: &AccountId) -> bool {
        self.serving(account).is_none_or(|workers| workers > 0)
    }
}
