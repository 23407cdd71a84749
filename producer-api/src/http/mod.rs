//! The HTTP edge: it extracts, asks the core to decide, stores, and shows.
//!
//! `server` owns connections and their time limits, `extract` and `body` take requests apart,
//! `submit`, `lane` and `list` are the pure rules about what they may say, `problem` is how the
//! API says no. All else is one file a resource. The API's document (`docs`) is made from the
//! handlers, and `openapi.json` at the root of the repository is a copy of it.

mod accept;
mod accounts;
mod body;
mod docs;
mod explain;
mod extract;
mod fallbacks;
mod forecast;
mod health;
mod idempotency;
mod jobs;
mod json;
mod keys;
mod lane;
mod list;
mod metrics;
mod pages;
mod problem;
mod rate;
mod routing;
mod server;
mod submit;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trace;
mod windows;

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::Response,
    routing::get,
};
use tokio::{net::TcpListener, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    body::Bodies,
    health::Checkup,
    metrics::{Gauges, Responses},
    problem::ApiError,
};
use crate::{app::App, store::StoreError};

/// How long a request waits for the truth plane. It answers in milliseconds or not at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the recorder of metrics is tidied; it keeps every sample until then.
const UPKEEP: Duration = Duration::from_secs(5);

/// What handlers share.
#[derive(Debug)]
struct Edge {
    app: Arc<App>,
    bodies: Bodies,
    checkup: Checkup,
    gauges: Gauges,
    rates: rate::Rates,
    /// Long polls answer at once when it is cancelled.
    shutdown: CancellationToken,
}

impl Edge {
    fn new(app: Arc<App>, shutdown: CancellationToken) -> Self {
        let api = &app.config.api;
        let bodies = Bodies::new(api.max_body_bytes, api.request_timeout.0);
        Self {
            bodies,
            checkup: Checkup::default(),
            gauges: Gauges::default(),
            rates: rate::Rates::default(),
            shutdown,
            app,
        }
    }

    /// Asks the truth plane, with patience.
    async fn truth<T>(
        &self,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(PATIENCE, question).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(StoreError::Unavailable("it does not answer".into()).into()),
        }
    }
}

/// Serves HTTP on `listener` until `shutdown`, then lets requests that are under way finish.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let patience = app.config.api.request_timeout.0;
    let recorder = app.metrics.clone();
    let router = router(Arc::new(Edge::new(app, shutdown.clone())));
    let upkeep = async {
        let mut tick = tokio::time::interval(UPKEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            recorder.run_upkeep();
        }
    };
    tokio::select! {
        () = server::run(listener, router, patience, shutdown) => Ok(()),
        () = upkeep => Ok(()),
    }
}

/// Every route of the API, with its part of the document.
fn api() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::with_openapi(docs::base())
        .routes(routes!(accept::submit_jobs, jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(accept::retry_job))
        .routes(routes!(forecast::forecast))
        .routes(routes!(explain::explain_job))
        .routes(routes!(explain::queue_status))
        .routes(routes!(accounts::list_accounts))
        .routes(routes!(accounts::get_account))
        .routes(routes!(windows::get_windows))
        .routes(routes!(accounts::pause_account))
        .routes(routes!(accounts::resume_account))
        .routes(routes!(routing::get_routing, routing::put_routing))
        .routes(routes!(keys::list_keys, keys::create_key))
        .routes(routes!(keys::change_key, keys::revoke_key))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::health))
        .routes(routes!(metrics::metrics))
}

fn router(edge: Arc<Edge>) -> Router {
    let (router, document) = api().split_for_parts();
    let router = router
        .route("/", get(pages::home))
        .route(problem::PAGE, get(pages::problems))
        .merge(docs::page(docs::complete(document)))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::method_not_allowed);
    wrap(router).with_state(edge)
}

/// What stands around every route.
fn wrap<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    let responses = Responses::default();
    router.layer(middleware::from_fn(rate::tell)).layer(
        ServiceBuilder::new()
            .map_response(move |response| finish(response, &responses))
            .layer(CatchPanicLayer::custom(problem::panicked)),
    )
}

/// What every answer carries: nobody guesses at its type, and nobody keeps it but who says so.
fn finish<B>(mut response: Response<B>, responses: &Responses) -> Response<B> {
    responses.count(response.status());
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
