//! API keys: who may do what.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use secrecy::ExposeSecret;
use sluice_shared::{
    api::{CreatedKey, FieldError, KeyList, NewKey, Scope},
    clock,
};

use super::{
    Edge,
    extract::{Caller, Id, NoParams},
    json,
    problem::{ApiError, Code},
};
use crate::{
    auth::{self, MintedKey},
    store::Revoked,
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
    Ok(Json(KeyList {
        keys: rows.into_iter().map(auth::view).collect(),
    }))
}

/// Make an API key.
///
/// The secret is in this answer and nowhere else: only its hash is kept.
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
    let NewKey { name, scopes } = check(json::parse(
        &payload.bytes,
        PhantomData::<NewKey>,
        Code::InvalidKey,
    )?)?;
    let minted = MintedKey::generate(name, scopes, clock::now());
    edge.truth(edge.app.store.insert_key(&minted.row, &minted.hash))
        .await?;
    tracing::info!(key = %minted.row.id, name = minted.row.name, by = %caller.0.name, "a key was made");
    let key = minted.secret.expose_secret().to_owned();
    Ok((
        StatusCode::CREATED,
        Json(CreatedKey {
            key,
            view: auth::view(minted.row),
        }),
    ))
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
        Revoked::Unknown => Err(ApiError::new(
            Code::NoSuchKey,
            format!("there is no valid key {id}"),
        )),
        Revoked::LastAdmin => {
            let detail = "this is the last key that may make keys; make another admin key first";
            Err(ApiError::new(Code::LastAdminKey, detail))
        }
    }
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
    match errors.first() {
        None => Ok(key),
        Some(first) => {
            let whole = format!("{}: {}", first.field, first.detail);
            Err(ApiError::new(Code::InvalidKey, whole).with(errors))
        }
    }
}
