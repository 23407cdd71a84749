//! Deliveries of webhooks: what was sent, what was answered, and sending it anew.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sluice_shared::{
    api::{DeliveryDetail, DeliveryPage, DeliveryState, DeliveryView, Scope},
    clock,
    domain::{EventKind, JobId, Time},
};
use uuid::Uuid;

use super::{
    Edge,
    extract::{Caller, Id, NoParams, Params, bad_parameter},
    problem::{ApiError, Code},
    webhooks,
};
use crate::{
    store::{DeliveryFilter, DeliveryRow, Receiver},
    webhooks::body_of,
};

const DEFAULT_LIMIT: u64 = 50;
const MOST: u64 = 500;

/// What a cursor begins with, so that one of jobs can be told from it.
const CURSOR: u8 = 2;

const NAMES: [&str; 8] = [
    "webhook", "job", "type", "state", "from", "to", "limit", "cursor",
];

/// A list that was asked for.
#[derive(Debug)]
struct Listing {
    filter: DeliveryFilter,
    cursor: Option<Uuid>,
    limit: u64,
}

/// List deliveries of webhooks.
#[utoipa::path(
    get, path = "/api/deliveries", tag = "webhooks", security(("key" = ["read"])),
    params(
        ("webhook" = Option<Uuid>, Query, description = "only to this endpoint"),
        ("job" = Option<JobId>, Query, description = "only of this job"),
        ("type" = Option<String>, Query, description = "only these kinds of events, separated by commas"),
        ("state" = Option<String>, Query, description = "only in these states, separated by commas"),
        ("from" = Option<Time>, Query, description = "only of events since then"),
        ("to" = Option<Time>, Query, description = "only of events before then"),
        ("limit" = Option<u64>, Query, description = "1 to 500; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "Newest first.", body = DeliveryPage),
        (status = 400, description = "`bad_parameter`, `bad_cursor`"),
    )
)]
pub(super) async fn list_deliveries(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<DeliveryPage>, ApiError> {
    let Listing {
        filter,
        cursor,
        limit,
    } = parse(query.as_deref())?;
    let found = edge.app.store.deliveries(&filter, cursor, limit);
    let mut deliveries: Vec<DeliveryView> = edge.truth(found).await?;
    let more = deliveries.len() as u64 > limit;
    deliveries.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let last = deliveries.last().filter(|_| more);
    Ok(Json(DeliveryPage {
        next_cursor: last.map(|last| cursor_after(last.id)),
        deliveries,
    }))
}

/// Get a delivery, with what was sent and each answer.
#[utoipa::path(
    get, path = "/api/deliveries/{id}", tag = "webhooks", security(("key" = ["read"])),
    params(("id" = Uuid, Path, description = "the delivery")),
    responses(
        (status = 200, description = "The delivery as it is now.", body = DeliveryDetail),
        (status = 404, description = "`no_such_delivery`"),
    )
)]
pub(super) async fn get_delivery(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<Json<DeliveryDetail>, ApiError> {
    let row = find(&edge, id).await?;
    let jobs: Vec<JobId> = row.delivery.job.into_iter().collect();
    let jobs = edge.truth(edge.app.store.ended_jobs(&jobs)).await?;
    let body = body_of(&row.delivery, jobs.values().next());
    let request = body.map_or(Ok(serde_json::Value::Null), |body| {
        serde_json::from_str(&body)
    });
    Ok(Json(DeliveryDetail {
        delivery: row.view,
        request: request.map_err(ApiError::internal)?,
        attempts: row.tries,
    }))
}

/// Send a delivery anew.
///
/// At once, with the `webhook-id` that it had, and from the beginning of the schedule; also one
/// that had arrived. One that waits for its next try goes at once, too.
#[utoipa::path(
    post, path = "/api/deliveries/{id}/replay", tag = "webhooks", security(("key" = ["submit"])),
    params(("id" = Uuid, Path, description = "the delivery")),
    responses(
        (status = 202, description = "On its way.", body = DeliveryView),
        (status = 404, description = "`no_such_delivery`"),
        (status = 409, description = "`webhook_disabled`"),
    )
)]
pub(super) async fn replay_delivery(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    caller.needs(Scope::Submit)?;
    let row = find(&edge, id).await?;
    match &row.delivery.receiver {
        Receiver::Own { client, .. } if *client == *caller.0.name => {}
        Receiver::Own { .. } => caller.needs(Scope::Operate)?,
        Receiver::Endpoint(endpoint) => {
            caller.needs(Scope::Operate)?;
            webhooks::find_enabled(&edge, *endpoint).await?;
        }
    }
    edge.truth(edge.app.store.replay_delivery(id, clock::now()))
        .await?;
    edge.app.webhooks.ring();
    Ok((StatusCode::ACCEPTED, Json(find(&edge, id).await?.view)))
}

async fn find(edge: &Edge, id: Uuid) -> Result<DeliveryRow, ApiError> {
    let found = edge.truth(edge.app.store.delivery(id)).await?;
    found.ok_or_else(|| ApiError::new(Code::NoSuchDelivery, format!("there is no delivery {id}")))
}

fn parse(query: Option<&str>) -> Result<Listing, ApiError> {
    let params = Params::parse(query, |name| NAMES.contains(&name))?;
    let id = |name| params.parsed::<Uuid>(name, |text, _| format!("is `{text}`, not a UUID"));
    let time = |name| {
        params.parsed::<Time>(name, |text, _| {
            format!(
                "is `{text}`, not a time; write for example 2026-11-23T20:00:00Z (a `+` as %2B)"
            )
        })
    };
    let limit = params
        .parsed("limit", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(DEFAULT_LIMIT);
    if !(1..=MOST).contains(&limit) {
        let detail = format!("is {limit}; it goes from 1 to {MOST}");
        return Err(bad_parameter("limit", &detail));
    }
    let filter = DeliveryFilter {
        endpoint: id("webhook")?,
        job: id("job")?.map(JobId),
        kinds: names(&params, "type", EventKind::from_name, || {
            EventKind::ALL.map(EventKind::as_str).join(", ")
        })?,
        states: names(&params, "state", DeliveryState::from_name, || {
            DeliveryState::ALL.map(DeliveryState::as_str).join(", ")
        })?,
        from: time("from")?,
        to: time("to")?,
    };
    Ok(Listing {
        filter,
        cursor: params.get("cursor").map(delivery_after).transpose()?,
        limit,
    })
}

fn names<T>(
    params: &Params<'_>,
    name: &str,
    known: impl Fn(&str) -> Option<T>,
    all: impl Fn() -> String,
) -> Result<Vec<T>, ApiError> {
    let Some(text) = params.get(name) else {
        return Ok(Vec::new());
    };
    let one = |text: &str| {
        known(text).ok_or_else(|| bad_parameter(name, &format!("is `{text}`; there are {}", all())))
    };
    text.split(',').map(one).collect()
}

fn cursor_after(delivery: Uuid) -> String {
    let mut bytes = vec![CURSOR];
    bytes.extend_from_slice(delivery.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn delivery_after(cursor: &str) -> Result<Uuid, ApiError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
    let id = match bytes.split_first() {
        Some((&CURSOR, id)) => Uuid::from_slice(id).ok(),
        _ => None,
    };
    id.ok_or_else(|| {
        let detail = "this is not a cursor of a list of deliveries; give `next_cursor` of the page before, unchanged";
        ApiError::new(Code::BadCursor, detail)
    })
}
