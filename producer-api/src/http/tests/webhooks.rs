//! Webhooks: endpoints, a job's own, and what becomes of deliveries, with a real receiver.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use sluice_shared::{api::Scope, domain::Lane};
use standardwebhooks::Webhook;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    http::testing::{Answer, Api},
    webhooks,
};

/// Loopback, where receivers of tests are, and quick retries.
const SETTINGS: &str = r#"
    [webhooks]
    allow_networks = ["127.0.0.0/8"]
    timeout = "1s"
    schedule = ["10ms", "10ms", "10ms"]
"#;

/// How a receiver answers, one request after the other; then with 204.
#[derive(Clone, Debug)]
enum Reply {
    Status(u16),
    RetryAfter(u16, &'static str),
    Redirect(String),
    Silence,
}

#[derive(Clone, Debug, Default)]
struct Receiver {
    replies: Arc<Mutex<VecDeque<Reply>>>,
    got: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    url: String,
}

impl Receiver {
    async fn start(tasks: &mut JoinSet<()>, replies: &[Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            replies: Arc::new(Mutex::new(replies.iter().cloned().collect())),
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            ..Self::default()
        };
        let router = Router::new()
            .route("/hook", post(Self::take))
            .with_state(receiver.clone());
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    async fn take(State(receiver): State<Self>, headers: HeaderMap, body: Bytes) -> Response {
        let body = String::from_utf8(body.into()).unwrap();
        receiver.got().push((headers, body));
        let reply = receiver.replies().pop_front();
        match reply.unwrap_or(Reply::Status(204)) {
            Reply::Status(code) => {
                (StatusCode::from_u16(code).unwrap(), "so it is").into_response()
            }
            Reply::RetryAfter(code, wait) => (
                StatusCode::from_u16(code).unwrap(),
                [(header::RETRY_AFTER, wait)],
            )
                .into_response(),
            Reply::Redirect(to) => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
            }
            Reply::Silence => std::future::pending().await,
        }
    }

    fn got(&self) -> std::sync::MutexGuard<'_, Vec<(HeaderMap, String)>> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replies(&self) -> std::sync::MutexGuard<'_, VecDeque<Reply>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came, each with its headers, once there are so many.
    async fn wait_for(&self, many: usize) -> Vec<(HeaderMap, String)> {
        crate::http::testing::until(|| self.got().len() >= many).await;
        self.got().clone()
    }
}

struct Post {
    api: Api,
    tasks: JoinSet<()>,
}

impl Post {
    async fn start() -> Self {
        Self::with(SETTINGS).await
    }

    async fn with(settings: &str) -> Self {
        let api = Api::with(settings).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(webhooks::run(api.app.clone(), CancellationToken::new()));
        Self { api, tasks }
    }

    async fn receiver(&mut self, replies: &[Reply]) -> Receiver {
        Receiver::start(&mut self.tasks, replies).await
    }

