//! Claiming: backlog jobs are bound to accounts and their slots charged, in one transaction.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};
use sluice_shared::{
    domain::{
        Account, AccountId, Amounts, Cooldowns, Delivery, Event, Gate, JobId, Lane, Needs, Request,
        Span, Standing, State, Time,
        route::{self, Binding, Cursor, Head, Seat, Strategy},
    },
    message::{Dispatch, VERSION},
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    cooling, count,
    entity::account_state,
    for_update,
    limits::{self, Books, Bound},
    parse_json,
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
    /// When, without any news, an account can take jobs that wait: a cooldown ends, or a window
    /// has room.
    pub next_change: Option<Time>,
}

/// A waiting job with what its message needs.
struct Waiting {
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
        let mut table = lock_seats(self, &tx, claim, now).await?;
        let lanes: Vec<Vec<usize>> = claim
            .lanes
            .iter()
            .map(|demand| table.of_lane(&demand.lane, now, &mut claimed.next_change))
            .collect();
        let seats = &table.seats;
        let mut heads: Vec<Head> = Vec::new();
        let mut waiting: Vec<Waiting> = Vec::new();
        for (index, demand) in claim.lanes.iter().enumerate() {
            let room: usize = lanes[index]
                .iter()
                .map(|seat| seats[*seat].room() as usize)
                .sum();
            let most = room.min(claim.most);
            if most > 0 {
                let found =
                    lock_heads(&tx, &demand.key, index, most, &mut heads, &mut waiting).await?;
                claimed.waiting[index] = found == most;
            }
        }
        if limits::counts_tokens(table.accounts.iter().copied()) {
            for (head, waiting) in heads.iter_mut().zip(&waiting) {
                head.needs = limits::needs(&waiting.request);
            }
        }
        let mut bindings = route::plan(&heads, seats, &lanes, claim.strategy, cursor);
        bindings.truncate(claim.most);
        let probed = cooling::let_through(
            &mut bindings,
            &mut table.cooldowns,
            |binding| claim.lanes[heads[binding.head].lane].lane.model.as_deref(),
            now,
        );
        let mut bound = vec![false; heads.len()];
        for binding in &bindings {
            bound[binding.head] = true;
        }
        for (head, _) in heads.iter().zip(&bound).filter(|(_, bound)| !**bound) {
            claimed.waiting[head.lane] = true;
        }
        let charged: Vec<Bound<'_>> = bindings
            .iter()
            .filter_map(|binding| {
                let seat = &table.seats[binding.seat];
                let head = &heads[binding.head];
                Some(Bound {
                    account: &seat.account,
                    job: head.job,
                    attempt: waiting[binding.head].attempt + 1,
                    amounts: seat.allowance.as_ref()?.charge(&head.needs),
                })
            })
            .collect();
        table.books.charge(&tx, &charged).await?;
        let room = table.room_at(&lanes, &claimed.waiting, &heads, &bound, now);
        claimed.next_change = claimed.next_change.into_iter().chain(room).min();
        if bindings.is_empty() {
            tx.rollback().await?;
            return Ok(claimed);
        }
        let seats = &table.seats;
        bind(&tx, &heads, seats, &waiting, &bindings, now).await?;
        for seat in probed {
            cooling::write(&tx, &seats[seat].account, &table.cooldowns[seat]).await?;
        }
        tx.commit().await?;
        claimed.dispatches = dispatches(&heads, seats, waiting, &bindings)?;
        Ok(claimed)
    }
}

/// The accounts of a claim, locked: those that are active, with what they can take.
struct Table<'a> {
    seats: Vec<Seat>,
    /// By seat.
    accounts: Vec<&'a Account>,
    /// By seat.
    cooldowns: Vec<Cooldowns>,
    books: Books,
}

