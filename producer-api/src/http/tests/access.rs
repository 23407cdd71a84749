//! Who may do what.

use axum::{body::Body, http::Request};
use serde_json::json;
use sluice_shared::{api::Scope, domain::JobId};

use crate::http::testing::Api;

#[tokio::test]
async fn without_a_valid_key_there_is_nothing() {
    let api = Api::start().await;
    let good = format!("Bearer {}", api.key);
    for (authorization, status) in [
        (None, 401),
        (Some(""), 401),
        (Some("Bearer"), 401),
        (Some("Bearer "), 401),
        (Some("Basic YTpi"), 401),
        (Some("Bearer sluice_unknown"), 401),
        (Some(api.key.as_str()), 401),
        (Some(good.as_str()), 200),
        (Some(&good.replace("Bearer", "bearer")), 200),
    ] {
        let mut request = Request::get("/api/jobs");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, status, "{authorization:?}");
        if status == 401 {
            assert_eq!(answer.problem().1, "unauthorized");
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
        }
    }
}

#[tokio::test]
async fn each_scope_opens_what_it_should_and_no_more() {
    let api = Api::start().await;
    let id = JobId::generate();
    let body = "{\"prompt\": \"a\"}";
    let table = [
        ("GET /api/jobs".to_owned(), "", Scope::Read),
        (format!("GET /api/jobs/{id}"), "", Scope::Read),
        ("GET /api/accounts".into(), "", Scope::Read),
        ("GET /api/workers".into(), "", Scope::Read),
        ("GET /api/overview".into(), "", Scope::Read),
        ("GET /api/session".into(), "", Scope::Read),
        ("GET /api/accounts/main".into(), "", Scope::Read),
        ("POST /api/jobs".into(), body, Scope::Submit),
        (format!("POST /api/jobs/{id}/cancel"), "", Scope::Submit),
        (format!("POST /api/jobs/{id}/retry"), "", Scope::Submit),
        ("POST /api/accounts/main/pause".into(), "", Scope::Operate),
        ("POST /api/accounts/main/resume".into(), "", Scope::Operate),
        ("GET /api/keys".into(), "", Scope::Admin),
        (
            "POST /api/keys".into(),
            "{\"name\": \"x\", \"scopes\": [\"read\"]}",
            Scope::Admin,
        ),
        (
            format!("PATCH /api/keys/{id}"),
            "{\"weight\": 2}",
            Scope::Admin,
        ),
        (format!("DELETE /api/keys/{id}"), "", Scope::Admin),
    ];
    for scope in [Scope::Read, Scope::Submit, Scope::Operate, Scope::Admin] {
        let key = api.mint("k", scope).await;
        for (line, body, needed) in &table {
            let answer = api.ask_as(&key, line, body).await;
            let forbidden = answer.status == 403;
            assert_eq!(
                forbidden,
                scope < *needed,
                "{scope:?} {line}: {}",
                answer.text
            );
            if forbidden {
                assert_eq!(answer.problem().1, "forbidden");
                let needed = format!(
                    "`{}`",
                    serde_json::to_value(needed).unwrap().as_str().unwrap()
                );
                assert!(answer.text.contains(&needed), "{}", answer.text);
            }
        }
    }
}

#[tokio::test]
async fn a_client_changes_its_own_jobs_only() {
    let api = Api::start().await;
    let mine = api.mint("mine", Scope::Submit).await;
    let other = api.mint("other", Scope::Submit).await;
    let operator = api.mint("operator", Scope::Operate).await;
    let receipt = api
        .ask_as(&mine, "POST /api/jobs", "{\"prompt\": \"a\"}")
        .await
        .json();
    let url = receipt["url"].as_str().unwrap();
    assert_eq!(
        api.ask_as(&other, &format!("GET {url}"), "").await.json()["client"],
        "mine"
    );
    for action in ["cancel", "retry"] {
        let refused = api
            .ask_as(&other, &format!("POST {url}/{action}"), "")
            .await;
        assert_eq!(refused.problem(), (403, "forbidden".into(), String::new()));
    }
    assert_eq!(
        api.ask_as(&mine, &format!("POST {url}/cancel"), "")
            .await
            .status,
        200
    );
    let retried = api
        .ask_as(&operator, &format!("POST {url}/retry"), "")
        .await;
    assert_eq!(retried.status, 202);
    // It counts for the client whose job it is.
    let url = retried.header("location");
    assert_eq!(
        api.ask(&format!("GET {url}"), "").await.json()["client"],
        "mine"
    );
}

