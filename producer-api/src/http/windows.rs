//! How far accounts have used their limits, and what a job waits for when all of them are out.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use sluice_shared::{
    api::{AccountWindows, CooldownView, JobView, WindowView},
    clock,
    domain::{Cooldown, Gate, Lane, Limit, Standing, State as JobState, Time, Window},
};

use super::{
    Edge, accounts,
    extract::{Caller, NoParams},
    problem::ApiError,
};
use crate::store::AccountRow;

/// Accounts that a reason names, at most.
const NAMED: usize = 3;

/// Get an account's limits.
///
/// Each configured limit with what is used, reserved and left of it; why the account cools; and
/// what its provider has said about limits of its own.
#[utoipa::path(
    get, path = "/api/accounts/{id}/windows", tag = "accounts", security(("key" = ["read"])),
    params(("id" = sluice_shared::domain::AccountId, Path, description = "its name")),
    responses(
        (status = 200, description = "The account's limits as they are now.",
            body = AccountWindows),
        (status = 404, description = "`no_such_account`"),
    )
)]
pub(super) async fn get_windows(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountWindows>, ApiError> {
    let row = accounts::find(&edge, &name).await?;
    let now = clock::now();
    let store = &edge.app.store;
    let windows = edge.truth(store.windows(&row.account, now)).await?;
    let learned = edge.truth(store.learned(&row.account.id)).await?;
    Ok(Json(AccountWindows {
        account: row.account.id,
        limits: windows
            .iter()
            .map(|(limit, window)| view(limit, window, now))
            .collect(),
        cooldowns: row.cooldowns.iter().map(cooldown).collect(),
        learned,
    }))
}

fn view(limit: &Limit, window: &Window, now: Time) -> WindowView {
    let room_at = window.room_at(limit.most, 1, now);
    WindowView {
        kind: limit.kind,
        window: limit.window,
        limit: limit.most,
        used: window.used(now),
        reserved: window.held(),
        left: window.room(limit.most, now),
        resets_at: room_at.filter(|at| *at > now),
    }
}

fn cooldown(cooldown: &Cooldown) -> CooldownView {
    CooldownView {
        cause: cooldown.cause,
        family: cooldown.family.clone(),
        until: cooldown.until,
        resets_at: cooldown.resets_at,
        probing: cooldown.probing,
        reason: cooldown.reason.clone(),
    }
}

/// Says of a waiting job why every account that may run it is out, and until when.
pub(super) async fn explain_wait(edge: &Edge, job: &mut JobView) -> Result<(), ApiError> {
    if job.state != JobState::Queued || job.run_at.is_some() || job.waiting_for.is_some() {
        return Ok(());
    }
    // A lane that nobody can read is shown as it is.
    let Ok(lane) = Lane::parse(&job.lane) else {
        return Ok(());
    };
    let now = clock::now();
    let rows = edge.truth(edge.app.store.accounts()).await?;
    let mut out = Vec::new();
    for row in rows.iter().filter(|row| lane.admits(&row.account)) {
        match why_out(edge, row, &lane, now).await? {
            Some(why) => out.push(why),
            // It works, or is about to.
            None => return Ok(()),
        }
    }
    if out.is_empty() {
        return Ok(());
    }
    job.waiting_until = out.iter().filter_map(|(until, _)| *until).min();
    let more = out.len().saturating_sub(NAMED);
    let mut reasons: Vec<String> = out.into_iter().take(NAMED).map(|(_, why)| why).collect();
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    job.waiting_for = Some(reasons.join("; "));
    Ok(())
}

/// Why an account takes no job of this lane now, and until when if that is known.
async fn why_out(
    edge: &Edge,
    row: &AccountRow,
    lane: &Lane,
    now: Time,
) -> Result<Option<(Option<Time>, String)>, ApiError> {
    let name = &row.account.id;
    let because = |words: &Option<String>| {
        words
            .as_ref()
            .map_or_else(String::new, |words| format!(": {words}"))
    };
    if row.standing != Standing::Active {
        let standing = row.standing.as_str();
        return Ok(Some((
            None,
            format!("{name} is {standing}{}", because(&row.reason)),
        )));
    }
    if let Gate::Shut(Some(until)) = row.cooldowns.gate(lane.model.as_deref(), now) {
        let why = row
            .cooldowns
            .iter()
            .find(|cooldown| cooldown.until == until)
            .map(|cooldown| cooldown.reason.clone());
        return Ok(Some((
            Some(until),
            format!("{name} cools until {until}{}", because(&why)),
        )));
    }
    if !row.account.limits.is_empty() {
        let windows = edge
            .truth(edge.app.store.windows(&row.account, now))
            .await?;
        let full = windows
            .iter()
            .filter(|(limit, window)| window.room(limit.most, now) == 0)
            .map(|(limit, window)| (limit, window.room_at(limit.most, 1, now)))
            .max_by_key(|(_, at)| *at);
        if let Some((limit, at)) = full {
            let kind = limit.kind.as_str();
            let words = format!("{name} has used its {kind} per {}", limit.window);
            return Ok(Some((at, words)));
        }
    }
    Ok(None)
}
