//! Deliveries on their way: API processes share them by claims that run out.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect,
    Statement, Value,
};
use sluice_shared::{
    api::{DeliveryState, JobView},
    domain::{JobId, Span, State, Time, webhook},
};
use uuid::Uuid;

use super::endpoints;
use crate::store::{
    Store, StoreError,
    bulk::{Column, Rows, write_together},
    entity::{attempt, job, webhook_delivery, webhook_endpoint},
    for_update, parse_json,
    query::view,
};

/// What is said of an endpoint that answered 410.
const GONE: &str = "it answered 410 Gone: it wants nothing more";

/// A delivery that is this process's to try until its claim runs out.
#[derive(Clone, Debug)]
pub struct ClaimedDelivery {
    /// Its id.
    pub id: Uuid,
    /// The claim, which fences what comes of it.
    pub claim: i64,
    /// The event's id.
    pub event: Uuid,
    /// The name of the event's kind.
    pub event_type: String,
    /// When it happened.
    pub event_at: Time,
    /// The job that it is about.
    pub job: Option<JobId>,
    /// Or else what is sent.
    pub data: Option<String>,
    /// Where it goes.
    pub receiver: Receiver,
    /// Deliveries of one target share its limits.
    pub target: String,
    /// Tries since it was last sent anew.
    pub step: u32,
    /// Tries in all.
    pub tries: i64,
}

/// Where a delivery goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// To an endpoint.
    Endpoint(Uuid),
    /// To the URL that a client gave its job.
    Own {
        /// The client.
        client: String,
        /// The URL.
        url: String,
    },
}

impl ClaimedDelivery {
    pub(super) fn of(row: webhook_delivery::Model) -> Self {
        let receiver = match row.endpoint {
            Some(endpoint) => Receiver::Endpoint(endpoint),
            None => Receiver::Own {
                client: row.client.unwrap_or_default(),
                url: row.url.unwrap_or_default(),
            },
        };
        Self {
            id: row.id,
            claim: row.claim,
            event: row.event,
            event_type: row.event_type,
            event_at: Time::from_millis(row.event_at),
            job: row.job.map(JobId),
            data: row.data,
            receiver,
            target: row.target,
            step: crate::store::count(row.step),
            tries: row.tries,
        }
    }
}

/// What came of one try.
#[derive(Clone, Debug)]
pub struct Tried {
    /// What was tried.
    pub delivery: ClaimedDelivery,
    /// When it began.
    pub began_at: Time,
    /// How long it took.
    pub took: Span,
    /// What was answered.
    pub status: Option<u16>,
    /// Why that does not count.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub response: Option<String>,
    /// What is to be done.
    pub then: Then,
}

/// What is done after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It has arrived.
    Delivered,
    /// It is tried again at this time.
    Again(Time),
    /// It has failed.
    Failed,
    /// It has failed, and its receiver wants nothing more.
    Gone,
    /// It was not tried at all: its endpoint is disabled.
    Held,
}

impl Then {
    fn state(self) -> DeliveryState {
        match self {
            Self::Delivered => DeliveryState::Delivered,
            Self::Again(_) => DeliveryState::Pending,
            Self::Failed | Self::Gone => DeliveryState::Failed,
            Self::Held => DeliveryState::Held,
        }
    }
}

