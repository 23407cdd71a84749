//! Keeping accounts within their limits: windows are charged in the transaction that binds, and
//! reconciled in the one that settles, under the lock of the account's row.
//!
//! Whatever binds a job calls [`Books::open`] once it has locked its accounts, plans by
//! [`Books::ledger`], and calls [`Books::charge`] with what it has bound. Whatever ends an
//! attempt notes it in [`Ends`] and calls [`Ends::write`]. The arithmetic is `domain::ledger`'s.
//!
//! **The time is the database's**, which all replicas share, held against this machine's uptime:
//! a replica whose clock is wrong judges no window wrongly.

pub(super) mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use serde::Deserialize;
use sluice_shared::{
    clock,
    domain::{
        Account, AccountId, Amounts, Call, Charge, JobId, Kind, Ledger, Limit, Needs, Outcome,
        Present, Time, Window,
    },
    message::Report,
};
use uuid::Uuid;

use self::rows::{
    CHARGE, CHARGE_COLUMNS, adopt, delete_charges, delete_windows, insert_charges, ledgers, lock,
    read_charge, write_ledgers, write_starts,
};
use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    settle::Verdict,
};

/// How long an announcement may be heard of before its call begins: a worker announces an
/// at-most-once attempt first and calls within a second.
const ANNOUNCED: Duration = Duration::from_secs(1);

/// The windows of the accounts that a transaction has locked.
#[derive(Debug)]
pub(super) struct Books {
    present: Present,
    ledgers: BTreeMap<String, Ledger>,
}

/// A job that was bound, as far as its charge goes.
#[derive(Debug)]
pub(super) struct Bound<'a> {
    pub(super) account: &'a AccountId,
    pub(super) job: JobId,
    pub(super) attempt: u32,
    /// By the allowance of the account as it was planned with.
    pub(super) amounts: Amounts,
}

impl Books {
    /// Opens the books of those of `accounts` that have limits; their rows must be locked.
    pub(super) async fn open(
        store: &Store,
        tx: &DatabaseTransaction,
        accounts: &[&Account],
        now: Time,
    ) -> Result<Self, StoreError> {
        let limited: Vec<&Account> = accounts
            .iter()
            .copied()
            .filter(|account| !account.limits.is_empty())
            .collect();
        if limited.is_empty() {
            return Ok(Self {
                present: Present::exactly(now),
                ledgers: BTreeMap::new(),
            });
        }
        store.charges.store(true, Ordering::Relaxed);
        let names: Vec<String> = limited
            .iter()
            .map(|account| account.id.to_string())
            .collect();
        let longest = limited
            .iter()
            .flat_map(|account| &account.limits)
            .map(|limit| limit.window.0);
        let longest = longest.max().unwrap_or_default();
        let mut books = Self {
            present: store.present(tx, now, longest).await?,
            ledgers: ledgers(tx, names).await?,
        };
        for account in limited {
            let ledger = books.ledgers.entry(account.id.to_string()).or_default();
            let missing: Vec<Limit> = ledger.missing(&account.limits).copied().collect();
            if !missing.is_empty() {
                let open = adopt(tx, &account.id).await?;
                for limit in missing {
                    ledger.open(&limit, &open);
                }
            }
        }
        Ok(books)
    }

    /// The account's windows; `None` when it has no limits.
    pub(super) fn ledger(&self, account: &Account) -> Option<&Ledger> {
        self.ledgers.get(account.id.as_str())
    }

    /// The time that they are judged by.
    pub(super) fn present(&self) -> Present {
        self.present
    }

