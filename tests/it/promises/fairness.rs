//! Fair shares: whatever one client has waiting, another gets its share at once.

use sluice_shared::{
    api::{JobView, Scope},
    domain::Time,
};

use crate::harness::{Cluster, Mode, eventually, on_every_mode, prompt};

on_every_mode!(
    a_small_batch_beside_a_large_backlog_takes_as_long_as_at_equal_share,
    capacity_is_shared_by_weight,
);

const ONE_ACCOUNT: &str = r#"
[accounts.a]
provider = "simulated"
latency = "20ms"
max_concurrency = 4
"#;

/// How many of these were dispatched in a span of time.
fn between(jobs: &[JobView], from: Time, to: Time) -> usize {
    let within = |job: &&JobView| job.dispatched_at.is_some_and(|at| at > from && at <= to);
    jobs.iter().filter(within).count()
}

async fn a_small_batch_beside_a_large_backlog_takes_as_long_as_at_equal_share(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_ACCOUNT).await;
    let (_, large) = cluster.api().new_key("large", &[Scope::Submit]).await;
    let (_, small) = cluster.api().new_key("small", &[Scope::Submit]).await;
    for _ in 0..2 {
        large.submit_many(&vec![prompt("one of many"); 800]).await;
    }
    eventually("the backlog is being worked on", async || {
        let done = cluster
            .api()
            .list("client=large&state=succeeded&limit=100")
            .await;
        (done.jobs.len() >= 40).then_some(())
    })
    .await;
    let receipts = small.submit_many(&vec![prompt("one of few"); 100]).await;
    let ids: Vec<_> = receipts.iter().map(|receipt| receipt.id).collect();
    let few = cluster.wait_all(&ids).await;
    cluster.api().pause("a").await;
    let from = few.iter().map(|job| job.created_at).max().unwrap();
    let to = few
        .iter()
        .filter_map(|job| job.dispatched_at)
        .max()
        .unwrap();
    let many = cluster.api().list_all("client=large&limit=500").await;
    // At equal share the large one gets as many turns as the small one.
    let turns = between(&many, from, to);
    assert!((95..=106).contains(&turns), "{turns} turns beside 100");
}

async fn capacity_is_shared_by_weight(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_ACCOUNT).await;
    let (heavy_key, heavy) = cluster.api().new_key("heavy", &[Scope::Submit]).await;
    let (_, light) = cluster.api().new_key("light", &[Scope::Submit]).await;
    let path = format!("/api/keys/{}", heavy_key.view.id);
    let change = serde_json::json!({ "weight": 4 });
    let request = cluster.apis()[0].request(reqwest::Method::PATCH, &path);
    let changed = cluster.apis()[0].send(request.json(&change)).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    cluster.api().pause("a").await;
    light.submit_many(&vec![prompt("light"); 200]).await;
    let receipts = heavy.submit_many(&vec![prompt("heavy"); 200]).await;
    let ids: Vec<_> = receipts.iter().map(|receipt| receipt.id).collect();
    cluster.api().resume("a").await;
    let jobs = cluster.wait_all(&ids).await;
    let to = jobs
        .iter()
        .filter_map(|job| job.dispatched_at)
        .max()
        .unwrap();
    let others = cluster.api().list_all("client=light&limit=500").await;
    let turns = between(&others, Time::EPOCH, to);
    assert!((47..=55).contains(&turns), "{turns} turns beside 200");
}