impl Store {
    /// Where deliveries wait to go, each with the time at which its first is due; costs a few
    /// index steps each, however many wait.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn webhook_targets(&self) -> Result<Vec<(String, Time)>, StoreError> {
        let rows = self
            .read
            .query_all_raw(Statement::from_string(
                self.read.get_database_backend(),
                "WITH RECURSIVE targets(target) AS (\
                   SELECT (SELECT target FROM webhook_deliveries WHERE state = 'pending' \
                           ORDER BY target LIMIT 1) \
                   UNION ALL \
                   SELECT (SELECT d.target FROM webhook_deliveries AS d \
                           WHERE d.state = 'pending' AND d.target > targets.target \
                           ORDER BY d.target LIMIT 1) \
                   FROM targets WHERE targets.target IS NOT NULL) \
                 SELECT target, (SELECT min(d.due_at) FROM webhook_deliveries AS d \
                   WHERE d.state = 'pending' AND d.target = targets.target) \
                 FROM targets WHERE target IS NOT NULL",
            ))
            .await?;
        let mut targets = Vec::with_capacity(rows.len());
        for row in rows {
            // Another process may just have taken its last.
            if let Some(due) = row.try_get_by_index::<Option<i64>>(1)? {
                targets.push((row.try_get_by_index(0)?, Time::from_millis(due)));
            }
        }
        Ok(targets)
    }

    /// Takes at most `most` deliveries to `target` that are due, until `until`: what is not told
    /// by then is due again.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn claim_deliveries(
        &self,
        target: &str,
        most: usize,
        now: Time,
        until: Time,
    ) -> Result<Vec<ClaimedDelivery>, StoreError> {
        let values: [Value; 4] = [
            target.into(),
            now.as_millis().into(),
            i64::try_from(most).unwrap_or(i64::MAX).into(),
            until.as_millis().into(),
        ];
        let sql = format!(
            "WITH due AS MATERIALIZED (SELECT id FROM webhook_deliveries \
             WHERE state = 'pending' AND target = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3 {}) \
             UPDATE webhook_deliveries SET due_at = $4, claim = claim + 1 \
             WHERE id IN (SELECT id FROM due) AND state = 'pending' RETURNING *",
            for_update(&self.write, "FOR UPDATE SKIP LOCKED")
        );
        let statement =
            Statement::from_sql_and_values(self.write.get_database_backend(), sql, values);
        let mut claimed = Vec::new();
        for row in self.write.query_all_raw(statement).await? {
            let row = webhook_delivery::Model::from_query_result(&row, "")?;
            claimed.push(ClaimedDelivery::of(row));
        }
        Ok(claimed)
    }

    /// Jobs that have ended, as webhooks tell of them: with their results, without what they
    /// were asked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ended_jobs(&self, ids: &[JobId]) -> Result<HashMap<JobId, JobView>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let mut jobs = HashMap::with_capacity(ids.len());
        for chunk in ids.chunks(200) {
            let rows = job::Entity::find()
                .filter(job::Column::Id.is_in(chunk.iter().copied()))
                .all(&self.read)
                .await?;
            let answers: Vec<(Uuid, i64, Option<String>)> = attempt::Entity::find()
                .select_only()
                .columns([
                    attempt::Column::Job,
                    attempt::Column::Number,
                    attempt::Column::Answer,
                ])
                .filter(attempt::Column::Job.is_in(chunk.iter().copied()))
                .into_tuple()
                .all(&self.read)
                .await?;
            let mut answers: HashMap<(Uuid, i64), String> = answers
                .into_iter()
                .filter_map(|(job, number, answer)| Some(((job, number), answer?)))
                .collect();
            for row in rows {
                let answer = answers.remove(&(row.id, row.attempt));
                let mut view = view(row)?;
                if view.state == State::Succeeded
                    && let Some(answer) = answer
                {
                    view.result = Some(parse_json("answer", &answer)?);
                }
                jobs.insert(view.id, view);
            }
        }
        Ok(jobs)
    }

    /// Keeps what came of tries. An endpoint that is gone, or that has brought nothing but
    /// failures for as long as `hopeless_after`, is disabled: these are returned, with the reason.
    ///
    /// # Errors
    /// When the database did not take it; then nothing was changed.
    pub async fn settle_deliveries(
        &self,
        tried: &[Tried],
        hopeless_after: Span,
        now: Time,
    ) -> Result<Vec<(Uuid, String)>, StoreError> {
        let tx = self.begin().await?;
        write_together(&tx, vec![outcomes(tried, now), tries(tried)]).await?;
        // Whether each endpoint took any, and whether it is gone.
        let mut heard: BTreeMap<Uuid, (bool, bool)> = BTreeMap::new();
        for tried in tried {
            if let Receiver::Endpoint(id) = tried.delivery.receiver
                && tried.then != Then::Held
            {
                let (took, gone) = heard.entry(id).or_default();
                *took |= tried.then == Then::Delivered;
                *gone |= tried.then == Then::Gone;
            }
        }
        let mut disabled = Vec::new();
        for (id, (took, gone)) in heard {
            let reason = if gone {
                Some(GONE.to_owned())
            } else {
                let since = note(&tx, id, took, now).await?;
                webhook::is_hopeless(since, now, hopeless_after)
                    .then(|| format!("it has brought nothing but failures for {hopeless_after}"))
            };
            if let Some(reason) = reason
                && endpoints::disable(&tx, id, &reason, now).await?
            {
                disabled.push((id, reason));
            }
        }
        tx.commit().await?;
        Ok(disabled)
    }
}

