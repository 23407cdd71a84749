//! Uploads on their way to being batches.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, Statement, Value};
use sluice_shared::{
    api::LineError,
    domain::{BatchId, JobId, Time, quota::Violation},
};
use uuid::Uuid;

use super::{line_number, number};
use crate::store::{
    Idempotency, NewRow, Store, StoreError,
    bulk::{Column, Rows},
    clients,
    entity::idempotency_key,
    for_update, parse_json, to_json,
};

/// Lines deleted with one statement.
const SWEEP: i64 = 5_000;

/// A batch whose upload begins.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// Its id.
    pub id: BatchId,
    /// Who submits it.
    pub client: String,
    /// Which API it comes by.
    pub kind: &'static str,
    /// Its name.
    pub name: Option<String>,
    /// What that API keeps with it, as a JSON object.
    pub details: String,
}

/// A line of an upload that is a job.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// The job.
    pub row: NewRow,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is a batch, on disk.
    New,
    /// The same key came with the same upload before: this is its batch.
    Replayed(BatchId),
    /// The same key came with another request before.
    Mismatch,
    /// The client's quota does not allow it.
    OverQuota(Violation),
    /// Its stage was swept away: it took too long.
    Gone,
}

impl Store {
    /// Begins an upload.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open_batch(&self, batch: &NewBatch, now: Time) -> Result<(), StoreError> {
        let values: [Value; 6] = [
            batch.id.0.into(),
            batch.client.as_str().into(),
            batch.kind.into(),
            batch.name.clone().into(),
            batch.details.as_str().into(),
            now.as_millis().into(),
        ];
        self.write
            .execute_raw(Statement::from_sql_and_values(
                self.write.get_database_backend(),
                "INSERT INTO batches (id, client, kind, name, details, total, rejected, fed, \
                 last_line, created_at, touched_at) VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, $6, $6)",
                values,
            ))
            .await?;
        Ok(())
    }

    /// Keeps further lines of an upload, the last of which has the number `last`, where nobody
    /// sees them. Whether its stage was still there.
    ///
    /// # Errors
    /// When the database did not take them; then it took none of these.
    pub async fn stage(
        &self,
        id: BatchId,
        lines: &[Line],
        rejects: &[LineError],
        last: u64,
        now: Time,
    ) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        if tx.get_database_backend() == DbBackend::Postgres {
            // The acceptance waits for the disk, and with it for all that was written before.
            tx.execute_unprepared("SET LOCAL synchronous_commit = off")
                .await?;
        }
        let values: [Value; 5] = [
            id.0.into(),
            line_number(lines.len() as u64).into(),
            line_number(rejects.len() as u64).into(),
            line_number(last).into(),
            now.as_millis().into(),
        ];
        let changed = tx
            .execute_raw(Statement::from_sql_and_values(
                tx.get_database_backend(),
                "UPDATE batches SET total = total + $2, rejected = rejected + $3, last_line = $4, \
                 touched_at = $5 WHERE id = $1 AND accepted_at IS NULL AND touched_at > 0",
                values,
            ))
            .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        let (mut numbers, mut jobs) = (Vec::new(), Vec::new());
        for line in lines {
            numbers.push(line_number(line.number));
            jobs.push(to_json("job", &line.row)?);
        }
        Rows::new(
            &["batch", "line", "job"],
            vec![
                Column::Id(vec![id.0; lines.len()]),
                Column::Number(numbers),
                Column::Text(jobs),
            ],
        )
        .execute(
            &tx,
            "INSERT INTO batch_lines (batch, line, job) SELECT batch, line, job FROM v",
        )
        .await?;
        let numbers = rejects.iter().map(|reject| line_number(reject.line));
        let codes = rejects.iter().map(|reject| reject.code.clone());
        let details = rejects.iter().map(|reject| reject.detail.clone());
        Rows::new(
            &["batch", "line", "code", "detail"],
            vec![
                Column::Id(vec![id.0; rejects.len()]),
                Column::Number(numbers.collect()),
                Column::Text(codes.collect()),
                Column::Text(details.collect()),
            ],
        )
        .execute(
            &tx,
            "INSERT INTO batch_rejects (batch, line, code, detail) \
             SELECT batch, line, code, detail FROM v",
        )
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Makes an upload a batch, in one small transaction. When this returns [`Accepted::New`], all
    /// of its lines are on disk and will become jobs.
    ///
    /// # Errors
    /// When the database did not take it; then it is no batch.
    pub async fn accept_batch(
        &self,
        id: BatchId,
        client: &str,
        idempotency: Option<&Idempotency>,
        now: Time,
    ) -> Result<Accepted, StoreError> {
        let tx = self.begin().await?;
        if let Some(idempotency) = idempotency
            && let Some(before) = take_key(&tx, id, client, idempotency, now).await?
        {
            return Ok(before);
        }
        // Locked against the sweep.
        let sql = format!(
            "SELECT total FROM batches WHERE id = $1 AND accepted_at IS NULL AND touched_at > 0 {}",
            for_update(&tx, "FOR UPDATE")
        );
        let backend = tx.get_database_backend();
        let found = Statement::from_sql_and_values(backend, sql, [id.0.into()]);
        let Some(found) = tx.query_one_raw(found).await? else {
            return Ok(Accepted::Gone);
        };
        let jobs = number(found.try_get_by_index(0)?);
        if let Some(violation) = clients::refuses(&tx, client, jobs, now).await? {
            return Ok(Accepted::OverQuota(violation));
        }
        tx.execute_raw(Statement::from_sql_and_values(
            backend,
            "UPDATE batches SET accepted_at = $2, touched_at = $2 WHERE id = $1",
            [id.0.into(), now.as_millis().into()],
        ))
        .await?;
        tx.commit().await?;
        Ok(Accepted::New)
    }

    /// Forgets an upload that will not become a batch.
    ///
    /// # Errors
    /// When the database cannot be reached; the sweep forgets it later.
    pub async fn drop_stage(&self, id: BatchId) -> Result<(), StoreError> {
        // From here on it cannot be accepted. The lines go first, so that what a crash leaves of
        // it is still found.
        let sql = "UPDATE batches SET touched_at = 0 WHERE id = $1 AND accepted_at IS NULL";
        if self.write_one(sql, [id.0.into()]).await? == 0 {
            return Ok(());
        }
        for table in ["batch_lines", "batch_rejects"] {
            let sql = format!(
                "DELETE FROM {table} WHERE batch = $1 AND line IN (SELECT line FROM {table} \
                 WHERE batch = $1 ORDER BY line LIMIT {SWEEP})"
            );
            while self.write_one(&sql, [id.0.into()]).await? > 0 {}
        }
        let sql = "DELETE FROM batches WHERE id = $1 AND accepted_at IS NULL";
        self.write_one(sql, [id.0.into()]).await?;
        Ok(())
    }

    /// Forgets uploads of which nothing was heard since `before`. Gives how many there were.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sweep_stages(&self, before: Time) -> Result<usize, StoreError> {
        let sql = "SELECT id FROM batches WHERE accepted_at IS NULL AND touched_at < $1 \
                   ORDER BY touched_at LIMIT 100";
        let rows = self.ask(sql.into(), [before.as_millis().into()]).await?;
        for row in &rows {
            let id: Uuid = row.try_get_by_index(0)?;
            self.drop_stage(BatchId(id)).await?;
        }
        Ok(rows.len())
    }

    pub(super) async fn write_one(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64, StoreError> {
        let backend = self.write.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        Ok(self.write.execute_raw(statement).await?.rows_affected())
    }
}

