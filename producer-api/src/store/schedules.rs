//! Schedules and what became of their times.

use sea_orm::{ConnectionTrait, QueryResult, Statement, Value};
use sluice_shared::{
    api::{Missed, ScheduleRun},
    domain::{JobId, Time},
};
use uuid::Uuid;

use super::{Store, StoreError, parse_json, to_json};

/// Schedules that fire in one look, at most.
const MOST_DUE: u32 = 100;

/// Runs that are shown, at most.
const MOST_RUNS: u32 = 20;

/// A schedule as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleRow {
    /// Its id.
    pub id: Uuid,
    /// Whose jobs it submits.
    pub client: String,
    /// Its name.
    pub name: String,
    /// When.
    pub cron: String,
    /// The time zone of `cron`.
    pub timezone: String,
    /// The job, as JSON.
    pub job: String,
    /// What becomes of times that were missed.
    pub missed: Missed,
    /// It fires only on request.
    pub paused: bool,
    /// The first time that has not been looked at.
    pub next_at: Option<Time>,
    /// When it was made.
    pub created_at: Time,
    /// When it was changed last.
    pub updated_at: Time,
}

const COLUMNS: &str = "id, client, name, cron, timezone, job, missed, paused, next_at, \
     created_at, updated_at";

impl ScheduleRow {
    fn read(row: &QueryResult) -> Result<Self, StoreError> {
        let missed: String = row.try_get_by_index(6)?;
        Ok(Self {
            id: row.try_get_by_index(0)?,
            client: row.try_get_by_index(1)?,
            name: row.try_get_by_index(2)?,
            cron: row.try_get_by_index(3)?,
            timezone: row.try_get_by_index(4)?,
            job: row.try_get_by_index(5)?,
            missed: parse_json("missed", &missed)?,
            paused: row.try_get_by_index(7)?,
            next_at: row
                .try_get_by_index::<Option<i64>>(8)?
                .map(Time::from_millis),
            created_at: Time::from_millis(row.try_get_by_index(9)?),
            updated_at: Time::from_millis(row.try_get_by_index(10)?),
        })
    }
}

impl Store {
    /// Keeps a schedule: a new one, or what has been changed of one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn put_schedule(&self, row: &ScheduleRow) -> Result<(), StoreError> {
        let values: [Value; 11] = [
            row.id.into(),
            row.client.as_str().into(),
            row.name.as_str().into(),
            row.cron.as_str().into(),
            row.timezone.as_str().into(),
            row.job.as_str().into(),
            to_json("missed", &row.missed)?.into(),
            row.paused.into(),
            row.next_at.map(Time::as_millis).into(),
            row.created_at.as_millis().into(),
            row.updated_at.as_millis().into(),
        ];
        let sql = format!(
            "INSERT INTO schedules ({COLUMNS}) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, cron = excluded.cron, \
             timezone = excluded.timezone, job = excluded.job, missed = excluded.missed, \
             paused = excluded.paused, next_at = excluded.next_at, \
             updated_at = excluded.updated_at"
        );
        self.run_schedule(&sql, values).await?;
        Ok(())
    }

    /// A schedule.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn schedule(&self, id: Uuid) -> Result<Option<ScheduleRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM schedules WHERE id = $1");
        let rows = self.find_schedules(&sql, [id.into()]).await?;
        Ok(rows.into_iter().next())
    }

    /// Every schedule, by name.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM schedules ORDER BY name, id");
        self.find_schedules(&sql, []).await
    }

    /// Schedules that a time has come for.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn due_schedules(&self, now: Time) -> Result<Vec<ScheduleRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM schedules WHERE NOT paused AND next_at <= $1 \
             ORDER BY next_at LIMIT {MOST_DUE}"
        );
        self.find_schedules(&sql, [now.as_millis().into()]).await
    }

    /// Lets a schedule move on from a time, unless it has done so or was changed.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn move_schedule(
        &self,
        id: Uuid,
        from: Time,
        next: Option<Time>,
    ) -> Result<(), StoreError> {
        let values: [Value; 3] = [
            id.into(),
            from.as_millis().into(),
            next.map(Time::as_millis).into(),
        ];
        let sql = "UPDATE schedules SET next_at = $3 WHERE id = $1 AND next_at = $2";
        self.run_schedule(sql, values).await?;
        Ok(())
    }

    /// Notes what became of a time, unless it is noted already.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn note_run(
        &self,
        id: Uuid,
        due_at: Time,
        now: Time,
        outcome: &Result<JobId, String>,
    ) -> Result<(), StoreError> {
        let values: [Value; 5] = [
            id.into(),
            due_at.as_millis().into(),
            now.as_millis().into(),
            outcome.as_ref().ok().map(|job| job.0).into(),
            outcome.as_ref().err().cloned().into(),
        ];
        let sql = "INSERT INTO schedule_runs (schedule, due_at, fired_at, job, error) \
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (schedule, due_at) DO NOTHING";
        self.run_schedule(sql, values).await?;
        Ok(())
    }

    /// The last runs of a schedule, newest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn schedule_runs(&self, id: Uuid) -> Result<Vec<ScheduleRun>, StoreError> {
        let sql = format!(
            "SELECT due_at, fired_at, job, error FROM schedule_runs WHERE schedule = $1 \
             ORDER BY due_at DESC LIMIT {MOST_RUNS}"
        );
        let backend = self.read.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, [id.into()]);
        let rows = self.read.query_all_raw(statement).await?;
        rows.iter()
            .map(|row| {
                Ok(ScheduleRun {
                    due_at: Time::from_millis(row.try_get_by_index(0)?),
                    fired_at: Time::from_millis(row.try_get_by_index(1)?),
                    job: row.try_get_by_index::<Option<Uuid>>(2)?.map(JobId),
                    error: row.try_get_by_index(3)?,
                })
            })
            .collect()
    }

    /// Removes a schedule with its runs; its jobs stay. Whether there was one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_schedule(&self, id: Uuid) -> Result<bool, StoreError> {
        let removed = self
            .run_schedule("DELETE FROM schedules WHERE id = $1", [id.into()])
            .await?;
        self.run_schedule("DELETE FROM schedule_runs WHERE schedule = $1", [id.into()])
            .await?;
        Ok(removed > 0)
    }

    /// Forgets runs that were due before this time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_schedule_runs(&self, before: Time) -> Result<u64, StoreError> {
        let sql = "DELETE FROM schedule_runs WHERE due_at < $1";
        self.run_schedule(sql, [before.as_millis().into()]).await
    }

    async fn find_schedules(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<ScheduleRow>, StoreError> {
        let backend = self.read.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        let rows = self.read.query_all_raw(statement).await?;
        rows.iter().map(ScheduleRow::read).collect()
    }

    async fn run_schedule(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64, StoreError> {
        let backend = self.write.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        Ok(self.write.execute_raw(statement).await?.rows_affected())
    }
}
