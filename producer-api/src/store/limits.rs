//! Keeping accounts within their limits: windows are charged in the transaction that binds, and
//! reconciled in the one that settles, under the lock of the account's row.
//!
//! Whatever binds a job calls [`Books::open`] once it has locked its accounts, plans by
//! [`Books::allowance`], and calls [`Books::charge`] with what it has bound. Whatever ends an
//! attempt notes it in [`Ends`] and calls [`Ends::write`]. The arithmetic is `domain::ledger`'s.
//!
//! **The time is the database's**, which all replicas share, held against this machine's uptime:
//! a replica whose clock is wrong judges no window wrongly.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, FromQueryResult, QueryResult, Statement, Value,
};
use serde::Deserialize;
use sluice_shared::{
    clock,
    domain::{
        Account, AccountId, Allowance, Amounts, Call, Charge, JobId, Kind, Ledger, Limit, Needs,
        Outcome, Present, Span, Time, Window,
    },
    message::Report,
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    for_update, parse_json,
    settle::Verdict,
    to_json,
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

    /// What the account's limits still allow; `None` when it has none.
    pub(super) fn allowance(&self, account: &Account) -> Option<Allowance> {
        let ledger = self.ledgers.get(account.id.as_str())?;
        Some(ledger.allowance(&account.limits, self.present))
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

/// Locks accounts in the order in which everyone locks them.
async fn lock(tx: &DatabaseTransaction, accounts: BTreeSet<String>) -> Result<(), StoreError> {
    let names: Vec<String> = accounts.into_iter().collect();
    if tx.get_database_backend() == DbBackend::Postgres {
        Rows::new(&["account"], vec![Column::Text(names)])
            .query(
                tx,
                &format!(
                    "SELECT s.account FROM v JOIN account_state s ON s.account = v.account \
                     ORDER BY s.account {}",
                    for_update(tx, "FOR UPDATE OF s")
                ),
            )
            .await?;
    }
    Ok(())
}

#[derive(FromQueryResult)]
struct WindowRow {
    account: String,
    kind: String,
    window_ms: i64,
    held: i64,
    landed: String,
    mean: i64,
}

/// The books of these accounts, as they are kept.
async fn ledgers(
    db: &impl ConnectionTrait,
    accounts: Vec<String>,
) -> Result<BTreeMap<String, Ledger>, StoreError> {
    let rows = Rows::new(&["account"], vec![Column::Text(accounts)])
        .query(
            db,
            "SELECT w.account, w.kind, w.window_ms, w.held, w.landed, w.mean FROM v \
             JOIN account_windows w ON w.account = v.account",
        )
        .await?;
    let mut windows: BTreeMap<String, Vec<Window>> = BTreeMap::new();
    for row in rows {
        let row = WindowRow::from_query_result(&row, "")?;
        let kind = Kind::from_name(&row.kind)
            .ok_or_else(|| StoreError::Internal(format!("kind `{}` is not known", row.kind)))?;
        let landed: Vec<i64> = parse_json("landed", &row.landed)?;
        let length = Span::from_millis(row.window_ms);
        let held = u64::try_from(row.held).unwrap_or(0);
        // -1 is none.
        let mean = u64::try_from(row.mean).ok();
        let window = Window::unpack(kind, length, held, &landed, mean);
        windows.entry(row.account).or_default().push(window);
    }
    let ledgers = windows.into_iter();
    Ok(ledgers
        .map(|(account, windows)| (account, Ledger::new(windows)))
        .collect())
}

async fn write_ledgers<'a>(
    tx: &DatabaseTransaction,
    ledgers: impl Iterator<Item = (&'a String, &'a Ledger)>,
) -> Result<(), StoreError> {
    let (mut accounts, mut kinds, mut landed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lengths, mut held, mut means) = (Vec::new(), Vec::new(), Vec::new());
    for (account, ledger) in ledgers {
        for window in ledger.windows() {
            accounts.push(account.clone());
            kinds.push(window.kind.as_str().to_owned());
            lengths.push(window.length.as_millis());
            held.push(number(window.held()));
            landed.push(to_json("landed", &window.pack())?);
            means.push(window.mean().map_or(-1, number));
        }
    }
    Rows::new(
        &["account", "kind", "window_ms", "held", "landed", "mean"],
        vec![
            Column::Text(accounts),
            Column::Text(kinds),
            Column::Number(lengths),
            Column::Number(held),
            Column::Text(landed),
            Column::Number(means),
        ],
    )
    .execute(
        tx,
        "INSERT INTO account_windows (account, kind, window_ms, held, landed, mean) \
         SELECT account, kind, window_ms, held, landed, mean FROM v WHERE TRUE \
         ON CONFLICT (account, kind, window_ms) DO UPDATE SET held = excluded.held, \
         landed = excluded.landed, mean = excluded.mean",
    )
    .await?;
    Ok(())
}

async fn delete_windows(
    tx: &DatabaseTransaction,
    account: &str,
    windows: &[Window],
) -> Result<(), StoreError> {
    for window in windows {
        let values: [Value; 3] = [
            account.into(),
            window.kind.as_str().into(),
            window.length.as_millis().into(),
        ];
        tx.execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "DELETE FROM account_windows WHERE account = $1 AND kind = $2 AND window_ms = $3",
            values,
        ))
        .await?;
    }
    Ok(())
}

