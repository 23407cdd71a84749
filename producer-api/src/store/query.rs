//! Reading jobs.

use std::{collections::BTreeMap, time::Duration};

use futures::{TryFutureExt, try_join};
use sea_orm::{
    ColumnTrait, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select,
    sea_query::Expr,
};
use sluice_shared::{
    api::{AttemptView, JobError, JobView},
    domain::{
        AccountId, BatchId, Completion, Delivery, JobId, Request, Span, State, Time, Usage,
        after::HELD,
    },
};
use uuid::Uuid;

use super::{
    Store, StoreError, count,
    entity::{attempt, job, job_payload},
    parse_json,
};

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these states; empty means any.
    pub states: Vec<State>,
    /// Only this account.
    pub account: Option<AccountId>,
    /// Only this client's.
    pub client: Option<String>,
    /// Only this model.
    pub model: Option<String>,
    /// Only with all of these notes.
    pub metadata: Vec<(String, String)>,
    /// Only of this batch.
    pub batch: Option<BatchId>,
    /// Accepted at this time or later.
    pub from: Option<Time>,
    /// Accepted before this time.
    pub to: Option<Time>,
}

/// One page of jobs, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Continue after this job; `None` on the last page.
    pub next: Option<JobId>,
}

/// An id is made a little before its job's `created_at` is read, and the clocks of two API
/// processes may differ by this much for the index on ids to be of use in a search by time.
const ID_SLACK: Duration = Duration::from_secs(300);

impl Store {
    /// One job with its request and its attempts.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        // At the same time: what was asked never changes.
        let (found, after, payload) = try_join!(
            self.job_alone(id),
            self.parents(id),
            job_payload::Entity::find_by_id(id.0)
                .one(&self.read)
                .map_err(StoreError::from)
        )?;
        let Some(mut view) = found else {
            return Ok(None);
        };
        view.after = after;
        view.request = payload
            .map(|payload| parse_json("request", &payload.request))
            .transpose()?;
        Ok(Some(view))
    }

    /// A job that was looked at before, as it is now; what was asked is taken from then.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn job_again(&self, seen: JobView) -> Result<Option<JobView>, StoreError> {
        let now = self.job_alone(seen.id).await?;
        Ok(now.map(|view| JobView {
            request: seen.request,
            after: seen.after,
            ..view
        }))
    }

    /// One job with its attempts, in one statement: an ended job never lacks its last attempt.
    async fn job_alone(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        let found = job::Entity::find_by_id(id.0)
            .find_with_related(attempt::Entity)
            .order_by_asc(attempt::Column::Number)
            .all(&self.read)
            .await?;
        let Some((row, attempts)) = found.into_iter().next() else {
            return Ok(None);
        };
        let state = row.state.clone();
        let mut view = view(row)?;
        if state == State::Succeeded.as_str()
            && let Some(answer) = attempts.last().and_then(|last| last.answer.as_deref())
        {
            view.result = Some(parse_json::<Completion>("answer", answer)?);
        }
        view.attempts = Some(
            attempts
                .into_iter()
                .map(attempt_view)
                .collect::<Result<Vec<_>, _>>()?,
        );
        Ok(Some(view))
    }

    /// The request and lane of a job, to submit it again.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn request(&self, id: JobId) -> Result<Option<Request>, StoreError> {
        job_payload::Entity::find_by_id(id.0)
            .one(&self.read)
            .await?
            .map(|payload| parse_json("request", &payload.request))
            .transpose()
    }

    /// The states of these jobs; those that do not exist are left out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn states(&self, ids: &[JobId]) -> Result<Vec<(JobId, State)>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let mut states = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(1000) {
            let rows: Vec<(Uuid, String)> = job::Entity::find()
                .select_only()
                .columns([job::Column::Id, job::Column::State])
                .filter(job::Column::Id.is_in(chunk.iter().copied()))
                .into_tuple()
                .all(&self.read)
                .await?;
            states.extend(
                rows.into_iter()
                    .filter_map(|(id, state)| Some((JobId(id), State::from_name(&state)?))),
            );
        }
        Ok(states)
    }

    /// A page of jobs, newest first, after `cursor`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn jobs(
        &self,
        filter: &Filter,
        cursor: Option<JobId>,
        limit: u64,
    ) -> Result<Page, StoreError> {
        let mut select = narrow(
            job::Entity::find(),
            filter,
            self.read.get_database_backend(),
        );
        if let Some(cursor) = cursor {
            select = select.filter(job::Column::Id.lt(cursor.0));
        }
        let mut rows = select
            .order_by_desc(job::Column::Id)
            .limit(limit + 1)
            .all(&self.read)
            .await?;
        let more = rows.len() as u64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = if more {
            rows.last().map(|row| JobId(row.id))
        } else {
            None
        };
        let jobs = rows.into_iter().map(view).collect::<Result<_, _>>()?;
        Ok(Page { jobs, next })
    }
}

