//! Limits of clients on what they have in flight, as a claim keeps them.
//!
//! As long as no client has such a limit, a claim only asks whether that is so. Whoever else binds jobs
//! leaves those of clients with any quota to the claim.

use std::collections::BTreeMap;

use sea_orm::DatabaseTransaction;
use sluice_shared::domain::{Time, route::Head};

use super::{
    Claim, LaneDemand, Store, StoreError,
    claim::{self, Waiting},
    clients,
};

impl Store {
    /// How many more jobs the limited clients may have dispatched; `None` when that limits
    /// nothing in this claim.
    pub(super) async fn caps(
        &self,
        tx: &DatabaseTransaction,
        claim: &Claim<'_>,
        now: Time,
    ) -> Result<Option<BTreeMap<String, u32>>, StoreError> {
        if !clients::any_caps(tx).await? {
            return Ok(None);
        }
        let caps = clients::caps(tx, now).await?;
        let binds = |cap: &u32| usize::try_from(*cap).unwrap_or(usize::MAX) < claim.most;
        Ok(caps.values().any(binds).then_some(caps))
    }
}

/// Locks the first jobs of each client of a lane, so that a client at its limit keeps nobody's
/// jobs out of sight, however many of its own stand before them.
pub(super) async fn lock_heads(
    tx: &DatabaseTransaction,
    demand: &LaneDemand,
    caps: &BTreeMap<String, u32>,
    lane: usize,
    most: usize,
    heads: &mut Vec<Head>,
    waiting: &mut Vec<Waiting>,
) -> Result<usize, StoreError> {
    let mut found = 0;
    for client in clients::clients_of_lane(tx, &demand.key).await? {
        let cap = caps
            .get(&client)
            .map_or(most, |cap| most.min(usize::try_from(*cap).unwrap_or(most)));
        if cap > 0 {
            found +=
                claim::lock_heads(tx, demand, Some(&client), lane, cap, heads, waiting).await?;
        }
    }
    Ok(found)
}

/// Leaves of each limited client's jobs only those that go first, over all lanes.
pub(super) fn keep(
    caps: &BTreeMap<String, u32>,
    heads: &mut Vec<Head>,
    waiting: &mut Vec<Waiting>,
) {
    let mut left = caps.clone();
    let mut order: Vec<usize> = (0..heads.len()).collect();
    order.sort_unstable_by_key(|&index| {
        let head = &heads[index];
        (std::cmp::Reverse(head.priority), head.fair_tag, head.job)
    });
    let mut keep = vec![true; heads.len()];
    for index in order {
        if let Some(left) = left.get_mut(&waiting[index].client) {
            keep[index] = *left > 0;
            *left = left.saturating_sub(1);
        }
    }
    let mut kept = keep.iter();
    heads.retain(|_| kept.next().is_some_and(|keep| *keep));
    let mut kept = keep.iter();
    waiting.retain(|_| kept.next().is_some_and(|keep| *keep));
}
