//! What is done about batches that were accepted: their lines become jobs, they are cancelled,
//! they end.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement, Value};
use sluice_shared::{
    api::BatchCounts,
    domain::{BatchId, Event, JobId, Lane, State, Time},
};
use uuid::Uuid;

use super::{BATCH, BatchRow, count_jobs, line_number};
use crate::store::{
    NewRow, Store, StoreError, Submission, count, dependencies, fair, fallback, for_update,
    parse_json,
    submit::insert_jobs,
    to_json,
    webhooks::{self, Occurrence},
};

/// Batches looked at in one pass, at most.
const MOST_OPEN: u32 = 1_000;

/// What came of feeding.
#[derive(Debug, Default)]
pub struct Fed {
    /// Lanes of the new jobs that wait.
    pub lanes: Vec<Lane>,
    /// The new jobs, with their states.
    pub jobs: Vec<(JobId, State)>,
    /// Jobs that some of them come after.
    pub parents: Vec<JobId>,
}

/// What came of cancelling some jobs of a batch.
#[derive(Debug, Default)]
pub struct Cancelled {
    /// Those that have ended.
    pub ended: Vec<JobId>,
    /// Attempts that must be told.
    pub in_flight: Vec<(JobId, u32)>,
}

/// A batch that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedBatch {
    /// Its id.
    pub id: BatchId,
    /// Who submitted it.
    pub client: String,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// How its jobs ended.
    pub counts: BatchCounts,
    /// When.
    pub ended_at: Time,
}