    /// Charges what was bound.
    pub(super) async fn charge(
        &mut self,
        tx: &DatabaseTransaction,
        bound: &[Bound<'_>],
    ) -> Result<(), StoreError> {
        let mut touched = BTreeSet::new();
        let mut charges = Vec::new();
        for bound in bound {
            let Some(ledger) = self.ledgers.get_mut(bound.account.as_str()) else {
                continue;
            };
            let charge = ledger.charge(bound.amounts, self.present);
            touched.insert(bound.account.as_str());
            charges.push((bound.job, bound.attempt, bound.account.as_str(), charge));
        }
        if charges.is_empty() {
            return Ok(());
        }
        write_ledgers(
            tx,
            self.ledgers
                .iter()
                .filter(|(account, _)| touched.contains(account.as_str())),
        )
        .await?;
        insert_charges(tx, &charges).await
    }

    /// When, by the caller's clock, a job that is charged `amounts` fits at the account, if it does
    /// not now and that takes no news.
    pub(super) fn room_at(&self, account: &Account, amounts: &Amounts, now: Time) -> Option<Time> {
        let ledger = self.ledgers.get(account.id.as_str())?;
        let at = ledger.room_at(&account.limits, amounts, self.present)?;
        Some(now + at.since(self.present.earliest))
    }
}

/// The part of a request that says how long its answer may be.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Sized {
    params: SizedParams,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SizedParams {
    max_tokens: serde_json::Value,
    max_completion_tokens: serde_json::Value,
}

/// What a stored request will use, as far as it says.
pub(super) fn needs(request: &str) -> Needs {
    let sized: Sized = serde_json::from_str(request).unwrap_or_default();
    let params = sized.params;
    let most = params
        .max_completion_tokens
        .as_u64()
        .or(params.max_tokens.as_u64());
    Needs::of(request.len(), most)
}

/// Whether any of these limits is on something else than calls, so that needs matter.
pub(super) fn counts_tokens<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> bool {
    accounts
        .into_iter()
        .flat_map(|account| &account.limits)
        .any(|limit| limit.kind != Kind::Requests)
}

/// What is heard of a charged attempt.
enum News {
    /// Its provider is called, at this span from now at the latest.
    Started(Duration),
    /// It has ended.
    Ended(Call, Option<Amounts>),
}

/// What a batch of verdicts means for the charges of its attempts.
#[derive(Default)]
pub(super) struct Ends {
    charges: BTreeMap<(JobId, u32), (String, Charge)>,
    news: Vec<((JobId, u32), News)>,
}

impl Ends {
    /// Loads the charges of the verdicts' attempts; their jobs must be locked.
    pub(super) async fn load(
        store: &Store,
        tx: &DatabaseTransaction,
        verdicts: &[Verdict],
    ) -> Result<Self, StoreError> {
        if !store.may_charge() {
            return Ok(Self::default());
        }
        let mut ids: Vec<Uuid> = verdicts.iter().map(|verdict| verdict.job().0).collect();
        ids.sort_unstable();
        ids.dedup();
        let rows = Rows::new(&["job"], vec![Column::Id(ids)])
            .query(
                tx,
                &format!("SELECT {CHARGE} FROM v JOIN charges c ON c.job = v.job"),
            )
            .await?;
        let mut ends = Self::default();
        for row in rows {
            let (key, account, charge) = read_charge(&row)?;
            ends.charges.insert(key, (account, charge));
        }
        Ok(ends)
    }

    /// Notes an accepted verdict.
    pub(super) fn note(&mut self, verdict: &Verdict, at_most_once: bool) {
        let key = (verdict.job(), verdict.attempt());
        let Some((_, charge)) = self.charges.get(&key) else {
            return;
        };
        let news = match verdict {
            Verdict::Unpublished { .. } => News::Ended(Call::Never, None),
            Verdict::Lost { .. } => News::Ended(Call::Unknown, None),
            Verdict::Report(reply) => match &reply.report {
                Report::Started { .. } if at_most_once => News::Started(ANNOUNCED),
                Report::Started { .. } | Report::Leased { .. } => News::Started(Duration::ZERO),
                Report::Redelivered => News::Ended(Call::Unknown, None),
                Report::Returned { .. } => News::Ended(Call::Never, None),
                Report::Finished {
                    started_at: None, ..
                } => News::Ended(Call::Never, None),
                Report::Finished {
                    started_at: Some(started_at),
                    finished_at,
                    outcome,
                } => {
                    let call = Call::Took(finished_at.since(*started_at));
                    News::Ended(call, used(outcome, &charge.amounts))
                }
            },
        };
        self.news.push((key, news));
    }

    /// Writes what the verdicts mean. `freed` are accounts that the transaction goes on to lock:
    /// they are locked here, all in one order.
    pub(super) async fn write<'a>(
        mut self,
        store: &Store,
        tx: &DatabaseTransaction,
        freed: impl Iterator<Item = &'a String>,
        now: Time,
    ) -> Result<(), StoreError> {
        if self.news.is_empty() {
            return Ok(());
        }
        let charged: BTreeSet<String> = self
            .news
            .iter()
            .filter_map(|(key, _)| Some(self.charges.get(key)?.0.clone()))
            .collect();
        let all: BTreeSet<String> = charged.iter().cloned().chain(freed.cloned()).collect();
        lock(tx, all).await?;
        let mut ledgers = ledgers(tx, charged.into_iter().collect()).await?;
        let longest = ledgers
            .values()
            .flat_map(Ledger::windows)
            .map(|window| window.length.0)
            .max();
        let present = store.present(tx, now, longest.unwrap_or_default()).await?;
        let (mut ended, mut started) = (Vec::new(), Vec::new());
        for (key, news) in self.news {
            let Some((account, charge)) = self.charges.get_mut(&key) else {
                continue;
            };
            let mut none = Ledger::default();
            let ledger = ledgers.get_mut(account).unwrap_or(&mut none);
            match news {
                News::Started(ahead) if charge.started_by.is_none() => {
                    ledger.started(charge, ahead, present);
                    started.push((key.0, key.1, account.clone(), *charge));
                }
                News::Started(_) => {}
                News::Ended(call, used) => {
                    ledger.ended(*charge, call, used, present);
                    if let (Call::Took(_), Some(used)) = (call, used) {
                        ledger.learn(&used);
                    }
                    ended.push(key);
                    self.charges.remove(&key);
                }
            }
        }
        write_ledgers(tx, ledgers.iter()).await?;
        started.retain(|(job, attempt, ..)| self.charges.contains_key(&(*job, *attempt)));
        write_starts(tx, &started).await?;
        delete_charges(tx, &ended).await
    }
}

