//! Accepting jobs: many submissions in one transaction, each all or nothing.

use std::collections::HashMap;

use sea_orm::{ColumnTrait, Condition, DatabaseTransaction, EntityTrait, ExprTrait, QueryFilter};
use sluice_shared::domain::{Delivery, JobId, Lane, Request, Step, Time};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    entity::idempotency_key,
    fallback, parse_json, to_json,
};

/// A job as it is accepted, checked and complete.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// Its id.
    pub id: JobId,
    /// Where it may run.
    pub lane: Lane,
    /// Higher goes first.
    pub priority: i16,
    /// Not before this time.
    pub run_at: Time,
    /// Not begun by then, it expires.
    pub expires_at: Option<Time>,
    /// How long the provider may take, in milliseconds.
    pub timeout_ms: i64,
    /// Failed attempts after which it ends.
    pub max_attempts: u32,
    /// How often it may be handed to a provider.
    pub delivery: Delivery,
    /// The client's session.
    pub session: Option<String>,
    /// The client's notes, as a JSON object.
    pub metadata: String,
    /// The job that it tries again.
    pub retry_of: Option<JobId>,
    /// The W3C trace context of the submit.
    pub traceparent: Option<String>,
    /// What to do.
    pub request: Request,
    /// Its way, when it has fallbacks: the first step is the job as it is.
    pub steps: Vec<Step>,
}

/// An `Idempotency-Key` and what came with it.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The key.
    pub key: String,
    /// A digest of the request.
    pub fingerprint: String,
}

/// Jobs to be accepted together or not at all.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Who submits.
    pub client: String,
    /// The jobs.
    pub rows: Vec<NewRow>,
    /// Against submitting twice.
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The jobs are on disk.
    Accepted,
    /// The same key came with the same request before: these are its jobs.
    Replayed(Vec<JobId>),
    /// The same key came with another request before.
    Mismatch,
}

impl Store {
    /// Accepts many submissions in one transaction; one result each, in order. When this returns
    /// they are on disk.
    ///
    /// # Errors
    /// When the database did not take them; then it took none.
    pub async fn submit(
        &self,
        submissions: &[Submission],
        now: Time,
    ) -> Result<Vec<Submitted>, StoreError> {
        let tx = self.begin().await?;
        let results = claim_keys(&tx, submissions, now).await?;
        let accepted: Vec<&Submission> = submissions
            .iter()
            .zip(&results)
            .filter(|(_, result)| **result == Submitted::Accepted)
            .map(|(submission, _)| submission)
            .collect();
        insert_jobs(&tx, &accepted, now).await?;
        let rows = accepted.iter().flat_map(|submission| &submission.rows);
        fallback::insert(&tx, rows, now).await?;
        tx.commit().await?;
        Ok(results)
    }

    /// Forgets idempotency keys older than `before`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_idempotency_keys(&self, before: Time) -> Result<u64, StoreError> {
        let deleted = idempotency_key::Entity::delete_many()
            .filter(idempotency_key::Column::CreatedAt.lt(before.as_millis()))
            .exec(&self.write)
            .await?;
        Ok(deleted.rows_affected)
    }
}

/// Takes the idempotency keys of these submissions, or finds who took them before.
async fn claim_keys(
    tx: &DatabaseTransaction,
    submissions: &[Submission],
    now: Time,
) -> Result<Vec<Submitted>, StoreError> {
    let mut results = vec![Submitted::Accepted; submissions.len()];
    // The first in this batch to use a key stands for it; the others are compared with it.
    let mut first: HashMap<(&str, &str), usize> = HashMap::new();
    for (index, submission) in submissions.iter().enumerate() {
        if let Some(idempotency) = &submission.idempotency {
            first
                .entry((&submission.client, &idempotency.key))
                .or_insert(index);
        }
    }
    if first.is_empty() {
        return Ok(results);
    }
    // One order for all, so that two API processes cannot wait for each other in a circle.
    let mut order: Vec<(&(&str, &str), &usize)> = first.iter().collect();
    order.sort_unstable();
    let mut columns = [const { Vec::<String>::new() }; 4];
    for (key, index) in &order {
        let submission = &submissions[**index];
        let ids: Vec<JobId> = submission.rows.iter().map(|row| row.id).collect();
        let fingerprint = submission
            .idempotency
            .as_ref()
            .map_or("", |idempotency| &idempotency.fingerprint);
        columns[0].push(key.0.to_owned());
        columns[1].push(key.1.to_owned());
        columns[2].push(fingerprint.to_owned());
        columns[3].push(to_json("job ids", &ids)?);
    }
    let rows = order.len();
    let [clients, keys, fingerprints, jobs] = columns.map(Column::Text);
    let taken = Rows::new(
        &[
            "client",
            "idempotency_key",
            "fingerprint",
            "jobs",
            "created_at",
        ],
        vec![
            clients,
            keys,
            fingerprints,
            jobs,
            Column::Number(vec![now.as_millis(); rows]),
        ],
    )
    .query(
        tx,
        "INSERT INTO idempotency_keys (client, idempotency_key, fingerprint, jobs, created_at) \
         SELECT client, idempotency_key, fingerprint, jobs, created_at FROM v WHERE true \
         ON CONFLICT (client, idempotency_key) DO NOTHING RETURNING client, idempotency_key",
    )
    .await?;
    let mut ours = std::collections::HashSet::new();
    for row in &taken {
        ours.insert((
            row.try_get_by_index::<String>(0)?,
            row.try_get_by_index::<String>(1)?,
        ));
    }
    let others: Vec<&(&str, &str)> = first
        .keys()
        .filter(|(client, key)| !ours.contains(&((*client).to_owned(), (*key).to_owned())))
        .collect();
    let mut known: HashMap<(String, String), (String, Vec<JobId>)> = HashMap::new();
    for chunk in others.chunks(200) {
        let condition = chunk.iter().fold(Condition::any(), |any, (client, key)| {
            any.add(
                idempotency_key::Column::Client
                    .eq(*client)
                    .and(idempotency_key::Column::IdempotencyKey.eq(*key)),
            )
        });
        for row in idempotency_key::Entity::find()
            .filter(condition)
            .all(tx)
            .await?
        {
            let jobs = parse_json("jobs of an idempotency key", &row.jobs)?;
            known.insert((row.client, row.idempotency_key), (row.fingerprint, jobs));
        }
    }
    for (index, submission) in submissions.iter().enumerate() {
        let Some(idempotency) = &submission.idempotency else {
            continue;
        };
        let before = match known.get(&(submission.client.clone(), idempotency.key.clone())) {
            Some((fingerprint, jobs)) => Some((fingerprint.as_str(), jobs.clone())),
            None => {
                let standing = first[&(submission.client.as_str(), idempotency.key.as_str())];
                (standing != index).then(|| {
                    let other = &submissions[standing];
                    let fingerprint = other
                        .idempotency
                        .as_ref()
                        .map_or("", |other| &other.fingerprint);
                    (fingerprint, other.rows.iter().map(|row| row.id).collect())
                })
            }
        };
        if let Some((fingerprint, jobs)) = before {
            results[index] = if fingerprint == idempotency.fingerprint {
                Submitted::Replayed(jobs)
            } else {
                Submitted::Mismatch
            };
        }
    }
    Ok(results)
}

