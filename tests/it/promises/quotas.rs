//! Quotas: what a key's client may have, over all API processes together.

use reqwest::Method;
use serde_json::json;
use sluice_shared::{
    api::{CreatedKey, JobView},
    domain::State,
};

use crate::harness::{Client, Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    a_client_runs_no_more_than_it_may_and_holds_nobody_up,
    all_api_processes_count_a_key_s_requests_together,
    a_full_backlog_refuses_and_takes_again,
);

const ONE_ACCOUNT: &str = r#"
[accounts.a]
provider = "simulated"
latency = "50ms"
max_concurrency = 8
"#;

async fn with_quota(
    cluster: &Cluster,
    name: &str,
    quota: serde_json::Value,
) -> (CreatedKey, Client) {
    let wish = json!({ "name": name, "scopes": ["submit"], "quota": quota });
    let created: CreatedKey = cluster.api().post("/api/keys", &wish).await.is(201);
    let client = cluster.api().with_key(&created.key);
    (created, client)
}

async fn a_client_runs_no_more_than_it_may_and_holds_nobody_up(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_ACCOUNT).await;
    let (_, narrow) = with_quota(&cluster, "narrow", json!({ "max_running": 1 })).await;
    let slow = narrow.submit_many(&vec![prompt("one by one"); 12]).await;
    let others = cluster.submit_many(&vec![prompt("at once"); 60]).await;
    let others = cluster.wait_all(&others).await;
    let slow: Vec<_> = slow.iter().map(|receipt| receipt.id).collect();
    let mut slow = cluster.wait_all(&slow).await;
    let succeeded = |job: &JobView| job.state == State::Succeeded;
    assert!(slow.iter().all(succeeded) && others.iter().all(succeeded));
    slow.sort_by_key(|job| job.started_at);
    for pair in slow.windows(2) {
        // By the worker's times: a dispatch is dated before it has waited for its locks.
        let ended = pair[0].attempts.as_ref().unwrap()[0].finished_at;
        assert!(pair[1].started_at >= Some(ended), "{pair:#?}");
    }
    let first = others.iter().filter_map(|job| job.finished_at).max();
    let last = slow.last().and_then(|job| job.finished_at);
    assert!(
        first < last,
        "those without a limit waited for those with one"
    );
}

async fn all_api_processes_count_a_key_s_requests_together(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_ACCOUNT).await;
    let quota = json!({ "requests_per_minute": 10 });
    let (created, _) = with_quota(&cluster, "hasty", quota).await;
    let mut answers = Vec::new();
    for _ in 0..8 {
        for api in cluster.apis() {
            answers.push(api.with_key(&created.key).get("/api/jobs").await);
        }
        if mode == Mode::Embedded {
            answers.push(
                cluster.apis()[0]
                    .with_key(&created.key)
                    .get("/api/jobs")
                    .await,
            );
        }
    }
    let good = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(good, 10);
    let problem = answers.last().unwrap().refused(429, "too_many_requests");
    assert_eq!(problem.violated_policies, ["requests_per_minute"]);
    assert!(answers.last().unwrap().header("retry-after").is_some());
}

async fn a_full_backlog_refuses_and_takes_again(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_ACCOUNT).await;
    let (created, full) = with_quota(&cluster, "full", json!({ "max_waiting": 20 })).await;
    cluster.api().pause("a").await;
    let ids = full.submit_many(&vec![prompt("fits"); 20]).await;
    let problem = full
        .post("/api/jobs", &prompt("does not"))
        .await
        .refused(429, "too_many_waiting");
    assert_eq!(problem.violated_policies, ["max_waiting"]);
    // The limit is lifted on any process, and holds on all at once.
    let api = &cluster.apis()[0];
    let path = format!("/api/keys/{}", created.view.id);
    let request = api.request(Method::PATCH, &path);
    let lifted = api
        .send(request.json(&json!({ "quota": { "max_waiting": 21 } })))
        .await;
    assert_eq!(lifted.status, 200, "{lifted:?}");
    let one_more = full.submit(&prompt("fits now")).await.id;
    full.post("/api/jobs", &prompt("does not"))
        .await
        .refused(429, "too_many_waiting");
    cluster.api().resume("a").await;
    let ids: Vec<_> = ids
        .iter()
        .map(|receipt| receipt.id)
        .chain([one_more])
        .collect();
    cluster.wait_all(&ids).await;
    full.submit(&prompt("fits again")).await;
}
