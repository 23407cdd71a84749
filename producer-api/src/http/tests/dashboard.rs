//! Sign-ins, the overview, workers and the dashboard's files.

use axum::{body::Body, http::Request};
use sluice_shared::{api::Scope, domain::JobId};

use crate::{
    auth,
    http::testing::{Answer, Api},
};

async fn sign_in(api: &Api, body: &str) -> Answer {
    let request = Request::post("/api/session")
        .header("content-type", "application/json")
        .header("sluice-dashboard", "1")
        .body(Body::from(body.to_owned()))
        .unwrap();
    api.send(request).await
}

/// Sends `METHOD /path` with a cookie, and with the dashboard's header if `ours`.
async fn with_cookie(api: &Api, cookie: &str, line: &str, ours: bool) -> Answer {
    let (method, path) = line.split_once(' ').unwrap();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("cookie", format!("other=1; {cookie}"));
    if ours {
        request = request.header("sluice-dashboard", "1");
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

fn cookie(answer: &Answer) -> String {
    let set = answer.header("set-cookie");
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
        assert!(set.contains(part), "{set}");
    }
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_key_signs_in_and_its_cookie_stands_for_it() {
    let api = Api::start().await;
    let key = api.mint("ops", Scope::Operate).await;
    let signed = sign_in(&api, &format!("{{\"key\": \"{key}\"}}")).await;
    assert_eq!(signed.status, 201, "{signed:?}");
    assert_eq!(signed.json()["client"], "ops");
    let cookie = cookie(&signed);
    assert!(!cookie.contains(&key), "the cookie is not the key");

    let who = with_cookie(&api, &cookie, "GET /api/session", false).await;
    assert_eq!(who.json()["scope"], "operate");
    let keys = with_cookie(&api, &cookie, "GET /api/keys", true).await;
    assert_eq!(keys.problem().1, "forbidden");

    let out = with_cookie(&api, &cookie, "DELETE /api/session", true).await;
    assert_eq!(out.status, 204);
    let who = with_cookie(&api, &cookie, "GET /api/session", false).await;
    assert_eq!(who.problem().1, "unauthorized");
}

#[tokio::test]
async fn a_revoked_key_ends_its_sessions() {
    let api = Api::start().await;
    let key = api.mint("gone", Scope::Read).await;
    let cookie = cookie(&sign_in(&api, &format!("{{\"key\": \"{key}\"}}")).await);
    let who = with_cookie(&api, &cookie, "GET /api/session", false).await;
    let line = format!("DELETE /api/keys/{}", who.json()["key"].as_str().unwrap());
    assert_eq!(api.ask(&line, "").await.status, 204);
    let who = with_cookie(&api, &cookie, "GET /api/session", false).await;
    assert_eq!(who.status, 401);
}

#[tokio::test]
async fn a_page_of_another_site_can_change_nothing() {
    let api = Api::start().await;
    let cookie = cookie(&sign_in(&api, &format!("{{\"key\": \"{}\"}}", api.key)).await);
    for line in ["POST /api/accounts/main/pause", "DELETE /api/session"] {
        let answer = with_cookie(&api, &cookie, line, false).await;
        assert_eq!(answer.problem().1, "cross_site", "{line}");
    }
    let paused = with_cookie(&api, &cookie, "POST /api/accounts/main/pause", true).await;
    assert_eq!(paused.status, 200);
    // A sign-in by another site would make someone work as somebody else.
    let request = Request::post("/api/session")
        .header("content-type", "application/json")
        .body(Body::from(format!("{{\"key\": \"{}\"}}", api.key)))
        .unwrap();
    assert_eq!(api.send(request).await.problem().1, "cross_site");
}

#[tokio::test]
async fn what_signs_nobody_in_is_refused_and_then_has_to_wait() {
    let api = Api::start().await;
    for body in ["{}", "{\"key\": \"a\", \"link\": \"b\"}", "{\"name\": 1}"] {
        assert_eq!(sign_in(&api, body).await.problem().1, "invalid_session");
    }
    for _ in 0..10 {
        let refused = sign_in(&api, "{\"key\": \"sluice_guess\"}").await;
        assert_eq!(refused.problem().1, "unauthorized");
    }
    let limited = sign_in(&api, &format!("{{\"key\": \"{}\"}}", api.key)).await;
    assert_eq!(limited.problem().1, "too_many_sign_ins");
    assert!(limited.header("retry-after").parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn a_link_signs_in_once() {
    let api = Api::start().await;
    let home = tempfile::tempdir().unwrap();
    let none = auth::sign_in_link(&api.app.store, home.path()).await;
    assert_eq!(none.unwrap(), None, "there is no admin key in the folder");
    std::fs::write(home.path().join("admin.key"), format!("{}\n", api.key)).unwrap();
    let link = auth::sign_in_link(&api.app.store, home.path()).await;
    let body = format!("{{\"link\": \"{}\"}}", link.unwrap().unwrap());
    let first = sign_in(&api, &body).await;
    assert_eq!(
        (first.status.as_u16(), &first.json()["scope"]),
        (201, &"admin".into())
    );
    assert_eq!(sign_in(&api, &body).await.problem().1, "unauthorized");
    // A link is no session, and a session is no link.
    let token = cookie(&first).split_once('=').unwrap().1.to_owned();
    let again = sign_in(&api, &format!("{{\"link\": \"{token}\"}}")).await;
    assert_eq!(again.status, 401);
}

#[tokio::test]
async fn the_overview_says_what_waits_and_why() {
    let api = Api::start().await;
    for _ in 0..3 {
        api.submit("{\"prompt\": \"a\", \"model\": \"m3\"}").await;
    }
    api.submit("{\"prompt\": \"a\", \"delay\": \"1h\"}").await;
    let overview = api.ask("GET /api/overview", "").await.json();
    assert_eq!(overview["jobs"]["queued"], 3);
    assert_eq!(overview["jobs"]["scheduled"], 1);
    let lane = &overview["backlog"][0];
    assert_eq!(
        (&lane["jobs"], &lane["waits_for"]),
        (&3.into(), &"worker".into())
    );
    assert_eq!(lane["accounts"], serde_json::json!(["spare"]));
    assert_eq!(overview["pulse"]["points"][0]["accepted"], 4);
    let workers = api.ask("GET /api/workers", "").await.json();
    assert_eq!(workers["workers"], serde_json::json!([]));
}

#[tokio::test]
async fn the_dashboard_does_not_swallow_what_is_not_its_own() {
    let api = Api::start().await;
    for path in [
        "/api/nothing",
        "/api",
        "/health/x",
        "/metrics/x",
        "/assets/x.js",
        "/x.png",
    ] {
        let answer = api.ask(&format!("GET {path}"), "").await;
        assert_eq!(answer.problem().1, "no_such_route", "{path}");
    }
    let answer = api.ask("POST /jobs", "").await;
    assert_eq!(answer.problem().1, "no_such_route");
    let job = format!("/jobs/{}", JobId::generate());
    let answer = api.ask(&format!("GET {job}"), "").await;
    assert_eq!(answer.problem().1, "no_such_route", "for a program");
    let browser = Request::get(&job).header("accept", "text/html,*/*;q=0.8");
    let page = api.send(browser.body(Body::empty()).unwrap()).await;
    if crate::http::has_dashboard() {
        assert_eq!(page.status, 200);
        let policy = page.header("content-security-policy");
        let nonce = policy
            .split("'nonce-")
            .nth(1)
            .unwrap()
            .split('\'')
            .next()
            .unwrap();
        assert!(page.text.contains(nonce) && !page.text.contains("__CSP_NONCE__"));
        assert!(!policy.contains("unsafe"), "{policy}");
        let script = page
            .text
            .split("src=\"/assets/")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let file = api.ask(&format!("GET /assets/{script}"), "").await;
        assert!(
            file.header("cache-control").contains("immutable"),
            "{script}"
        );
        assert!(file.header("content-type").contains("javascript"));
    } else {
        assert_eq!(page.problem().1, "no_such_route");
    }
}
