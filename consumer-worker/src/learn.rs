//! Learns of accounts that are made, changed and removed while the worker runs.
//!
//! The API keeps them in the live plane, sealed, and says when they have changed; this looks there
//! by itself as well. Silence of the live plane changes nothing: what was learnt stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use sluice_shared::{
    domain::AccountId,
    roll::{Entry, Roll},
    seal::MasterKey,
};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use crate::{account::Account, engine::Engine, provider::Provider};

/// How often the live plane is asked without a word of the API.
const POLL: Duration = Duration::from_secs(1);

/// How often an account is tried again that could not be served: a program may have been
/// installed, or a file put where it belongs.
const RETRY: Duration = Duration::from_secs(10);

/// What is to change about the queues that are consumed.
#[derive(Debug)]
pub(crate) enum Change {
    /// Consume this account's queue, in the place of one of the same name.
    Serve(Arc<Account>),
    /// Leave this account's queue.
    Leave(AccountId),
}

/// What has been learnt so far.
pub(crate) struct Learner {
    engine: Arc<Engine>,
    key: Option<MasterKey>,
    home: PathBuf,
    /// The accounts of the configuration, which no others replace.
    configured: BTreeSet<AccountId>,
    changes: UnboundedSender<Change>,
    roll: Roll,
    /// The entries that are served, by their revision.
    served: BTreeMap<AccountId, i64>,
    retry_at: Instant,
}

impl Learner {
    pub(crate) fn new(
        engine: Arc<Engine>,
        key: Option<MasterKey>,
        home: PathBuf,
        configured: BTreeSet<AccountId>,
        changes: UnboundedSender<Change>,
    ) -> Self {
        Self {
            engine,
            key,
            home,
            configured,
            changes,
            roll: Roll {
                revision: i64::MIN,
                ..Roll::default()
            },
            served: BTreeMap::new(),
            retry_at: Instant::now(),
        }
    }

    /// Learns for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.look().await;
            tokio::select! {
                () = self.engine.roll_changed.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    async fn look(&mut self) {
        let live = &self.engine.live;
        let newer = match live.roll_revision().await {
            Ok(Some(revision)) if revision > self.roll.revision => live.roll().await,
            other => other.map(|_| None),
        };
        match newer {
            Ok(Some(roll)) if roll.revision > self.roll.revision => self.roll = roll,
            Ok(_) if Instant::now() >= self.retry_at => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "the accounts cannot be looked at");
                return;
            }
        }
        self.apply();
    }

    /// Makes what is served what the roll says.
    fn apply(&mut self) {
        self.retry_at = Instant::now() + RETRY;
        let roll = std::mem::take(&mut self.roll);
        let gone: Vec<AccountId> = self
            .served
            .keys()
            .filter(|id| !roll.accounts.contains_key(*id))
            .cloned()
            .collect();
        for id in gone {
            self.served.remove(&id);
            self.leave(&id, "an account is gone");
        }
        for id in self.engine.services.troubles().into_keys() {
            if !roll.accounts.contains_key(&id) && !self.configured.contains(&id) {
                self.engine.services.remove(&id);
                self.engine.presence_changed.notify_one();
            }
        }
        for (id, entry) in &roll.accounts {
            if self.is_wanted(id) && self.served.get(id) != Some(&entry.revision) {
                self.serve(id, entry);
            }
        }
        self.roll = roll;
    }

    fn is_wanted(&self, id: &AccountId) -> bool {
        let mut wanted = self.engine.settings.accounts.iter();
        !self.configured.contains(id) && wanted.any(|name| name == "*" || name == id.as_str())
    }

    fn serve(&mut self, id: &AccountId, entry: &Entry) {
        match self.build(id, entry) {
            Ok(account) => {
                tracing::info!(account = %id, "an account is served that was made at run time");
                self.served.insert(id.clone(), entry.revision);
                let account = Arc::new(account);
                self.engine.services.put(account.clone());
                // Whoever takes them ends with the worker.
                drop(self.changes.send(Change::Serve(account)));
            }
            Err(problem) => {
                if self.served.remove(id).is_some() {
                    self.leave(id, "an account has changed");
                }
                if self.engine.services.trouble(id, problem.clone()) {
                    tracing::error!(account = %id, problem, "this account is not served");
                    self.engine.presence_changed.notify_one();
                }
            }
        }
    }

    fn leave(&self, id: &AccountId, why: &'static str) {
        tracing::info!(account = %id, "{why}: it is served no longer");
        self.engine.services.remove(id);
        drop(self.changes.send(Change::Leave(id.clone())));
    }

    fn build(&self, id: &AccountId, entry: &Entry) -> Result<Account, String> {
        let Some(key) = &self.key else {
            return Err(
                "this worker has no master key: start it with the API's SLUICE_MASTER_KEY".into(),
            );
        };
        let config = entry.open(key, id).map_err(|error| error.to_string())?;
        let most = self.engine.settings.max_output_bytes;
        let provider = Provider::build(id, &config, &self.home, most);
        let provider = provider.map_err(|error| error.to_string())?;
        Ok(Account::new(id.clone(), &config, provider))
    }
}

#[cfg(test)]
mod tests;