const CHARGE: &str = "c.job, c.attempt, c.account, c.dispatched_at, c.started_by, \
                      c.input_tokens, c.output_tokens, c.cost_microusd";
const CHARGE_COLUMNS: usize = 8;

type Charged = ((JobId, u32), String, Charge);

fn read_charge(row: &QueryResult) -> Result<Charged, StoreError> {
    let amount = |index| -> Result<u64, StoreError> {
        let number: i64 = row.try_get_by_index(index)?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    let job = JobId(row.try_get_by_index::<Uuid>(0)?);
    let attempt = super::count(row.try_get_by_index(1)?);
    let started_by: Option<i64> = row.try_get_by_index(4)?;
    let charge = Charge {
        amounts: Amounts::ONE_REQUEST
            .with(Kind::InputTokens, amount(5)?)
            .with(Kind::OutputTokens, amount(6)?)
            .with(Kind::Cost, amount(7)?),
        dispatched_at: Time::from_millis(row.try_get_by_index(3)?),
        started_by: started_by.map(Time::from_millis),
    };
    Ok(((job, attempt), row.try_get_by_index(2)?, charge))
}

async fn insert_charges(
    tx: &DatabaseTransaction,
    charges: &[(JobId, u32, &str, Charge)],
) -> Result<(), StoreError> {
    let amounts = |kind| {
        let amount =
            |(_, _, _, charge): &(JobId, u32, &str, Charge)| number(charge.amounts.get(kind));
        Column::Number(charges.iter().map(amount).collect())
    };
    let account = |(_, _, account, _): &(JobId, u32, &str, Charge)| (*account).to_owned();
    Rows::new(
        &[
            "job",
            "attempt",
            "account",
            "at",
            "input_tokens",
            "output_tokens",
            "cost",
        ],
        vec![
            Column::Id(charges.iter().map(|(job, ..)| job.0).collect()),
            Column::Number(
                charges
                    .iter()
                    .map(|(_, attempt, ..)| i64::from(*attempt))
                    .collect(),
            ),
            Column::Text(charges.iter().map(account).collect()),
            Column::Number(
                charges
                    .iter()
                    .map(|(.., charge)| charge.dispatched_at.as_millis())
                    .collect(),
            ),
            amounts(Kind::InputTokens),
            amounts(Kind::OutputTokens),
            amounts(Kind::Cost),
        ],
    )
    .execute(
        tx,
        "INSERT INTO charges (job, attempt, account, dispatched_at, input_tokens, output_tokens, \
         cost_microusd) SELECT job, attempt, account, at, input_tokens, output_tokens, cost FROM v",
    )
    .await?;
    Ok(())
}

async fn write_starts(
    tx: &DatabaseTransaction,
    started: &[(JobId, u32, String, Charge)],
) -> Result<(), StoreError> {
    let at =
        |(.., charge): &(JobId, u32, String, Charge)| charge.started_by.map_or(0, Time::as_millis);
    Rows::new(
        &["job", "attempt", "at"],
        vec![
            Column::Id(started.iter().map(|(job, ..)| job.0).collect()),
            Column::Number(
                started
                    .iter()
                    .map(|(_, attempt, ..)| i64::from(*attempt))
                    .collect(),
            ),
            Column::Number(started.iter().map(at).collect()),
        ],
    )
    .execute(
        tx,
        "UPDATE charges SET started_by = v.at FROM v \
         WHERE charges.job = v.job AND charges.attempt = v.attempt",
    )
    .await?;
    Ok(())
}

async fn delete_charges(
    tx: &DatabaseTransaction,
    charges: &[(JobId, u32)],
) -> Result<(), StoreError> {
    let jobs = charges.iter().map(|(job, _)| job.0).collect();
    let attempts = charges
        .iter()
        .map(|(_, attempt)| i64::from(*attempt))
        .collect();
    Rows::new(
        &["job", "attempt"],
        vec![Column::Id(jobs), Column::Number(attempts)],
    )
    .execute(
        tx,
        "DELETE FROM charges WHERE (job, attempt) IN (SELECT job, attempt FROM v)",
    )
    .await?;
    Ok(())
}

/// Charges attempts that were under way before the account had limits, and gives all that are.
async fn adopt(tx: &DatabaseTransaction, account: &AccountId) -> Result<Vec<Charge>, StoreError> {
    let statement = |sql: String| {
        Statement::from_sql_and_values(tx.get_database_backend(), sql, [account.as_str().into()])
    };
    tx.execute_raw(statement(
        "INSERT INTO charges (job, attempt, account, dispatched_at, input_tokens, output_tokens, \
         cost_microusd) SELECT id, attempt, account, dispatched_at, 0, 0, 0 FROM jobs \
         WHERE account = $1 AND state IN ('dispatched', 'running') \
         ON CONFLICT (job, attempt) DO NOTHING"
            .into(),
    ))
    .await?;
    let rows = tx
        .query_all_raw(statement(format!(
            "SELECT {CHARGE} FROM charges c WHERE c.account = $1"
        )))
        .await?;
    rows.iter().map(|row| Ok(read_charge(row)?.2)).collect()
}

fn number(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
