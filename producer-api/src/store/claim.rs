//! Claiming: backlog jobs are bound to accounts and their slots charged, in one transaction.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement};
use sluice_shared::{
    domain::{
        Account, AccountId, Delivery, Event, JobId, Lane, Needs, Request, Span, State, Time,
        route::{Binding, Cursor, Head, LaneSeats, Refusal, Routing, Seat},
    },
    message::{Dispatch, VERSION},
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    caps, count, fair, for_update, limits, parse_json,
    table::{Held, charge, lock_seats},
};

/// A lane that may have jobs waiting.
#[derive(Clone, Debug)]
pub struct LaneDemand {
    /// The lane.
    pub lane: Lane,
    /// Its key.
    pub key: String,
}

/// What to claim.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The lanes to look at.
    pub lanes: &'a [LaneDemand],
    /// Every account that could take a job now: configured, and with a live worker.
    pub accounts: &'a [Account],
    /// How an account is chosen.
    pub routing: &'a Routing,
    /// How long each account takes to give a result, as far as is known.
    pub speeds: &'a HashMap<AccountId, Duration>,
    /// Jobs to bind, at most.
    pub most: usize,
}

/// What was claimed.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The attempts that are now bound and must be published.
    pub dispatches: Vec<Dispatch>,
    /// For each lane of the claim, whether jobs may still wait in it.
    pub waiting: Vec<bool>,
    /// When, without any news, an account can take jobs that wait: a cooldown ends, or a window
    /// has room.
    pub next_change: Option<Time>,
    /// How each of the dispatches came about, in their order.
    pub choices: Vec<Choice>,
    /// The accounts as they were when it was planned.
    pub seats: Vec<Seat>,
    /// What each lane of the claim could use of them.
    pub lanes: Vec<LaneSeats>,
    /// The accounts that were out, and why.
    pub refused: Vec<(AccountId, Refusal)>,
}

/// How one dispatch came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index of its lane in the claim.
    pub lane: usize,
    /// The job's priority.
    pub priority: i16,
    /// It went where its session went before.
    pub by_session: bool,
}

/// A waiting job with what its message needs.
pub(super) struct Waiting {
    pub(super) client: String,
    attempt: u32,
    delivery: Delivery,
    timeout: Span,
    session: Option<String>,
    request: String,
    traceparent: Option<String>,
}

impl Store {
    /// Binds waiting jobs to accounts with room: claim, binding and charge are one transaction,
    /// so any number of API processes may do this at once and none exceeds an account's slots.
    ///
    /// # Errors
    /// When the database did not take it; then nothing was bound.
    pub async fn claim(
        &self,
        claim: &Claim<'_>,
        cursor: &Mutex<Cursor>,
        now: Time,
    ) -> Result<Claimed, StoreError> {
        let mut claimed = Claimed {
            waiting: vec![true; claim.lanes.len()],
            ..Claimed::default()
        };
        let tx = self.begin().await?;
        let mut table = lock_seats(self, &tx, claim, Held::Wait, now, &mut claimed).await?;
        let lanes = table.lanes(claim, now, &mut claimed);
        let mut heads: Vec<Head> = Vec::new();
        let mut waiting: Vec<Waiting> = Vec::new();
        let caps = self.caps(&tx, claim, now).await?;
        for (index, demand) in claim.lanes.iter().enumerate() {
            let room: usize = lanes[index]
                .seats
                .iter()
                .map(|seat| table.seats[*seat].room() as usize)
                .sum();
            let most = room.min(claim.most);
            if most > 0 {
                let found = match &caps {
                    None => {
                        lock_heads(&tx, demand, None, index, most, &mut heads, &mut waiting).await?
                    }
                    Some(caps) => {
                        caps::lock_heads(&tx, demand, caps, index, most, &mut heads, &mut waiting)
                            .await?
                    }
                };
                claimed.waiting[index] = found >= most;
            }
        }
        if let Some(caps) = &caps {
            caps::keep(caps, &mut heads, &mut waiting);
            // Those beyond a cap were not looked at: they may wait in any of the lanes.
            claimed.waiting.fill(true);
        }
        if table.counts_tokens() {
            for (head, waiting) in heads.iter_mut().zip(&waiting) {
                head.needs = limits::needs(&waiting.request);
            }
        }
        let (bindings, probed) = table.plan(claim, &heads, &lanes, cursor, now);
        let mut bound = vec![false; heads.len()];
        for binding in &bindings {
            bound[binding.head] = true;
        }
        for (head, _) in heads.iter().zip(&bound).filter(|(_, bound)| !**bound) {
            claimed.waiting[head.lane] = true;
        }
        let attempt = |head: usize| waiting[head].attempt + 1;
        table
            .charge_windows(&tx, &heads, attempt, &bindings)
            .await?;
        let room = table.room_at(&lanes, &claimed.waiting, &heads, &bound, now);
        claimed.next_change = claimed.next_change.into_iter().chain(room).min();
        if bindings.is_empty() {
            tx.rollback().await?;
            return Ok(claimed);
        }
        bind(&tx, &heads, &table.seats, &waiting, &bindings, now).await?;
        table.write_probes(&tx, probed).await?;
        fair::advance(self.slot, claim.lanes, &heads, &bindings)
            .execute(&tx)
            .await?;
        tx.commit().await?;
        claimed.dispatches = dispatches(&heads, &table.seats, waiting, &bindings)?;
        claimed.choices = choices(&heads, &bindings);
        claimed.seats = table.seats;
        claimed.lanes = lanes;
        Ok(claimed)
    }
}

