//! Clients: their weights and quotas, and what holds them to their quotas.
//!
//! What waits and what runs is counted where it is, in `jobs`, while the client's row is locked;
//! what was spent is added up in the transactions that settle attempts. Nothing is reserved, so
//! no crash can leave anything reserved, and API processes cannot together allow more than one.
//! Clients without a quota pay for none of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, ExprTrait,
    QueryFilter, QueryOrder, QuerySelect, Statement,
    sea_query::{Expr, OnConflict},
};
use sluice_shared::domain::{
    JobId, Quota, Time,
    quota::{self, Ledger, Spent},
};

use super::{
    Store, StoreError, Submission, Submitted,
    bulk::{Column, Rows, Write},
    count,
    entity::{client, idempotency_key},
};

/// A client as it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRow {
    /// The name of its keys.
    pub name: String,
    /// Its share beside other clients with jobs waiting.
    pub weight: u32,
    /// What it may have at most.
    pub quota: Quota,
}

impl ClientRow {
    /// A client of which nothing was said.
    #[must_use]
    pub fn unlimited(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            weight: 1,
            quota: Quota::default(),
        }
    }
}

impl From<client::Model> for ClientRow {
    fn from(row: client::Model) -> Self {
        let small = |number: Option<i64>| number.map(count);
        let large = |number: Option<i64>| number.map(|number| u64::try_from(number).unwrap_or(0));
        Self {
            name: row.name,
            weight: Ord::max(count(row.weight), 1),
            quota: Quota {
                requests_per_minute: small(row.requests_per_minute),
                max_waiting: small(row.max_waiting),
                max_running: small(row.max_running),
                tokens_per_day: large(row.tokens_per_day),
                tokens_per_month: large(row.tokens_per_month),
                cost_microusd_per_day: large(row.cost_per_day),
                cost_microusd_per_month: large(row.cost_per_month),
            },
        }
    }
}

impl Store {
    /// What was set for a client.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn client(&self, name: &str) -> Result<ClientRow, StoreError> {
        let row = client::Entity::find_by_id(name).one(&self.read).await?;
        Ok(row.map_or_else(|| ClientRow::unlimited(name), ClientRow::from))
    }

    /// Every client for which anything was set, by name.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn clients(&self) -> Result<HashMap<String, ClientRow>, StoreError> {
        let rows = client::Entity::find().all(&self.read).await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.name.clone(), row.into()))
            .collect())
    }

    /// Sets a client's weight and quota. API processes hold to the new ones at once, and to a new
    /// limit of requests or of running jobs within 10 seconds.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn set_client(&self, row: &ClientRow) -> Result<(), StoreError> {
        let small = |number: Option<u32>| number.map(i64::from);
        let large =
            |number: Option<u64>| number.map(|number| i64::try_from(number).unwrap_or(i64::MAX));
        let quota = &row.quota;
        client::Entity::insert(client::ActiveModel {
            name: Set(row.name.clone()),
            weight: Set(row.weight.into()),
            requests_per_minute: Set(small(quota.requests_per_minute)),
            max_waiting: Set(small(quota.max_waiting)),
            max_running: Set(small(quota.max_running)),
            tokens_per_day: Set(large(quota.tokens_per_day)),
            tokens_per_month: Set(large(quota.tokens_per_month)),
            cost_per_day: Set(large(quota.cost_microusd_per_day)),
            cost_per_month: Set(large(quota.cost_microusd_per_month)),
        })
        .on_conflict(
            OnConflict::column(client::Column::Name)
                .update_columns([
                    client::Column::Weight,
                    client::Column::RequestsPerMinute,
                    client::Column::MaxWaiting,
                    client::Column::MaxRunning,
                    client::Column::TokensPerDay,
                    client::Column::TokensPerMonth,
                    client::Column::CostPerDay,
                    client::Column::CostPerMonth,
                ])
                .to_owned(),
        )
        .exec_without_returning(&self.write)
        .await?;
        Ok(())
    }

    /// Forgets what clients used before this time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_usage(&self, before: Time) -> Result<u64, StoreError> {
        let deleted = self
            .write
            .execute_raw(Statement::from_sql_and_values(
                self.write.get_database_backend(),
                "DELETE FROM client_usage WHERE day < $1",
                [quota::day(before).into()],
            ))
            .await?;
        Ok(deleted.rows_affected())
    }
}

