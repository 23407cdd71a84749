//! Accounts at run time, seen from the edge.

use serde_json::json;
use sluice_shared::{api::Scope, clock, domain::Span, live::Presence};

use crate::http::testing::Api;

const NEW: &str = r#"{"id": "new", "provider": "openai", "api_key": "sk-hidden", "weight": 3}"#;

#[tokio::test]
async fn an_account_is_made_shown_changed_and_removed() {
    let api = Api::start().await;
    let made = api.ask("POST /api/accounts", NEW).await;
    assert_eq!(made.status, 201, "{made:?}");
    let shown = made.json();
    assert_eq!(shown["source"], "api");
    assert_eq!(
        shown["settings"],
        json!({"provider": "openai", "weight": 3})
    );
    assert_eq!(shown["secrets"], json!(["api_key"]));
    // This process knows it at once.
    let known = api.app.roster.accounts();
    assert!(known.iter().any(|account| account.id.as_str() == "new"));
    let roll = api.app.live.roll().await.unwrap().unwrap();
    let (id, entry) = roll.accounts.first_key_value().unwrap();
    let opened = entry
        .open(api.app.master_key.as_ref().unwrap(), id)
        .unwrap();
    assert_eq!(opened.weight, 3);

    let patch = r#"{"weight": null, "tags": ["fast"], "id": "new"}"#;
    let changed = api.ask("PATCH /api/accounts/new", patch).await.json();
    assert_eq!(
        (&changed["weight"], &changed["tags"]),
        (&json!(1), &json!(["fast"]))
    );
    let reader = api.mint("reader", Scope::Read).await;
    let seen = api.ask_as(&reader, "GET /api/accounts/new", "").await;
    assert!(seen.json().get("settings").is_none(), "not for readers");
    assert!(!format!("{made:?}{changed}{seen:?}").contains("sk-hidden"));

    assert_eq!(api.ask("DELETE /api/accounts/new", "").await.status, 204);
    let gone = api.ask("GET /api/accounts/new", "").await.problem();
    assert_eq!((gone.0, gone.1.as_str()), (404, "no_such_account"));
    assert!(
        api.app
            .live
            .roll()
            .await
            .unwrap()
            .unwrap()
            .accounts
            .is_empty()
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field() {
    let api = Api::start().await;
    api.ask("POST /api/accounts", NEW).await;
    for (line, body, problem) in [
        ("POST /api/accounts", "[]", (422, "invalid_account", "body")),
        ("POST /api/accounts", "{", (400, "malformed_json", "")),
        (
            "POST /api/accounts",
            r#"{"id": 7}"#,
            (422, "invalid_account", "id"),
        ),
        (
            "POST /api/accounts",
            r#"{"id": "a", "provider": "x"}"#,
            (422, "invalid_account", "provider"),
        ),
        ("POST /api/accounts", NEW, (409, "account_exists", "")),
        (
            "POST /api/accounts",
            r#"{"id": "main", "provider": "simulated"}"#,
            (409, "account_exists", ""),
        ),
        (
            "PATCH /api/accounts/new",
            r#"{"id": "other"}"#,
            (422, "invalid_account", "id"),
        ),
        (
            "PATCH /api/accounts/new",
            r#"{"weight": 0}"#,
            (422, "invalid_account", "weight"),
        ),
        (
            "PATCH /api/accounts/new",
            r#"{"base_url": "http://evil"}"#,
            (422, "invalid_account", "base_url"),
        ),
        (
            "PATCH /api/accounts/new",
            r#"{"provider": "anthropic"}"#,
            (422, "invalid_account", "provider"),
        ),
        (
            "PATCH /api/accounts/main",
            r#"{"weight": 2}"#,
            (409, "account_configured", ""),
        ),
        (
            "PATCH /api/accounts/nobody",
            "{}",
            (404, "no_such_account", ""),
        ),
        (
            "DELETE /api/accounts/main",
            "",
            (409, "account_configured", ""),
        ),
        (
            "DELETE /api/accounts/nobody",
            "",
            (404, "no_such_account", ""),
        ),
        (
            "POST /api/accounts/nobody/drain",
            "",
            (404, "no_such_account", ""),
        ),
        (
            "POST /api/accounts/new/drain?wait=1y",
            "",
            (400, "bad_parameter", "wait"),
        ),
        (
            "POST /api/accounts/nobody/test",
            "",
            (404, "no_such_account", ""),
        ),
        ("POST /api/accounts/new/test", "", (409, "no_worker", "")),
    ] {
        let (status, code, field) = api.ask(line, body).await.problem();
        assert_eq!(
            (status, code.as_str(), field.as_str()),
            problem,
            "{line} {body}"
        );
    }
}

#[tokio::test]
async fn only_an_admin_makes_accounts() {
    let api = Api::start().await;
    let operator = api.mint("operator", Scope::Operate).await;
    for line in [
        "POST /api/accounts",
        "PATCH /api/accounts/main",
        "DELETE /api/accounts/main",
    ] {
        let body = if line.starts_with("DELETE") { "" } else { "{}" };
        let refused = api.ask_as(&operator, line, body).await.problem();
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (403, "forbidden"),
            "{line}"
        );
    }
    let drained = api
        .ask_as(&operator, "POST /api/accounts/main/drain", "")
        .await;
    assert_eq!(drained.json()["standing"], "draining");
}

#[tokio::test]
async fn a_worker_is_shown_with_what_troubles_it() {
    let api = Api::start().await;
    let presence = Presence {
        worker: "w".into(),
        host: "h".into(),
        pid: 7,
        version: "0".into(),
        since: clock::now(),
        beat_at: clock::now(),
        accounts: vec!["spare".parse().unwrap()],
        serves_all: true,
        troubles: [("main".parse().unwrap(), "no key".to_owned())].into(),
        in_flight: vec![],
    };
    api.app
        .live
        .beat(&presence, Span::seconds(60))
        .await
        .unwrap();
    api.app.workers.refresh(&api.app.live).await.unwrap();
    let list = api.ask("GET /api/workers", "").await.json();
    assert_eq!(list["current"], true);
    let worker = &list["workers"][0];
    assert_eq!((&worker["id"], &worker["pid"]), (&json!("w"), &json!(7)));
    assert_eq!(worker["troubles"], json!({"main": "no key"}));
    let account = api.ask("GET /api/accounts/main", "").await.json();
    assert_eq!(
        account["troubles"],
        json!([{"worker": "w", "problem": "no key"}])
    );
    let refused = api.ask("POST /api/accounts/main/test", "").await;
    assert!(refused.text.contains("no key"), "{refused:?}");
}
