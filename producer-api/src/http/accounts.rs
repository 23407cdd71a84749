//! Accounts: how they are, and taking them out and back.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use sluice_shared::{
    api::{AccountList, AccountView, Scope},
    clock,
    domain::{AccountId, Standing, Time},
};

use super::{
    Edge,
    extract::{Caller, NoParams},
    problem::{ApiError, Code, clip},
};
use crate::{cooling, store::AccountRow, workers::Workers};

/// List the accounts.
#[utoipa::path(
    get, path = "/api/accounts", tag = "accounts", security(("key" = ["read"])),
    responses((status = 200, description = "All accounts, by name.", body = AccountList))
)]
pub(super) async fn list_accounts(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<AccountList>, ApiError> {
    let now = clock::now();
    let rows = edge.truth(edge.app.store.accounts()).await?;
    let accounts = rows
        .into_iter()
        .map(|row| view(row, &edge.app.workers, now))
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
    _: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountView>, ApiError> {
    let row = find(&edge, &name).await?;
    Ok(Json(view(row, &edge.app.workers, clock::now())))
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
    Ok(Json(view(row, &edge.app.workers, clock::now())))
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

fn view(row: AccountRow, workers: &Workers, now: Time) -> AccountView {
    let AccountRow {
        account,
        standing,
        in_flight,
        cooldown_until,
        reason,
        ..
    } = row;
    let cooldown_until = cooldown_until.filter(|until| *until > now);
    // What was the reason of a cooldown that is over is none any more.
    let is_out = standing != Standing::Active || cooldown_until.is_some();
    AccountView {
        workers: workers.serving(&account.id),
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