/// The rows of these clients that pass `is`, locked in the order of names.
async fn lock_clients(
    tx: &DatabaseTransaction,
    filter: Condition,
) -> Result<Vec<ClientRow>, StoreError> {
    let rows = client::Entity::find()
        .filter(filter)
        .order_by_asc(client::Column::Name)
        .lock_exclusive()
        .all(tx)
        .await?;
    Ok(rows.into_iter().map(ClientRow::from).collect())
}

/// What a client has used.
pub(super) async fn ledger(
    db: &impl ConnectionTrait,
    client: &str,
    now: Time,
) -> Result<Ledger, StoreError> {
    let rows = db
        .query_all_raw(Statement::from_sql_and_values(
            db.get_database_backend(),
            "SELECT day, jobs, tokens, cost_microusd FROM client_usage \
             WHERE client = $1 AND day >= $2",
            [client.into(), quota::month_start(now).into()],
        ))
        .await?;
    let mut ledger = Ledger::default();
    for row in rows {
        let number = |index| row.try_get_by_index::<i64>(index);
        let amount = |index| number(index).map(|number| u64::try_from(number).unwrap_or(0));
        let spent = Spent {
            jobs: amount(1)?,
            tokens: amount(2)?,
            cost_microusd: amount(3)?,
        };
        ledger.month = ledger.month.plus(spent);
        if number(0)? == quota::day(now) {
            ledger.day = ledger.day.plus(spent);
        }
    }
    Ok(ledger)
}

/// How many jobs of a client wait, counted up to `most` of each kind.
async fn waiting(db: &impl ConnectionTrait, client: &str, most: u32) -> Result<u64, StoreError> {
    let row = db
        .query_one_raw(Statement::from_sql_and_values(
            db.get_database_backend(),
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE client = $1 \
               AND state = 'queued' AND ready LIMIT $2) AS now) \
             + (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE client = $1 \
               AND state = 'queued' AND NOT ready LIMIT $2) AS later)",
            [client.into(), i64::from(most).into()],
        ))
        .await?;
    let counted: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(0))?;
    Ok(u64::try_from(counted).unwrap_or(0))
}

