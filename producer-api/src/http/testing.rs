//! An API to ask, on the embedded planes, with no worker: nothing happens but what a test does.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use secrecy::ExposeSecret;
use serde_json::Value;
use sluice_shared::{
    api::Scope,
    broker::Broker,
    clock,
    config::Config,
    domain::{Completion, JobId, Lane, Outcome},
    live::Live,
    message::{Dispatch, Reply, Report},
    seal::MasterKey,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Edge, router};
use crate::{
    app::{App, Assembled, Parts, assemble},
    auth::MintedKey,
    store::{Claim, LaneDemand, Store, Verdict},
};

/// Two accounts: `main` has models m1 and m2 and the tag fast, `spare` has m3 and slow.
const ACCOUNTS: &str = r#"
    [accounts.main]
    provider = "simulated"
    models = ["m1", "m2"]
    tags = ["fast", "eu"]
    [accounts.spare]
    provider = "simulated"
    models = ["m3"]
    tags = ["slow", "eu"]
"#;

pub(super) struct Api {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) shutdown: CancellationToken,
    /// An admin key, which [`Api::ask`] sends.
    pub(super) key: String,
    _folder: tempfile::TempDir,
    _groups: JoinSet<()>,
}

/// What the API answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The status and the problem's code and first field.
    pub(super) fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        assert_eq!(json["status"], self.status.as_u16(), "{self:?}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let code = text(&json["code"]);
        assert_eq!(json["type"], format!("/docs/problems#{code}"), "{self:?}");
        assert!(
            !text(&json["title"]).is_empty() && !text(&json["detail"]).is_empty(),
            "{self:?}"
        );
        (
            self.status.as_u16(),
            code,
            text(&json["errors"][0]["field"]),
        )
    }
}

impl Api {
    pub(super) async fn start() -> Self {
        Self::with("").await
    }

    /// With more configuration.
    pub(super) async fn with(settings: &str) -> Self {
        Self::of(&format!("{settings}\n{ACCOUNTS}")).await
    }

    /// With this configuration and no other.
    pub(super) async fn of(settings: &str) -> Self {
        Self::on(Broker::in_process(), Live::memory(), settings).await
    }

    /// With a broker and a live plane that are away.
    pub(super) async fn cut_off() -> Self {
        let settings = format!(
            "[rabbitmq]\nurl = \"amqp://guest:guest@127.0.0.1:1/%2f\"\n\
             [redis]\nurl = \"redis://127.0.0.1:1/\"\n{ACCOUNTS}"
        );
        let config = Config::from_toml(&settings).unwrap();
        let broker = Broker::connect(&config.rabbitmq, "test").await.unwrap();
        Self::on(broker, Live::connect(&config.redis).unwrap(), &settings).await
    }

    async fn on(broker: Broker, live: Live, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::sqlite(&folder.path().join("sluice.db"))
            .await
            .unwrap();
        let parts = Parts {
            config: Config::from_toml(settings).unwrap(),
            store,
            broker,
            live,
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            master_key: Some(MasterKey::generate()),
            trial: None,
        };
        let Assembled { app, groups, .. } = assemble(parts);
        app.take_accounts().await.unwrap();
        let mut tasks = JoinSet::new();
        let shutdown = CancellationToken::new();
        tasks.spawn(groups.run(app.clone(), CancellationToken::new()));
        let router = router(Arc::new(Edge::new(app.clone(), shutdown.clone())));
        let api = Self {
            app,
            router,
            shutdown,
            key: String::new(),
            _folder: folder,
            _groups: tasks,
        };
        let key = api.mint("admin", Scope::Admin).await;
        Self { key, ..api }
    }

    /// Makes a key.
    pub(super) async fn mint(&self, name: &str, scope: Scope) -> String {
        let minted = MintedKey::generate(name.into(), vec![scope], clock::now());
        self.app
            .store
            .insert_key(&minted.row, &minted.hash)
            .await
            .unwrap();
        minted.secret.expose_secret().to_owned()
    }

    /// Sends a request as it is.
    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(body.into()).unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        }
    }

    /// Sends `METHOD /path` with a key, and a body of JSON unless it is empty.
    pub(super) async fn ask_as(&self, key: &str, line: &str, body: &str) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap())
            .await
    }

    /// As [`Api::ask_as`], with the admin key.
    pub(super) async fn ask(&self, line: &str, body: &str) -> Answer {
        self.ask_as(&self.key, line, body).await
    }

    /// Submits a job, which must be accepted.
    pub(super) async fn submit(&self, body: &str) -> JobId {
        let answer = self.ask("POST /api/jobs", body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        answer.json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// Binds every waiting job of a lane to an account, as the dispatcher does.
    pub(super) async fn dispatch(&self, lane: &Lane) -> Vec<Dispatch> {
        let lanes = [LaneDemand {
            key: lane.key(),
            lane: lane.clone(),
        }];
        let claim = Claim {
            lanes: &lanes,
            accounts: &self.app.roster.accounts(),
            routing: &self.app.routes.routing(),
            speeds: &self.app.routes.speeds(),
            most: 100,
        };
        self.app
            .store
            .claim(&claim, self.app.routes.cursor(), clock::now())
            .await
            .unwrap()
            .dispatches
    }

    /// Ends an attempt with an answer, as the intake does.
    pub(super) async fn succeed(&self, dispatch: &Dispatch) {
        let answer = Completion {
            text: "done".into(),
            ..Completion::default()
        };
        self.answer(dispatch, answer).await;
    }

    /// Ends an attempt with this answer.
    pub(super) async fn answer(&self, dispatch: &Dispatch, answer: Completion) {
        let now = clock::now();
        let reply = Reply {
            learned: Box::default(),
            job: dispatch.job,
            attempt: dispatch.attempt,
            account: dispatch.account.clone(),
            worker: "w".into(),
            report: Report::Finished {
                started_at: Some(now),
                finished_at: now,
                outcome: Outcome::Completed(answer),
            },
        };
        assert!(self.app.settle(&[Verdict::Report(reply)]).await);
    }
}

/// Waits until something is so, which must be soon.
pub(super) async fn until(what: impl Fn() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come about");
}
