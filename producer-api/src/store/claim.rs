//! Claiming: backlog jobs are bound to accounts and their slots charged, in one transaction.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};
use sluice_shared::{
    domain::{
        Account, AccountId, Delivery, Event, JobId, Lane, Request, Span, Standing, State, Time,
        route::{self, Binding, Cursor, Head, Seat, Strategy},
    },
    message::{Dispatch, VERSION},
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    caps, count,
    entity::account_state,
    fair, for_update, parse_json,
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
    pub strategy: Strategy,
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
        cursor: &mut Cursor,
        now: Time,
    ) -> Result<Claimed, StoreError> {
        let mut claimed = Claimed {
            waiting: vec![true; claim.lanes.len()],
            ..Claimed::default()
        };
        let tx = self.begin().await?;
        let seats = lock_seats(&tx, claim, now, &mut claimed.next_cooldown).await?;
        let lanes: Vec<Vec<usize>> = claim
            .lanes
            .iter()
            .map(|demand| {
                let admitted = |(_, account): &(usize, &Account)| demand.lane.admits(account);
                let seat_of = |(_, account): (usize, &Account)| {
                    seats.iter().position(|seat| seat.account == account.id)
                };
                claim
                    .accounts
                    .iter()
                    .enumerate()
                    .filter(admitted)
                    .filter_map(seat_of)
                    .collect()
            })
            .collect();
        let mut heads: Vec<Head> = Vec::new();
        let mut waiting: Vec<Waiting> = Vec::new();
        let caps = self.caps(&tx, claim, now).await?;
        for (index, demand) in claim.lanes.iter().enumerate() {
            let room: usize = lanes[index]
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
        let mut bindings = route::plan(&heads, &seats, &lanes, claim.strategy, cursor);
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
        fair::advance(&tx, self.slot, claim.lanes, &heads, &bindings).await?;
        tx.commit().await?;
        claimed.dispatches = dispatches(&heads, &seats, waiting, &bindings)?;
        Ok(claimed)
    }
}

/// Locks the accounts that the lanes could use, in one order for all, and tells their room.
async fn lock_seats(
    tx: &DatabaseTransaction,
    claim: &Claim<'_>,
    now: Time,
    next_cooldown: &mut Option<Time>,
) -> Result<Vec<Seat>, StoreError> {
    let of_use: Vec<&Account> = claim
        .accounts
        .iter()
        .filter(|account| claim.lanes.iter().any(|demand| demand.lane.admits(account)))
        .collect();
    let names: Vec<&str> = of_use.iter().map(|account| account.id.as_str()).collect();
    let states = account_state::Entity::find()
        .filter(account_state::Column::Account.is_in(names))
        .order_by_asc(account_state::Column::Account)
        .lock_exclusive()
        .all(tx)
        .await?;
    let mut seats = Vec::with_capacity(states.len());
    for state in states {
        let Some(account) = of_use
            .iter()
            .find(|account| account.id.as_str() == state.account)
        else {
            continue;
        };
        let cooling = state
            .cooldown_until
            .map(Time::from_millis)
            .filter(|until| *until > now);
        if let Some(until) = cooling {
            *next_cooldown = Some(next_cooldown.map_or(until, |next| next.min(until)));
        }
        if Standing::from_name(&state.standing) == Standing::Active && cooling.is_none() {
            let free_slots = account
                .max_concurrency
                .saturating_sub(count(state.in_flight));
            seats.push(Seat {
                account: account.id.clone(),
                free_slots,
                window_room: None,
            });
        }
    }
    Ok(seats)
}

/// Locks the first jobs of a lane, of all clients or of one, past those that others hold. Returns how many there were.
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
            session: row.try_get_by_index(6)?,
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
    let next = State::Queued
        .on(Event::Dispatch)
        .map_err(|refused| StoreError::Internal(refused.to_string()))?;
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
    .execute(
        tx,
        "UPDATE account_state SET in_flight = in_flight + v.taken \
             FROM v WHERE account_state.account = v.account",
    )
    .await?;
    Ok(())
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