/// Refuses those submissions that would break their clients' quotas, and frees their idempotency
/// keys again. `limited` are the clients that have a quota on their jobs.
pub(super) async fn admit(
    tx: &DatabaseTransaction,
    submissions: &[Submission],
    results: &mut [Submitted],
    limited: &BTreeSet<String>,
    now: Time,
) -> Result<(), StoreError> {
    if limited.is_empty() {
        return Ok(());
    }
    let mut refused: HashMap<JobId, quota::Violation> = HashMap::new();
    let names = client::Column::Name.is_in(limited);
    for row in lock_clients(tx, Condition::all().add(names)).await? {
        let used = if row.quota.has_budget() {
            ledger(tx, &row.name, now).await?
        } else {
            Ledger::default()
        };
        let mut there = match row.quota.max_waiting {
            Some(most) => waiting(tx, &row.name, most).await?,
            None => 0,
        };
        for (submission, result) in submissions.iter().zip(results.iter_mut()) {
            if submission.client != row.name || *result != Submitted::Accepted {
                continue;
            }
            let jobs = submission.rows.len() as u64;
            match row.quota.admits(there, jobs, &used, now) {
                Ok(()) => there += jobs,
                Err(violation) => {
                    *result = Submitted::OverQuota(violation);
                    if let (Some(_), Some(first)) =
                        (&submission.idempotency, submission.rows.first())
                    {
                        refused.insert(first.id, violation);
                    }
                }
            }
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let mut keys = Condition::any();
    for (submission, result) in submissions.iter().zip(results) {
        if let Submitted::Replayed(jobs) = result
            && let Some(violation) = jobs.first().and_then(|job| refused.get(job))
        {
            // It came with the same key in the same group as one that was just refused.
            *result = Submitted::OverQuota(*violation);
        }
        if let Some(idempotency) = &submission.idempotency
            && submission
                .rows
                .first()
                .is_some_and(|row| refused.contains_key(&row.id))
        {
            keys = keys.add(
                idempotency_key::Column::Client
                    .eq(&submission.client)
                    .and(idempotency_key::Column::IdempotencyKey.eq(&idempotency.key)),
            );
        }
    }
    idempotency_key::Entity::delete_many()
        .filter(keys)
        .exec(tx)
        .await?;
    Ok(())
}

/// How many more jobs each limited client with jobs waiting may have dispatched.
/// Their rows stay locked, so that no other process allows the same room.
pub(super) async fn caps(
    tx: &DatabaseTransaction,
    now: Time,
) -> Result<BTreeMap<String, u32>, StoreError> {
    let mut limited = Condition::any();
    for column in RUNNING_LIMITS {
        limited = limited.add(column.is_not_null());
    }
    let waits = Expr::cust(
        "EXISTS (SELECT 1 FROM jobs WHERE jobs.client = clients.name \
         AND jobs.state = 'queued' AND jobs.ready)",
    );
    let rows = lock_clients(tx, Condition::all().add(limited).add(waits)).await?;
    let mut caps = BTreeMap::new();
    if rows.is_empty() {
        return Ok(caps);
    }
    let names = rows.iter().map(|row| row.name.clone()).collect();
    let counted = Rows::new(&["client"], vec![Column::Text(names)])
        .query(
            tx,
            "SELECT v.client, (SELECT count(*) FROM jobs WHERE jobs.client = v.client \
             AND jobs.state IN ('dispatched', 'running')) FROM v",
        )
        .await?;
    let mut running: HashMap<String, u32> = HashMap::new();
    for row in counted {
        running.insert(row.try_get_by_index(0)?, count(row.try_get_by_index(1)?));
    }
    for row in rows {
        let used = if row.quota.has_budget() {
            ledger(tx, &row.name, now).await?
        } else {
            Ledger::default()
        };
        let running = running.get(&row.name).copied().unwrap_or_default();
        caps.insert(row.name, row.quota.room(running, &used));
    }
    Ok(caps)
}

/// The columns that say how much a client may have in flight.
const RUNNING_LIMITS: [client::Column; 5] = [
    client::Column::MaxRunning,
    client::Column::TokensPerDay,
    client::Column::TokensPerMonth,
    client::Column::CostPerDay,
    client::Column::CostPerMonth,
];

/// Whether any client has a limit on what it has in flight.
pub(super) async fn any_caps(db: &impl ConnectionTrait) -> Result<bool, StoreError> {
    let mut limited = Condition::any();
    for column in RUNNING_LIMITS {
        limited = limited.add(column.is_not_null());
    }
    let found = client::Entity::find().filter(limited).one(db).await?;
    Ok(found.is_some())
}

/// The clients with jobs waiting in a lane; costs a few index steps for each client with jobs
/// waiting anywhere, however long the backlog.
pub(super) async fn clients_of_lane(
    tx: &DatabaseTransaction,
    lane: &str,
) -> Result<Vec<String>, StoreError> {
    let rows = tx
        .query_all_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "WITH RECURSIVE waiting(client) AS (\
               SELECT (SELECT client FROM jobs WHERE state = 'queued' AND ready \
                       ORDER BY client LIMIT 1) \
               UNION ALL \
               SELECT (SELECT jobs.client FROM jobs WHERE state = 'queued' AND ready \
                       AND jobs.client > waiting.client ORDER BY jobs.client LIMIT 1) \
               FROM waiting WHERE waiting.client IS NOT NULL) \
             SELECT client FROM waiting WHERE EXISTS (SELECT 1 FROM jobs \
               WHERE jobs.client = waiting.client AND jobs.lane = $1 \
               AND jobs.state = 'queued' AND jobs.ready)",
            [lane.into()],
        ))
        .await?;
    rows.iter()
        .map(|row| Ok(row.try_get_by_index(0)?))
        .collect()
}

/// Adds what attempts used to what their clients have spent.
pub(super) fn spend(slot: i64, spent: &BTreeMap<String, Spent>, now: Time) -> Write {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Rows::new(
        &["client", "day", "slot", "jobs", "tokens", "cost_microusd"],
        vec![
            Column::Text(spent.keys().cloned().collect()),
            Column::Number(vec![quota::day(now); spent.len()]),
            Column::Number(vec![slot; spent.len()]),
            Column::Number(spent.values().map(|spent| number(spent.jobs)).collect()),
            Column::Number(spent.values().map(|spent| number(spent.tokens)).collect()),
            Column::Number(
                spent
                    .values()
                    .map(|spent| number(spent.cost_microusd))
                    .collect(),
            ),
        ],
    )
    .write(
        "INSERT INTO client_usage (client, day, slot, jobs, tokens, cost_microusd) \
         SELECT client, day, slot, jobs, tokens, cost_microusd FROM v WHERE TRUE \
         ON CONFLICT (client, day, slot) DO UPDATE SET \
         jobs = client_usage.jobs + excluded.jobs, \
         tokens = client_usage.tokens + excluded.tokens, \
         cost_microusd = client_usage.cost_microusd + excluded.cost_microusd",
    )
}
