//! Binding at the door: a new job that nobody waits before, and that an account has room for, is
//! bound in the transaction that accepts it. It is spared a second commit, and its client the
//! time of it.
//!
//! It is decided as a claim decides it, by the same functions, over new jobs instead of waiting
//! ones. **Whoever waits goes first**: an account that any waiting job could use is left to it.

use std::sync::{Mutex, PoisonError};

use futures::try_join;
use sea_orm::DatabaseTransaction;
use sluice_shared::domain::{
    AccountId, JobId, Lane, Time,
    route::{self, Cursor, Head},
};

use super::{
    Store, StoreError,
    bulk::Write,
    claim::{Claim, Claimed, Held, charge, choices, lock_seats, seats_of_lanes},
    fair,
    submit::NewRow,
};

/// New jobs that are to be bound, how that came about, and what it costs their accounts.
#[derive(Default)]
pub(super) struct AtOnce {
    pub(super) bound: Vec<(JobId, AccountId)>,
    pub(super) claimed: Claimed,
    pub(super) charges: Vec<Write>,
}

impl Store {
    /// Locks the accounts that new jobs (each with its fair-queueing tag) can have, and says who
    /// gets which; `None` when nobody gets any. Accounts that another transaction holds are left to it, so that a submit waits
    /// for nobody.
    pub(super) async fn bind_at_once<'a>(
        &self,
        tx: &DatabaseTransaction,
        rows: impl Iterator<Item = (&'a NewRow, i64)>,
        claim: &Claim<'_>,
        cursor: &Mutex<Cursor>,
        now: Time,
    ) -> Result<Option<AtOnce>, StoreError> {
        let heads: Vec<Head> = rows
            .filter(|(row, _)| row.run_at <= now)
            .filter_map(|(row, fair_tag)| {
                let is_its = |demand: &super::LaneDemand| demand.lane == row.lane;
                Some(Head {
                    job: row.id,
                    priority: row.priority,
                    fair_tag,
                    session: row.session.clone(),
                    lane: claim.lanes.iter().position(is_its)?,
                })
            })
            .collect();
        if heads.is_empty() {
            return Ok(None);
        }
        let mut claimed = Claimed::default();
        let (mut seats, waiting) = try_join!(
            lock_seats(tx, claim, Held::Skip, now, &mut claimed),
            self.waiting_lanes()
        )?;
        let Ok(waiting) = waiting
            .iter()
            .map(|key| Lane::parse(key))
            .collect::<Result<Vec<Lane>, _>>()
        else {
            return Ok(None);
        };
        seats.retain(|seat| {
            let account = claim.accounts.iter().find(|one| one.id == seat.account);
            account.is_some_and(|account| !waiting.iter().any(|lane| lane.admits(account)))
        });
        let lanes = seats_of_lanes(claim, &seats);
        let mut bindings = {
            let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
            route::plan(&heads, &mut seats, &lanes, &mut cursor, now)
        };
        bindings.truncate(claim.most);
        if bindings.is_empty() {
            return Ok(None);
        }
        let bound = bindings
            .iter()
            .map(|binding| (heads[binding.head].job, seats[binding.seat].account.clone()))
            .collect();
        let charges = vec![
            charge(&seats, &bindings),
            fair::advance(self.slot, claim.lanes, &heads, &bindings),
        ];
        claimed.choices = choices(&heads, &bindings);
        claimed.seats = seats;
        claimed.lanes = lanes;
        Ok(Some(AtOnce {
            bound,
            claimed,
            charges,
        }))
    }
}
