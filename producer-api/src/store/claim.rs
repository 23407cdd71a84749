//! Claiming: backlog jobs are bound to accounts and their slots charged, in one transaction.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
    sea_query::{LockBehavior, LockType},
};
use sluice_shared::{
    domain::{
        Account, AccountId, Delivery, Event, JobId, Lane, Request, Span, Standing, State, Time,
        route::{self, Binding, Cursor, Head, LaneSeats, Refusal, Routing, Seat},
    },
    message::{Dispatch, VERSION},
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows, Write},
    caps, count,
    entity::account_state,
    fair, for_update, parse_json, seats,
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
    /// The earliest end of a cooldown that keeps an account out.
    pub next_cooldown: Option<Time>,
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

/// What to do about accounts that another transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Wait until it lets go of them.
    Wait,
    /// Do without them.
    Skip,
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
        let mut seats = lock_seats(&tx, claim, Held::Wait, now, &mut claimed).await?;
        let lanes = seats_of_lanes(claim, &seats);
        let mut heads: Vec<Head> = Vec::new();
        let mut waiting: Vec<Waiting> = Vec::new();
        let caps = self.caps(&tx, claim, now).await?;
        for (index, demand) in claim.lanes.iter().enumerate() {
            let room: usize = lanes[index]
                .seats
                .iter()
                .map(|seat| seats[*seat].room() as usize)
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
        let mut bindings = {
            let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
            route::plan(&heads, &mut seats, &lanes, &mut cursor, now)
        };
        bindings.truncate(claim.most);
        if bindings.is_empty() {
            tx.rollback().await?;
            return Ok(claimed);
        }
        let mut bound = vec![false; heads.len()];
        for binding in &bindings {
            bound[binding.head] = true;
        }
        for (head, _) in heads.iter().zip(&bound).filter(|(_, bound)| !**bound) {
            claimed.waiting[head.lane] = true;
        }
        bind(&tx, &heads, &seats, &waiting, &bindings, now).await?;
        fair::advance(self.slot, claim.lanes, &heads, &bindings)
            .execute(&tx)
            .await?;
        tx.commit().await?;
        claimed.dispatches = dispatches(&heads, &seats, waiting, &bindings)?;
        claimed.choices = choices(&heads, &bindings);
        claimed.seats = seats;
        claimed.lanes = lanes;
        Ok(claimed)
    }
}

/// Locks the accounts that the lanes could use, in one order for all, and tells their room.
/// This alone says whether an account may take a job now.
pub(super) async fn lock_seats(
    tx: &DatabaseTransaction,
    claim: &Claim<'_>,
    held: Held,
    now: Time,
    claimed: &mut Claimed,
) -> Result<Vec<Seat>, StoreError> {
    let of_use: Vec<&Account> = claim
        .accounts
        .iter()
        .filter(|account| claim.lanes.iter().any(|demand| demand.lane.admits(account)))
        .collect();
    let names: Vec<&str> = of_use.iter().map(|account| account.id.as_str()).collect();
    let states = account_state::Entity::find()
        .filter(account_state::Column::Account.is_in(names))
        .order_by_asc(account_state::Column::Account);
    let states = match held {
        Held::Wait => states.lock_exclusive(),
        Held::Skip => states.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked),
    }
    .all(tx)
    .await?;
    let accounts: HashMap<&str, &Account> = of_use
        .iter()
        .map(|account| (account.id.as_str(), *account))
        .collect();
    let mut found = Vec::with_capacity(states.len());
    for state in states {
        let Some(account) = accounts.get(state.account.as_str()) else {
            continue;
        };
        let cooldown = state.cooldown_until.map(Time::from_millis);
        let standing = Standing::from_name(&state.standing);
        match seats::refusal(standing, cooldown, now) {
            None => {
                let speed = claim.speeds.get(&account.id).copied();
                found.push(seats::seat(account, count(state.in_flight), speed));
            }
            Some(refusal) => {
                if let Some(until) = cooldown.filter(|until| *until > now) {
                    let next = claimed.next_cooldown.map_or(until, |next| next.min(until));
                    claimed.next_cooldown = Some(next);
                }
                claimed.refused.push((account.id.clone(), refusal));
            }
        }
    }
    Ok(found)
}

/// The seats that each lane of the claim may use, as indices.
pub(super) fn seats_of_lanes(claim: &Claim<'_>, seats: &[Seat]) -> Vec<LaneSeats> {
    let places: HashMap<&AccountId, usize> = seats
        .iter()
        .enumerate()
        .map(|(place, seat)| (&seat.account, place))
        .collect();
    let seats_of = |demand: &LaneDemand| LaneSeats {
        seats: claim
            .accounts
            .iter()
            .filter(|account| demand.lane.admits(account))
            .filter_map(|account| places.get(&account.id).copied())
            .collect(),
        strategy: claim.routing.of(&demand.key),
    };
    claim.lanes.iter().map(seats_of).collect()
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

/// What bindings cost their accounts: written in the transaction that writes the bindings, by
/// whoever makes them.
pub(super) fn charge(seats: &[Seat], bindings: &[Binding]) -> Write {
    let mut taken = vec![0_i64; seats.len()];
    for binding in bindings {
        taken[binding.seat] += 1;
    }
    let (names, numbers) = seats
        .iter()
        .zip(taken)
        .filter(|(_, taken)| *taken > 0)
        .map(|(seat, taken)| (seat.account.to_string(), taken))
        .unzip();
    Rows::new(
        &["account", "taken"],
        vec![Column::Text(names), Column::Number(numbers)],
    )
    .write(
        "UPDATE account_state SET in_flight = in_flight + v.taken \
         FROM v WHERE account_state.account = v.account",
    )
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
