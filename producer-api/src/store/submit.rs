//! Accepting jobs: many submissions in one transaction, each all or nothing. Jobs that need not
//! wait are bound in the same transaction.

use std::{collections::HashMap, sync::Mutex};

use futures::try_join;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, DbBackend, EntityTrait, ExprTrait, QueryFilter,
};
use serde::{Deserialize, Serialize};
use sluice_shared::{
    api::JobWebhook,
    domain::{
        AccountId, After, BatchId, Delivery, JobId, Lane, Request, Span, State, Step, Time, quota,
        route::Cursor,
    },
    message::{Dispatch, VERSION},
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    at_once::AtOnce,
    bulk::{Column, Rows, write_together},
    claim::{Claim, Claimed, bound_state},
    clients, dependencies,
    entity::idempotency_key,
    fair, fallback, parse_json, to_json, webhooks,
};

/// A job as it is accepted, checked and complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewRow {
    /// Its id.
    pub id: JobId,
    /// Where it may run.
    #[serde(with = "lane_key")]
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
    /// Whom it tells of its end.
    pub webhook: Option<JobWebhook>,
    /// What it comes after; then `run_at` is [`HELD`](sluice_shared::domain::after::HELD).
    #[serde(default)]
    pub after: Option<After>,
}

/// A lane is kept as its key.
mod lane_key {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use sluice_shared::domain::Lane;

