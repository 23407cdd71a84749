//! Batches: many jobs of one upload, with one id.
//!
//! An upload is staged: its lines are checked and kept apart, a chunk at a time, and nobody sees
//! them. One small transaction makes it a batch (`stage`). From then on its lines become jobs, a
//! chunk at a time and each exactly once (`work`), so that neither its upload nor its acceptance
//! holds anybody else up, however large it is. A crash before the acceptance leaves a stage that
//! is swept away, and one after it leaves lines that another process goes on with.
//!
//! What has become of the jobs is counted where it is, by an index of their batch.

mod stage;
mod work;

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement, Value};
use sluice_shared::{
    api::{BatchCounts, LineError},
    domain::{BatchId, JobId, State, Time},
};
use uuid::Uuid;

pub use self::{
    stage::{Accepted, Line, NewBatch},
    work::{Cancelled, EndedBatch, Fed},
};
use super::{Store, StoreError, parse_json};

/// A batch as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Its id.
    pub id: BatchId,
    /// Who submitted it.
    pub client: String,
    /// Which API it came by.
    pub kind: String,
    /// Its name.
    pub name: Option<String>,
    /// What that API keeps with it, as a JSON object.
    pub details: String,
    /// Its jobs.
    pub total: u64,
    /// Its lines that are no jobs.
    pub rejected: u64,
    /// Whether all of its lines have become jobs.
    pub is_fed: bool,
    /// When its upload began.
    pub created_at: Time,
    /// When its end was asked for.
    pub cancel_requested_at: Option<Time>,
    /// When its last job ended.
    pub ended_at: Option<Time>,
    /// The counts at its end.
    counts: Option<BatchCounts>,
}

const BATCH: &str = "id, client, kind, name, details, total, rejected, fed >= last_line, \
     created_at, cancel_requested_at, ended_at, counts";

/// The outcome of one line, or a job that has none yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineOutcome {
    /// Its number, from 1.
    pub line: u64,
    /// Its job and the state of it; none for a line that was rejected.
    pub job: Option<(JobId, State)>,
    /// The job's notes, as a JSON object.
    pub metadata: String,
    /// A completion as JSON, when it succeeded.
    pub answer: Option<String>,
    /// Code and words, when it did not.
    pub error: Option<(String, String)>,
    /// When the job ended.
    pub finished_at: Option<Time>,
}

impl BatchRow {
    fn read(row: &QueryResult) -> Result<Self, StoreError> {
        let time = |index| -> Result<Option<Time>, DbErr> {
            Ok(row
                .try_get_by_index::<Option<i64>>(index)?
                .map(Time::from_millis))
        };
        let counts: Option<String> = row.try_get_by_index(11)?;
        Ok(Self {
            id: BatchId(row.try_get_by_index::<Uuid>(0)?),
            client: row.try_get_by_index(1)?,
            kind: row.try_get_by_index(2)?,
            name: row.try_get_by_index(3)?,
            details: row.try_get_by_index(4)?,
            total: number(row.try_get_by_index(5)?),
            rejected: number(row.try_get_by_index(6)?),
            is_fed: row.try_get_by_index(7)?,
            created_at: Time::from_millis(row.try_get_by_index(8)?),
            cancel_requested_at: time(9)?,
            ended_at: time(10)?,
            counts: counts
                .map(|counts| parse_json("counts of a batch", &counts))
                .transpose()?,
        })
    }
}

