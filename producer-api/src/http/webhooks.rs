//! Endpoints of webhooks: registering, changing and testing them, and their secrets.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use sluice_shared::{
    api::{
        CreatedWebhook, DeliveryState, DeliveryView, NewWebhook, Replay, Replayed, Scope,
        SecretRotation, WebhookChange, WebhookList, WebhookSecret, WebhookView,
    },
    clock,
    domain::Time,
    seal::MasterKey,
};
use uuid::Uuid;

use super::{
    Edge,
    extract::{Caller, Id, NoParams},
    json,
    problem::{ApiError, Code},
    webhook_rules as rules,
};
use crate::{
    store::{EndpointRow, SealedSecret},
    webhooks,
};

/// List the endpoints.
#[utoipa::path(
    get, path = "/api/webhooks", tag = "webhooks", security(("key" = ["read"])),
    responses((status = 200, description = "All endpoints without their secrets, oldest first.", body = WebhookList))
)]
pub(super) async fn list_webhooks(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<WebhookList>, ApiError> {
    let (rows, now) = (edge.truth(edge.app.store.webhooks()).await?, clock::now());
    Ok(Json(WebhookList {
        webhooks: rows.into_iter().map(|row| view(row, now)).collect(),
    }))
}

/// Register an endpoint.
///
/// It gets events of what happens from now on, signed by Standard Webhooks, at least once each and
/// in no certain order. The secret is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/api/webhooks", tag = "webhooks", security(("key" = ["operate"])),
    request_body(content = NewWebhook, content_type = "application/json"),
    responses(
        (status = 201, description = "Made. `secret` is shown this once.", body = CreatedWebhook),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`no_master_key`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_webhook`"),
    )
)]
pub(super) async fn create_webhook(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<(StatusCode, Json<CreatedWebhook>), ApiError> {
    caller.needs(Scope::Operate)?;
    let key = master_key(&edge)?;
    let NewWebhook {
        url,
        events,
        client,
        description,
    } = rules::new(read(&edge, request).await?, &edge.app.egress)?;
    let (id, now, secret) = (Uuid::now_v7(), clock::now(), webhooks::fresh());
    let row = EndpointRow {
        id,
        url,
        description,
        events,
        client,
        secrets: vec![webhooks::sealed_for_webhook(key, id, &secret)],
        enabled: true,
        reason: None,
        failing_since: None,
        created_at: now,
    };
    edge.truth(edge.app.store.insert_webhook(&row)).await?;
    tracing::info!(webhook = %id, by = %caller.0.name, "a webhook was registered");
    let created = CreatedWebhook {
        secret: secret.expose_secret().to_owned(),
        view: view(row, now),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Get an endpoint.
#[utoipa::path(
    get, path = "/api/webhooks/{id}", tag = "webhooks", security(("key" = ["read"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    responses(
        (status = 200, description = "The endpoint as it is now.", body = WebhookView),
        (status = 404, description = "`no_such_webhook`"),
    )
)]
pub(super) async fn get_webhook(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<Json<WebhookView>, ApiError> {
    Ok(Json(view(find(&edge, id).await?, clock::now())))
}

/// Change an endpoint.
///
/// What is left out stays as it is. While it is disabled its deliveries are held, and a replay
/// sends them.
#[utoipa::path(
    patch, path = "/api/webhooks/{id}", tag = "webhooks", security(("key" = ["operate"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    request_body(content = WebhookChange, content_type = "application/json"),
    responses(
        (status = 200, description = "Changed.", body = WebhookView),
        (status = 404, description = "`no_such_webhook`"),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_webhook`"),
    )
)]
pub(super) async fn change_webhook(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
    request: Request,
) -> Result<Json<WebhookView>, ApiError> {
    caller.needs(Scope::Operate)?;
    let change = rules::change(read(&edge, request).await?, &edge.app.egress)?;
    let by = caller.0.name.clone();
    let changed = edge.app.store.change_webhook(id, |row| {
        row.url = change.url.unwrap_or_else(|| row.url.clone());
        row.events = change.events.unwrap_or_else(|| row.events.clone());
        row.description = change
            .description
            .unwrap_or_else(|| row.description.clone());
        match change.enabled {
            Some(true) => {
                row.enabled = true;
                row.reason = None;
                row.failing_since = None;
            }
            Some(false) if row.enabled => {
                row.enabled = false;
                row.reason = Some(format!("disabled by {by}"));
            }
            _ => {}
        }
    });
    let changed = edge.truth(Box::pin(changed)).await?;
    let changed = changed.ok_or_else(|| no_such(id))?;
    tracing::info!(webhook = %id, by = %caller.0.name, "a webhook was changed");
    Ok(Json(view(changed, clock::now())))
}

