//! Being asked to stop, and starting again.

use sluice_shared::{
    api::NewJob,
    domain::{Delivery, State},
};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, eventually, on_every_mode, prompt};

on_every_mode!(
    a_process_that_is_asked_to_stop_finishes_what_runs,
    what_was_accepted_is_still_there_after_a_restart,
    keys_and_settings_survive_a_restart,
);

async fn a_process_that_is_asked_to_stop_finishes_what_runs(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"3s\"\nmax_concurrency = 100";
    let mut cluster = Cluster::start(mode, config).await;
    let mut jobs = vec![prompt("at least once"); 40];
    jobs.extend(vec![
        NewJob {
            delivery: Some(Delivery::AtMostOnce),
            ..prompt("at most once")
        };
        20
    ]);
    let ids = cluster.submit_many(&jobs).await;
    for id in &ids {
        cluster
            .until(*id, "has begun", |job| job.started_at.is_some())
            .await;
    }
    for name in cluster.workers() {
        let status = cluster.stop(&name).await;
        assert!(status.success(), "{name}: {status}");
    }
    for name in cluster.workers() {
        cluster.start_again(&name);
    }
    cluster.until_up().await;
    for job in cluster.wait_all(&ids).await {
        assert_eq!((job.state, job.attempt), (State::Succeeded, 1), "{job:?}");
    }
}

async fn what_was_accepted_is_still_there_after_a_restart(mode: Mode) {
    let mut cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let done = cluster.run(&prompt("before")).await;
    cluster.api().pause("one").await;
    cluster.api().pause("two").await;
    let ids = cluster.submit_many(&vec![prompt("waiting"); 50]).await;
    let servers = cluster.servers();
    for name in &servers {
        cluster.kill9(name);
    }
    for name in &servers {
        cluster.start_again(name);
    }
    cluster.until_up().await;
    assert_eq!(cluster.job(done.id).await, done);
    for id in &ids {
        assert_eq!(cluster.job(*id).await.state, State::Queued);
    }
    cluster.api().resume("one").await;
    for job in cluster.wait_all(&ids).await {
        assert_eq!(job.account.unwrap().as_str(), "one");
    }
}

async fn keys_and_settings_survive_a_restart(mode: Mode) {
    let mut cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let first_key = cluster.api().key.clone();
    let (_, reader) = cluster.apis()[0]
        .new_key("reader", &[sluice_shared::api::Scope::Read])
        .await;
    for name in cluster.servers() {
        let status = cluster.stop(&name).await;
        assert!(status.success(), "{name}: {status}");
    }
    for name in cluster.servers() {
        cluster.start_again(&name);
    }
    cluster.until_up().await;
    assert_eq!(cluster.api().key, first_key);
    eventually("the other key works as well", async || {
        (reader.get("/api/jobs").await.status == 200).then_some(())
    })
    .await;
}
