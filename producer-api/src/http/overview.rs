//! How all goes, in one answer: what waits where and why, what runs, what happened lately.

use std::sync::Arc;

use axum::{Json, extract::State};
use sluice_shared::{
    api::{LaneBacklog, Overview, UnfinishedJobs, WaitsFor},
    clock,
    domain::{Lane, Standing, Time},
};
use tokio::{sync::Mutex, time::Instant};

use super::{
    Edge,
    extract::{Caller, NoParams},
    problem::ApiError,
};
use crate::store::AccountRow;

/// How long an answer is good for, so that many watchers cost as much as one.
const FRESH: std::time::Duration = std::time::Duration::from_millis(500);

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Glance(Mutex<Option<(Instant, Overview)>>);

/// How all goes: jobs that have not ended, what they wait for, and the last hour.
#[utoipa::path(
    get, path = "/api/overview", tag = "overview", security(("key" = ["read"])),
    responses((status = 200, description = "At most half a second old.", body = Overview))
)]
pub(super) async fn get_overview(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<Overview>, ApiError> {
    // Who asks while another looks gets what that one saw.
    let mut last = edge.glance.0.lock().await;
    if let Some((at, overview)) = last.as_ref()
        && at.elapsed() < FRESH
    {
        return Ok(Json(overview.clone()));
    }
    let overview = look(&edge).await?;
    *last = Some((Instant::now(), overview.clone()));
    Ok(Json(overview))
}

async fn look(edge: &Edge) -> Result<Overview, ApiError> {
    let app = &edge.app;
    let unfinished = edge.truth(app.store.unfinished()).await?;
    let rows = edge.truth(app.store.accounts()).await?;
    let now = clock::now();
    let accounts: Vec<(AccountRow, Option<u32>)> = rows
        .into_iter()
        .map(|row| (app.workers.serving(&row.account.id), row))
        .map(|(workers, row)| (row, workers))
        .collect();
    let queued = unfinished.backlog.values().sum();
    let mut backlog: Vec<LaneBacklog> = unfinished
        .backlog
        .into_iter()
        .map(|(lane, jobs)| waiting(lane, jobs, &accounts, now))
        .collect();
    backlog.sort_by(|one, other| other.jobs.cmp(&one.jobs).then(one.lane.cmp(&other.lane)));
    Ok(Overview {
        at: now,
        jobs: UnfinishedJobs {
            queued,
            scheduled: unfinished.scheduled,
            dispatched: unfinished.dispatched,
            running: unfinished.running,
        },
        backlog,
        pulse: app.pulse.view(now),
    })
}

/// What the jobs of a lane wait for. Pure.
fn waiting(
    key: String,
    jobs: u64,
    accounts: &[(AccountRow, Option<u32>)],
    now: Time,
) -> LaneBacklog {
    let lane = Lane::parse(&key).unwrap_or_default();
    let fit: Vec<&(AccountRow, Option<u32>)> = accounts
        .iter()
        .filter(|(row, _)| lane.admits(&row.account))
        .collect();
    let active: Vec<_> = fit
        .iter()
        .filter(|(row, _)| row.standing == Standing::Active)
        .collect();
    let served: Vec<_> = active
        .iter()
        .filter(|(_, workers)| *workers != Some(0))
        .collect();
    let cool_until = |row: &AccountRow| row.cooldown_until.filter(|until| *until > now);
    let ready: Vec<_> = served
        .iter()
        .filter(|(row, _)| cool_until(row).is_none())
        .collect();
    let has_slot = |row: &AccountRow| row.in_flight < row.account.max_concurrency;
    let waits_for = if fit.is_empty() {
        WaitsFor::Account
    } else if active.is_empty() {
        WaitsFor::Resume
    } else if served.is_empty() {
        WaitsFor::Worker
    } else if ready.is_empty() {
        WaitsFor::Cooldown
    } else if ready.iter().any(|(row, _)| has_slot(row)) {
        WaitsFor::Turn
    } else {
        WaitsFor::Slot
    };
    let until = served.iter().filter_map(|(row, _)| cool_until(row)).min();
    LaneBacklog {
        lane: key,
        jobs,
        waits_for,
        until: until.filter(|_| waits_for == WaitsFor::Cooldown),
        accounts: fit.iter().map(|(row, _)| row.account.id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluice_shared::domain::Account;

    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);

    fn account(id: &str) -> (AccountRow, Option<u32>) {
        let account = Account {
            id: id.parse().unwrap(),
            provider: "simulated".into(),
            models: vec!["m".into()],
            tags: Vec::new(),
            max_concurrency: 2,
            weight: 1,
            limits: Vec::new(),
            endpoint: String::new(),
        };
        let row = AccountRow {
            account,
            standing: Standing::Active,
            in_flight: 0,
            cooldown_until: None,
            reason: None,
            definition: None,
            cooldowns: Default::default(),
            ledger: Default::default(),
        };
        (row, Some(1))
    }

    #[test]
    fn what_a_lane_waits_for_is_the_last_hurdle() {
        let mut accounts = vec![account("a"), account("b")];
        let judge = |accounts: &[(AccountRow, Option<u32>)]| {
            let lane = waiting("model=m".into(), 3, accounts, NOW);
            (lane.waits_for, lane.until)
        };
        assert_eq!(judge(&accounts), (WaitsFor::Turn, None));
        accounts[0].0.in_flight = 2;
        assert_eq!(judge(&accounts), (WaitsFor::Turn, None));
        accounts[1].0.in_flight = 2;
        assert_eq!(judge(&accounts), (WaitsFor::Slot, None));
        let until = NOW + Duration::from_secs(9);
        for (row, _) in &mut accounts {
            row.cooldown_until = Some(until);
        }
        assert_eq!(judge(&accounts), (WaitsFor::Cooldown, Some(until)));
        for (_, workers) in &mut accounts {
            *workers = Some(0);
        }
        assert_eq!(judge(&accounts), (WaitsFor::Worker, None));
        for (row, _) in &mut accounts {
            row.standing = Standing::AuthFailed;
        }
        assert_eq!(judge(&accounts), (WaitsFor::Resume, None));
        assert_eq!(judge(&[]), (WaitsFor::Account, None));
    }

    #[test]
    fn nobody_is_blamed_while_presence_is_unknown() {
        let (row, _) = account("a");
        let lane = waiting("any".into(), 1, &[(row, None)], NOW);
        assert_eq!(lane.waits_for, WaitsFor::Turn);
    }
}
