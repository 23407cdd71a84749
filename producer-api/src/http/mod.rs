//! The HTTP edge: it extracts, asks the core to decide, stores, and shows.
//!
//! `server` owns connections and their time limits, `extract` and `body` take requests apart,
//! `submit`, `lane` and `list` are the pure rules about what they may say, `problem` is how the
//! API says no. All else is one file a resource. The API's document (`docs`) is made from the
//! handlers, and `openapi.json` at the root of the repository is a copy of it.

mod accept;
mod account_changes;
mod account_settings;
mod account_test;
mod accounts;
mod anthropic;
mod anthropic_batches;
mod batches;
mod body;
mod conversation;
mod deliveries;
mod docs;
mod events;
mod explain;
mod extract;
mod fallbacks;
mod forecast;
mod gateway;
mod health;
mod idempotency;
mod jobs;
mod json;
mod keys;
mod lane;
mod list;
mod metrics;
mod openai;
mod openai_batches;
mod overview;
mod pages;
mod problem;
mod rate;
mod routing;
mod schedules;
mod server;
mod session;
mod submit;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trace;
mod web;
mod webhook_rules;
mod webhooks;
mod windows;
mod workers;

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::Response,
    routing::get,
};
use tokio::{net::TcpListener, sync::Semaphore, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use self::schedules::row_of;
pub use self::web::has_dashboard;
use self::{
    body::Bodies,
    health::Checkup,
    metrics::{Gauges, Responses},
    overview::Glance,
    problem::ApiError,
    session::Refusals,
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
    glance: Glance,
    refusals: Refusals,
    /// Event streams that may still be opened.
    streams: Arc<Semaphore>,
    /// What is done when the answer is out: jobs that nobody waits for any more are cancelled, and
    /// estimates made anew.
    chores: TaskTracker,
    /// Uploads that may still be begun.
    uploads: Arc<Semaphore>,
    estimates: batches::Estimates,
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
            glance: Glance::default(),
            refusals: Refusals::default(),
            chores: TaskTracker::new(),
            streams: Arc::new(Semaphore::new(events::MOST_STREAMS)),
            uploads: Arc::new(Semaphore::new(app.config.batches.max_uploads)),
            estimates: batches::Estimates::default(),
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
    let edge = Arc::new(Edge::new(app, shutdown.clone()));
    let chores = edge.chores.clone();
    let router = router(edge);
    let upkeep = async {
        let mut tick = tokio::time::interval(UPKEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            recorder.run_upkeep();
        }
    };
    tokio::select! {
        () = server::run(listener, router, patience, shutdown) => {}
        () = upkeep => {}
    }
    chores.close();
    chores.wait().await;
    Ok(())
}

/// Every route of the API, with its part of the document.
fn api() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::with_openapi(docs::base())
        .routes(routes!(accept::submit_jobs, jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(accept::retry_job))
        .routes(routes!(batches::submit_batch, batches::list_batches))
        .routes(routes!(batches::get_batch))
        .routes(routes!(batches::cancel_batch))
        .routes(routes!(batches::results::batch_results))
        .routes(routes!(
            schedules::create_schedule,
            schedules::list_schedules
        ))
        .routes(routes!(
            schedules::get_schedule,
            schedules::change_schedule,
            schedules::remove_schedule
        ))
        .routes(routes!(schedules::run_schedule))
        .routes(routes!(forecast::forecast))
        .routes(routes!(explain::explain_job))
        .routes(routes!(explain::queue_status))
        .routes(routes!(routing::get_routing, routing::put_routing))
        .routes(routes!(events::job_events))
        .routes(routes!(events::all_events))
        .routes(routes!(
            accounts::list_accounts,
            account_changes::create_account
        ))
        .routes(routes!(
            accounts::get_account,
            account_changes::change_account,
            account_changes::remove_account
        ))
        .routes(routes!(windows::get_windows))
        .routes(routes!(accounts::pause_account))
        .routes(routes!(accounts::resume_account))
        .routes(routes!(accounts::drain_account))
        .routes(routes!(account_test::try_account))
        .routes(routes!(webhooks::list_webhooks, webhooks::create_webhook))
        .routes(routes!(
            webhooks::get_webhook,
            webhooks::change_webhook,
            webhooks::remove_webhook
        ))
        .routes(routes!(webhooks::rotate_webhook_secret))
        .routes(routes!(webhooks::try_webhook))
        .routes(routes!(webhooks::replay_webhook))
        .routes(routes!(webhooks::make_webhook_secret))
        .routes(routes!(deliveries::list_deliveries))
        .routes(routes!(deliveries::get_delivery))
        .routes(routes!(deliveries::replay_delivery))
        .routes(routes!(workers::list_workers))
        .routes(routes!(overview::get_overview))
        .routes(routes!(
            session::sign_in,
            session::get_session,
            session::sign_out
        ))
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
        .route("/", get(web::home))
        .route(problem::PAGE, get(pages::problems))
        .merge(gateway::routes())
        .merge(openai_batches::routes())
        .merge(anthropic_batches::routes())
        .merge(docs::page(docs::complete(document)))
        .fallback(web::file_or_page)
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