    pub(super) fn serialize<S: Serializer>(lane: &Lane, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(lane)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lane, D::Error> {
        Lane::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl NewRow {
    /// The message of its first attempt, when it was bound to `account` as it was accepted.
    #[must_use]
    pub fn into_dispatch(self, account: AccountId) -> Dispatch {
        Dispatch {
            v: VERSION,
            job: self.id,
            attempt: 1,
            account,
            delivery: self.delivery,
            timeout: Span::from_millis(self.timeout_ms),
            session: self.session,
            traceparent: self.traceparent,
            request: self.request,
        }
    }
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
    /// The client's quota does not allow it.
    OverQuota(quota::Violation),
}

/// What became of submissions.
#[derive(Debug, Default)]
pub struct Taken {
    /// One result each, in order.
    pub results: Vec<Submitted>,
    /// The jobs that are bound already, with their accounts: their first attempts must be
    /// published.
    pub bound: Vec<(JobId, AccountId)>,
    /// How that came about, in the same order; it has no dispatches yet.
    pub claimed: Claimed,
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
        Ok(self.take(submissions, None, now).await?.results)
    }

    /// As [`Store::submit`], and binds those new jobs at once that need not wait: within `claim`,
    /// which has the lanes of these jobs. All of it is one transaction.
    ///
    /// # Errors
    /// When the database did not take them; then it took none, and bound none.
    pub async fn submit_and_bind(
        &self,
        submissions: &[Submission],
        claim: &Claim<'_>,
        cursor: &Mutex<Cursor>,
        now: Time,
    ) -> Result<Taken, StoreError> {
        self.take(submissions, Some((claim, cursor)), now).await
    }

    async fn take(
        &self,
        submissions: &[Submission],
        claim: Option<(&Claim<'_>, &Mutex<Cursor>)>,
        now: Time,
    ) -> Result<Taken, StoreError> {
        // Before the transaction on Postgres, where a client's place would stay locked until its
        // end and API processes would wait for each other's disk. SQLite has one writer anyway.
        let sqlite = self.write.get_database_backend() == DbBackend::Sqlite;
        let (places, tx) = if sqlite {
            let tx = self.begin().await?;
            (fair::places(&tx, submissions, now).await?, tx)
        } else {
            let places = fair::places(&self.write, submissions, now);
            try_join!(places, self.begin())?
        };
        let mut results = claim_keys(&tx, submissions, now).await?;
        clients::admit(&tx, submissions, &mut results, &places.limited, now).await?;
        let accepted: Vec<(&Submission, &[i64])> = submissions
            .iter()
            .zip(&places.tags)
            .zip(&results)
            .filter(|(_, result)| **result == Submitted::Accepted)
            .map(|((submission, tags), _)| (submission, tags.as_slice()))
            .collect();
        // A claim counts what clients with a quota have in flight; their jobs wait for one.
        let free = accepted
            .iter()
            .filter(|(submission, _)| !places.limited.contains(&submission.client))
            .flat_map(|(submission, tags)| submission.rows.iter().zip(tags.iter().copied()));
        let at_once = match claim {
            Some((claim, cursor)) => self.bind_at_once(&tx, free, claim, cursor, now).await?,
            None => None,
        };
        let (claimed, bound) = insert_jobs(&tx, &accepted, at_once, None, now).await?;
        let rows = accepted.iter().flat_map(|(submission, _)| &submission.rows);
        fallback::insert(&tx, rows.clone(), now).await?;
        webhooks::insert(&tx, rows.clone()).await?;
        dependencies::insert(&tx, rows).await?;
        tx.commit().await?;
        let unused = submissions
            .iter()
            .zip(&results)
            .filter(|(_, result)| **result != Submitted::Accepted)
            .map(|(submission, _)| submission);
        if let Err(error) = fair::give_back(&self.write, unused, now).await {
            // The gaps are closed by the next mending.
            tracing::debug!(%error, "places in fair queueing could not be given back");
        }
        Ok(Taken {
            results,
            bound,
            claimed,
        })
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

/// The columns of a new job; the last two are of those of a batch.
static JOB: [&str; 20] = [
    "id",
    "retry_of",
    "account",
    "client",
    "lane",
    "model",
    "session",
    "metadata",
    "priority",
    "ready",
    "run_at",
    "expires_at",
    "timeout_ms",
    "max_attempts",
    "at_most_once",
    "created_at",
    "is_retry",
    "fair_tag",
    "batch",
    "batch_line",
];

/// Writes new jobs, each submission's with its fair-queueing tags; those of a batch with their
/// lines.
pub(super) async fn insert_jobs(
    tx: &DatabaseTransaction,
    submissions: &[(&Submission, &[i64])],
    at_once: Option<AtOnce>,
    batch: Option<(BatchId, Vec<i64>)>,
    now: Time,
) -> Result<(Claimed, Vec<(JobId, AccountId)>), StoreError> {
    let AtOnce {
        bound: order,
        charges,
        claimed,
    } = at_once.unwrap_or_default();
    let bound: HashMap<JobId, &AccountId> =
        order.iter().map(|(job, account)| (*job, account)).collect();
    let most = submissions
        .iter()
        .map(|(submission, _)| submission.rows.len())
        .sum();
    let mut ids = Vec::with_capacity(most);
    let mut retries = Vec::with_capacity(most);
    let mut texts: [Vec<String>; 8] = std::array::from_fn(|_| Vec::with_capacity(most));
    let mut numbers: [Vec<i64>; 10] = std::array::from_fn(|_| Vec::with_capacity(most));
    for (submission, tags) in submissions {
        for (row, tag) in submission.rows.iter().zip(*tags) {
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
                bound
                    .get(&row.id)
                    .map_or(String::new(), ToString::to_string),
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
                *tag,
            ];
            for (column, value) in numbers.iter_mut().zip(values) {
                column.push(value);
            }
        }
    }
    let [
        clients,
        lanes,
        models,
        sessions,
        metadata,
        requests,
        traces,
        accounts,
    ] = texts.map(Column::Text);
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
        fair_tags,
    ] = numbers.map(Column::Number);
    let mut columns = vec![
        Column::Id(ids.clone()),
        Column::Id(retries),
        accounts,
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
        fair_tags,
    ];
    let mut of_batch = "";
    if let Some((batch, lines)) = batch {
        columns.push(Column::Id(vec![batch.0; lines.len()]));
        columns.push(Column::Number(lines));
        of_batch = ", batch, batch_line";
    }
    let jobs = Rows::new(&JOB[..columns.len()], columns).write(format!(
        "INSERT INTO jobs (id, state, client, lane, model, priority, fair_tag, ready, run_at, \
         expires_at, timeout_ms, attempt, failures, losses, max_attempts, at_most_once, account, \
         session, metadata, retry_of, created_at, dispatched_at{of_batch}) \
         SELECT id, CASE WHEN account = '' THEN '{}' ELSE '{}' END, client, lane, \
         NULLIF(model, ''), priority, fair_tag, ready = 1, run_at, NULLIF(expires_at, 0), \
         timeout_ms, CASE WHEN account = '' THEN 0 ELSE 1 END, 0, 0, max_attempts, \
         at_most_once = 1, NULLIF(account, ''), NULLIF(session, ''), metadata, \
         CASE WHEN is_retry = 1 THEN retry_of END, created_at, \
         CASE WHEN account <> '' THEN created_at END{of_batch} FROM v",
        State::Queued,
        bound_state()?,
    ));
    let payloads = Rows::new(
        &["job", "request", "traceparent"],
        vec![Column::Id(ids), requests, traces],
    )
    .write(
        "INSERT INTO job_payloads (job, request, traceparent) \
         SELECT job, request, NULLIF(traceparent, '') FROM v",
    );
    let writes = [payloads, jobs].into_iter().chain(charges).collect();
    write_together(tx, writes).await?;
    Ok((claimed, order))
}
