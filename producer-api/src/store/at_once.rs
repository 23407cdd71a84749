//! Binding at the door: a new job that nobody waits before, and that an account has room for, is
//! bound in the transaction that accepts it. It is spared a second commit, and its client the
//! time of it.
//!
//! It is decided as a claim decides it, by the same functions, over new jobs instead of waiting
//! ones. **Whoever waits goes first**: an account that any waiting job could use is left to it.

use std::sync::Mutex;

use futures::try_join;
use sea_orm::DatabaseTransaction;
use sluice_shared::domain::{
    AccountId, JobId, Lane, Needs, Time,
    route::{Cursor, Head},
};

use super::{
    Store, StoreError,
    bulk::Write,
    claim::{Claim, Claimed, choices},
    fair, limits,
    submit::NewRow,
    table::{Held, charge, lock_seats},
    to_json,
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
        let (mut heads, rows): (Vec<Head>, Vec<&NewRow>) = rows
            .filter(|(row, _)| row.run_at <= now)
            .filter_map(|(row, fair_tag)| {
                let is_its = |demand: &super::LaneDemand| demand.lane == row.lane;
                let head = Head {
                    job: row.id,
                    priority: row.priority,
                    fair_tag,
                    session: row.session.clone(),
                    lane: claim.lanes.iter().position(is_its)?,
                    needs: Needs::default(),
                };
                Some((head, row))
            })
            .unzip();
        if heads.is_empty() {
            return Ok(None);
        }
        let mut claimed = Claimed::default();
        let (mut table, waiting) = try_join!(
            lock_seats(self, tx, claim, Held::Skip, now, &mut claimed),
            self.waiting_lanes()
        )?;
        let Ok(waiting) = waiting
            .iter()
            .map(|key| Lane::parse(key))
            .collect::<Result<Vec<Lane>, _>>()
        else {
            return Ok(None);
        };
        let is_free = |seat: &usize| {
            let account = table.accounts[*seat];
            !waiting.iter().any(|lane| lane.admits(account))
        };
        let mut lanes = table.lanes(claim, now, &mut claimed);
        for lane in &mut lanes {
            lane.seats.retain(is_free);
        }
        if table.counts_tokens() {
            for (head, row) in heads.iter_mut().zip(&rows) {
                head.needs = limits::needs(&to_json("request", &row.request)?);
            }
        }
        let (bindings, probed) = table.plan(claim, &heads, &lanes, cursor, now);
        if bindings.is_empty() {
            return Ok(None);
        }
        // The first attempt of each.
        table.charge_windows(tx, &heads, |_| 1, &bindings).await?;
        table.write_probes(tx, probed).await?;
        let bound = bindings
            .iter()
            .map(|binding| {
                (
                    heads[binding.head].job,
                    table.seats[binding.seat].account.clone(),
                )
            })
            .collect();
        let charges = vec![
            charge(&table.seats, &bindings),
            fair::advance(self.slot, claim.lanes, &heads, &bindings),
        ];
        claimed.choices = choices(&heads, &bindings);
        claimed.seats = table.seats;
        claimed.lanes = lanes;
        Ok(Some(AtOnce {
            bound,
            claimed,
            charges,
        }))
    }
}