/// What an outcome has used; `None` when nobody knows, so that the reservation stands.
fn used(outcome: &Outcome, charged: &Amounts) -> Option<Amounts> {
    match outcome {
        Outcome::Completed(completion) => Some(completion.usage.known(charged)),
        // Refused at the door: a call, and nothing was read or written.
        Outcome::Throttled { .. }
        | Outcome::AuthFailed { .. }
        | Outcome::OutOfCredit { .. }
        | Outcome::Rejected { .. } => Some(Amounts::ONE_REQUEST),
        Outcome::Overloaded { .. } | Outcome::Failed { .. } | Outcome::Cancelled => None,
    }
}

impl Store {
    /// The present as the database has it, held against this machine's uptime. SQLite's is the
    /// caller's: there is one process.
    async fn present(
        &self,
        tx: &DatabaseTransaction,
        now: Time,
        longest: Duration,
    ) -> Result<Present, StoreError> {
        let before = clock::uptime();
        let reading = if tx.get_database_backend() == DbBackend::Postgres {
            let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
            let row = tx
                .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
                .await?;
            let millis = row.map_or(Ok(now.as_millis()), |row| row.try_get_by_index(0))?;
            Time::from_millis(millis)
        } else {
            now
        };
        let uptime = (before, clock::uptime());
        let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(steady.present(reading, uptime, longest))
    }

    /// Forgets the windows of accounts that have no limits any more: attempts are not charged to
    /// them from now on.
    pub(super) async fn forget_unlimited(
        &self,
        tx: &DatabaseTransaction,
        accounts: &[Account],
    ) -> Result<(), StoreError> {
        for account in accounts.iter().filter(|account| account.limits.is_empty()) {
            tx.execute_raw(Statement::from_sql_and_values(
                tx.get_database_backend(),
                "DELETE FROM account_windows WHERE account = $1",
                [account.id.as_str().into()],
            ))
            .await?;
        }
        let any = tx
            .query_one_raw(Statement::from_string(
                tx.get_database_backend(),
                "SELECT 1 FROM charges LIMIT 1",
            ))
            .await?;
        let limited = accounts.iter().any(|account| !account.limits.is_empty());
        self.charges
            .store(limited || any.is_some(), Ordering::Relaxed);
        Ok(())
    }

    /// An account's windows, to be looked at: each limit with its window, and the present.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn windows(
        &self,
        account: &Account,
        now: Time,
    ) -> Result<Vec<(Limit, Window)>, StoreError> {
        let mut ledgers = ledgers(&self.read, vec![account.id.to_string()]).await?;
        let ledger = ledgers.remove(account.id.as_str()).unwrap_or_default();
        let window = |limit: &Limit| {
            let known = ledger.window(limit).cloned();
            let mut window = known.unwrap_or_else(|| Window::new(limit.kind, limit.window));
            window.forget(now);
            (*limit, window)
        };
        Ok(account.limits.iter().map(window).collect())
    }

    /// Settles charges whose attempts are no longer in flight, counts what is held anew and drops
    /// windows that nobody asks for. Gives the accounts where something was wrong: a finding is a
    /// fault of ours, and this keeps it from taking room for ever.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn audit_windows(
        &self,
        accounts: &[Account],
        now: Time,
    ) -> Result<Vec<String>, StoreError> {
        let mut wrong = Vec::new();
        for account in accounts.iter().filter(|account| !account.limits.is_empty()) {
            let name = account.id.to_string();
            let tx = self.begin().await?;
            lock(&tx, BTreeSet::from([name.clone()])).await?;
            let mut books = Books::open(self, &tx, &[account], now).await?;
            let rows = tx
                .query_all_raw(Statement::from_sql_and_values(
                    tx.get_database_backend(),
                    format!(
                        "SELECT {CHARGE}, EXISTS (SELECT 1 FROM jobs WHERE jobs.id = c.job \
                         AND jobs.attempt = c.attempt AND jobs.state IN ('dispatched', 'running')) \
                         FROM charges c WHERE c.account = $1"
                    ),
                    [name.clone().into()],
                ))
                .await?;
            let (mut orphans, mut open) = (Vec::new(), Vec::new());
            let present = books.present;
            let ledger = books.ledgers.entry(name.clone()).or_default();
            for row in rows {
                let (key, _, charge) = read_charge(&row)?;
                if row.try_get_by_index(CHARGE_COLUMNS)? {
                    open.push(charge);
                } else {
                    ledger.ended(charge, Call::Unknown, None, present);
                    orphans.push(key);
                }
            }
            let miscounted = ledger.recount(&open);
            if miscounted || !orphans.is_empty() {
                wrong.push(name.clone());
            }
            let dropped = ledger.prune(&account.limits);
            write_ledgers(&tx, books.ledgers.iter()).await?;
            delete_charges(&tx, &orphans).await?;
            delete_windows(&tx, &name, &dropped).await?;
            tx.commit().await?;
        }
        Ok(wrong)
    }
}
