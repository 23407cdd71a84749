//! API keys: who may do what.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use sluice_shared::{
    api::{CreatedKey, FieldError, KeyChange, KeyList, KeyView, NewKey, Scope},
    clock,
    domain::{Quota, fair},
};

use super::{
    Edge,
    extract::{Caller, Id, NoParams},
    json,
    problem::{ApiError, Code},
};
use crate::{
    auth::{self, MintedKey},
    store::{ClientRow, KeyRow, Revoked},
};

/// Longest name of a key.
const MOST_NAME: usize = 64;

/// List the API keys.
#[utoipa::path(
    get, path = "/api/keys", tag = "keys", security(("key" = ["admin"])),
    responses((status = 200, description = "All keys without their secrets, newest first.", body = KeyList))
)]
pub(super) async fn list_keys(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
) -> Result<Json<KeyList>, ApiError> {
    caller.needs(Scope::Admin)?;
    let rows = edge.truth(edge.app.store.keys()).await?;
    let clients = edge.truth(edge.app.store.clients()).await?;
    let view = |row: KeyRow| {
        let client = clients.get(&row.name).cloned();
        let client = client.unwrap_or_else(|| ClientRow::unlimited(&row.name));
        auth::view(row, client)
    };
    Ok(Json(KeyList {
        keys: rows.into_iter().map(view).collect(),
    }))
}

/// Make an API key.
///
/// The secret is in this answer and nowhere else: only its hash is kept. Keys of one name are one
/// client: they share its weight and its quota, so that a key can be replaced by another.
#[utoipa::path(
    post, path = "/api/keys", tag = "keys", security(("key" = ["admin"])),
    request_body(content = NewKey, content_type = "application/json"),
    responses(
        (status = 201, description = "Made. `key` is shown this once.", body = CreatedKey),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_key`"),
    )
)]
pub(super) async fn create_key(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    caller.needs(Scope::Admin)?;
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let NewKey {
        name,
        scopes,
        weight,
        quota,
    } = check(json::parse(
        &payload.bytes,
        PhantomData::<NewKey>,
        Code::InvalidKey,
    )?)?;
    let minted = MintedKey::generate(name, scopes, clock::now());
    let mut client = edge.truth(edge.app.store.client(&minted.row.name)).await?;
    let is_set = weight.is_some() || quota.is_some();
    client.weight = weight.unwrap_or(client.weight);
    client.quota = quota.unwrap_or(client.quota);
    if is_set {
        keep_client(&edge, &client).await?;
    }
    edge.truth(edge.app.store.insert_key(&minted.row, &minted.hash))
        .await?;
    tracing::info!(key = %minted.row.id, name = minted.row.name, by = %caller.0.name, "a key was made");
    let key = minted.secret.expose_secret().to_owned();
    Ok((
        StatusCode::CREATED,
        Json(CreatedKey {
            key,
            view: auth::view(minted.row, client),
        }),
    ))
}

/// Change a key's weight and quota.
///
/// They are those of its client, and so of every key of its name. What is left out stays as it
/// is; `null` lifts a limit. Other API processes count requests by the old limit for 10 more
/// seconds; all else holds at once.
#[utoipa::path(
    patch, path = "/api/keys/{id}", tag = "keys", security(("key" = ["admin"])),
    params(("id" = uuid::Uuid, Path, description = "the key")),
    request_body(content = KeyChange, content_type = "application/json"),
    responses(
        (status = 200, description = "Changed.", body = KeyView),
        (status = 404, description = "`no_such_key`"),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_key`"),
    )
)]
pub(super) async fn change_key(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
    request: Request,
) -> Result<Json<KeyView>, ApiError> {
    caller.needs(Scope::Admin)?;
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let change = json::parse(&payload.bytes, PhantomData::<KeyChange>, Code::InvalidKey)?;
    let key = edge.truth(edge.app.store.key(id)).await?;
    let Some(key) = key.filter(|key| key.revoked_at.is_none()) else {
        return Err(no_such_key(id));
    };
    let mut client = edge.truth(edge.app.store.client(&key.name)).await?;
    client.weight = change.weight.unwrap_or(client.weight);
    client.quota = changed(&client.quota, change.quota)?;
    let mut errors = Vec::new();
    check_limits(Some(client.weight), &client.quota, &mut errors);
    refuse(errors)?;
    keep_client(&edge, &client).await?;
    tracing::info!(key = %id, client = client.name, by = %caller.0.name, "a quota was changed");
    Ok(Json(auth::view(key, client)))
}

