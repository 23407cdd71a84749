//! Strategies: which are in force, and choosing others.

use std::{collections::BTreeMap, marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
};
use sluice_shared::{
    api::{NewRouting, RoutingView, Scope},
    domain::Lane,
};

use super::{
    Edge,
    extract::{Caller, NoParams},
    json,
    problem::{ApiError, Code},
};

/// Lanes with a strategy of their own, at most.
const MOST_LANES: usize = 1000;

/// Longest key of a lane; as long as any that a job can have.
const MOST_KEY: usize = 2000;

/// Show how accounts are chosen.
#[utoipa::path(
    get, path = "/api/routing", tag = "routing", security(("key" = ["read"])),
    responses((status = 200, description = "The strategies that are in force.", body = RoutingView))
)]
pub(super) async fn get_routing(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<RoutingView>, ApiError> {
    edge.truth(edge.app.routes.refresh(&edge.app.store)).await?;
    Ok(Json(edge.app.routes.view()))
}

/// Choose how accounts are chosen.
///
/// What is given replaces all that was chosen before; an empty object goes back to the
/// configuration. Every API process follows within 2 s, without a restart.
#[utoipa::path(
    put, path = "/api/routing", tag = "routing", security(("key" = ["operate"])),
    request_body(content = NewRouting, content_type = "application/json"),
    responses(
        (status = 200, description = "Chosen, and in force here.", body = RoutingView),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_routing`"),
    )
)]
pub(super) async fn put_routing(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<Json<RoutingView>, ApiError> {
    caller.needs(Scope::Operate)?;
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    if payload.bytes.trim_ascii_start().first() == Some(&b'[') {
        let detail = "is an array; give an object";
        return Err(ApiError::field(Code::InvalidRouting, "body", detail));
    }
    let chosen = check(json::parse(
        &payload.bytes,
        PhantomData::<NewRouting>,
        Code::InvalidRouting,
    )?)?;
    edge.truth(edge.app.store.set_routing(&chosen)).await?;
    tracing::info!(by = %caller.0.name, "strategies were set");
    edge.truth(edge.app.routes.refresh(&edge.app.store)).await?;
    edge.app.backlog.wake();
    Ok(Json(edge.app.routes.view()))
}

/// The same with each lane under its one key, however its parts were ordered.
fn check(NewRouting { strategy, lanes }: NewRouting) -> Result<NewRouting, ApiError> {
    if lanes.len() > MOST_LANES {
        let detail = format!("are {}; the most is {MOST_LANES}", lanes.len());
        return Err(ApiError::field(Code::InvalidRouting, "lanes", detail));
    }
    let mut ordered = BTreeMap::new();
    for (key, strategy) in lanes {
        let refuse = |detail: &str| {
            let field = format!("lanes.{key}");
            ApiError::field(Code::InvalidRouting, &field, detail)
        };
        if key.len() > MOST_KEY || key.contains('\0') {
            return Err(refuse("is no key of a lane"));
        }
        let lane = Lane::parse(&key).map_err(|_| {
            refuse("is no key of a lane; write it as jobs show it, such as any or model=m1&tag=eu")
        })?;
        let lane = Lane::new(lane.account, lane.model, lane.tags);
        if ordered.insert(lane.key(), strategy).is_some() {
            return Err(refuse("names a lane for the second time"));
        }
    }
    Ok(NewRouting {
        strategy,
        lanes: ordered,
    })
}
