//! Which accounts this worker serves now, and which it should serve and cannot.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use sluice_shared::domain::AccountId;

use crate::account::Account;

/// The accounts of one worker; they come and go while it runs.
#[derive(Debug, Default)]
pub(crate) struct Services(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    accounts: BTreeMap<AccountId, Arc<Account>>,
    troubles: BTreeMap<AccountId, String>,
}

impl Services {
    pub(crate) fn new(accounts: Vec<Arc<Account>>) -> Self {
        let services = Self::default();
        for account in accounts {
            services.put(account);
        }
        services
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &AccountId) -> Option<Arc<Account>> {
        self.read().accounts.get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Account>> {
        self.read().accounts.values().cloned().collect()
    }

    /// Serves the account from now on, in the place of one of the same name.
    pub(crate) fn put(&self, account: Arc<Account>) {
        let mut state = self.write();
        state.troubles.remove(&account.id);
        state.accounts.insert(account.id.clone(), account);
    }

    /// The account is none of this worker's any more.
    pub(crate) fn remove(&self, id: &AccountId) {
        let mut state = self.write();
        state.troubles.remove(id);
        state.accounts.remove(id);
    }

    /// The account cannot be served. Whether that is news.
    pub(crate) fn trouble(&self, id: &AccountId, problem: String) -> bool {
        let mut state = self.write();
        let before = state.troubles.insert(id.clone(), problem.clone());
        before != Some(problem)
    }

    pub(crate) fn troubles(&self) -> BTreeMap<AccountId, String> {
        self.read().troubles.clone()
    }

    /// The accounts whose queues are consumed now.
    pub(crate) fn consumed(&self) -> Vec<AccountId> {
        let state = self.read();
        let consumed = state.accounts.values();
        consumed
            .filter(|account| account.is_consumed())
            .map(|account| account.id.clone())
            .collect()
    }
}
