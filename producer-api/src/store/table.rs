//! The accounts of a binding, locked, with what they can take: the one place that says whether an
//! account may take a job now, whoever binds it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{LockBehavior, LockType},
};
use sluice_shared::domain::{
    Account, Amounts, Cooldowns, Gate, Needs, Standing, Time,
    route::{self, Binding, Cursor, Head, LaneSeats, Refusal, Seat},
};

use super::{
    Store, StoreError,
    bulk::{Column, Rows, Write},
    claim::{Claim, Claimed},
    cooling, count,
    entity::account_state,
    limits::{self, Books, Bound},
    seats::{self, Windows},
};

/// What to do about accounts that another transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Wait until it lets go of them.
    Wait,
    /// Do without them.
    Skip,
}

/// The accounts of a claim, locked: those that are active, with what they can take.
pub(super) struct Table<'a> {
    pub(super) seats: Vec<Seat>,
    /// By seat.
    pub(super) accounts: Vec<&'a Account>,
    /// By seat.
    cooldowns: Vec<Cooldowns>,
    books: Books,
}

/// Locks the accounts that the lanes could use, in one order for all, and tells their room.
/// This alone says whether an account may take a job now.
pub(super) async fn lock_seats<'a>(
    store: &Store,
    tx: &DatabaseTransaction,
    claim: &'a Claim<'_>,
    held: Held,
    now: Time,
    claimed: &mut Claimed,
) -> Result<Table<'a>, StoreError> {
    let of_use: HashMap<&str, &Account> = claim
        .accounts
        .iter()
        .filter(|account| claim.lanes.iter().any(|demand| demand.lane.admits(account)))
        .map(|account| (account.id.as_str(), account))
        .collect();
    let states = account_state::Entity::find()
        .filter(account_state::Column::Account.is_in(of_use.keys().copied()))
        .order_by_asc(account_state::Column::Account);
    let states = match held {
        Held::Wait => states.lock_exclusive(),
        Held::Skip => states.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked),
    }
    .all(tx)
    .await?;
    let locked: Vec<&Account> = states
        .iter()
        .filter_map(|state| of_use.get(state.account.as_str()).copied())
        .collect();
    let books = Books::open(store, tx, &locked, now).await?;
    let mut table = Table {
        seats: Vec::with_capacity(states.len()),
        accounts: Vec::with_capacity(states.len()),
        cooldowns: Vec::with_capacity(states.len()),
        books,
    };
    for state in states {
        let Some(account) = of_use.get(state.account.as_str()).copied() else {
            continue;
        };
        let standing = Standing::from_name(&state.standing);
        if standing != Standing::Active {
            let out = Refusal::Out { standing };
            claimed.refused.push((account.id.clone(), out));
            continue;
        }
        let cooldowns = cooling::read(&state)?;
        let windows = table.books.ledger(account).map(|ledger| Windows {
            ledger,
            present: table.books.present(),
        });
        let speed = claim.speeds.get(&account.id).copied();
        let mut seat = seats::seat(account, count(state.in_flight), speed, windows);
        if cooldowns.longest().is_some() {
            // Half-open as a whole, it takes one.
            seat.free_slots = seat.free_slots.min(1);
        }
        table.seats.push(seat);
        table.accounts.push(account);
        table.cooldowns.push(cooldowns);
    }
    Ok(table)
}

impl Table<'_> {
    /// The seats that each lane of the claim may use now. Those that cool, and when one of them
    /// will be of use again, go to `claimed`.
    pub(super) fn lanes(
        &self,
        claim: &Claim<'_>,
        now: Time,
        claimed: &mut Claimed,
    ) -> Vec<LaneSeats> {
        let mut shut: HashMap<usize, Time> = HashMap::new();
        let mut of_use = BTreeSet::new();
        let mut lanes = Vec::with_capacity(claim.lanes.len());
        for demand in claim.lanes {
            let mut seats = Vec::new();
            for (seat, account) in self.accounts.iter().enumerate() {
                if !demand.lane.admits(account) {
                    continue;
                }
                match self.cooldowns[seat].gate(demand.lane.model.as_deref(), now) {
                    Gate::Open | Gate::HalfOpen => seats.push(seat),
                    Gate::Shut(until) => {
                        claimed.next_change = until.into_iter().chain(claimed.next_change).min();
                        shut.insert(seat, until.unwrap_or(now));
                    }
                }
            }
            of_use.extend(seats.iter().copied());
            lanes.push(LaneSeats {
                seats,
                strategy: claim.routing.of(&demand.key),
            });
        }
        // One that cools for some models only is in the lanes of the others.
        let out = shut.into_iter().filter(|(seat, _)| !of_use.contains(seat));
        let cooling = |(seat, until): (usize, Time)| {
            let account = self.accounts[seat].id.clone();
            (account, Refusal::Cooling { until })
        };
        claimed.refused.extend(out.map(cooling));
        lanes
    }

    /// Whether what a job needs matters.
    pub(super) fn counts_tokens(&self) -> bool {
        limits::counts_tokens(self.accounts.iter().copied())
    }

    /// Plans, lets canaries through and keeps back those that must wait for one. Gives the seats
    /// with a canary, too, for [`Table::write_probes`].
    pub(super) fn plan(
        &mut self,
        claim: &Claim<'_>,
        heads: &[Head],
        lanes: &[LaneSeats],
        cursor: &Mutex<Cursor>,
        now: Time,
    ) -> (Vec<Binding>, BTreeSet<usize>) {
        let mut bindings = {
            let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
            route::plan(heads, &mut self.seats, lanes, &mut cursor, now)
        };
        bindings.truncate(claim.most);
        let probed = cooling::let_through(
            &mut bindings,
            &mut self.cooldowns,
            |binding| claim.lanes[heads[binding.head].lane].lane.model.as_deref(),
            now,
        );
        (bindings, probed)
    }

    /// Charges the windows of the accounts, by the number of the attempt of each head.
    pub(super) async fn charge_windows(
        &mut self,
        tx: &DatabaseTransaction,
        heads: &[Head],
        attempt: impl Fn(usize) -> u32,
        bindings: &[Binding],
    ) -> Result<(), StoreError> {
        let bound: Vec<Bound<'_>> = bindings
            .iter()
            .filter_map(|binding| {
                let seat = &self.seats[binding.seat];
                let head = &heads[binding.head];
                Some(Bound {
                    account: &seat.account,
                    job: head.job,
                    attempt: attempt(binding.head),
                    amounts: seat.allowance.as_ref()?.charge(&head.needs),
                })
            })
            .collect();
        self.books.charge(tx, &bound).await
    }

    /// Writes that canaries are under way.
    pub(super) async fn write_probes(
        &self,
        tx: &DatabaseTransaction,
        probed: BTreeSet<usize>,
    ) -> Result<(), StoreError> {
        for seat in probed {
            cooling::write(tx, &self.seats[seat].account, &self.cooldowns[seat]).await?;
        }
        Ok(())
    }

    /// When the windows of an account have room for a job that waits, if that takes no news.
    pub(super) fn room_at(
        &self,
        lanes: &[LaneSeats],
        waiting: &[bool],
        heads: &[Head],
        bound: &[bool],
        now: Time,
    ) -> Option<Time> {
        let mut next = None;
        for (lane, LaneSeats { seats, .. }) in
            lanes.iter().enumerate().filter(|(lane, _)| waiting[*lane])
        {
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

/// The slots that bindings take: written in the transaction that writes the bindings, by whoever
/// makes them.
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