async fn keep_client(edge: &Edge, client: &ClientRow) -> Result<(), ApiError> {
    edge.truth(edge.app.store.set_client(client)).await?;
    edge.app.keys.forget_client(&client.name);
    // A limit that was lifted lets jobs go that wait for it.
    edge.app.backlog.wake();
    Ok(())
}

/// The quota with the limits in `change` in the place of its own.
fn changed(quota: &Quota, change: Map<String, Value>) -> Result<Quota, ApiError> {
    let mut whole = match serde_json::to_value(quota).map_err(ApiError::internal)? {
        Value::Object(limits) => limits,
        _ => Map::new(),
    };
    whole.extend(change);
    let text = serde_json::to_vec(&whole).map_err(ApiError::internal)?;
    json::parse(&text, PhantomData::<Quota>, Code::InvalidKey)
}

/// Revoke an API key.
///
/// Other API processes may take it for valid for 10 more seconds.
#[utoipa::path(
    delete, path = "/api/keys/{id}", tag = "keys", security(("key" = ["admin"])),
    params(("id" = uuid::Uuid, Path, description = "the key")),
    responses(
        (status = 204, description = "Revoked."),
        (status = 404, description = "`no_such_key`"),
        (status = 409, description = "`last_admin_key`"),
    )
)]
pub(super) async fn revoke_key(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    caller.needs(Scope::Admin)?;
    match edge
        .truth(edge.app.store.revoke_key(id, clock::now()))
        .await?
    {
        Revoked::Done => {
            edge.app.keys.forget(id);
            tracing::info!(key = %id, by = %caller.0.name, "a key was revoked");
            Ok(StatusCode::NO_CONTENT)
        }
        Revoked::Unknown => Err(no_such_key(id)),
        Revoked::LastAdmin => {
            let detail = "this is the last key that may make keys; make another admin key first";
            Err(ApiError::new(Code::LastAdminKey, detail))
        }
    }
}

fn no_such_key(id: uuid::Uuid) -> ApiError {
    ApiError::new(Code::NoSuchKey, format!("there is no valid key {id}"))
}

/// A key that can be, its scopes in order and each once.
fn check(mut key: NewKey) -> Result<NewKey, ApiError> {
    let mut errors = Vec::new();
    let mut wrong = |field: &str, detail: String| {
        errors.push(FieldError {
            field: field.into(),
            detail,
        });
    };
    if key.name.trim() != key.name || key.name.is_empty() {
        wrong(
            "name",
            "is empty, or begins or ends with white space".into(),
        );
    }
    if key.name.chars().count() > MOST_NAME {
        wrong("name", format!("is longer than {MOST_NAME} characters"));
    }
    if key.name.chars().any(char::is_control) {
        wrong("name", "holds a character that cannot be printed".into());
    }
    if key.scopes.is_empty() {
        wrong(
            "scopes",
            "are none; there are read, submit, operate, admin".into(),
        );
    }
    key.scopes.sort_unstable();
    key.scopes.dedup();
    let quota = key.quota.clone().unwrap_or_default();
    check_limits(key.weight, &quota, &mut errors);
    refuse(errors)?;
    Ok(key)
}

/// A weight and limits that can be: a limit of 0 would be a key that can do nothing.
fn check_limits(weight: Option<u32>, quota: &Quota, errors: &mut Vec<FieldError>) {
    let most = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let limits = [
        ("weight", weight.map(u64::from), fair::MAX_WEIGHT.into()),
        (
            "quota.requests_per_minute",
            quota.requests_per_minute.map(u64::from),
            most,
        ),
        ("quota.max_waiting", quota.max_waiting.map(u64::from), most),
        ("quota.max_running", quota.max_running.map(u64::from), most),
        ("quota.tokens_per_day", quota.tokens_per_day, most),
        ("quota.tokens_per_month", quota.tokens_per_month, most),
        (
            "quota.cost_microusd_per_day",
            quota.cost_microusd_per_day,
            most,
        ),
        (
            "quota.cost_microusd_per_month",
            quota.cost_microusd_per_month,
            most,
        ),
    ];
    for (field, value, most) in limits {
        if let Some(value) = value
            && !(1..=most).contains(&value)
        {
            errors.push(FieldError {
                field: field.into(),
                detail: format!("is {value}; it goes from 1 to {most}"),
            });
        }
    }
}

fn refuse(errors: Vec<FieldError>) -> Result<(), ApiError> {
    match errors.first() {
        None => Ok(()),
        Some(first) => {
            let whole = format!("{}: {}", first.field, first.detail);
            Err(ApiError::new(Code::InvalidKey, whole).with(errors))
        }
    }
}
