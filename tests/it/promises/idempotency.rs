//! `Idempotency-Key`: a submit that may be repeated.

use reqwest::Method;
use sluice_shared::api::{NewJob, Receipt, Receipts, Scope};
use tokio::task::JoinSet;

use super::TWO_ACCOUNTS;
use crate::harness::{Answer, Client, Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    the_same_key_and_jobs_give_the_same_receipt,
    the_same_key_with_other_jobs_is_refused,
    one_key_over_many_connections_makes_one_set_of_jobs,
    two_clients_may_use_the_same_key,
);

async fn submit(api: &Client, key: &str, jobs: &[NewJob]) -> Answer {
    let request = api
        .request(Method::POST, "/api/jobs")
        .header("idempotency-key", key);
    match jobs {
        [job] => api.send(request.json(job)).await,
        jobs => api.send(request.json(jobs)).await,
    }
}

fn replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

async fn the_same_key_and_jobs_give_the_same_receipt(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let job = [prompt("once")];
    let first = submit(cluster.api(), "\"a key\"", &job).await;
    assert!(!replayed(&first));
    let first: Receipt = first.is(202);
    cluster.wait(first.id).await;
    for api in cluster.apis() {
        let again = submit(api, "\"a key\"", &job).await;
        assert!(replayed(&again));
        let receipt: Receipt = again.is(202);
        assert_eq!((receipt.id, receipt.url), (first.id, first.url.clone()));
        assert!(
            receipt.state.is_terminal(),
            "a receipt tells the state of now"
        );
    }
    assert_eq!(cluster.api().list("limit=10").await.jobs.len(), 1);
}

async fn the_same_key_with_other_jobs_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    submit(cluster.api(), "k", &[prompt("one")])
        .await
        .is::<Receipt>(202);
    let others = [
        vec![prompt("two")],
        vec![prompt("one"), prompt("one")],
        vec![NewJob {
            priority: Some(1),
            ..prompt("one")
        }],
    ];
    for jobs in others {
        submit(cluster.api(), "k", &jobs)
            .await
            .refused(422, "idempotency_key_reused");
    }
    assert_eq!(cluster.api().list("limit=10").await.jobs.len(), 1);
}

async fn one_key_over_many_connections_makes_one_set_of_jobs(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let jobs = [prompt("a"), prompt("b"), prompt("c")];
    let mut submits = JoinSet::new();
    for _ in 0..20 {
        let (api, jobs) = (cluster.api().clone(), jobs.clone());
        submits.spawn(async move { submit(&api, "\"race\"", &jobs).await });
    }
    let mut sets = Vec::new();
    let mut firsts = 0;
    for answer in submits.join_all().await {
        firsts += u32::from(!replayed(&answer));
        let ids: Vec<_> = answer
            .is::<Receipts>(202)
            .jobs
            .iter()
            .map(|job| job.id)
            .collect();
        sets.push(ids);
    }
    sets.dedup();
    assert_eq!((sets.len(), sets[0].len(), firsts), (1, 3, 1));
    assert_eq!(cluster.api().list("limit=100").await.jobs.len(), 3);
}

async fn two_clients_may_use_the_same_key(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let (_, client) = cluster.api().new_key(name, &[Scope::Submit]).await;
        let answer = submit(&client, "\"shared\"", &[prompt("mine")]).await;
        assert!(!replayed(&answer));
        ids.push(answer.is::<Receipt>(202).id);
    }
    assert_ne!(ids[0], ids[1]);
}