/// Takes an idempotency key for a batch, or says who has it.
async fn take_key(
    tx: &DatabaseTransaction,
    id: BatchId,
    client: &str,
    idempotency: &Idempotency,
    now: Time,
) -> Result<Option<Accepted>, StoreError> {
    // Kept as one of jobs would be: the fingerprint says that it is none.
    let values: [Value; 5] = [
        client.into(),
        idempotency.key.as_str().into(),
        idempotency.fingerprint.as_str().into(),
        to_json("batch id", &[JobId(id.0)])?.into(),
        now.as_millis().into(),
    ];
    let taken = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "INSERT INTO idempotency_keys (client, idempotency_key, fingerprint, jobs, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (client, idempotency_key) DO NOTHING",
            values,
        ))
        .await?;
    if taken.rows_affected() > 0 {
        return Ok(None);
    }
    let key = (client.to_owned(), idempotency.key.clone());
    let before = idempotency_key::Entity::find_by_id(key).one(tx).await?;
    let Some(before) = before else {
        return Ok(Some(Accepted::Mismatch));
    };
    if before.fingerprint != idempotency.fingerprint {
        return Ok(Some(Accepted::Mismatch));
    }
    let ids: Vec<JobId> = parse_json("batch of an idempotency key", &before.jobs)?;
    let first = ids.first().map(|id| Accepted::Replayed(BatchId(id.0)));
    Ok(Some(first.unwrap_or(Accepted::Mismatch)))
}
