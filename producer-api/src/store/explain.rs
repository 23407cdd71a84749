//! The backlog for those who ask why it waits. Every statement reads a bounded number of index
//! entries, however many jobs wait.

use sea_orm::{ConnectionTrait, EntityTrait, QueryResult, Statement};
use sluice_shared::domain::{JobId, State, Time};

use super::{Store, StoreError, entity::job};

/// Jobs counted one by one, at most: of a lane, of a place in it, of those whose time has not come.
const MOST_COUNTED: u64 = 10_000;

/// Jobs counted over all lanes, at most.
const MOST_COUNTED_IN_ALL: u64 = 100_000;

/// Lanes looked into at once, at most.
const MOST_LANES: usize = 100;

/// A number of jobs, counted up to a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many there are, at least.
    pub jobs: u64,
    /// There are more than that.
    pub more: bool,
}

/// One lane's backlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneBacklog {
    /// The lane's key.
    pub key: String,
    /// Jobs that wait in it and could go at once.
    pub waiting: Counted,
    /// When the oldest of those that go next was accepted, one job a priority.
    pub oldest: Option<Time>,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlogs {
    /// The lanes, by key.
    pub lanes: Vec<LaneBacklog>,
    /// There are more lanes.
    pub more_lanes: bool,
    /// Jobs whose time has not come.
    pub scheduled: Counted,
    /// When the next of them may go.
    pub next_due: Option<Time>,
}

impl Counted {
    /// The row's first column, of which one more than `most` means more.
    fn up_to(most: u64, row: &QueryResult) -> Result<Self, StoreError> {
        let counted: i64 = row.try_get_by_index(0)?;
        let counted = u64::try_from(counted).unwrap_or(0);
        Ok(Self {
            jobs: counted.min(most),
            more: counted > most,
        })
    }
}