/// How each of the bindings came about.
pub(super) fn choices(heads: &[Head], bindings: &[Binding]) -> Vec<Choice> {
    bindings
        .iter()
        .map(|binding| Choice {
            lane: heads[binding.head].lane,
            priority: heads[binding.head].priority,
            by_session: binding.by_session,
        })
        .collect()
}

/// Locks the first jobs of a lane, of all clients or of one, past those that others hold. Returns
/// how many there were.
pub(super) async fn lock_heads(
    tx: &DatabaseTransaction,
    demand: &LaneDemand,
    client: Option<&str>,
    lane: usize,
    most: usize,
    heads: &mut Vec<Head>,
    waiting: &mut Vec<Waiting>,
) -> Result<usize, StoreError> {
    let of_client = if client.is_some() {
        "AND client = $3"
    } else {
        ""
    };
    // The CTE is not decoration: Postgres may overstep a LIMIT in a plain subquery that locks.
    let sql = format!(
        "WITH head AS MATERIALIZED (\
           SELECT id, priority, fair_tag, attempt, at_most_once, timeout_ms, session, client \
           FROM jobs WHERE lane = $1 AND state = 'queued' AND ready {of_client} \
           ORDER BY priority DESC, fair_tag, id LIMIT $2 {}) \
         SELECT head.id, head.priority, head.fair_tag, head.attempt, head.at_most_once, \
         head.timeout_ms, head.session, p.request, p.traceparent, head.client FROM head JOIN job_payloads p ON p.job = head.id",
        for_update(tx, "FOR UPDATE SKIP LOCKED")
    );
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    let mut values: Vec<sea_orm::Value> = vec![demand.key.as_str().into(), limit.into()];
    values.extend(client.map(Into::into));
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
    let rows = tx.query_all_raw(statement).await?;
    for row in &rows {
        let priority: i64 = row.try_get_by_index(1)?;
        heads.push(Head {
            job: JobId(row.try_get_by_index::<Uuid>(0)?),
            priority: i16::try_from(priority).unwrap_or_default(),
            fair_tag: row.try_get_by_index(2)?,
            lane,
            session: row.try_get_by_index(6)?,
            needs: Needs::default(),
        });
        let at_most_once: bool = row.try_get_by_index(4)?;
        waiting.push(Waiting {
            attempt: count(row.try_get_by_index(3)?),
            delivery: if at_most_once {
                Delivery::AtMostOnce
            } else {
                Delivery::AtLeastOnce
            },
            timeout: Span::from_millis(row.try_get_by_index(5)?),
            session: heads.last().and_then(|head| head.session.clone()),
            request: row.try_get_by_index(7)?,
            traceparent: row.try_get_by_index(8)?,
            client: row.try_get_by_index(9)?,
        });
    }
    Ok(rows.len())
}

/// Writes the bindings and takes the accounts' slots.
async fn bind(
    tx: &DatabaseTransaction,
    heads: &[Head],
    seats: &[Seat],
    waiting: &[Waiting],
    bindings: &[Binding],
    now: Time,
) -> Result<(), StoreError> {
    let next = bound_state()?;
    let ids = bindings
        .iter()
        .map(|binding| heads[binding.head].job.0)
        .collect();
    let attempts = bindings
        .iter()
        .map(|binding| i64::from(waiting[binding.head].attempt) + 1)
        .collect();
    let accounts = bindings
        .iter()
        .map(|binding| seats[binding.seat].account.to_string())
        .collect();
    let changed = Rows::new(
        &["id", "attempt", "account", "at"],
        vec![
            Column::Id(ids),
            Column::Number(attempts),
            Column::Text(accounts),
            Column::Number(vec![now.as_millis(); bindings.len()]),
        ],
    )
    .execute(
        tx,
        &format!(
            "UPDATE jobs SET state = '{next}', attempt = v.attempt, account = v.account, \
             dispatched_at = v.at, started_at = NULL, worker = NULL, lease_until = NULL, \
             error_code = NULL, error_message = NULL \
             FROM v WHERE jobs.id = v.id AND jobs.state = 'queued'"
        ),
    )
    .await?;
    if changed != bindings.len() as u64 {
        return Err(StoreError::Internal(format!(
            "{changed} of {} locked jobs could be bound",
            bindings.len()
        )));
    }
    charge(seats, bindings).execute(tx).await?;
    Ok(())
}

/// The state of a job that waited and is bound.
pub(super) fn bound_state() -> Result<State, StoreError> {
    State::Queued
        .on(Event::Dispatch)
        .map_err(|refused| StoreError::Internal(refused.to_string()))
}

fn dispatches(
    heads: &[Head],
    seats: &[Seat],
    mut waiting: Vec<Waiting>,
    bindings: &[Binding],
) -> Result<Vec<Dispatch>, StoreError> {
    let mut dispatches = Vec::with_capacity(bindings.len());
    for binding in bindings {
        let job = &mut waiting[binding.head];
        let account: &AccountId = &seats[binding.seat].account;
        dispatches.push(Dispatch {
            v: VERSION,
            job: heads[binding.head].job,
            attempt: job.attempt + 1,
            account: account.clone(),
            delivery: job.delivery,
            timeout: job.timeout,
            session: job.session.take(),
            traceparent: job.traceparent.take(),
            request: parse_json::<Request>("request", &job.request)?,
        });
    }
    Ok(dispatches)
}
