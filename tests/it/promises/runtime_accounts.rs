//! Accounts that are made, changed and removed while everything runs.

use std::{collections::BTreeMap, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use sluice_shared::{
    api::{AccountSource, AccountTest, AccountView, NewJob, WorkerList},
    domain::{Standing, State},
};

use crate::{
    harness::{
        Answer, Client, Cluster, Mode, Service, eventually, eventually_within, on_every_mode,
        prompt,
    },
    stub::{Play, Stub},
};

on_every_mode!(
    a_new_account_takes_its_share_of_what_waits,
    an_account_is_changed_drained_and_removed,
    an_account_is_tested_by_a_real_call,
    an_account_of_the_configuration_is_changed_there,
    an_account_that_cannot_be_is_refused_by_its_setting,
    what_was_made_outlives_restarts,
    workers_are_shown,
);

const SLOW: &str =
    "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"100ms\"\nmax_concurrency = 4\n";

/// How soon a new account must be at work.
const SOON: Duration = Duration::from_secs(2);

async fn add(api: &Client, account: Value) -> AccountView {
    api.post("/api/accounts", &account).await.is(201)
}

async fn change(api: &Client, id: &str, change: Value) -> Answer {
    let request = api.request(Method::PATCH, &format!("/api/accounts/{id}"));
    api.send(request.json(&change)).await
}

async fn remove(api: &Client, id: &str) -> Answer {
    api.send(api.request(Method::DELETE, &format!("/api/accounts/{id}")))
        .await
}

/// Every API process shows it as served.
async fn served(cluster: &Cluster, id: &str) {
    for api in cluster.apis() {
        eventually(&format!("{id} is served"), async || {
            let accounts = api.accounts().await;
            let account = accounts.iter().find(|account| account.id.as_str() == id)?;
            (account.workers? > 0).then_some(())
        })
        .await;
    }
}

fn on(account: &str, text: &str) -> NewJob {
    NewJob {
        account: Some(account.parse().unwrap()),
        ..prompt(text)
    }
}

async fn a_new_account_takes_its_share_of_what_waits(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let ids = cluster.submit_many(&vec![prompt("wait"); 1000]).await;
    let new = json!({
        "id": "new", "provider": "simulated", "latency": "100ms", "max_concurrency": 40,
    });
    let made = add(&cluster.apis()[0], new).await;
    assert_eq!(made.source, AccountSource::Api);
    let other = cluster.apis().last().unwrap();
    eventually_within(SOON, "the new account runs as many as it may", async || {
        let account = other.account("new").await;
        (account.in_flight == 40).then_some(())
    })
    .await;
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for job in cluster.wait_all(&ids).await {
        assert_eq!(job.state, State::Succeeded);
        *shares.entry(job.account.unwrap().to_string()).or_default() += 1;
    }
    // Ten times the slots: it did most of it.
    assert!(shares["new"] > 4 * shares["slow"], "{shares:?}");
}

async fn an_account_is_changed_drained_and_removed(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let (one, other) = (&cluster.apis()[0], cluster.apis().last().unwrap());
    let new = json!({"id": "new", "provider": "simulated", "tags": ["a"], "latency": "1h"});
    add(one, new.clone()).await;
    one.post("/api/accounts", &new)
        .await
        .refused(409, "account_exists");
    served(&cluster, "new").await;

    let change_of = json!({"tags": ["b"], "weight": 7, "latency": "10ms"});
    let changed: AccountView = change(other, "new", change_of).await.is(200);
    assert_eq!(
        (changed.weight, changed.settings["latency"].as_str()),
        (7, Some("10ms"))
    );
    let by_tag = NewJob {
        tags: vec!["b".into()],
        ..prompt("x")
    };
    eventually("both API processes know the tag", async || {
        for api in cluster.apis() {
            let answer = api.post("/api/jobs", &by_tag).await;
            if answer.status != 202 {
                answer.refused(422, "no_such_lane");
                return None;
            }
        }
        Some(())
    })
    .await;
    // It runs by the new settings, not by those of before.
    assert_eq!(cluster.run(&by_tag).await.account.unwrap().as_str(), "new");

    let slow: AccountView = change(one, "new", json!({"latency": "2s"})).await.is(200);
    assert_eq!(slow.weight, 7, "what is not named stays");
    served(&cluster, "new").await;
    let running = cluster.submit(&by_tag).await;
    cluster
        .until(running, "runs", |job| job.state == State::Running)
        .await;
    let draining: AccountView = one.act("/api/accounts/new/drain").await.is(200);
    assert_eq!(draining.standing, Standing::Draining);
    if draining.in_flight > 0 {
        remove(one, "new").await.refused(409, "account_busy");
    }
    let empty: AccountView = other.act("/api/accounts/new/drain?wait=30s").await.is(200);
    assert_eq!((empty.standing, empty.in_flight), (Standing::Draining, 0));
    assert_eq!(cluster.wait(running).await.state, State::Succeeded);

    assert_eq!(remove(one, "new").await.status, 204);
    remove(one, "new").await.refused(404, "no_such_account");
    change(one, "new", json!({"weight": 1}))
        .await
        .refused(404, "no_such_account");
    eventually("nobody knows it any more", async || {
        for api in cluster.apis() {
            let answer = api.post("/api/jobs", &by_tag).await;
            if answer.status == 202 {
                return None;
            }
            answer.refused(422, "no_such_lane");
            let workers: WorkerList = api.get("/api/workers").await.is(200);
            let mut accounts = workers.workers.iter().flat_map(|worker| &worker.accounts);
            if accounts.any(|id| id.as_str() == "new") {
                return None;
            }
        }
        Some(())
    })
    .await;
    // Its name is free again.
    add(one, new).await;
}

async fn an_account_is_tested_by_a_real_call(mode: Mode) {
    let stub = Stub::start(|ask| match ask.key.as_str() {
        "sk-good" => Play::Answer("ready".into()),
        _ => Play::Refuse(401, "invalid_api_key"),
    })
    .await;
    let cluster = Cluster::start(mode, SLOW).await;
    let api = cluster.api();
    let account = json!({
        "id": "main", "provider": "openai", "base_url": stub.url(), "default_model": "m",
        "api_key": "sk-bad",
    });
    add(api, account).await;
    served(&cluster, "main").await;
    let test: AccountTest = cluster.api().act("/api/accounts/main/test").await.is(200);
    assert_eq!(test.outcome, "auth_failed", "{test:?}");
    assert!(test.detail.is_some_and(|detail| !detail.contains("sk-bad")));

    // A mended credential is tried before the account goes back to work.
    cluster.api().pause("main").await;
    change(cluster.api(), "main", json!({"api_key": "sk-good"}))
        .await
        .is::<AccountView>(200);
    let test = eventually("the new key is used", async || {
        let test: AccountTest = cluster.api().act("/api/accounts/main/test").await.is(200);
        (test.outcome == "completed").then_some(test)
    })
    .await;
    assert_eq!(test.text.as_deref(), Some("ready"));
    assert_eq!(
        cluster.api().account("main").await.standing,
        Standing::Paused
    );
    assert!(cluster.api().list("account=main").await.jobs.is_empty());
}

async fn an_account_of_the_configuration_is_changed_there(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let api = cluster.api();
    let account = api.account("slow").await;
    assert_eq!(account.source, AccountSource::Configuration);
    change(api, "slow", json!({"weight": 2}))
        .await
        .refused(409, "account_configured");
    remove(api, "slow").await.refused(409, "account_configured");
    api.post(
        "/api/accounts",
        &json!({"id": "slow", "provider": "simulated"}),
    )
    .await
    .refused(409, "account_exists");
    let drained: AccountView = api.act("/api/accounts/slow/drain").await.is(200);
    assert_eq!(drained.standing, Standing::Draining);
    assert_eq!(api.resume("slow").await.standing, Standing::Active);
    let test: AccountTest = api.act("/api/accounts/slow/test").await.is(200);
    assert_eq!(test.outcome, "completed", "{test:?}");
}

async fn an_account_that_cannot_be_is_refused_by_its_setting(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let api = cluster.api();
    for (account, field) in [
        (json!({}), "id"),
        (json!({"id": "No"}), "id"),
        (json!({"id": "a", "provider": "hal"}), "provider"),
        (json!({"id": "a", "provider": "anthropic"}), "api_key_env"),
        (
            json!({"id": "a", "provider": "openai", "base_url": "x"}),
            "base_url",
        ),
        (
            json!({"id": "a", "provider": "claude-cli", "password": "p"}),
            "password",
        ),
        (
            json!({"id": "a", "provider": "command", "argv": []}),
            "argv",
        ),
        (
            json!({"id": "a", "provider": "simulated", "tokens": -1}),
            "tokens",
        ),
    ] {
        let problem = api
            .post("/api/accounts", &account)
            .await
            .refused(422, "invalid_account");
        assert_eq!(problem.errors[0].field, field, "{account}");
    }
    let reader = api
        .new_key("reader", &[sluice_shared::api::Scope::Operate])
        .await
        .1;
    reader
        .post(
            "/api/accounts",
            &json!({"id": "a", "provider": "simulated"}),
        )
        .await
        .refused(403, "forbidden");
    assert_eq!(api.accounts().await.len(), 1);
}

async fn what_was_made_outlives_restarts(mode: Mode) {
    let mut cluster = Cluster::start(mode, SLOW).await;
    add(cluster.api(), json!({"id": "new", "provider": "simulated"})).await;
    served(&cluster, "new").await;
    let names: Vec<String> = cluster
        .servers()
        .into_iter()
        .chain(cluster.workers())
        .collect();
    for name in &names {
        cluster.kill9(name);
    }
    if mode == Mode::Distributed {
        // The roll is gone, too: it comes back from the truth plane.
        cluster.kill9_service(Service::Redis).await;
        cluster.start_service(Service::Redis).await;
    }
    for name in &names {
        if !cluster.process(name).is_running() {
            cluster.start_again(name);
        }
    }
    cluster.until_up().await;
    let job = cluster.run(&on("new", "x")).await;
    assert_eq!(job.account.unwrap().as_str(), "new");
}

async fn workers_are_shown(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let id = cluster.submit(&on("slow", "x")).await;
    for api in cluster.apis() {
        let list: WorkerList = api.get("/api/workers").await.is(200);
        assert!(list.current);
        assert_eq!(list.workers.len(), cluster.workers().len());
        for worker in &list.workers {
            assert_eq!(worker.accounts.len(), 1, "{worker:?}");
            assert!(
                worker.serves_all && worker.troubles.is_empty(),
                "{worker:?}"
            );
            assert!(worker.pid > 0 && !worker.host.is_empty(), "{worker:?}");
            assert!(worker.last_heartbeat >= worker.since);
        }
    }
    cluster.wait(id).await;
}

/// A worker with another master key serves what it can and says what it cannot.
#[tokio::test]
async fn a_wrong_master_key_is_said_and_harms_nothing_else() {
    crate::harness::bounded(async {
        let mut cluster = Cluster::distributed(SLOW, 1, 2, &[]).await;
        cluster.stop("worker-2").await;
        let other_key = "YW5vdGhlciBtYXN0ZXIga2V5IGZvciBvbmUgd29ya2U=";
        cluster.start_with("worker-2", "SLUICE_MASTER_KEY", other_key);
        let account = json!({
            "id": "new", "provider": "command", "argv": ["cat"], "env": {"TOKEN": "hunter2-hunter2"},
        });
        add(cluster.api(), account).await;
        let shown = eventually("the worker says that its key is another", async || {
            let account = cluster.api().account("new").await;
            (account.workers == Some(1) && !account.troubles.is_empty()).then_some(account)
        })
        .await;
        let trouble = &shown.troubles[0];
        assert_eq!(trouble.worker, "worker-2");
        assert!(trouble.problem.contains("SLUICE_MASTER_KEY"), "{trouble:?}");
        assert_eq!((shown.standing, shown.secrets), (Standing::Active, vec!["env".into()]));
        // Both go on with what they can serve.
        let slow = cluster.api().account("slow").await;
        assert_eq!(slow.workers, Some(2));
        assert_eq!(cluster.run(&on("new", "x")).await.state, State::Succeeded);
    })
    .await;
}
