//! What a forecast is made from: what waits, where a job stands, and how long jobs took.

use sea_orm::{ConnectionTrait, Statement};
use sluice_shared::domain::JobId;
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
};

/// Jobs counted before one, at most.
pub const MOST_AHEAD: u64 = 10_000;

/// Jobs counted in each other lane, at most.
const MOST_ELSEWHERE: u64 = 1_000;

/// Waiting jobs looked at to say what waits, at most; beyond it they stand for the rest.
const MOST_WAITING: u64 = 200_000;

/// The last attempts that durations are taken from.
const MEASURED: u32 = 2_000;

/// Where a waiting job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The key of its lane.
    pub lane: String,
    /// Its priority.
    pub priority: i16,
    /// Jobs of its lane that go before it, counted up to [`MOST_AHEAD`].
    pub ahead: u64,
    /// Jobs that go before it in other lanes, by lane, where there are any.
    pub elsewhere: Vec<(String, u64)>,
}

/// Waiting jobs that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The key of their lane.
    pub lane: String,
    /// Their priority.
    pub priority: i16,
    /// Their client.
    pub client: String,
    /// How many there are.
    pub jobs: u64,
}

/// What the last answered attempts of an account took on average.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// The account.
    pub account: String,
    /// How many were measured.
    pub attempts: u64,
    /// From dispatch to end, in milliseconds.
    pub millis: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Millionths of a US dollar.
    pub cost_microusd: u64,
}

impl Store {
    /// Where a job stands; `None` when it does not wait for capacity.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn place(&self, id: JobId) -> Result<Option<Place>, StoreError> {
        let backend = self.read.get_database_backend();
        let row = self
            .read
            .query_one_raw(Statement::from_sql_and_values(
                backend,
                "SELECT lane, priority, fair_tag FROM jobs \
                 WHERE id = $1 AND state = 'queued' AND ready",
                [id.0.into()],
            ))
            .await?;
        let Some(row) = row else { return Ok(None) };
        let lane: String = row.try_get_by_index(0)?;
        let (priority, tag): (i64, i64) = (row.try_get_by_index(1)?, row.try_get_by_index(2)?);
        let ahead = self
            .ahead(std::slice::from_ref(&lane), priority, tag, id.0, MOST_AHEAD)
            .await?;
        let mut others = self.waiting_lanes().await?;
        others.retain(|other| *other != lane);
        let elsewhere = self
            .ahead(&others, priority, tag, id.0, MOST_ELSEWHERE)
            .await?;
        Ok(Some(Place {
            ahead: ahead.first().map_or(0, |(_, jobs)| *jobs),
            lane,
            priority: i16::try_from(priority).unwrap_or_default(),
            elsewhere,
        }))
    }

    /// How many jobs of each lane go before one, where any do; two ranges of one index a lane.
    async fn ahead(
        &self,
        lanes: &[String],
        priority: i64,
        tag: i64,
        id: Uuid,
        most: u64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let all = lanes.len();
        let numbers = |value: i64| Column::Number(vec![value; all]);
        let sql = format!(
            "SELECT v.lane, (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE jobs.lane = v.lane \
               AND jobs.state = 'queued' AND jobs.ready AND jobs.priority > v.priority \
               LIMIT {most}) AS higher) \
             + (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE jobs.lane = v.lane \
               AND jobs.state = 'queued' AND jobs.ready AND jobs.priority = v.priority \
               AND (jobs.fair_tag, jobs.id) < (v.tag, v.id) LIMIT {most}) AS earlier) FROM v"
        );
        let rows = Rows::new(
            &["lane", "priority", "tag", "id"],
            vec![
                Column::Text(lanes.to_vec()),
                numbers(priority),
                numbers(tag),
                Column::Id(vec![id; all]),
            ],
        )
        .query(&self.read, &sql)
        .await?;
        let mut ahead = Vec::new();
        for row in rows {
            let jobs: i64 = row.try_get_by_index(1)?;
            if jobs > 0 {
                let jobs = u64::try_from(jobs).unwrap_or(0).min(most);
                ahead.push((row.try_get_by_index(0)?, jobs));
            }
        }
        Ok(ahead)
    }

    /// What waits for capacity, by lane, priority and client.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let rows = self
            .read
            .query_all_raw(Statement::from_string(
                self.read.get_database_backend(),
                format!(
                    "SELECT lane, priority, client, count(*) FROM (\
                       SELECT lane, priority, client FROM jobs \
                       WHERE state = 'queued' AND ready LIMIT {MOST_WAITING}) AS waiting \
                     GROUP BY lane, priority, client ORDER BY lane, priority, client"
                ),
            ))
            .await?;
        let mut waiting = Vec::with_capacity(rows.len());
        for row in rows {
            let priority: i64 = row.try_get_by_index(1)?;
            let jobs: i64 = row.try_get_by_index(3)?;
            waiting.push(Waiting {
                lane: row.try_get_by_index(0)?,
                priority: i16::try_from(priority).unwrap_or_default(),
                client: row.try_get_by_index(2)?,
                jobs: u64::try_from(jobs).unwrap_or(0),
            });
        }
        let seen: u64 = waiting.iter().map(|waiting| waiting.jobs).sum();
        if seen >= MOST_WAITING {
            let all = self.backlog().await?;
            for waiting in &mut waiting {
                let jobs = u128::from(waiting.jobs) * u128::from(all) / u128::from(seen);
                waiting.jobs = u64::try_from(jobs).unwrap_or(u64::MAX);
            }
        }
        Ok(waiting)
    }

    /// What the last answered attempts took, by account.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn measures(&self) -> Result<Vec<Measure>, StoreError> {
        let rows = self
            .read
            .query_all_raw(Statement::from_string(
                self.read.get_database_backend(),
                format!(
                    "SELECT account, count(*), CAST(avg(finished_at - dispatched_at) AS BIGINT), \
                     CAST(avg(input_tokens) AS BIGINT), CAST(avg(output_tokens) AS BIGINT), \
                     CAST(avg(COALESCE(cost_microusd, 0)) AS BIGINT) FROM (\
                       SELECT account, finished_at, dispatched_at, input_tokens, output_tokens, \
                       cost_microusd, outcome FROM attempts \
                       ORDER BY job DESC, number DESC LIMIT {MEASURED}) AS recent \
                     WHERE outcome = 'completed' GROUP BY account"
                ),
            ))
            .await?;
        let mut measures = Vec::with_capacity(rows.len());
        for row in rows {
            let number = |index| {
                let number: i64 = row.try_get_by_index(index)?;
                Ok::<u64, StoreError>(u64::try_from(number).unwrap_or(0))
            };
            measures.push(Measure {
                account: row.try_get_by_index(0)?,
                attempts: number(1)?,
                millis: number(2)?,
                input_tokens: number(3)?,
                output_tokens: number(4)?,
                cost_microusd: number(5)?,
            });
        }
        Ok(measures)
    }
}