/// Notes whether an endpoint took anything. Gives since when it has not.
async fn note(
    tx: &sea_orm::DatabaseTransaction,
    id: Uuid,
    took: bool,
    now: Time,
) -> Result<Option<Time>, StoreError> {
    let row = webhook_endpoint::Entity::find_by_id(id).one(tx).await?;
    let since = row.and_then(|row| row.failing_since);
    let new = match (took, since) {
        (true, Some(_)) => None,
        (false, None) => Some(now.as_millis()),
        _ => return Ok(since.map(Time::from_millis)),
    };
    webhook_endpoint::Entity::update_many()
        .col_expr(webhook_endpoint::Column::FailingSince, new.into())
        .filter(webhook_endpoint::Column::Id.eq(id))
        .exec(tx)
        .await?;
    Ok(new.map(Time::from_millis))
}

/// What becomes of the deliveries. One that was held meanwhile stays so, unless it has arrived.
fn outcomes(tried: &[Tried], now: Time) -> crate::store::bulk::Write {
    let (mut ids, mut states) = (Vec::new(), Vec::new());
    let mut numbers: [Vec<i64>; 4] = Default::default();
    for tried in tried {
        ids.push(tried.delivery.id);
        states.push(tried.then.state().as_str().to_owned());
        let due = match tried.then {
            Then::Again(due) => due,
            _ => now,
        };
        let has_ended = !matches!(tried.then, Then::Again(_) | Then::Held);
        let values = [
            tried.delivery.claim,
            i64::from(tried.then != Then::Held),
            due.as_millis(),
            if has_ended { now.as_millis() } else { 0 },
        ];
        for (column, value) in numbers.iter_mut().zip(values) {
            column.push(value);
        }
    }
    let [claims, counted, due, ended] = numbers.map(Column::Number);
    Rows::new(
        &["id", "state", "claim", "counted", "due", "ended"],
        vec![
            Column::Id(ids),
            Column::Text(states),
            claims,
            counted,
            due,
            ended,
        ],
    )
    .write(
        "UPDATE webhook_deliveries SET state = CASE WHEN webhook_deliveries.state = 'held' \
         AND v.state = 'pending' THEN 'held' ELSE v.state END, \
         step = step + v.counted, tries = tries + v.counted, due_at = v.due, \
         ended_at = NULLIF(v.ended, 0) FROM v \
         WHERE webhook_deliveries.id = v.id AND webhook_deliveries.claim = v.claim \
         AND webhook_deliveries.state IN ('pending', 'held')",
    )
}

/// The record of the tries.
fn tries(tried: &[Tried]) -> crate::store::bulk::Write {
    let mut ids = Vec::new();
    let mut numbers: [Vec<i64>; 4] = Default::default();
    let mut texts: [Vec<String>; 2] = Default::default();
    for tried in tried.iter().filter(|tried| tried.then != Then::Held) {
        ids.push(tried.delivery.id);
        let values = [
            tried.delivery.tries + 1,
            tried.began_at.as_millis(),
            tried.took.as_millis(),
            tried.status.map_or(0, i64::from),
        ];
        for (column, value) in numbers.iter_mut().zip(values) {
            column.push(value);
        }
        let values = [&tried.error, &tried.response];
        for (column, value) in texts.iter_mut().zip(values) {
            column.push(value.clone().unwrap_or_default());
        }
    }
    let [number, began, took, status] = numbers.map(Column::Number);
    let [error, response] = texts.map(Column::Text);
    Rows::new(
        &[
            "delivery", "number", "began", "took", "status", "error", "response",
        ],
        vec![
            Column::Id(ids),
            number,
            began,
            took,
            status,
            error,
            response,
        ],
    )
    .write(
        "INSERT INTO webhook_tries (delivery, number, began_at, took_ms, status, error, response) \
         SELECT delivery, number, began, took, NULLIF(status, 0), NULLIF(error, ''), \
         NULLIF(response, '') FROM v WHERE true \
         ON CONFLICT (delivery, number) DO NOTHING",
    )
}
