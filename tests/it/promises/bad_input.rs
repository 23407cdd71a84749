//! Whatever comes over the wire, the answer is a problem document with a stable code, nothing is
//! lost, and the server lives.

use std::{net::SocketAddr, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use sluice_shared::domain::State;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Client, Cluster, Mode, on_every_mode, prompt, rest};

on_every_mode!(
    a_body_that_is_no_job_is_refused,
    an_option_that_cannot_be_is_refused_by_name,
    a_prompt_over_the_limit_is_refused,
    a_header_that_cannot_be_is_refused,
    a_path_or_method_that_is_not_there_is_refused,
    a_client_that_is_slow_or_endless_is_cut_off,
    bytes_that_are_no_http_hurt_nobody,
);

/// Short times and small limits, so that the tests need not wait and send for long.
const STRICT: &str = r#"
[api]
request_timeout = "2s"
max_body_bytes = 3000000
[accounts.one]
provider = "simulated"
"#;

/// Nothing came in, and it still works.
async fn is_unharmed(cluster: &Cluster) {
    for api in cluster.apis() {
        assert!(api.list("").await.jobs.is_empty());
    }
    assert_eq!(
        cluster.run(&prompt("still there")).await.state,
        State::Succeeded
    );
    for (name, log) in cluster.logs() {
        assert!(!log.contains("panicked"), "{name} panicked");
    }
}

async fn post(api: &Client, content_type: Option<&str>, body: impl Into<Vec<u8>>) -> (u16, String) {
    let mut request = api.request(Method::POST, "/api/jobs").body(body.into());
    if let Some(kind) = content_type {
        request = request.header("content-type", kind);
    }
    let problem = api.send(request).await.problem();
    (problem.status, problem.code)
}

async fn a_body_that_is_no_job_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let json = Some("application/json");
    let cases: [(Option<&str>, &[u8], u16, &str); 20] = [
        (json, b"", 400, "malformed_json"),
        (json, b"{", 400, "malformed_json"),
        (json, b"{\"prompt\": \"a\"", 400, "malformed_json"),
        (json, b"{\"prompt\": \"a\"} x", 400, "malformed_json"),
        (json, b"{\"prompt\": \"\xff\xfe\"}", 400, "malformed_json"),
        (json, b"{\"prompt\": \"\\ud800\"}", 400, "malformed_json"),
        (json, b"prompt=a", 400, "malformed_json"),
        (
            json,
            b"\xef\xbb\xbf{\"prompt\": \"a\"}",
            400,
            "malformed_json",
        ),
        (json, b"null", 422, "invalid_job"),
        (json, b"7", 422, "invalid_job"),
        (json, b"\"a prompt\"", 422, "invalid_job"),
        (json, b"[null]", 422, "invalid_job"),
        (json, b"[[]]", 422, "invalid_job"),
        (json, b"[[\"a prompt\"]]", 422, "invalid_job"),
        (json, b"{\"prompt\": 7}", 422, "invalid_job"),
        (
            json,
            b"{\"prompt\": \"a\", \"colour\": \"red\"}",
            422,
            "invalid_job",
        ),
        (
            json,
            b"{\"prompt\": \"a\", \"prompt\": \"b\"}",
            422,
            "invalid_job",
        ),
        (
            Some("text/plain"),
            b"{\"prompt\": \"a\"}",
            415,
            "unsupported_media_type",
        ),
        (
            Some("application/x-www-form-urlencoded"),
            b"prompt=a",
            415,
            "unsupported_media_type",
        ),
        (None, b"{\"prompt\": \"a\"}", 415, "unsupported_media_type"),
    ];
    for (kind, body, status, code) in cases {
        let told = post(cluster.api(), kind, body).await;
        let text = String::from_utf8_lossy(body);
        assert_eq!(told, (status, code.to_owned()), "{kind:?} {text}");
    }
    let deep = "{\"params\":{\"a\":".to_owned() + &"[".repeat(100_000);
    let told = post(cluster.api(), json, deep).await;
    assert_eq!(told, (400, "malformed_json".to_owned()));
    is_unharmed(&cluster).await;
}