/// Remove an endpoint.
///
/// Its deliveries go with it, those that wait included.
#[utoipa::path(
    delete, path = "/api/webhooks/{id}", tag = "webhooks", security(("key" = ["operate"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    responses(
        (status = 204, description = "Removed."),
        (status = 404, description = "`no_such_webhook`"),
    )
)]
pub(super) async fn remove_webhook(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    caller.needs(Scope::Operate)?;
    if !edge.truth(edge.app.store.remove_webhook(id)).await? {
        return Err(no_such(id));
    }
    tracing::info!(webhook = %id, by = %caller.0.name, "a webhook was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Replace an endpoint's secret.
///
/// The new one is in this answer and nowhere else. The one before signs, too, for 24 hours unless
/// `keep_previous` says otherwise, so that a receiver can change over without losing anything.
#[utoipa::path(
    post, path = "/api/webhooks/{id}/rotate", tag = "webhooks", security(("key" = ["operate"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    request_body(content = SecretRotation, content_type = "application/json"),
    responses(
        (status = 200, description = "Replaced. `secret` is shown this once.", body = WebhookSecret),
        (status = 404, description = "`no_such_webhook`"),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`no_master_key`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_webhook`"),
    )
)]
pub(super) async fn rotate_webhook_secret(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
    request: Request,
) -> Result<Json<WebhookSecret>, ApiError> {
    caller.needs(Scope::Operate)?;
    let key = master_key(&edge)?;
    let SecretRotation { keep_previous } = read(&edge, request).await?;
    let keep = rules::kept(keep_previous)?;
    let (secret, now) = (webhooks::fresh(), clock::now());
    let sealed = webhooks::sealed_for_webhook(key, id, &secret);
    let changed = edge.app.store.change_webhook(id, |row| {
        webhooks::rotate(&mut row.secrets, sealed, keep, now);
    });
    let changed = edge.truth(Box::pin(changed)).await?;
    let changed = changed.ok_or_else(|| no_such(id))?;
    tracing::info!(webhook = %id, by = %caller.0.name, "a webhook's secret was replaced");
    Ok(Json(WebhookSecret {
        secret: secret.expose_secret().to_owned(),
        previous_secret_until: previous_until(&changed.secrets, now),
    }))
}

/// Get a secret for the webhooks that jobs name themselves.
///
/// Webhooks that this key's client gives its jobs are signed with it from now on. It is in this
/// answer and nowhere else; the one before signs, too, for 24 hours unless `keep_previous` says
/// otherwise.
#[utoipa::path(
    post, path = "/api/webhook-secret", tag = "webhooks", security(("key" = ["submit"])),
    request_body(content = SecretRotation, content_type = "application/json"),
    responses(
        (status = 200, description = "Made. `secret` is shown this once.", body = WebhookSecret),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`no_master_key`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_webhook`"),
    )
)]
pub(super) async fn make_webhook_secret(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<Json<WebhookSecret>, ApiError> {
    caller.needs(Scope::Submit)?;
    let key = master_key(&edge)?;
    let SecretRotation { keep_previous } = read(&edge, request).await?;
    let keep = rules::kept(keep_previous)?;
    let client = caller.0.name.as_ref();
    let (secret, now) = (webhooks::fresh(), clock::now());
    let sealed = webhooks::sealed_for_client(key, client, &secret);
    let mut until = None;
    let changed = edge.app.store.change_webhook_signer(client, |secrets| {
        webhooks::rotate(secrets, sealed, keep, now);
        until = previous_until(secrets, now);
    });
    edge.truth(changed).await?;
    tracing::info!(client, "a client's webhook secret was made");
    Ok(Json(WebhookSecret {
        secret: secret.expose_secret().to_owned(),
        previous_secret_until: until,
    }))
}

/// Send a test to an endpoint.
///
/// An event `webhook.test` goes out at once, as any other would; the delivery in the answer shows
/// what came of it.
#[utoipa::path(
    post, path = "/api/webhooks/{id}/test", tag = "webhooks", security(("key" = ["operate"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    responses(
        (status = 202, description = "On its way. Ask for the delivery.", body = DeliveryView),
        (status = 404, description = "`no_such_webhook`"),
        (status = 409, description = "`webhook_disabled`"),
    )
)]
pub(super) async fn try_webhook(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    caller.needs(Scope::Operate)?;
    let endpoint = find_enabled(&edge, id).await?;
    let data = serde_json::json!({ "webhook": id, "requested_by": *caller.0.name });
    let store = &edge.app.store;
    let sent = store.try_webhook(&endpoint, data.to_string(), clock::now());
    let delivery = edge.truth(sent).await?;
    edge.app.webhooks.ring();
    let row = edge.truth(store.delivery(delivery)).await?;
    let row = row.ok_or_else(|| ApiError::internal("a test is gone"))?;
    Ok((StatusCode::ACCEPTED, Json(row.view)))
}

/// Send an endpoint's deliveries anew, since a time.
///
/// Those that failed or were held, unless `states` names others. Each goes with the `webhook-id`
/// that it had, and from the beginning of the schedule.
#[utoipa::path(
    post, path = "/api/webhooks/{id}/replay", tag = "webhooks", security(("key" = ["operate"])),
    params(("id" = Uuid, Path, description = "the endpoint")),
    request_body(content = Replay, content_type = "application/json"),
    responses(
        (status = 202, description = "On their way.", body = Replayed),
        (status = 404, description = "`no_such_webhook`"),
        (status = 408, description = "`request_timeout`"),
        (status = 409, description = "`webhook_disabled`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_webhook`"),
    )
)]
pub(super) async fn replay_webhook(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
    request: Request,
) -> Result<(StatusCode, Json<Replayed>), ApiError> {
    caller.needs(Scope::Operate)?;
    let Replay {
        since,
        until,
        mut states,
    } = read(&edge, request).await?;
    let now = clock::now();
    let until = until.unwrap_or(now + std::time::Duration::from_millis(1));
    if until <= since {
        let detail = format!("is {until}, which is not after since");
        return Err(ApiError::field(Code::InvalidWebhook, "until", detail));
    }
    if states.is_empty() {
        states = vec![DeliveryState::Failed, DeliveryState::Held];
    }
    let endpoint = find_enabled(&edge, id).await?;
    let store = &edge.app.store;
    let replayed = store.replay_deliveries(endpoint.id, since, until, &states, now);
    let replayed = edge.truth(replayed).await?;
    edge.app.webhooks.ring();
    Ok((StatusCode::ACCEPTED, Json(Replayed { replayed })))
}

/// Gives a client a secret to sign its jobs' webhooks with, unless it has one. Nobody knows it
/// until the client makes another.
pub(super) async fn ensure_signer(edge: &Edge, client: &str) -> Result<(), ApiError> {
    let store = &edge.app.store;
    if edge.truth(store.webhook_signer(client)).await?.is_some() {
        return Ok(());
    }
    let sealed = webhooks::sealed_for_client(master_key(edge)?, client, &webhooks::fresh());
    edge.truth(store.insert_webhook_signer(client, sealed))
        .await
}

pub(super) async fn find_enabled(edge: &Edge, id: Uuid) -> Result<EndpointRow, ApiError> {
    let endpoint = find(edge, id).await?;
    if !endpoint.enabled {
        let reason = endpoint.reason.unwrap_or_default();
        let detail = format!("the webhook is disabled ({reason}): enable it first");
        return Err(ApiError::new(Code::WebhookDisabled, detail));
    }
    Ok(endpoint)
}

async fn find(edge: &Edge, id: Uuid) -> Result<EndpointRow, ApiError> {
    let found = edge.truth(edge.app.store.webhook(id)).await?;
    found.ok_or_else(|| no_such(id))
}

fn no_such(id: Uuid) -> ApiError {
    ApiError::new(Code::NoSuchWebhook, format!("there is no webhook {id}"))
}

async fn read<T: DeserializeOwned>(edge: &Edge, request: Request) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    json::parse(&payload.bytes, PhantomData::<T>, Code::InvalidWebhook)
}

fn master_key(edge: &Edge) -> Result<&MasterKey, ApiError> {
    edge.app.master_key.as_ref().ok_or_else(|| {
        ApiError::new(
            Code::NoMasterKey,
            "this API process has no master key to seal secrets with: start it with \
             SLUICE_MASTER_KEY (`openssl rand -base64 32` makes one)",
        )
    })
}

fn previous_until(secrets: &[SealedSecret], now: Time) -> Option<Time> {
    let mut valid = secrets.iter().filter(|secret| secret.is_valid(now));
    valid.find_map(|secret| secret.until)
}

fn view(row: EndpointRow, now: Time) -> WebhookView {
    WebhookView {
        id: row.id,
        url: row.url,
        events: row.events,
        client: row.client,
        description: row.description,
        enabled: row.enabled,
        disabled_reason: row.reason,
        failing_since: row.failing_since,
        previous_secret_until: previous_until(&row.secrets, now),
        created_at: row.created_at,
    }
}
