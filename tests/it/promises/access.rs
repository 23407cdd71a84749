//! API keys: who may do what.

use std::{fs, os::unix::fs::PermissionsExt};

use reqwest::Method;
use serde_json::{Value, json};
use sluice_shared::{
    api::{JobView, KeyList, Scope},
    domain::State,
};

use super::TWO_ACCOUNTS;
use crate::harness::{Client, Cluster, Mode, eventually, on_every_mode, prompt};

on_every_mode!(
    a_key_may_do_what_its_scope_says_and_no_more,
    a_client_may_end_its_own_jobs_and_no_others,
    without_a_valid_key_nothing_is_said,
    a_revoked_key_is_refused,
    a_secret_is_shown_once,
    the_first_key_is_for_its_owner_only,
);

async fn a_key_may_do_what_its_scope_says_and_no_more(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let done = cluster.run(&prompt("done")).await.id;
    let job = json!({ "prompt": "x" });
    let key = json!({ "name": "made", "scopes": ["read"] });
    let rows: [(Scope, Method, String, Value); 8] = [
        (Scope::Read, Method::GET, "/api/jobs".into(), Value::Null),
        (
            Scope::Read,
            Method::GET,
            format!("/api/jobs/{done}"),
            Value::Null,
        ),
        (
            Scope::Read,
            Method::GET,
            "/api/accounts".into(),
            Value::Null,
        ),
        (Scope::Submit, Method::POST, "/api/jobs".into(), job),
        (
            Scope::Operate,
            Method::POST,
            "/api/accounts/one/pause".into(),
            Value::Null,
        ),
        (
            Scope::Operate,
            Method::POST,
            "/api/accounts/one/resume".into(),
            Value::Null,
        ),
        (Scope::Admin, Method::GET, "/api/keys".into(), Value::Null),
        (Scope::Admin, Method::POST, "/api/keys".into(), key),
    ];
    for scope in [Scope::Read, Scope::Submit, Scope::Operate, Scope::Admin] {
        let (_, client) = cluster.api().new_key(&format!("{scope:?}"), &[scope]).await;
        for (needed, method, path, body) in &rows {
            let mut request = client.request(method.clone(), path);
            if !body.is_null() {
                request = request.json(body);
            }
            let answer = client.send(request).await;
            if scope >= *needed {
                assert!(
                    (200..300).contains(&answer.status),
                    "{scope:?} {path}: {answer:?}"
                );
            } else {
                answer.refused(403, "forbidden");
            }
        }
    }
}

async fn a_client_may_end_its_own_jobs_and_no_others(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"10m\"";
    let cluster = Cluster::start(mode, config).await;
    let (_, mine) = cluster.api().new_key("mine", &[Scope::Submit]).await;
    let (_, operator) = cluster.api().new_key("operator", &[Scope::Operate]).await;
    let own = mine.submit(&prompt("mine")).await.id;
    let others = cluster.submit(&prompt("not mine")).await;
    mine.cancel(others).await.refused(403, "forbidden");
    assert!(!cluster.job(others).await.cancel_requested);
    assert!((200..300).contains(&mine.cancel(own).await.status));
    assert_eq!(cluster.wait(own).await.state, State::Cancelled);
    assert!((200..300).contains(&operator.cancel(others).await.status));
    cluster.wait(others).await;
    mine.retry(others).await.refused(403, "forbidden");
    let again: sluice_shared::api::Receipt = mine.retry(own).await.is(202);
    let job: JobView = mine.cancel(again.id).await.is(202);
    assert_eq!(job.client, "mine");
    cluster.wait(again.id).await;
}

async fn without_a_valid_key_nothing_is_said(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let id = cluster.submit(&prompt("secret")).await;
    let api = &cluster.apis()[0];
    let other_scheme = |path: &str| {
        api.with_key("")
            .request(Method::GET, path)
            .header("authorization", "Basic YTpi")
    };
    for path in [
        "/api/jobs",
        &format!("/api/jobs/{id}"),
        "/api/accounts",
        "/api/keys",
    ] {
        for key in ["", "sluice_wrong", "wrong", &format!("{}x", api.key)] {
            let answer = api.with_key(key).get(path).await;
            answer.refused(401, "unauthorized");
            assert!(
                answer
                    .header("www-authenticate")
                    .is_some_and(|how| how.starts_with("Bearer"))
            );
        }
        api.send(other_scheme(path))
            .await
            .refused(401, "unauthorized");
    }
    api.with_key("")
        .post("/api/jobs", &prompt("x"))
        .await
        .refused(401, "unauthorized");
    assert_eq!(api.list("").await.jobs.len(), 1);
}

async fn a_revoked_key_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let (created, client) = cluster.apis()[0]
        .new_key("short-lived", &[Scope::Read])
        .await;
    let clients: Vec<Client> = cluster
        .apis()
        .iter()
        .map(|api| api.with_key(&client.key))
        .collect();
    for client in &clients {
        assert_eq!(client.get("/api/jobs").await.status, 200);
    }
    let api = &cluster.apis()[0];
    let path = format!("/api/keys/{}", created.view.id);
    let revoked = api.send(api.request(Method::DELETE, &path)).await;
    assert!((200..300).contains(&revoked.status), "{revoked:?}");
    clients[0]
        .get("/api/jobs")
        .await
        .refused(401, "unauthorized");
    for client in &clients {
        eventually("every API process has heard of it", async || {
            (client.get("/api/jobs").await.status == 401).then_some(())
        })
        .await;
    }
    let keys: KeyList = api.get("/api/keys").await.is(200);
    let row = keys
        .keys
        .iter()
        .find(|key| key.id == created.view.id)
        .unwrap();
    assert!(row.revoked_at.is_some());
}

async fn a_secret_is_shown_once(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let (created, _) = cluster.api().new_key("once", &[Scope::Read]).await;
    assert!(created.key.starts_with(&created.view.prefix) && created.key.len() > 40);
    let listed = cluster.api().get("/api/keys").await;
    assert!(listed.body.contains(&created.view.prefix) && !listed.body.contains(&created.key));
    let truth = cluster.truth().await;
    let stored = truth
        .column::<String>("SELECT prefix || hash || name FROM api_keys")
        .await;
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|row| !row.contains(&created.key)));
}

async fn the_first_key_is_for_its_owner_only(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let mode_of = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode_of(cluster.home().join("admin.key")), 0o600);
    assert_eq!(mode_of(cluster.home()), 0o700);
    if mode == Mode::Embedded {
        assert_eq!(mode_of(cluster.home().join("sluice.db")) & 0o077, 0);
    }
}
