//! Accounts: how they are, and taking them out and back.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, RawQuery, State},
};
use serde_json::Map;
use sluice_shared::{
    api::{AccountList, AccountSource, AccountView, Scope},
    clock,
    domain::{AccountId, Span, Standing, Time},
};
use tokio::time::Instant;

use super::{
    Edge,
    extract::{self, Caller, NoParams},
    problem::{ApiError, Code, clip},
};
use crate::{cooling, store::AccountRow, workers::Workers};

/// How often an account is looked at that someone waits for.
const LOOK: Duration = Duration::from_millis(200);

/// List the accounts.
#[utoipa::path(
    get, path = "/api/accounts", tag = "accounts", security(("key" = ["read"])),
    responses((status = 200, description = "All accounts, by name.", body = AccountList))
)]
pub(super) async fn list_accounts(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
) -> Result<Json<AccountList>, ApiError> {
    let now = clock::now();
    let rows = edge.truth(edge.app.store.accounts()).await?;
    let accounts = rows
        .into_iter()
        .map(|row| view(row, &edge.app.workers, &caller, now))
        .collect();
    Ok(Json(AccountList { accounts }))
}

/// Get an account.
#[utoipa::path(
    get, path = "/api/accounts/{id}", tag = "accounts", security(("key" = ["read"])),
    params(("id" = AccountId, Path, description = "its name")),
    responses(
        (status = 200, description = "The account as it is now.", body = AccountView),
        (status = 404, description = "`no_such_account`"),
    )
)]
pub(super) async fn get_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountView>, ApiError> {
    let row = find(&edge, &name).await?;
    Ok(Json(view(row, &edge.app.workers, &caller, clock::now())))
}

/// Pause an account.
///
/// It takes no new jobs; what runs goes on.
#[utoipa::path(
    post, path = "/api/accounts/{id}/pause", tag = "accounts", security(("key" = ["operate"])),
    params(("id" = AccountId, Path, description = "its name")),
    responses(
        (status = 200, description = "Paused.", body = AccountView),
        (status = 404, description = "`no_such_account`"),
    )
)]
pub(super) async fn pause_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountView>, ApiError> {
    let reason = format!("paused by {}", caller.0.name);
    set(&edge, &caller, &name, Standing::Paused, Some(reason)).await
}

/// Put an account back to work.
///
/// Ends a pause, a cooldown, and the marks of a refused credential or an empty purse.
#[utoipa::path(
    post, path = "/api/accounts/{id}/resume", tag = "accounts", security(("key" = ["operate"])),
    params(("id" = AccountId, Path, description = "its name")),
    responses(
        (status = 200, description = "Back to work.", body = AccountView),
        (status = 404, description = "`no_such_account`"),
    )
)]
pub(super) async fn resume_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountView>, ApiError> {
    set(&edge, &caller, &name, Standing::Active, None).await
}

/// Let an account run empty.
///
/// It takes no new jobs, what runs goes on, and nothing is left when `in_flight` is 0: with `wait`
/// the answer comes then, or after that time. `resume` puts it back to work.
#[utoipa::path(
    post, path = "/api/accounts/{id}/drain", tag = "accounts", security(("key" = ["operate"])),
    params(
        ("id" = AccountId, Path, description = "its name"),
        ("wait" = Option<Span>, Query, description = "how long to wait until it is empty, such as `30s`"),
    ),
    responses(
        (status = 200, description = "Draining; empty when `in_flight` is 0.", body = AccountView),
        (status = 404, description = "`no_such_account`"),
    )
)]
pub(super) async fn drain_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<AccountView>, ApiError> {
    let wait = extract::wait(query.as_deref(), edge.app.config.api.max_wait)?;
    let reason = format!("drained by {}", caller.0.name);
    let mut answer = set(&edge, &caller, &name, Standing::Draining, Some(reason)).await?;
    let deadline = Instant::now() + wait.map_or(Duration::ZERO, |wait| wait.0);
    while answer.in_flight > 0 && Instant::now() < deadline && !edge.shutdown.is_cancelled() {
        tokio::time::sleep(LOOK.min(deadline - Instant::now())).await;
        let row = find(&edge, &name).await?;
        answer = Json(view(row, &edge.app.workers, &caller, clock::now()));
    }
    Ok(answer)
}

async fn set(
    edge: &Edge,
    caller: &Caller,
    name: &str,
    standing: Standing,
    reason: Option<String>,
) -> Result<Json<AccountView>, ApiError> {
    caller.needs(Scope::Operate)?;
    let account = find(edge, name).await?.account.id;
    edge.truth(edge.app.store.set_standing(&account, standing, reason))
        .await?;
    tracing::info!(%account, standing = standing.as_str(), by = %caller.0.name, "an account was set");
    edge.app.backlog.wake();
    if standing == Standing::Active {
        cooling::tell_workers(&edge.app, account, None).await;
    }
    let row = find(edge, name).await?;
    Ok(Json(view(row, &edge.app.workers, caller, clock::now())))
}

pub(super) async fn find(edge: &Edge, name: &str) -> Result<AccountRow, ApiError> {
    let rows = edge.truth(edge.app.store.accounts()).await?;
    rows.into_iter()
        .find(|row| row.account.id.as_str() == name)
        .ok_or_else(|| {
            ApiError::new(
                Code::NoSuchAccount,
                format!("there is no account `{}`", clip(name)),
            )
        })
}

/// The account as this caller may see it.
pub(super) fn view(row: AccountRow, workers: &Workers, caller: &Caller, now: Time) -> AccountView {
    let AccountRow {
        account,
        standing,
        in_flight,
        cooldown_until,
        reason,
        definition,
        ..
    } = row;
    let source = match &definition {
        Some(_) => AccountSource::Api,
        None => AccountSource::Configuration,
    };
    let (settings, secrets) = definition.map_or_else(Default::default, |row| {
        let secrets = row.definition.secrets.into_keys().collect();
        (row.definition.settings, secrets)
    });
    let may_steer = caller.needs(Scope::Operate).is_ok();
    let cooldown_until = cooldown_until.filter(|until| *until > now);
    // What was the reason of a cooldown that is over is none any more.
    let is_out = standing != Standing::Active || cooldown_until.is_some();
    AccountView {
        workers: workers.serving(&account.id),
        troubles: workers.troubles(&account.id),
        source,
        settings: if may_steer { settings } else { Map::new() },
        secrets,
        id: account.id,
        provider: account.provider,
        models: account.models,
        tags: account.tags,
        max_concurrency: account.max_concurrency,
        weight: account.weight,
        standing,
        in_flight,
        cooldown_until,
        reason: reason.filter(|_| is_out),
    }
}