async fn an_option_that_cannot_be_is_refused_by_name(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let long = "x".repeat(300);
    let notes: serde_json::Map<String, Value> = (0..33)
        .map(|number| (format!("k{number}"), json!("v")))
        .collect();
    let cases = [
        (json!({}), "prompt"),
        (json!({ "prompt": "" }), "prompt"),
        (json!({ "prompt": " \n\t " }), "prompt"),
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": "nul \u{0} inside" }), "prompt"),
        (
            json!({ "prompt": "a", "messages": [{ "role": "user", "content": "b" }] }),
            "messages",
        ),
        (json!({ "messages": [] }), "messages"),
        (
            json!({ "messages": [{ "role": "user", "content": "" }] }),
            "messages[0].content",
        ),
        (
            json!({ "messages": [{ "role": "robot", "content": "a" }] }),
            "messages[0].role",
        ),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0]"),
        (
            json!({ "messages": [{ "role": "system", "content": "a" }] }),
            "messages",
        ),
        (json!({ "prompt": "a", "system": "\u{0}" }), "system"),
        (json!({ "prompt": "a", "priority": 101 }), "priority"),
        (json!({ "prompt": "a", "priority": -101 }), "priority"),
        (
            json!({ "prompt": "a", "priority": 99999999999_i64 }),
            "priority",
        ),
        (json!({ "prompt": "a", "priority": 1.5 }), "priority"),
        (json!({ "prompt": "a", "priority": "high" }), "priority"),
        (json!({ "prompt": "a", "delay": "soon" }), "delay"),
        (json!({ "prompt": "a", "delay": "-5s" }), "delay"),
        (json!({ "prompt": "a", "delay": "1000000 years" }), "delay"),
        (json!({ "prompt": "a", "delay": 5 }), "delay"),
        (json!({ "prompt": "a", "run_at": "tomorrow" }), "run_at"),
        (
            json!({ "prompt": "a", "run_at": "2026-13-01T00:00:00Z" }),
            "run_at",
        ),
        (
            json!({ "prompt": "a", "run_at": "2030-01-01T00:00:00Z", "delay": "1s" }),
            "delay",
        ),
        (
            json!({ "prompt": "a", "expires_at": "2020-01-01T00:00:00Z" }),
            "expires_at",
        ),
        (
            json!({ "prompt": "a", "delay": "2h",
                    "expires_at": sluice_shared::clock::now() + Duration::from_secs(60) }),
            "expires_at",
        ),
        (json!({ "prompt": "a", "timeout": "0s" }), "timeout"),
        (json!({ "prompt": "a", "timeout": "25h" }), "timeout"),
        (json!({ "prompt": "a", "max_attempts": 0 }), "max_attempts"),
        (
            json!({ "prompt": "a", "max_attempts": 101 }),
            "max_attempts",
        ),
        (json!({ "prompt": "a", "max_attempts": -1 }), "max_attempts"),
        (
            json!({ "prompt": "a", "delivery": "exactly_once" }),
            "delivery",
        ),
        (json!({ "prompt": "a", "session": "" }), "session"),
        (json!({ "prompt": "a", "session": long }), "session"),
        (json!({ "prompt": "a", "session": "\u{0}" }), "session"),
        (
            json!({ "prompt": "a", "account": "No Such Name" }),
            "account",
        ),
        (json!({ "prompt": "a", "tags": "fast" }), "tags"),
        (json!({ "prompt": "a", "tags": [7] }), "tags[0]"),
        (json!({ "prompt": "a", "model": "" }), "model"),
        (json!({ "prompt": "a", "model": "m\u{0}" }), "model"),
        (json!({ "prompt": "a", "model": long }), "model"),
        (json!({ "prompt": "a", "params": [1] }), "params"),
        (
            json!({ "prompt": "a", "params": { "a": "\u{0}" } }),
            "params",
        ),
        (json!({ "prompt": "a", "metadata": { "a": 1 } }), "metadata"),
        (json!({ "prompt": "a", "metadata": notes }), "metadata"),
        (
            json!({ "prompt": "a", "metadata": { "a": "\u{0}" } }),
            "metadata",
        ),
        (
            json!({ "prompt": "a", "metadata": { "\u{0}": "a" } }),
            "metadata",
        ),
    ];
    for (job, field) in cases {
        let problem = cluster.api().post("/api/jobs", &job).await.problem();
        let code = if job.to_string().contains("\\u0000") {
            "invalid_character"
        } else {
            "invalid_job"
        };
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (422, code),
            "{job}"
        );
        assert!(!problem.errors.is_empty(), "{job}: {problem:?}");
        for error in &problem.errors {
            assert!(error.field.starts_with(field), "{job}: {error:?}");
        }
        let array = json!([{ "prompt": "fine" }, job]);
        let problem = cluster.api().post("/api/jobs", &array).await.problem();
        let named = format!("[1].{field}");
        assert!(
            problem.errors[0].field.starts_with(&named),
            "{array}: {problem:?}"
        );
    }
    is_unharmed(&cluster).await;
}

async fn a_prompt_over_the_limit_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let api = cluster.api();
    let too_long = prompt("x".repeat(1_048_577));
    api.post("/api/jobs", &too_long)
        .await
        .refused(413, "prompt_too_large");
    let half = json!({ "role": "user", "content": "x".repeat(600_000) });
    let two = json!({ "messages": [half, half] });
    api.post("/api/jobs", &two)
        .await
        .refused(413, "prompt_too_large");
    let too_much = vec![prompt("x".repeat(1_000_000)); 4];
    api.post("/api/jobs", &too_much)
        .await
        .refused(413, "body_too_large");
    is_unharmed(&cluster).await;
    let most = cluster.run(&prompt("x".repeat(1_048_576))).await;
    assert_eq!(most.result.map(|result| result.text.len()), Some(1_048_576));
}