impl Store {
    /// A batch that was accepted.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batch(&self, id: BatchId) -> Result<Option<BatchRow>, StoreError> {
        let sql = format!("SELECT {BATCH} FROM batches WHERE id = $1 AND accepted_at IS NOT NULL");
        let row = self.ask_one(sql, [id.0.into()]).await?;
        row.as_ref().map(BatchRow::read).transpose()
    }

    /// Batches of one kind or of all, and of one client or of all, newest first, after `cursor`;
    /// at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batches(
        &self,
        kind: Option<&str>,
        client: Option<&str>,
        cursor: Option<BatchId>,
        limit: u32,
    ) -> Result<Vec<BatchRow>, StoreError> {
        let sql = format!(
            "SELECT {BATCH} FROM batches WHERE accepted_at IS NOT NULL AND id < $1 \
             AND ($2 = '' OR client = $2) AND ($3 = '' OR kind = $3) ORDER BY id DESC LIMIT $4"
        );
        let before = cursor.map_or(Uuid::max(), |cursor| cursor.0);
        let values: [Value; 4] = [
            before.into(),
            client.unwrap_or_default().into(),
            kind.unwrap_or_default().into(),
            i64::from(limit).into(),
        ];
        let rows = self.ask(sql, values).await?;
        rows.iter().map(BatchRow::read).collect()
    }

    /// How many jobs of a batch are in each state. Lines that have not become jobs yet are queued.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batch_counts(&self, batch: &BatchRow) -> Result<BatchCounts, StoreError> {
        if let Some(counts) = batch.counts {
            return Ok(counts);
        }
        let mut counts = count_jobs(&self.read, batch.id).await?;
        let known = counts.unfinished() + counts.ended();
        counts.queued += batch.total.saturating_sub(known);
        Ok(counts)
    }

    /// The first lines of a batch that were rejected.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batch_rejects(
        &self,
        id: BatchId,
        after: u64,
        most: u32,
    ) -> Result<Vec<LineError>, StoreError> {
        let sql = "SELECT line, code, detail FROM batch_rejects WHERE batch = $1 AND line > $2 \
                   ORDER BY line LIMIT $3";
        let values: [Value; 3] = [
            id.0.into(),
            line_number(after).into(),
            i64::from(most).into(),
        ];
        let rows = self.ask(sql.into(), values).await?;
        rows.iter()
            .map(|row| {
                Ok(LineError {
                    line: number(row.try_get_by_index(0)?),
                    code: row.try_get_by_index(1)?,
                    detail: row.try_get_by_index(2)?,
                })
            })
            .collect()
    }

    /// What became of the lines of a batch after line `after`, in their order; at most `most`, of
    /// which the last ones may have no outcome yet. Lines that have not become jobs yet, and those
    /// behind them, are missing.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batch_outcomes(
        &self,
        batch: &BatchRow,
        after: u64,
        most: u32,
    ) -> Result<Vec<LineOutcome>, StoreError> {
        let sql = "SELECT j.batch_line, j.id, j.state, j.metadata, a.answer, j.error_code, \
             j.error_message, j.finished_at FROM jobs j \
             LEFT JOIN attempts a ON a.job = j.id AND a.number = j.attempt AND j.state = 'succeeded' \
             WHERE j.batch = $1 AND j.batch_line > $2 ORDER BY j.batch_line LIMIT $3";
        let values: [Value; 3] = [
            batch.id.0.into(),
            line_number(after).into(),
            i64::from(most).into(),
        ];
        let rows = self.ask(sql.into(), values).await?;
        let is_whole = rows.len() < most as usize && batch.is_fed;
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in &rows {
            outcomes.push(outcome(row)?);
        }
        if batch.rejected == 0 {
            return Ok(outcomes);
        }
        let last = outcomes.last().map(|outcome| outcome.line);
        let rejects = self.batch_rejects(batch.id, after, most).await?;
        outcomes.extend(
            rejects
                .into_iter()
                .filter(|reject| is_whole || last.is_some_and(|last| reject.line < last))
                .map(|reject| LineOutcome {
                    line: reject.line,
                    job: None,
                    metadata: "{}".into(),
                    answer: None,
                    error: Some((reject.code, reject.detail)),
                    finished_at: None,
                }),
        );
        outcomes.sort_unstable_by_key(|outcome| outcome.line);
        outcomes.truncate(most as usize);
        Ok(outcomes)
    }

    /// The lane and priority of the last job of a batch that waits, if any does.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn batch_tail(&self, id: BatchId) -> Result<Option<(String, i16)>, StoreError> {
        let sql = "SELECT lane, priority FROM jobs WHERE batch = $1 AND batch_line IS NOT NULL \
                   ORDER BY batch_line DESC LIMIT 1";
        let row = self.ask_one(sql.into(), [id.0.into()]).await?;
        row.map(|row| {
            let priority: i64 = row.try_get_by_index(1)?;
            Ok((
                row.try_get_by_index(0)?,
                i16::try_from(priority).unwrap_or_default(),
            ))
        })
        .transpose()
    }

    async fn ask(
        &self,
        sql: String,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let backend = self.read.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        self.read.query_all_raw(statement).await
    }

    async fn ask_one(
        &self,
        sql: String,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<QueryResult>, DbErr> {
        let backend = self.read.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        self.read.query_one_raw(statement).await
    }
}

/// Counts the jobs of a batch by an index alone.
async fn count_jobs(db: &impl ConnectionTrait, id: BatchId) -> Result<BatchCounts, StoreError> {
    let rows = db
        .query_all_raw(Statement::from_sql_and_values(
            db.get_database_backend(),
            "SELECT state, count(*) FROM jobs WHERE batch = $1 GROUP BY state",
            [id.0.into()],
        ))
        .await?;
    let mut counts = BatchCounts::default();
    for row in rows {
        let state: String = row.try_get_by_index(0)?;
        if let Some(state) = State::from_name(&state) {
            *counts.of(state) = number(row.try_get_by_index(1)?);
        }
    }
    Ok(counts)
}

fn outcome(row: &QueryResult) -> Result<LineOutcome, StoreError> {
    let state: String = row.try_get_by_index(2)?;
    let state = State::from_name(&state)
        .ok_or_else(|| StoreError::Internal(format!("state `{state}` is not known")))?;
    let code: Option<String> = row.try_get_by_index(5)?;
    let words: Option<String> = row.try_get_by_index(6)?;
    let finished_at: Option<i64> = row.try_get_by_index(7)?;
    Ok(LineOutcome {
        line: number(row.try_get_by_index(0)?),
        job: Some((JobId(row.try_get_by_index::<Uuid>(1)?), state)),
        metadata: row.try_get_by_index(3)?,
        answer: row.try_get_by_index(4)?,
        error: code.map(|code| (code, words.unwrap_or_default())),
        finished_at: finished_at.map(Time::from_millis),
    })
}

fn number(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn line_number(line: u64) -> i64 {
    i64::try_from(line).unwrap_or(i64::MAX)
}