impl Store {
    /// Batches that were accepted and have not ended, oldest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open_batches(&self) -> Result<Vec<BatchRow>, StoreError> {
        let sql = format!(
            "SELECT {BATCH} FROM batches WHERE accepted_at IS NOT NULL AND ended_at IS NULL \
             ORDER BY id LIMIT {MOST_OPEN}"
        );
        let rows = self.ask(sql, []).await?;
        rows.iter().map(BatchRow::read).collect()
    }

    /// Makes jobs of the next lines of a batch, at most `most`, each exactly once. Nothing comes
    /// of it when another process is at it.
    ///
    /// # Errors
    /// When the database did not take them; then none has become a job.
    pub async fn feed_batch(&self, id: BatchId, most: u32, now: Time) -> Result<Fed, StoreError> {
        let tx = self.begin().await?;
        let sql = format!(
            "SELECT client, last_line, cancel_requested_at FROM batches WHERE id = $1 \
             AND accepted_at IS NOT NULL AND fed < last_line {}",
            for_update(&tx, "FOR UPDATE SKIP LOCKED")
        );
        let Some(batch) = tx
            .query_one_raw(statement(&tx, &sql, [id.0.into()]))
            .await?
        else {
            return Ok(Fed::default());
        };
        let client: String = batch.try_get_by_index(0)?;
        let last: i64 = batch.try_get_by_index(1)?;
        let cancel: Option<i64> = batch.try_get_by_index(2)?;
        let sql = "SELECT line, job FROM batch_lines WHERE batch = $1 ORDER BY line LIMIT $2";
        let found = tx
            .query_all_raw(statement(&tx, sql, [id.0.into(), i64::from(most).into()]))
            .await?;
        let mut lines = Vec::with_capacity(found.len());
        let mut rows: Vec<NewRow> = Vec::with_capacity(found.len());
        for line in found {
            lines.push(line.try_get_by_index::<i64>(0)?);
            let job: String = line.try_get_by_index(1)?;
            rows.push(parse_json("a line of a batch", &job)?);
        }
        let fed = match lines.last() {
            Some(line) if lines.len() == most as usize => *line,
            _ => last,
        };
        let submission = Submission {
            client,
            rows,
            idempotency: None,
        };
        let state = self
            .make_jobs(&tx, id, &submission, lines, cancel.is_some(), now)
            .await?;
        let values: [Value; 2] = [id.0.into(), fed.into()];
        for sql in [
            "DELETE FROM batch_lines WHERE batch = $1 AND line <= $2",
            "UPDATE batches SET fed = $2 WHERE id = $1",
        ] {
            tx.execute_raw(statement(&tx, sql, values.clone())).await?;
        }
        tx.commit().await?;
        let mut fed = Fed::default();
        for row in submission.rows {
            fed.jobs.push((row.id, state));
            if let Some(after) = row.after {
                fed.parents.extend(after.parents);
            }
            if state == State::Queued && row.run_at <= now && !fed.lanes.contains(&row.lane) {
                fed.lanes.push(row.lane);
            }
        }
        Ok(fed)
    }

    /// Writes the jobs of a chunk of lines; those of a batch that is being cancelled end at once.
    async fn make_jobs(
        &self,
        tx: &DatabaseTransaction,
        id: BatchId,
        submission: &Submission,
        lines: Vec<i64>,
        cancel: bool,
        now: Time,
    ) -> Result<State, StoreError> {
        let (Some(first), Some(last)) = (lines.first().copied(), lines.last().copied()) else {
            return Ok(State::Queued);
        };
        let own = std::slice::from_ref(submission);
        // As a submit does it: not in this transaction where that would hold others up.
        let places = if tx.get_database_backend() == DbBackend::Postgres {
            fair::places(&self.write, own, now).await?
        } else {
            fair::places(tx, own, now).await?
        };
        let tags = places.tags.first().map_or(&[][..], Vec::as_slice);
        insert_jobs(tx, &[(submission, tags)], None, Some((id, lines)), now).await?;
        fallback::insert(tx, submission.rows.iter(), now).await?;
        webhooks::insert(tx, submission.rows.iter()).await?;
        dependencies::insert(tx, submission.rows.iter()).await?;
        if !cancel {
            return Ok(State::Queued);
        }
        let cancelled = cancelled()?;
        let sql = format!(
            "UPDATE jobs SET {} WHERE batch = $2 AND batch_line >= $3 AND batch_line <= $4 \
             AND state = 'queued'",
            ends_cancelled(cancelled, "$1")
        );
        let values: [Value; 4] = [
            now.as_millis().into(),
            id.0.into(),
            first.into(),
            last.into(),
        ];
        tx.execute_raw(statement(tx, &sql, values)).await?;
        let ended: Vec<Uuid> = submission.rows.iter().map(|row| row.id.0).collect();
        webhooks::tell_of_ended(tx, &ended, now).await?;
        Ok(cancelled)
    }

    /// Asks for the end of a batch. Whether it had not ended.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cancel_batch(&self, id: BatchId, now: Time) -> Result<bool, StoreError> {
        let sql = "UPDATE batches SET cancel_requested_at = COALESCE(cancel_requested_at, $2) \
                   WHERE id = $1 AND accepted_at IS NOT NULL AND ended_at IS NULL";
        let changed = self
            .write_one(sql, [id.0.into(), now.as_millis().into()])
            .await?;
        Ok(changed > 0)
    }

    /// Ends waiting jobs of a batch, at most `most`, and marks those in flight when none waits.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cancel_jobs(
        &self,
        id: BatchId,
        most: u32,
        now: Time,
    ) -> Result<Cancelled, StoreError> {
        let some = |which: &str, set: &str, returning: &str| {
            format!(
                "WITH chosen AS MATERIALIZED (SELECT id FROM jobs WHERE batch = $1 AND {which} \
                 ORDER BY id LIMIT $2 {}) \
                 UPDATE jobs SET {set} FROM chosen WHERE jobs.id = chosen.id AND {which} \
                 RETURNING {returning}",
                for_update(&self.write, "FOR UPDATE SKIP LOCKED")
            )
        };
        let mut done = Cancelled::default();
        let ends = ends_cancelled(cancelled()?, "$3");
        let sql = some("jobs.state = 'queued'", &ends, "jobs.id");
        let (batch, most) = (Value::from(id.0), Value::from(i64::from(most)));
        let values = [batch.clone(), most.clone(), now.as_millis().into()];
        let tx = self.begin().await?;
        let mut ended = Vec::new();
        for row in tx.query_all_raw(statement(&tx, &sql, values)).await? {
            ended.push(row.try_get_by_index::<Uuid>(0)?);
        }
        webhooks::tell_of_ended(&tx, &ended, now).await?;
        tx.commit().await?;
        done.ended.extend(ended.into_iter().map(JobId));
        if !done.ended.is_empty() {
            return Ok(done);
        }
        let in_flight = "jobs.state IN ('dispatched', 'running') AND NOT jobs.cancel_requested";
        let marks = "cancel_requested = TRUE";
        let sql = some(in_flight, marks, "jobs.id, jobs.attempt");
        let rows = statement(&self.write, &sql, [batch, most]);
        for row in self.write.query_all_raw(rows).await? {
            let job = JobId(row.try_get_by_index::<Uuid>(0)?);
            done.in_flight.push((job, count(row.try_get_by_index(1)?)));
        }
        Ok(done)
    }

    /// Ends the batches whose last job has ended. Each is given once, whichever process ends it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn end_batches(&self, now: Time) -> Result<Vec<EndedBatch>, StoreError> {
        let sql = "SELECT id FROM batches WHERE accepted_at IS NOT NULL AND ended_at IS NULL \
             AND fed >= last_line AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.batch = batches.id \
             AND jobs.state IN ('queued', 'dispatched', 'running')) ORDER BY id LIMIT 100";
        let mut ended = Vec::new();
        for row in self.ask(sql.into(), []).await? {
            let id = BatchId(row.try_get_by_index::<Uuid>(0)?);
            ended.extend(self.end_batch(id, now).await?);
        }
        Ok(ended)
    }

    async fn end_batch(&self, id: BatchId, now: Time) -> Result<Option<EndedBatch>, StoreError> {
        let tx = self.begin().await?;
        let counts = count_jobs(&tx, id).await?;
        let values: [Value; 4] = [
            id.0.into(),
            now.as_millis().into(),
            to_json("counts", &counts)?.into(),
            line_number(counts.ended()).into(),
        ];
        let row = tx
            .query_one_raw(statement(
                &tx,
                "UPDATE batches SET ended_at = $2, counts = $3 \
                 WHERE id = $1 AND ended_at IS NULL AND total = $4 RETURNING client, name",
                values,
            ))
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let ended = EndedBatch {
            id,
            client: row.try_get_by_index(0)?,
            name: row.try_get_by_index(1)?,
            counts,
            ended_at: now,
        };
        // The one place where a batch ends: what must be told of it exactly once is written here,
        // in this transaction.
        let news = Occurrence::of_batch(&ended)?;
        let has_endpoints = webhooks::has_endpoints(&tx).await?;
        webhooks::tell(&tx, &[news], has_endpoints, now).await?;
        tx.commit().await?;
        Ok(Some(ended))
    }
}

fn cancelled() -> Result<State, StoreError> {
    State::Queued
        .on(Event::Cancel)
        .map_err(|refused| StoreError::Internal(refused.to_string()))
}

/// How a job that waited ends in the state `cancelled`, at the time `now`.
fn ends_cancelled(cancelled: State, now: &str) -> String {
    format!(
        "state = '{cancelled}', finished_at = {now}, cancel_requested = TRUE, \
         error_code = 'cancelled', error_message = 'cancelled before it began'"
    )
}

fn statement(
    db: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}