async fn insert_jobs(
    tx: &DatabaseTransaction,
    submissions: &[&Submission],
    now: Time,
) -> Result<(), StoreError> {
    let most = submissions
        .iter()
        .map(|submission| submission.rows.len())
        .sum();
    let mut ids = Vec::with_capacity(most);
    let mut retries = Vec::with_capacity(most);
    let mut texts: [Vec<String>; 7] = std::array::from_fn(|_| Vec::with_capacity(most));
    let mut numbers: [Vec<i64>; 9] = std::array::from_fn(|_| Vec::with_capacity(most));
    for submission in submissions {
        for row in &submission.rows {
            ids.push(row.id.0);
            retries.push(row.retry_of.map_or(Uuid::nil(), |job| job.0));
            let values = [
                submission.client.clone(),
                row.lane.key(),
                row.request.model.clone().unwrap_or_default(),
                row.session.clone().unwrap_or_default(),
                row.metadata.clone(),
                to_json("request", &row.request)?,
                row.traceparent.clone().unwrap_or_default(),
            ];
            for (column, value) in texts.iter_mut().zip(values) {
                column.push(value);
            }
            let values = [
                i64::from(row.priority),
                i64::from(row.run_at <= now),
                row.run_at.as_millis(),
                row.expires_at.map_or(0, Time::as_millis),
                row.timeout_ms,
                i64::from(row.max_attempts),
                i64::from(row.delivery == Delivery::AtMostOnce),
                now.as_millis(),
                i64::from(row.retry_of.is_some()),
            ];
            for (column, value) in numbers.iter_mut().zip(values) {
                column.push(value);
            }
        }
    }
    let [clients, lanes, models, sessions, metadata, requests, traces] = texts.map(Column::Text);
    let [
        priority,
        ready,
        run_at,
        expires,
        timeout,
        attempts,
        once,
        created,
        is_retry,
    ] = numbers.map(Column::Number);
    Rows::new(
        &[
            "id", "retry_of", "client", "lane", "model", "session", "metadata", "priority",
            "ready", "run_at", "expires_at", "timeout_ms", "max_attempts", "at_most_once",
            "created_at", "is_retry",
        ],
        vec![
            Column::Id(ids.clone()),
            Column::Id(retries),
            clients,
            lanes,
            models,
            sessions,
            metadata,
            priority,
            ready,
            run_at,
            expires,
            timeout,
            attempts,
            once,
            created,
            is_retry,
        ],
    )
    .execute(
        tx,
        "INSERT INTO jobs (id, state, client, lane, model, priority, fair_tag, ready, run_at, \
         expires_at, timeout_ms, attempt, failures, losses, max_attempts, at_most_once, session, \
         metadata, retry_of, created_at) \
         SELECT id, 'queued', client, lane, NULLIF(model, ''), priority, 0, ready = 1, run_at, \
         NULLIF(expires_at, 0), timeout_ms, 0, 0, 0, max_attempts, at_most_once = 1, \
         NULLIF(session, ''), metadata, CASE WHEN is_retry = 1 THEN retry_of END, created_at FROM v",
    )
    .await?;
    Rows::new(
        &["job", "request", "traceparent"],
        vec![Column::Id(ids), requests, traces],
    )
    .execute(
        tx,
        "INSERT INTO job_payloads (job, request, traceparent) \
             SELECT job, request, NULLIF(traceparent, '') FROM v",
    )
    .await?;
    Ok(())
}