fn narrow(
    mut select: Select<job::Entity>,
    filter: &Filter,
    backend: DbBackend,
) -> Select<job::Entity> {
    if !filter.states.is_empty() {
        let names = filter.states.iter().map(|state| state.as_str());
        select = select.filter(job::Column::State.is_in(names));
    }
    if let Some(account) = &filter.account {
        select = select.filter(job::Column::Account.eq(account.as_str()));
    }
    if let Some(client) = &filter.client {
        select = select.filter(job::Column::Client.eq(client));
    }
    if let Some(model) = &filter.model {
        select = select.filter(job::Column::Model.eq(model));
    }
    if let Some(batch) = filter.batch {
        select = select.filter(job::Column::Batch.eq(batch.0));
    }
    for (key, value) in &filter.metadata {
        let sql = match backend {
            DbBackend::Postgres => "(metadata::jsonb ->> $1) = $2",
            // Not `->>`, which takes a name such as `$.a` or `7` for a path.
            _ => {
                "EXISTS (SELECT 1 FROM json_each(metadata) AS note WHERE note.key = ? AND note.value = ?)"
            }
        };
        select = select.filter(Expr::cust_with_values(sql, [key.as_str(), value.as_str()]));
    }
    if let Some(from) = filter.from {
        let earliest = id_at(from - ID_SLACK);
        select = select
            .filter(job::Column::CreatedAt.gte(from.as_millis()))
            .filter(job::Column::Id.gte(earliest));
    }
    if let Some(to) = filter.to {
        let latest = id_at(to + ID_SLACK);
        select = select
            .filter(job::Column::CreatedAt.lt(to.as_millis()))
            .filter(job::Column::Id.lt(latest));
    }
    select
}

/// The smallest UUIDv7 of a time (RFC 9562, section 5.7: the first 48 bits are milliseconds).
fn id_at(time: Time) -> Uuid {
    let millis = u128::try_from(time.as_millis()).unwrap_or(0);
    Uuid::from_u128((millis & 0xffff_ffff_ffff) << 80)
}

fn account_id(name: String) -> Result<AccountId, StoreError> {
    name.parse()
        .map_err(|error| StoreError::Internal(format!("account of a job: {error}")))
}

pub(super) fn view(row: job::Model) -> Result<JobView, StoreError> {
    let state = State::from_name(&row.state)
        .ok_or_else(|| StoreError::Internal(format!("state `{}` is not known", row.state)))?;
    let metadata: BTreeMap<String, String> = parse_json("metadata", &row.metadata)?;
    let time = |millis: Option<i64>| millis.map(Time::from_millis);
    let waits_for_time = state == State::Queued && !row.ready;
    let waits_for_others = waits_for_time && row.run_at == HELD.as_millis();
    Ok(JobView {
        id: JobId(row.id),
        state,
        cancel_requested: row.cancel_requested && !state.is_terminal(),
        client: row.client,
        lane: row.lane,
        account: row.account.map(account_id).transpose()?,
        model: row.model,
        priority: i16::try_from(row.priority).unwrap_or_default(),
        attempt: count(row.attempt),
        failures: count(row.failures),
        max_attempts: count(row.max_attempts),
        delivery: if row.at_most_once {
            Delivery::AtMostOnce
        } else {
            Delivery::AtLeastOnce
        },
        timeout: Span::from_millis(row.timeout_ms),
        session: row.session,
        metadata,
        webhook: row
            .webhook
            .map(|webhook| parse_json("webhook", &webhook))
            .transpose()?,
        retry_of: row.retry_of.map(JobId),
        batch: row.batch.map(BatchId),
        created_at: Time::from_millis(row.created_at),
        waiting_until: None,
        waiting_for: waits_for_others.then(|| "the jobs that it comes after".into()),
        run_at: (waits_for_time && !waits_for_others).then(|| Time::from_millis(row.run_at)),
        expires_at: time(row.expires_at),
        dispatched_at: time(row.dispatched_at),
        started_at: time(row.started_at),
        finished_at: time(row.finished_at),
        result: None,
        error: row.error_code.map(|code| JobError {
            code,
            message: row.error_message.unwrap_or_default(),
        }),
        request: None,
        after: Vec::new(),
        attempts: None,
        position: None,
        estimated_start_at: None,
    })
}

fn attempt_view(row: attempt::Model) -> Result<AttemptView, StoreError> {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let usage = Usage {
        input_tokens: number(row.input_tokens),
        output_tokens: number(row.output_tokens),
        cost_microusd: row.cost_microusd.map(number),
        ..Usage::default()
    };
    Ok(AttemptView {
        number: count(row.number),
        account: account_id(row.account)?,
        worker: row.worker,
        outcome: row.outcome,
        error: row.error_code.map(|code| JobError {
            code,
            message: row.error_message.unwrap_or_default(),
        }),
        dispatched_at: Time::from_millis(row.dispatched_at),
        started_at: row.started_at.map(Time::from_millis),
        finished_at: Time::from_millis(row.finished_at),
        usage: (usage != Usage::default()).then_some(usage),
    })
}
