//! Accounts at run time: making, changing and removing them.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Path, Request, State},
    http::StatusCode,
};
use serde_json::{Map, Value};
use sluice_shared::{
    api::{AccountChange, AccountView, NewAccount, Scope},
    clock,
    domain::{AccountId, Standing},
    roll::Definition,
    seal::MasterKey,
};

use super::{
    Edge,
    account_settings::{self, Checked},
    accounts::{find, view},
    extract::{Caller, NoParams},
    json,
    problem::{ApiError, Code, clip},
};
use crate::{
    roster,
    store::{DefinitionRow, Removed},
};

/// How often a change is tried anew that another one has overtaken.
const TRIES: u32 = 5;

/// Add an account.
///
/// It takes jobs as soon as a worker serves it, those that wait already included. Its secrets are
/// sealed with the master key, opened only by the worker that uses them, and never shown. An
/// admin key can so run programs where the workers run: an account may name one.
#[utoipa::path(
    post, path = "/api/accounts", tag = "accounts", security(("key" = ["admin"])),
    request_body(content = NewAccount, content_type = "application/json"),
    responses(
        (status = 201, description = "Made.", body = AccountView),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`account_exists`, `no_master_key`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_account`"),
    )
)]
pub(super) async fn create_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<(StatusCode, Json<AccountView>), ApiError> {
    caller.needs(Scope::Admin)?;
    let key = master_key(&edge)?;
    let mut given = read(&edge, request).await?;
    let id = take_id(&mut given)?;
    let checked = account_settings::change(&id, &Map::new(), Default::default(), given)?;
    let account = checked.account.account(&id);
    let definition = sealed(key, &id, checked);
    let store = &edge.app.store;
    if !edge
        .truth(store.make_account(&account, &definition, clock::now()))
        .await?
    {
        let detail = format!("there is an account `{id}` already");
        return Err(ApiError::new(Code::AccountExists, detail));
    }
    tracing::info!(account = %id, provider = account.provider, by = %caller.0.name, "an account was made");
    end_trial(&edge).await?;
    roster::changed(&edge.app).await;
    let row = find(&edge, id.as_str()).await?;
    let answer = view(row, &edge.app.workers, &caller, clock::now());
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Change an account.
///
/// Settings that are given take the place of those before, `null` takes one away, and all others
/// stay, secrets included. Where a secret goes (`base_url`, `bin`, `argv`, ...) is changed only
/// together with the secret. Jobs that run go on as they began.
#[utoipa::path(
    patch, path = "/api/accounts/{id}", tag = "accounts", security(("key" = ["admin"])),
    params(("id" = AccountId, Path, description = "its name")),
    request_body(content = AccountChange, content_type = "application/json"),
    responses(
        (status = 200, description = "Changed.", body = AccountView),
        (status = 404, description = "`no_such_account`"),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`account_configured`, `account_busy`, `no_master_key`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_account`"),
    )
)]
pub(super) async fn change_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
    request: Request,
) -> Result<Json<AccountView>, ApiError> {
    caller.needs(Scope::Admin)?;
    let given = read(&edge, request).await?;
    for _ in 0..TRIES {
        let (id, before) = made_at_run_time(&edge, &name).await?;
        let key = master_key(&edge)?;
        let DefinitionRow {
            definition,
            revision,
        } = before;
        let (settings, secrets) = (definition.settings, definition.secrets);
        if let Some(renamed) = given.get("id")
            && *renamed != *id.as_str()
        {
            let problem = "cannot be changed: history and queues go by it";
            return Err(ApiError::field(Code::InvalidAccount, "id", problem));
        }
        let mut change = given.clone();
        change.remove("id");
        let checked = account_settings::change(&id, &settings, secrets, change)?;
        let account = checked.account.account(&id);
        let definition = sealed(key, &id, checked);
        let store = &edge.app.store;
        let changed = store.change_account(&account, &definition, revision, clock::now());
        if edge.truth(changed).await? {
            tracing::info!(account = %id, by = %caller.0.name, "an account was changed");
            roster::changed(&edge.app).await;
            let row = find(&edge, &name).await?;
            return Ok(Json(view(row, &edge.app.workers, &caller, clock::now())));
        }
    }
    Err(ApiError::new(
        Code::AccountBusy,
        "others change this account at the same time; try again",
    ))
}