impl Table<'_> {
    /// The seats that jobs of a lane may use now. When one will be of use again goes to `next`.
    fn of_lane(&self, lane: &Lane, now: Time, next: &mut Option<Time>) -> Vec<usize> {
        let mut seats = Vec::new();
        for (seat, account) in self.accounts.iter().enumerate() {
            if !lane.admits(account) {
                continue;
            }
            match self.cooldowns[seat].gate(lane.model.as_deref(), now) {
                Gate::Open | Gate::HalfOpen => seats.push(seat),
                Gate::Shut(until) => *next = until.into_iter().chain(*next).min(),
            }
        }
        seats
    }

    /// When the windows of an account have room for a job that waits, if that takes no news.
    fn room_at(
        &self,
        lanes: &[Vec<usize>],
        waiting: &[bool],
        heads: &[Head],
        bound: &[bool],
        now: Time,
    ) -> Option<Time> {
        let mut next = None;
        for (lane, seats) in lanes.iter().enumerate().filter(|(lane, _)| waiting[*lane]) {
            for seat in seats {
                let Some(allowance) = &self.seats[*seat].allowance else {
                    continue;
                };
                let left = heads.iter().zip(bound).filter(|(_, bound)| !**bound);
                let charge = left
                    .filter(|(head, _)| head.lane == lane)
                    .map(|(head, _)| allowance.charge(&head.needs))
                    .reduce(Amounts::least)
                    // None was looked at: there was no room for any.
                    .unwrap_or_else(|| allowance.charge(&Needs::of(4, Some(1))));
                let room = self.books.room_at(self.accounts[*seat], &charge, now);
                next = room.into_iter().chain(next).min();
            }
        }
        next
    }
}

/// Locks the accounts that the lanes could use, in one order for all, and tells their room.
async fn lock_seats<'a>(
    store: &Store,
    tx: &DatabaseTransaction,
    claim: &'a Claim<'_>,
    now: Time,
) -> Result<Table<'a>, StoreError> {
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
    let books = Books::open(store, tx, &of_use, now).await?;
    let mut table = Table {
        seats: Vec::with_capacity(states.len()),
        accounts: Vec::with_capacity(states.len()),
        cooldowns: Vec::with_capacity(states.len()),
        books,
    };
    for state in states {
        let Some(account) = of_use
            .iter()
            .find(|account| account.id.as_str() == state.account)
        else {
            continue;
        };
        if Standing::from_name(&state.standing) != Standing::Active {
            continue;
        }
        let cooldowns = cooling::read(&state)?;
        let free_slots = account
            .max_concurrency
            .saturating_sub(count(state.in_flight));
        table.seats.push(Seat {
            account: account.id.clone(),
            // Half-open as a whole, it takes one.
            free_slots: match cooldowns.longest() {
                Some(_) => free_slots.min(1),
                None => free_slots,
            },
            allowance: table.books.allowance(account),
        });
        table.accounts.push(account);
        table.cooldowns.push(cooldowns);
    }
    Ok(table)
}

/// Locks the first jobs of a lane, past those that others hold. Returns how many there were.
async fn lock_heads(
    tx: &DatabaseTransaction,
    lane_key: &str,
    lane: usize,
    most: usize,
    heads: &mut Vec<Head>,
    waiting: &mut Vec<Waiting>,
) -> Result<usize, StoreError> {
    // The CTE is not decoration: Postgres may overstep a LIMIT in a plain subquery that locks.
    let sql = format!(
        "WITH head AS MATERIALIZED (\
           SELECT id, priority, fair_tag, attempt, at_most_once, timeout_ms, session FROM jobs \
           WHERE lane = $1 AND state = 'queued' AND ready \
           ORDER BY priority DESC, fair_tag, id LIMIT $2 {}) \
         SELECT head.id, head.priority, head.fair_tag, head.attempt, head.at_most_once, \
         head.timeout_ms, head.session, p.request, p.traceparent FROM head JOIN job_payloads p ON p.job = head.id",
        for_update(tx, "FOR UPDATE SKIP LOCKED")
    );
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    let statement = Statement::from_sql_and_values(
        tx.get_database_backend(),
        sql,
        [lane_key.into(), limit.into()],
    );
    let rows = tx.query_all_raw(statement).await?;
    for row in &rows {
        let priority: i64 = row.try_get_by_index(1)?;
        heads.push(Head {
            job: JobId(row.try_get_by_index::<Uuid>(0)?),
            priority: i16::try_from(priority).unwrap_or_default(),
            fair_tag: row.try_get_by_index(2)?,
            lane,
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
            session: row.try_get_by_index(6)?,
            request: row.try_get_by_index(7)?,
            traceparent: row.try_get_by_index(8)?,
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