#[tokio::test]
async fn a_key_is_made_used_and_revoked() {
    let api = Api::start().await;
    let body = r#"{"name": "ci", "scopes": ["submit", "read", "submit"]}"#;
    let made = api.ask("POST /api/keys", body).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    let secret = made["key"].as_str().unwrap().to_owned();
    assert_eq!(made["scopes"], json!(["read", "submit"]));
    assert!(secret.starts_with(made["prefix"].as_str().unwrap()));
    assert_eq!(api.ask_as(&secret, "GET /api/jobs", "").await.status, 200);

    let listed = api.ask("GET /api/keys", "").await;
    assert!(!listed.text.contains(&secret));
    assert_eq!(listed.json()["keys"].as_array().unwrap().len(), 2);

    let line = format!("DELETE /api/keys/{}", made["id"].as_str().unwrap());
    let revoked = api.ask(&line, "").await;
    assert_eq!((revoked.status.as_u16(), revoked.text.as_str()), (204, ""));
    assert_eq!(
        api.ask_as(&secret, "GET /api/jobs", "").await.problem().1,
        "unauthorized"
    );
    assert_eq!(
        api.ask(&line, "").await.problem(),
        (404, "no_such_key".into(), String::new())
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_is_refused() {
    let api = Api::start().await;
    for (body, status, code, field) in [
        ("{}", 422, "invalid_key", "body"),
        (r#"{"name": "x"}"#, 422, "invalid_key", "body"),
        (
            r#"{"name": "x", "scopes": []}"#,
            422,
            "invalid_key",
            "scopes",
        ),
        (
            r#"{"name": "x", "scopes": ["root"]}"#,
            422,
            "invalid_key",
            "scopes[0]",
        ),
        (
            r#"{"name": "", "scopes": ["read"]}"#,
            422,
            "invalid_key",
            "name",
        ),
        (
            r#"{"name": " x", "scopes": ["read"]}"#,
            422,
            "invalid_key",
            "name",
        ),
        (
            r#"{"name": "a\u0000b", "scopes": ["read"]}"#,
            422,
            "invalid_key",
            "name",
        ),
        (
            r#"{"name": "a\nb", "scopes": ["read"]}"#,
            422,
            "invalid_key",
            "name",
        ),
        (
            r#"{"name": "x", "scopes": ["read"], "secret": "mine"}"#,
            422,
            "invalid_key",
            "secret",
        ),
        ("[", 400, "malformed_json", ""),
    ] {
        let answer = api.ask("POST /api/keys", body).await;
        assert_eq!(
            answer.problem(),
            (status, code.into(), field.into()),
            "{body}: {}",
            answer.text
        );
    }
    let long = format!(
        "{{\"name\": \"{}\", \"scopes\": [\"read\"]}}",
        "ü".repeat(65)
    );
    assert_eq!(api.ask("POST /api/keys", &long).await.problem().2, "name");
    assert_eq!(
        api.ask("GET /api/keys", "").await.json()["keys"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn the_last_admin_key_stays() {
    let api = Api::start().await;
    let first = api.ask("GET /api/keys", "").await.json()["keys"][0]["id"].clone();
    let line = format!("DELETE /api/keys/{}", first.as_str().unwrap());
    api.mint("helper", Scope::Operate).await;
    assert_eq!(
        api.ask(&line, "").await.problem(),
        (409, "last_admin_key".into(), String::new())
    );
    let second = api.mint("second", Scope::Admin).await;
    assert_eq!(api.ask_as(&second, &line, "").await.status, 204);
    assert_eq!(api.ask("GET /api/keys", "").await.status, 401);
}