impl Store {
    /// What waits in each lane, and since when.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn backlogs(&self) -> Result<Backlogs, StoreError> {
        let backend = self.read.get_database_backend();
        // One index step a lane.
        let sql = format!(
            "WITH RECURSIVE lanes(lane) AS (\
               SELECT (SELECT lane FROM jobs WHERE state = 'queued' AND ready \
                       ORDER BY lane LIMIT 1) \
               UNION ALL \
               SELECT (SELECT jobs.lane FROM jobs WHERE state = 'queued' AND ready \
                       AND jobs.lane > lanes.lane ORDER BY jobs.lane LIMIT 1) \
               FROM lanes WHERE lanes.lane IS NOT NULL) \
             SELECT lane FROM lanes WHERE lane IS NOT NULL LIMIT {}",
            MOST_LANES + 1
        );
        let rows = self
            .read
            .query_all_raw(Statement::from_string(backend, sql))
            .await?;
        let keys: Vec<String> = rows
            .iter()
            .map(|row| row.try_get_by_index(0))
            .collect::<Result<_, _>>()?;
        let more_lanes = keys.len() > MOST_LANES;
        let each = MOST_COUNTED.min(MOST_COUNTED_IN_ALL / keys.len().clamp(1, MOST_LANES) as u64);
        let mut lanes = Vec::with_capacity(keys.len());
        for key in keys.into_iter().take(MOST_LANES) {
            lanes.push(LaneBacklog {
                waiting: self.count_waiting(&key, each).await?,
                oldest: self.oldest_of_next(&key).await?,
                key,
            });
        }
        let (scheduled, next_due) = self.scheduled().await?;
        Ok(Backlogs {
            lanes,
            more_lanes,
            scheduled,
            next_due,
        })
    }

    async fn count_waiting(&self, lane: &str, most: u64) -> Result<Counted, StoreError> {
        let sql = "SELECT count(*) FROM (SELECT 1 AS one FROM jobs \
                   WHERE lane = $1 AND state = 'queued' AND ready LIMIT $2) AS counted";
        let limit = i64::try_from(most + 1).unwrap_or(i64::MAX);
        let statement = Statement::from_sql_and_values(
            self.read.get_database_backend(),
            sql,
            [lane.to_owned().into(), limit.into()],
        );
        let row = self.read.query_one_raw(statement).await?;
        let counted = row.as_ref().map(|row| Counted::up_to(most, row));
        Ok(counted.transpose()?.unwrap_or_default())
    }

    /// When the oldest of a lane's jobs that go next was accepted, one job a priority: one index
    /// step each.
    async fn oldest_of_next(&self, lane: &str) -> Result<Option<Time>, StoreError> {
        let sql = "WITH RECURSIVE levels(priority) AS (\
               SELECT (SELECT priority FROM jobs WHERE lane = $1 AND state = 'queued' AND ready \
                       ORDER BY priority DESC LIMIT 1) \
               UNION ALL \
               SELECT (SELECT jobs.priority FROM jobs WHERE lane = $1 AND state = 'queued' \
                       AND ready AND jobs.priority < levels.priority \
                       ORDER BY jobs.priority DESC LIMIT 1) \
               FROM levels WHERE levels.priority IS NOT NULL) \
             SELECT min((SELECT created_at FROM jobs WHERE lane = $1 AND state = 'queued' \
                         AND ready AND jobs.priority = levels.priority \
                         ORDER BY fair_tag, id LIMIT 1)) \
             FROM levels WHERE levels.priority IS NOT NULL";
        let statement = Statement::from_sql_and_values(
            self.read.get_database_backend(),
            sql,
            [lane.to_owned().into()],
        );
        let row = self.read.query_one_raw(statement).await?;
        let oldest = row.map_or(Ok(None), |row| row.try_get_by_index::<Option<i64>>(0))?;
        Ok(oldest.map(Time::from_millis))
    }

    async fn scheduled(&self) -> Result<(Counted, Option<Time>), StoreError> {
        let sql = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 AS one FROM jobs WHERE state = 'queued' \
               AND NOT ready ORDER BY run_at LIMIT {}) AS counted), \
             (SELECT min(run_at) FROM jobs WHERE state = 'queued' AND NOT ready)",
            MOST_COUNTED + 1
        );
        let statement = Statement::from_string(self.read.get_database_backend(), sql);
        let Some(row) = self.read.query_one_raw(statement).await? else {
            return Ok((Counted::default(), None));
        };
        let next: Option<i64> = row.try_get_by_index(1)?;
        let counted = Counted::up_to(MOST_COUNTED, &row)?;
        Ok((counted, next.map(Time::from_millis)))
    }

    /// How many jobs of its lane go before this one; none when it does not wait for its turn.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ahead_of(&self, id: JobId) -> Result<Option<Counted>, StoreError> {
        let row = job::Entity::find_by_id(id.0).one(&self.read).await?;
        let Some(row) = row.filter(|row| row.state == State::Queued.as_str() && row.ready) else {
            return Ok(None);
        };
        // The lane is read in its order up to the bound, and no further.
        let sql = format!(
            "SELECT count(*) FROM (SELECT priority, fair_tag, id FROM jobs \
               WHERE lane = $1 AND state = 'queued' AND ready \
               ORDER BY priority DESC, fair_tag, id LIMIT {}) AS first \
             WHERE priority > $2 OR (priority = $2 AND (fair_tag < $3 \
               OR (fair_tag = $3 AND id < $4)))",
            MOST_COUNTED + 1
        );
        let statement = Statement::from_sql_and_values(
            self.read.get_database_backend(),
            sql,
            [
                row.lane.into(),
                row.priority.into(),
                row.fair_tag.into(),
                row.id.into(),
            ],
        );
        let row = self.read.query_one_raw(statement).await?;
        let counted = row.as_ref().map(|row| Counted::up_to(MOST_COUNTED, row));
        Ok(Some(counted.transpose()?.unwrap_or_default()))
    }
}
