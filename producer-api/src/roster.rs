//! The accounts as this process knows them: a snapshot of the truth plane, taken anew whenever an
//! account was made, changed or removed, here or at another API process.
//!
//! What was made at run time is also kept in the live plane as a [`Roll`], for the workers. A live
//! plane that has lost it gets it again at the next look.

use std::{collections::HashSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use sluice_shared::{
    broker::Broker,
    domain::{Account, AccountId},
    live::{Live, Wake},
    message::Control,
    roll::Roll,
    seal::MasterKey,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    store::{Store, StoreError},
};

/// How often the truth plane and the live plane are asked without a wake-up.
const POLL: Duration = Duration::from_secs(1);

/// The accounts of the truth plane, as last seen; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    seen: ArcSwap<Seen>,
    bell: Notify,
}

#[derive(Debug)]
struct Seen {
    revision: i64,
    accounts: Arc<Vec<Account>>,
    /// For the workers; none when this process has no master key to seal it with.
    roll: Option<Roll>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            revision: -1,
            accounts: Arc::default(),
            roll: None,
        }
    }
}

impl Roster {
    /// Every account that is there, by name.
    #[must_use]
    pub fn accounts(&self) -> Arc<Vec<Account>> {
        self.inner.seen.load().accounts.clone()
    }

    /// Something about accounts has changed: look again.
    pub fn wake(&self) {
        self.inner.bell.notify_one();
    }

    /// Looks at the truth plane. Gives the accounts that were not there before; `None` when
    /// nothing has changed.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn refresh(
        &self,
        store: &Store,
        key: Option<&MasterKey>,
    ) -> Result<Option<Vec<AccountId>>, StoreError> {
        // The revision first: what is read after it may be newer, which the next look puts right.
        let revision = store.account_revision().await?;
        let before = self.inner.seen.load_full();
        if revision == before.revision {
            return Ok(None);
        }
        let rows = store.accounts().await?;
        let mut roll = Roll {
            revision,
            ..Roll::default()
        };
        let mut accounts = Vec::with_capacity(rows.len());
        for row in rows {
            if let (Some(key), Some(made)) = (key, row.definition) {
                let id = row.account.id.clone();
                let entry = made.definition.entry(key, &id, made.revision);
                roll.accounts.insert(id, entry);
            }
            accounts.push(row.account);
        }
        let known: HashSet<&AccountId> = before.accounts.iter().map(|known| &known.id).collect();
        let new = accounts
            .iter()
            .map(|account| &account.id)
            .filter(|id| !known.contains(id))
            .cloned()
            .collect();
        self.inner.seen.store(Arc::new(Seen {
            revision,
            accounts: Arc::new(accounts),
            roll: key.map(|_| roll),
        }));
        Ok(Some(new))
    }

    /// Puts the roll into the live plane unless it is there, and tells the workers.
    async fn publish(&self, live: &Live, broker: &Broker) {
        let seen = self.inner.seen.load_full();
        let Some(roll) = &seen.roll else { return };
        let kept = match live.roll_revision().await {
            Ok(Some(kept)) if kept == roll.revision => return,
            Ok(_) => live.keep_roll(roll).await,
            Err(error) => Err(error),
        };
        match kept {
            // A worker that does not hear it looks by itself before long.
            Ok(()) => drop(broker.control(&Control::Accounts).await),
            Err(error) => tracing::debug!(%error, "the accounts cannot be told to the workers yet"),
        }
    }
}

/// Looks again and again until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = app.roster.inner.bell.notified() => {}
            _ = tick.tick() => {}
        }
        look(&app).await;
    }
}

/// An account was made, changed or removed here: this process knows when it returns, and the
/// others hear of it.
pub async fn changed(app: &App) {
    look(app).await;
    if let Err(error) = app.live.wake(&Wake::Accounts).await {
        tracing::debug!(%error, "other API processes find the change by themselves");
    }
}

async fn look(app: &App) {
    match app
        .roster
        .refresh(&app.store, app.master_key.as_ref())
        .await
    {
        Ok(None) => {}
        Ok(Some(new)) => {
            for account in new {
                // It is declared again by the worker that consumes it, and before a dispatch.
                if let Err(error) = app.broker.declare(&account).await {
                    tracing::debug!(%account, %error, "its queue cannot be declared yet");
                }
            }
            app.backlog.wake();
        }
        Err(error) => {
            tracing::debug!(%error, "the accounts could not be looked at");
            return;
        }
    }
    app.roster.publish(&app.live, &app.broker).await;
}
