//! The worker's own small HTTP server: health and metrics.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use sluice_shared::domain::AccountId;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;

/// How long a plane may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Health {
    engine: Arc<Engine>,
    metrics: Option<PrometheusHandle>,
}

/// What `/health` says.
#[derive(Debug, Serialize)]
struct Report {
    status: Status,
    worker: String,
    version: &'static str,
    accounts: Vec<AccountId>,
    in_flight: usize,
    replies_pending: usize,
    broker: Plane,
    live: Plane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// It takes jobs.
    Ok,
    /// It takes jobs, without live streams.
    Degraded,
    /// It is stopping.
    Draining,
    /// It takes no jobs.
    Unavailable,
}

/// Only whether it answers: why not may hold an address, and goes to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Plane {
    Up,
    Down,
}

/// Serves until `stop` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    metrics: Option<PrometheusHandle>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/health", get(health))
        .route("/health/live", get(async || StatusCode::OK))
        .route("/health/ready", get(ready))
        .route("/metrics", get(render))
        .with_state(Health { engine, metrics });
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the worker's health server ended");
    }
}

async fn health(State(health): State<Health>) -> Json<Report> {
    Json(report(&health.engine).await)
}

async fn ready(State(health): State<Health>) -> Response {
    let report = report(&health.engine).await;
    let code = match report.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Draining | Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(report)).into_response()
}

async fn render(State(health): State<Health>) -> Response {
    match health.metrics {
        Some(metrics) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (kind, metrics.render()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "this process has no metrics").into_response(),
    }
}

async fn report(engine: &Engine) -> Report {
    let (broker, live) = tokio::join!(probe(engine.broker.ready()), probe(engine.live.ready()));
    let accounts = engine.consumed();
    let status = match (broker, live) {
        _ if engine.hands.is_draining() => Status::Draining,
        _ if accounts.is_empty() => Status::Unavailable,
        (Plane::Down, _) => Status::Unavailable,
        (Plane::Up, Plane::Down) => Status::Degraded,
        (Plane::Up, Plane::Up) => Status::Ok,
    };
    Report {
        status,
        worker: engine.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        accounts,
        in_flight: engine.hands.count(),
        replies_pending: engine.replies.pending(),
        broker,
        live,
    }
}

async fn probe<E>(ready: impl Future<Output = Result<(), E>>) -> Plane {
    match timeout(PATIENCE, ready).await {
        Ok(Ok(())) => Plane::Up,
        Ok(Err(_)) | Err(_) => Plane::Down,
    }
}

#[cfg(test)]
mod tests {
    use sluice_shared::{broker::Broker, config::Config, live::Live};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        task::JoinSet,
    };

    use super::*;
    use crate::testing::{absent_broker, account};

    fn engine(broker: Broker) -> Arc<Engine> {
        let settings = Config::from_toml("").unwrap().worker;
        let accounts = vec![account("")];
        Arc::new(Engine::new("tester".into(), settings, accounts, broker, Live::memory()).0)
    }

    #[tokio::test]
    async fn the_status_says_whether_it_takes_jobs() {
        let engine = engine(Broker::in_process());
        assert_eq!(report(&engine).await.status, Status::Unavailable);
        engine.services.all()[0].set_consumed(true);
        assert_eq!(report(&engine).await.status, Status::Ok);
        engine.hands.drain();
        assert_eq!(report(&engine).await.status, Status::Draining);

        let cut_off = super::tests::engine(absent_broker().await);
        cut_off.services.all()[0].set_consumed(true);
        let report = report(&cut_off).await;
        assert_eq!(
            (report.status, report.broker),
            (Status::Unavailable, Plane::Down)
        );
    }

    #[tokio::test]
    async fn it_is_served_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let engine = engine(Broker::in_process());
        engine.services.all()[0].set_consumed(true);
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, engine.clone(), None, stop.clone()));
        let get = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let health = get("/health").await;
        assert!(
            health.contains("200 OK") && health.contains(r#""status":"ok""#),
            "{health}"
        );
        assert!(
            health.contains(r#""accounts":["main"],"in_flight":0"#),
            "{health}"
        );
        assert!(get("/health/live").await.contains("200 OK"));
        assert!(get("/health/ready").await.contains("200 OK"));
        engine.hands.drain();
        assert!(get("/health/ready").await.contains("503 "));
        assert!(get("/health/live").await.contains("200 OK"));
        assert!(get("/metrics").await.contains("404 "));
        stop.cancel();
        server.join_next().await.unwrap().unwrap();
    }
}