async fn a_header_that_cannot_be_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let api = cluster.api();
    let long = format!("\"{}\"", "k".repeat(256));
    let cases: [&[(&str, &str)]; 8] = [
        &[("idempotency-key", "a"), ("idempotency-key", "b")],
        &[("idempotency-key", "a"), ("idempotency-key", "a")],
        &[("idempotency-key", "")],
        &[("idempotency-key", "\"\"")],
        &[("idempotency-key", "\"never closed")],
        &[("idempotency-key", "gr\u{fc}n")],
        &[("idempotency-key", &long)],
        &[("content-type", "application/json")],
    ];
    for headers in cases {
        let mut request = api.request(Method::POST, "/api/jobs").json(&prompt("x"));
        for (name, value) in headers {
            let value = reqwest::header::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request = request.header(*name, value);
        }
        // A second header of the same name is sent beside the first.
        let problem = api.send(request).await.problem();
        assert_eq!(problem.status, 400, "{headers:?}: {problem:?}");
    }
    let two_keys = api
        .request(Method::GET, "/api/jobs")
        .bearer_auth("sluice_other");
    let problem = api.send(two_keys).await.problem();
    assert!(matches!(problem.status, 400 | 401), "{problem:?}");
    let mut heavy = api.request(Method::GET, "/api/jobs");
    for number in 0..200 {
        heavy = heavy.header(format!("x-filler-{number}"), "x".repeat(1000));
    }
    let status = api.try_send(heavy).await.map(|answer| answer.status);
    assert!(
        status
            .as_ref()
            .is_ok_and(|status| (400..500).contains(status)),
        "{status:?}"
    );
    is_unharmed(&cluster).await;
}

async fn a_path_or_method_that_is_not_there_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let api = cluster.api();
    let cases = [
        (Method::GET, "/api", 404),
        (Method::GET, "/api/", 404),
        (Method::GET, "/api/nothing", 404),
        (Method::GET, "/api/jobs/1/2/3", 404),
        (Method::GET, "/nothing", 404),
        (Method::DELETE, "/api/jobs", 405),
        (Method::PUT, "/api/jobs", 405),
        (Method::GET, "/api/accounts/one/pause", 405),
        (Method::POST, "/health", 405),
    ];
    for (method, path, status) in cases {
        let answer = api.send(api.request(method.clone(), path)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        answer.problem();
    }
    is_unharmed(&cluster).await;
}

struct Raw(TcpStream);

impl Raw {
    async fn connect(api: &Client) -> Self {
        let address: SocketAddr = api.url.strip_prefix("http://").unwrap().parse().unwrap();
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Everything until the server closes the connection, which it must do in time.
    async fn rest(mut self) -> String {
        let mut bytes = Vec::new();
        let read = timeout(Duration::from_secs(20), self.0.read_to_end(&mut bytes)).await;
        assert!(
            read.is_ok(),
            "the connection is left open: {}",
            String::from_utf8_lossy(&bytes)
        );
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

async fn a_client_that_is_slow_or_endless_is_cut_off(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let api = cluster.api();
    let head = format!(
        "POST /api/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\n",
        api.key
    );

    // It promises more than it sends.
    let mut silent = Raw::connect(api).await;
    silent
        .write(format!("{head}content-length: 100\r\n\r\n{{\"prompt\"").as_bytes())
        .await;
    // It sends a byte now and then, for ever.
    let mut drip = Raw::connect(api).await;
    drip.write(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes())
        .await;
    // It does not even end its headers.
    let mut headless = Raw::connect(api).await;
    headless.write(head.as_bytes()).await;
    let dripping = async {
        while drip.write(b"1\r\n{\r\n").await {
            rest(Duration::from_millis(100)).await;
        }
        drip
    };
    let drip = timeout(Duration::from_secs(20), dripping)
        .await
        .expect("the drip is cut off");
    drop(drip);
    let answer = silent.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"),
        "{answer}"
    );
    let answer = headless.rest().await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );

    // It sends without end, as fast as it can.
    let mut flood = Raw::connect(api).await;
    flood
        .write(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes())
        .await;
    let chunk = format!("10000\r\n{}\r\n", "[".repeat(65_536));
    let mut sent = 0;
    while sent < 200_000_000 && flood.write(chunk.as_bytes()).await {
        sent += 65_536;
    }
    assert!(sent < 200_000_000, "the flood is cut off");
    is_unharmed(&cluster).await;
}

async fn bytes_that_are_no_http_hurt_nobody(mode: Mode) {
    let cluster = Cluster::start(mode, STRICT).await;
    let api = cluster.api();
    let mut noise = vec![0_u8; 4096];
    let mut seed = 7_u32;
    for byte in &mut noise {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = u8::try_from(seed >> 24).unwrap();
    }
    let cases: [&[u8]; 9] = [
        &noise,
        b"\0\0\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /api/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    for bytes in cases {
        let mut raw = Raw::connect(api).await;
        raw.write(bytes).await;
        let _ = raw.0.shutdown().await;
        let answer = raw.rest().await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{shown:?}: {answer}"
        );
    }
    // Connections that come and go, and many that say nothing.
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(Raw::connect(api).await);
    }
    is_unharmed(&cluster).await;
}