/// Remove an account.
///
/// Only when it is empty: drain it first. Its secrets go with it, and what it ran stays in the
/// history.
#[utoipa::path(
    delete, path = "/api/accounts/{id}", tag = "accounts", security(("key" = ["admin"])),
    params(("id" = AccountId, Path, description = "its name")),
    responses(
        (status = 204, description = "Removed."),
        (status = 404, description = "`no_such_account`"),
        (status = 409, description = "`account_configured`, `account_busy`"),
    )
)]
pub(super) async fn remove_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    caller.needs(Scope::Admin)?;
    let (id, _) = made_at_run_time(&edge, &name).await?;
    match edge
        .truth(edge.app.store.remove_account(&id, clock::now()))
        .await?
    {
        Removed::Gone => {}
        Removed::NotThere => return Err(no_such(&name)),
        Removed::Busy(in_flight) => {
            let detail = format!(
                "{in_flight} attempts of `{id}` are in flight: drain it, and remove it when none \
                 is left"
            );
            return Err(ApiError::new(Code::AccountBusy, detail));
        }
    }
    tracing::info!(account = %id, by = %caller.0.name, "an account was removed");
    roster::changed(&edge.app).await;
    Ok(StatusCode::NO_CONTENT)
}

fn master_key(edge: &Edge) -> Result<&MasterKey, ApiError> {
    edge.app.master_key.as_ref().ok_or_else(|| {
        ApiError::new(
            Code::NoMasterKey,
            "this API process has no master key to seal accounts with: start it and the workers \
             with the same SLUICE_MASTER_KEY (`openssl rand -base64 32` makes one)",
        )
    })
}

async fn read(edge: &Edge, request: Request) -> Result<Map<String, Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    json::parse(
        &payload.bytes,
        PhantomData::<Map<String, Value>>,
        Code::InvalidAccount,
    )
}

fn take_id(given: &mut Map<String, Value>) -> Result<AccountId, ApiError> {
    let wrong = |problem: String| ApiError::field(Code::InvalidAccount, "id", problem);
    match given.remove("id") {
        Some(Value::String(text)) => text
            .parse()
            .map_err(|error: sluice_shared::domain::ids::BadAccountId| wrong(error.to_string())),
        Some(_) => Err(wrong("must be a text".into())),
        None => Err(wrong("is missing; it is the account's name".into())),
    }
}

fn sealed(key: &MasterKey, id: &AccountId, checked: Checked) -> Definition {
    let Checked {
        settings,
        new_secrets,
        kept_secrets: mut secrets,
        ..
    } = checked;
    for (name, secret) in new_secrets {
        let seal = Definition::seal_secret(key, id, &name, &secret);
        secrets.insert(name, seal);
    }
    Definition { settings, secrets }
}

async fn made_at_run_time(edge: &Edge, name: &str) -> Result<(AccountId, DefinitionRow), ApiError> {
    let row = find(edge, name).await?;
    let id = row.account.id;
    match row.definition {
        Some(definition) => Ok((id, definition)),
        None => Err(ApiError::new(
            Code::AccountConfigured,
            format!(
                "`{id}` stands in the configuration: change it there; here it can be paused, \
                 drained and resumed"
            ),
        )),
    }
}

fn no_such(name: &str) -> ApiError {
    ApiError::new(
        Code::NoSuchAccount,
        format!("there is no account `{}`", clip(name)),
    )
}

/// With the first real account the made-up one has done its part: its answers would mix with
/// real ones.
async fn end_trial(edge: &Edge) -> Result<(), ApiError> {
    let Some(trial) = &edge.app.trial else {
        return Ok(());
    };
    let reason = "the trial is over: there is a real account now; it goes with the next start";
    let paused = edge
        .app
        .store
        .set_standing(trial, Standing::Paused, Some(reason.into()));
    edge.truth(paused).await?;
    Ok(())
}
