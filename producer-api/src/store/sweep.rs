//! What nobody's message brings about: times that come, leases that end, attempts to look into.

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement,
};
use sluice_shared::domain::{AccountId, Event, JobId, State, Time};
use uuid::Uuid;

use super::{
    Store, StoreError, count,
    entity::job,
    for_update,
    webhooks::{self, Occurrence},
};

/// What a sweep brought about.
#[derive(Debug, Default)]
pub struct Swept {
    /// Lanes of jobs whose time has come.
    pub ready_lanes: Vec<String>,
    /// Jobs that have expired.
    pub expired: Vec<JobId>,
    /// The next time at which a job becomes ready.
    pub next_ready: Option<Time>,
}

/// An attempt in flight that is old enough to be looked into.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// The account it is bound to.
    pub account: AccountId,
    /// Until when its worker answers for it without holding its message.
    pub lease_until: Option<Time>,
    /// Someone asked for its end.
    pub cancel_requested: bool,
}

impl Store {
    /// Lets jobs become ready whose time has come, and expire those that waited too long.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sweep(&self, now: Time) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let backend = self.write.get_database_backend();
        let statement =
            |sql: String| Statement::from_sql_and_values(backend, sql, [now.as_millis().into()]);
        swept.ready_lanes = self.let_in(now).await?;
        swept.ready_lanes.sort_unstable();
        swept.ready_lanes.dedup();
        let expired = State::Queued
            .on(Event::Expire)
            .map_err(|refused| StoreError::Internal(refused.to_string()))?;
        let tx = self.begin().await?;
        let ended = tx
            .query_all_raw(statement(format!(
                "WITH late AS MATERIALIZED (SELECT id FROM jobs WHERE state = 'queued' \
                 AND expires_at <= $1 ORDER BY expires_at LIMIT 1000 {}) \
                 UPDATE jobs SET state = '{expired}', finished_at = $1, error_code = 'expired', \
                 error_message = 'it had not begun by its expires_at' \
                 WHERE id IN (SELECT id FROM late) AND state = 'queued' \
                 RETURNING id, client, webhook, {}",
                for_update(&tx, "FOR UPDATE SKIP LOCKED"),
                webhooks::HAS_ENDPOINTS
            )))
            .await?;
        let (mut news, mut has_endpoints) = (Vec::new(), false);
        for row in ended {
            let job = JobId(row.try_get_by_index::<Uuid>(0)?);
            let client: String = row.try_get_by_index(1)?;
            let own: Option<String> = row.try_get_by_index(2)?;
            has_endpoints = row.try_get_by_index(3)?;
            news.extend(Occurrence::of_job(job, expired, &client, own.as_deref()));
            swept.expired.push(job);
        }
        webhooks::tell(&tx, &news, has_endpoints, now).await?;
        tx.commit().await?;
        let next = self
            .read
            .query_one_raw(Statement::from_string(
                backend,
                "SELECT min(run_at) FROM jobs WHERE state = 'queued' AND NOT ready",
            ))
            .await?;
        if let Some(row) = next {
            swept.next_ready = row
                .try_get_by_index::<Option<i64>>(0)?
                .map(Time::from_millis);
        }
        Ok(swept)
    }

    /// The keys of all lanes with jobs waiting; costs one index step a lane, however long the
    /// backlog.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn waiting_lanes(&self) -> Result<Vec<String>, StoreError> {
        let rows = self
            .read
            .query_all_raw(Statement::from_string(
                self.read.get_database_backend(),
                "WITH RECURSIVE lanes(lane) AS (\
                   SELECT (SELECT lane FROM jobs WHERE state = 'queued' AND ready \
                           ORDER BY lane LIMIT 1) \
                   UNION ALL \
                   SELECT (SELECT jobs.lane FROM jobs WHERE state = 'queued' AND ready \
                           AND jobs.lane > lanes.lane ORDER BY jobs.lane LIMIT 1) \
                   FROM lanes WHERE lanes.lane IS NOT NULL) \
                 SELECT lane FROM lanes WHERE lane IS NOT NULL",
            ))
            .await?;
        rows.iter()
            .map(|row| Ok(row.try_get_by_index(0)?))
            .collect()
    }

    /// Attempts that were dispatched before `before`, or whose end was asked for; oldest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn in_flight(&self, before: Time, most: u64) -> Result<Vec<InFlight>, StoreError> {
        let rows = job::Entity::find()
            .filter(job::Column::State.is_in(["dispatched", "running"]))
            .filter(
                Condition::any()
                    .add(job::Column::DispatchedAt.lt(before.as_millis()))
                    .add(job::Column::CancelRequested.eq(true)),
            )
            .order_by_asc(job::Column::DispatchedAt)
            .limit(most)
            .all(&self.read)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(Ok(account)) = row.account.map(|account| account.parse()) else {
                continue;
            };
            found.push(InFlight {
                job: JobId(row.id),
                attempt: count(row.attempt),
                account,
                lease_until: row.lease_until.map(Time::from_millis),
                cancel_requested: row.cancel_requested,
            });
        }
        Ok(found)
    }

    /// How many jobs wait, their time having come or not.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn backlog(&self) -> Result<u64, StoreError> {
        let row = self
            .read
            .query_one_raw(Statement::from_string(
                self.read.get_database_backend(),
                "SELECT count(*) FROM jobs WHERE state = 'queued'",
            ))
            .await?;
        let waiting: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(0))?;
        Ok(u64::try_from(waiting).unwrap_or(0))
    }
}