    /// Registers an endpoint; its id and its secret.
    async fn register(&self, body: Value) -> (String, String) {
        let made = self.api.ask("POST /api/webhooks", &body.to_string()).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        let text = |name: &str| made.json()[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    /// Runs a job to its success; its id.
    async fn run_job(&self, body: &Value) -> String {
        let job = self.api.submit(&body.to_string()).await;
        for dispatch in self.api.dispatch(&Lane::default()).await {
            self.api.succeed(&dispatch).await;
        }
        job.to_string()
    }

    /// The deliveries of a list, once they are all as `is_so` says.
    async fn deliveries(&self, query: &str, is_so: impl Fn(&Value) -> bool) -> Vec<Value> {
        for _ in 0..1000 {
            let page = self.get(&format!("/api/deliveries?{query}")).await;
            let found = page["deliveries"].as_array().unwrap().clone();
            if !found.is_empty() && found.iter().all(&is_so) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the deliveries {query} did not come to be so");
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.api.ask(&format!("GET {path}"), "").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }

    async fn ask(&self, line: &str, body: Value) -> Answer {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.api.ask(line, &body).await
    }
}

fn is_signed(secret: &str, (headers, body): &(HeaderMap, String)) -> bool {
    let webhook = Webhook::new(secret).unwrap();
    webhook.verify(body.as_bytes(), headers).is_ok()
}

fn has(state: &'static str) -> impl Fn(&Value) -> bool {
    move |delivery| delivery["state"] == state
}

#[tokio::test]
async fn an_endpoint_gets_what_it_asked_for_signed() {
    let mut post = Post::start().await;
    let receiver = post.receiver(&[]).await;
    let (id, secret) = post
        .register(json!({ "url": receiver.url, "events": ["job.succeeded"] }))
        .await;
    let cancelled = post.api.submit(r#"{"prompt":"never"}"#).await;
    post.ask(&format!("POST /api/jobs/{cancelled}/cancel"), Value::Null)
        .await;
    let job = post.run_job(&json!({ "prompt": "hello" })).await;
    let got = receiver.wait_for(1).await;
    assert!(is_signed(&secret, &got[0]));
    assert!(!is_signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        &got[0]
    ));
    let body: Value = serde_json::from_str(&got[0].1).unwrap();
    assert_eq!(body["type"], "job.succeeded");
    assert_eq!(body["data"]["id"], job);
    assert_eq!(body["data"]["result"]["text"], "done");
    assert_eq!(body["data"]["url"], format!("/api/jobs/{job}"));
    assert_eq!(body["data"]["request"], Value::Null);
    let found = post
        .deliveries(&format!("webhook={id}"), has("delivered"))
        .await;
    assert_eq!(found.len(), 1, "nobody asked for cancelled jobs");
    assert_eq!(got[0].0["webhook-id"], found[0]["event"].as_str().unwrap());
    let detail = post
        .get(&format!(
            "/api/deliveries/{}",
            found[0]["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(detail["request"], body);
    assert_eq!(detail["attempts"][0]["status"], 204);
    assert!(!detail.to_string().contains("whsec_"));
    assert!(
        !post
            .get("/api/webhooks")
            .await
            .to_string()
            .contains("whsec_")
    );
}

#[tokio::test]
async fn a_job_has_a_webhook_of_its_own() {
    let mut post = Post::start().await;
    let receiver = post.receiver(&[]).await;
    let made = post.ask("POST /api/webhook-secret", json!({})).await.json();
    let first = made["secret"].as_str().unwrap().to_owned();
    assert_eq!(made["previous_secret_until"], Value::Null);
    let hook = json!({ "url": receiver.url, "events": ["job.succeeded", "job.cancelled"] });
    let job = post
        .run_job(&json!({ "prompt": "hello", "webhook": hook }))
        .await;
    let got = receiver.wait_for(1).await;
    assert!(is_signed(&first, &got[0]));
    let shown = post.get(&format!("/api/jobs/{job}")).await;
    assert_eq!(shown["webhook"], hook);
    // A retry asks the same, its webhook included; and two secrets are good for a while.
    let second = post.ask("POST /api/webhook-secret", json!({})).await.json();
    assert!(second["previous_secret_until"].is_string());
    let second = second["secret"].as_str().unwrap().to_owned();
    let again = post
        .ask(&format!("POST /api/jobs/{job}/retry"), Value::Null)
        .await;
    let again = again.json()["id"].as_str().unwrap().to_owned();
    post.ask(&format!("POST /api/jobs/{again}/cancel"), Value::Null)
        .await;
    let got = receiver.wait_for(2).await;
    assert!(is_signed(&first, &got[1]) && is_signed(&second, &got[1]));
    let body: Value = serde_json::from_str(&got[1].1).unwrap();
    assert_eq!(body["type"], "job.cancelled");
    assert_eq!(body["data"]["error"]["code"], "cancelled");
    // Another client's secret is another one.
    let key = post.api.mint("other", Scope::Submit).await;
    let other = post
        .api
        .ask_as(&key, "POST /api/webhook-secret", "{}")
        .await
        .json();
    assert!(!is_signed(other["secret"].as_str().unwrap(), &got[1]));
}

#[tokio::test]
async fn a_failed_try_is_made_again_until_the_schedule_ends() {
    let mut post = Post::start().await;
    let some = [Reply::Status(500), Reply::Silence, Reply::Status(200)];
    let receiver = post.receiver(&some).await;
    let job = post
        .run_job(&json!({ "prompt": "a", "webhook": { "url": receiver.url } }))
        .await;
    let found = post
        .deliveries(&format!("job={job}"), has("delivered"))
        .await;
    assert_eq!(found[0]["tries"], 3);
    let got = receiver.got().clone();
    let ids: Vec<_> = got
        .iter()
        .map(|(headers, _)| &headers["webhook-id"])
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let path = format!("/api/deliveries/{}", found[0]["id"].as_str().unwrap());
    let tries = post.get(&path).await["attempts"].clone();
    assert_eq!(tries[0]["status"], 500);
    assert_eq!(tries[0]["response"], "so it is");
    assert_eq!(tries[1]["error"], "it took longer than 1s");
    assert_eq!(tries[2]["error"], Value::Null);

    let never = post.receiver(&[const { Reply::Status(500) }; 9]).await;
    let job = post
        .run_job(&json!({ "prompt": "b", "webhook": { "url": never.url } }))
        .await;
    let found = post.deliveries(&format!("job={job}"), has("failed")).await;
    assert_eq!(found[0]["tries"], 4);
    // And once more by hand, from the beginning of the schedule.
    never.replies().clear();
    let path = format!("/api/deliveries/{}", found[0]["id"].as_str().unwrap());
    let replayed = post.ask(&format!("POST {path}/replay"), Value::Null).await;
    assert_eq!(replayed.status, StatusCode::ACCEPTED, "{replayed:?}");
    let found = post
        .deliveries(&format!("job={job}"), has("delivered"))
        .await;
    assert_eq!(found[0]["tries"], 5);
    assert_eq!(
        post.get(&path).await["attempts"].as_array().unwrap().len(),
        5
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut post = Post::start().await;
    let other = post.receiver(&[]).await;
    let receiver = post
        .receiver(&vec![Reply::Redirect(other.url.clone()); 4])
        .await;
    let job = post
        .run_job(&json!({ "prompt": "a", "webhook": { "url": receiver.url } }))
        .await;
    post.deliveries(&format!("job={job}"), has("failed")).await;
    assert_eq!(receiver.got().len(), 4);
    assert!(other.got().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_and_the_others_hear_of_it() {
    let mut post = Post::start().await;
    let gone = post.receiver(&[Reply::Status(410)]).await;
    let watcher = post.receiver(&[]).await;
    let (id, _) = post.register(json!({ "url": gone.url })).await;
    let watches = json!({ "url": watcher.url, "events": ["webhook.disabled"] });
    post.register(watches).await;
    let job = post.run_job(&json!({ "prompt": "a" })).await;
    let news: Value = serde_json::from_str(&watcher.wait_for(1).await[0].1).unwrap();
    assert_eq!(news["data"]["webhook"], id);
    let path = format!("/api/webhooks/{id}");
    let shown = post.get(&path).await;
    assert_eq!(shown["enabled"], false);
    assert!(shown["disabled_reason"].as_str().unwrap().contains("410"));
    // What happens meanwhile is held, and sent when it is asked for.
    post.deliveries(&format!("job={job}"), has("failed")).await;
    let later = post.run_job(&json!({ "prompt": "b" })).await;
    post.deliveries(&format!("job={later}"), has("held")).await;
    let since = json!({ "since": "2026-01-01T00:00:00Z" });
    let refused = post
        .ask(&format!("POST {path}/replay"), since.clone())
        .await;
    assert_eq!(refused.problem().1, "webhook_disabled");
    let refused = post.ask(&format!("POST {path}/test"), Value::Null).await;
    assert_eq!(refused.problem().1, "webhook_disabled");
    post.ask(&format!("PATCH {path}"), json!({ "enabled": true }))
        .await;
    let replayed = post.ask(&format!("POST {path}/replay"), since).await;
    assert_eq!(replayed.json()["replayed"], 2, "{replayed:?}");
    post.deliveries(&format!("webhook={id}"), has("delivered"))
        .await;
    assert_eq!(gone.got().len(), 3);
}

#[tokio::test]
async fn an_endpoint_that_fails_for_long_is_disabled() {
    let settings = format!("{SETTINGS}\ndisable_after = \"40ms\"");
    let mut post = Post::with(&settings).await;
    let receiver = post.receiver(&[const { Reply::Status(500) }; 99]).await;
    let (id, _) = post.register(json!({ "url": receiver.url })).await;
    let path = format!("/api/webhooks/{id}");
    for _ in 0..1000 {
        post.run_job(&json!({ "prompt": "a" })).await;
        let shown = post.get(&path).await;
        if shown["enabled"] == false {
            assert!(shown["disabled_reason"].as_str().unwrap().contains("40ms"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it was never disabled");
}

#[tokio::test]
async fn an_endpoint_is_left_alone_for_as_long_as_it_asks() {
    let mut post = Post::start().await;
    let receiver = post.receiver(&[Reply::RetryAfter(503, "3600")]).await;
    let job = post
        .run_job(&json!({ "prompt": "a", "webhook": { "url": receiver.url } }))
        .await;
    let tried = |delivery: &Value| delivery["tries"] == 1;
    let found = post.deliveries(&format!("job={job}"), tried).await;
    assert_eq!(found[0]["state"], "pending");
    let next = found[0]["next_try_at"].as_str().unwrap();
    let next: sluice_shared::domain::Time = next.parse().unwrap();
    let wait = next.since(sluice_shared::clock::now()).as_secs();
    assert!((3500..4000).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_secret_is_replaced_and_a_test_is_sent() {
    let mut post = Post::start().await;
    let receiver = post.receiver(&[]).await;
    let (id, first) = post.register(json!({ "url": receiver.url })).await;
    let path = format!("/api/webhooks/{id}");
    let rotated = post.ask(&format!("POST {path}/rotate"), json!({})).await;
    let second = rotated.json()["secret"].as_str().unwrap().to_owned();
    assert!(post.get(&path).await["previous_secret_until"].is_string());
    let sent = post.ask(&format!("POST {path}/test"), Value::Null).await;
    assert_eq!(sent.status, StatusCode::ACCEPTED, "{sent:?}");
    let got = receiver.wait_for(1).await;
    assert!(is_signed(&first, &got[0]) && is_signed(&second, &got[0]));
    assert!(got[0].1.contains("webhook.test"));
    let at_once = json!({ "keep_previous": "0s" });
    let rotated = post.ask(&format!("POST {path}/rotate"), at_once).await;
    let third = rotated.json()["secret"].as_str().unwrap().to_owned();
    post.ask(&format!("POST {path}/test"), Value::Null).await;
    let got = receiver.wait_for(2).await;
    assert!(is_signed(&third, &got[1]) && !is_signed(&second, &got[1]));
    let removed = post.ask(&format!("DELETE {path}"), Value::Null).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    let gone = post.ask(&format!("GET {path}"), Value::Null).await;
    assert_eq!(gone.problem().1, "no_such_webhook");
}

#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_allowed() {
    let post = Post::with("").await;
    for url in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "https://user:secret@example.com/",
        "ftp://example.com/",
        "example.com",
    ] {
        let body = json!({ "url": url });
        let refused = post.ask("POST /api/webhooks", body).await;
        assert_eq!(
            refused.problem(),
            (422, "invalid_webhook".into(), "url".into()),
            "{url}"
        );
        let job = json!({ "prompt": "a", "webhook": { "url": url } });
        let refused = post.ask("POST /api/jobs", job).await;
        assert_eq!(
            refused.problem(),
            (422, "invalid_job".into(), "webhook.url".into()),
            "{url}"
        );
    }
    // A name is judged by what it leads to, when it is connected to.
    let job = post
        .run_job(&json!({ "prompt": "a", "webhook": { "url": "http://localhost:9/" } }))
        .await;
    let tried = |delivery: &Value| delivery["tries"] == 1;
    let found = post.deliveries(&format!("job={job}"), tried).await;
    let path = format!("/api/deliveries/{}", found[0]["id"].as_str().unwrap());
    let error = post.get(&path).await["attempts"][0]["error"].to_string();
    assert!(error.contains("is loopback"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let post = Post::start().await;
    for (line, body, code, field) in [
        ("POST /api/webhooks", json!({}), "invalid_webhook", "body"),
        (
            "POST /api/webhooks",
            json!({ "url": "https://example.com", "events": ["job.done"] }),
            "invalid_webhook",
            "events[0]",
        ),
        (
            "POST /api/webhooks",
            json!({ "url": "https://example.com", "description": "x".repeat(501) }),
            "invalid_webhook",
            "description",
        ),
        (
            "POST /api/webhooks",
            json!({ "url": "https://example.com", "client": "a\u{0}" }),
            "invalid_webhook",
            "client",
        ),
        (
            "POST /api/webhook-secret",
            json!({ "keep_previous": "31d" }),
            "invalid_webhook",
            "keep_previous",
        ),
        (
            "POST /api/jobs",
            json!({ "prompt": "a", "webhook": { "url": "https://example.com",
                "events": ["webhook.test"] } }),
            "invalid_job",
            "webhook.events",
        ),
        ("GET /api/webhooks/x", Value::Null, "bad_id", ""),
        (
            "GET /api/deliveries?state=lost",
            Value::Null,
            "bad_parameter",
            "state",
        ),
        (
            "GET /api/deliveries?type=job",
            Value::Null,
            "bad_parameter",
            "type",
        ),
        (
            "GET /api/deliveries?limit=501",
            Value::Null,
            "bad_parameter",
            "limit",
        ),
        (
            "GET /api/deliveries?cursor=AQ",
            Value::Null,
            "bad_cursor",
            "",
        ),
        (
            "GET /api/deliveries/01900000-0000-7000-8000-000000000000",
            Value::Null,
            "no_such_delivery",
            "",
        ),
    ] {
        let (_, found, at) = post.ask(line, body).await.problem();
        assert_eq!((found.as_str(), at.as_str()), (code, field), "{line}");
    }
    let reader = post.api.mint("reader", Scope::Read).await;
    let submitter = post.api.mint("submitter", Scope::Submit).await;
    let body = json!({ "url": "https://example.com" }).to_string();
    for (key, line, body) in [
        (&submitter, "POST /api/webhooks", body.as_str()),
        (&reader, "POST /api/webhook-secret", "{}"),
    ] {
        let refused = post.api.ask_as(key, line, body).await;
        assert_eq!(refused.problem().1, "forbidden", "{line}");
    }
}

#[tokio::test]
async fn deliveries_are_listed_page_by_page() {
    let mut post = Post::start().await;
    let receiver = post.receiver(&[]).await;
    let (id, _) = post.register(json!({ "url": receiver.url })).await;
    for prompt in 0..5 {
        post.run_job(&json!({ "prompt": prompt.to_string() })).await;
    }
    let all = post
        .deliveries(&format!("webhook={id}"), has("delivered"))
        .await;
    assert_eq!(all.len(), 5);
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = post
            .get(&format!("/api/deliveries?limit=2&state=delivered{cursor}"))
            .await;
        found.extend(page["deliveries"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, all);
    let none = post
        .get("/api/deliveries?type=job.failed,job.expired")
        .await;
    assert_eq!(none["deliveries"], json!([]));
    let none = post.get("/api/deliveries?to=2026-01-01T00:00:00Z").await;
    assert_eq!(none["deliveries"], json!([]));
}

#[tokio::test]
async fn a_slow_receiver_delays_no_other() {
    let settings = format!("{SETTINGS}\nmax_in_flight_per_target = 2");
    let mut post = Post::with(&settings).await;
    let slow = post.receiver(&[const { Reply::Silence }; 99]).await;
    let quick = post.receiver(&[]).await;
    post.register(json!({ "url": slow.url })).await;
    for prompt in 0..10 {
        post.run_job(&json!({ "prompt": prompt.to_string() })).await;
    }
    let hook = json!({ "url": quick.url });
    post.run_job(&json!({ "prompt": "a", "webhook": hook }))
        .await;
    quick.wait_for(1).await;
    assert_eq!(slow.got().len(), 2);
}
