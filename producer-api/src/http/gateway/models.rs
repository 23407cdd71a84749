//! The models that the accounts offer.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sluice_shared::{api::Scope, domain::Account};

use super::{Dialect, fault::Fault};
use crate::http::{
    Edge,
    extract::Caller,
    problem::{ApiError, clip},
};

/// Nobody knows when a model was made; both APIs want a time.
const UNKNOWN_TIME: &str = "1970-01-01T00:00:00Z";

/// `GET /v1/models`: each model once, by name.
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let dialect = Dialect::of(&uri, &headers);
    if let Err(error) = caller.and_then(|caller| caller.needs(Scope::Read)) {
        return dialect.refuse(error.into());
    }
    let accounts = edge.app.roster.accounts();
    let models = offered(&accounts);
    let data: Vec<Value> = models
        .iter()
        .map(|(model, provider)| view(dialect, model, provider))
        .collect();
    Json(match dialect {
        Dialect::OpenAi => json!({"object": "list", "data": data}),
        Dialect::Anthropic => json!({
            "data": data,
            "has_more": false,
            "first_id": models.keys().next(),
            "last_id": models.keys().next_back(),
        }),
    })
    .into_response()
}

/// `GET /v1/models/{model}`.
pub(super) async fn retrieve(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(model): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let dialect = Dialect::of(&uri, &headers);
    if let Err(error) = caller.and_then(|caller| caller.needs(Scope::Read)) {
        return dialect.refuse(error.into());
    }
    let accounts = edge.app.roster.accounts();
    match accounts.iter().find(|account| account.offers(&model)) {
        Some(account) => Json(view(dialect, &model, &account.provider)).into_response(),
        None => dialect.refuse(Fault::not_found(
            "model_not_found",
            "model",
            format!("no account offers the model `{}`", clip(&model)),
        )),
    }
}

/// Each model, with the provider of the first account that offers it.
fn offered(accounts: &[Account]) -> BTreeMap<&str, &str> {
    let mut models = BTreeMap::new();
    for account in accounts {
        for model in &account.models {
            models
                .entry(model.as_str())
                .or_insert(account.provider.as_str());
        }
    }
    models
}

fn view(dialect: Dialect, model: &str, provider: &str) -> Value {
    match dialect {
        Dialect::OpenAi => {
            json!({"id": model, "object": "model", "created": 0, "owned_by": provider})
        }
        Dialect::Anthropic => json!({
            "id": model,
            "type": "model",
            "display_name": model,
            "created_at": UNKNOWN_TIME,
        }),
    }
}
