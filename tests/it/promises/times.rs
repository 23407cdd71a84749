//! Times: not before, not after, not longer than.

use std::time::Duration;

use sluice_shared::{api::NewJob, clock, domain::State};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    a_scheduled_job_waits_for_its_time,
    a_job_that_has_not_begun_in_time_expires,
    a_job_that_has_begun_does_not_expire,
    a_prompt_that_takes_too_long_is_cut_off,
);

async fn a_scheduled_job_waits_for_its_time(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let at = clock::now() + Duration::from_millis(1500);
    let by_time = cluster
        .submit(&NewJob {
            run_at: Some(at),
            ..prompt("at a time")
        })
        .await;
    let delay = "1500ms".parse().unwrap();
    let by_delay = cluster
        .submit(&NewJob {
            delay: Some(delay),
            ..prompt("after a delay")
        })
        .await;
    let mut due = Vec::new();
    for id in [by_time, by_delay] {
        let waiting = cluster.job(id).await;
        assert_eq!((waiting.state, waiting.attempt), (State::Queued, 0));
        due.push(waiting.run_at.expect("a waiting job shows its time"));
    }
    assert!(due[0] == at && due[1] >= at, "{due:?}");
    for (id, due) in [by_time, by_delay].into_iter().zip(due) {
        let job = cluster.wait(id).await;
        assert_eq!(job.state, State::Succeeded);
        let begun = job.dispatched_at.unwrap();
        assert!(
            begun >= due && begun.since(due) < Duration::from_secs(10),
            "{job:?}"
        );
    }
    let past = clock::now() - Duration::from_secs(3600);
    let job = cluster
        .run(&NewJob {
            run_at: Some(past),
            ..prompt("overdue")
        })
        .await;
    assert_eq!(job.state, State::Succeeded);
}

async fn a_job_that_has_not_begun_in_time_expires(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    cluster.api().pause("one").await;
    let ends = clock::now() + Duration::from_secs(1);
    let pinned = NewJob {
        account: Some("one".parse().unwrap()),
        expires_at: Some(ends),
        ..prompt("now or never")
    };
    let job = cluster.run(&pinned).await;
    assert_eq!(
        (job.state, job.attempt, job.account),
        (State::Expired, 0, None)
    );
    assert!(job.finished_at.unwrap() >= ends);
    cluster.api().resume("one").await;
    // It is over for good: the account is free, and takes others only.
    let next = NewJob {
        account: pinned.account,
        ..prompt("another")
    };
    assert_eq!(cluster.run(&next).await.state, State::Succeeded);
    assert_eq!(cluster.job(job.id).await.state, State::Expired);
}

async fn a_job_that_has_begun_does_not_expire(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"3s\"";
    let cluster = Cluster::start(mode, config).await;
    let ends = clock::now() + Duration::from_millis(1500);
    let job = cluster
        .run(&NewJob {
            expires_at: Some(ends),
            ..prompt("in time")
        })
        .await;
    assert_eq!(job.state, State::Succeeded);
    assert!(job.finished_at.unwrap() > ends);
}

async fn a_prompt_that_takes_too_long_is_cut_off(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"10m\"";
    let cluster = Cluster::start(mode, config).await;
    let timeout = "1s".parse().unwrap();
    let job = NewJob {
        timeout: Some(timeout),
        max_attempts: Some(1),
        ..prompt("slow")
    };
    let job = cluster.run(&job).await;
    assert_eq!((job.state, job.failures), (State::Failed, 1));
    assert_eq!(job.error.unwrap().code, "timeout");
    let took = job.finished_at.unwrap().since(job.started_at.unwrap());
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
}
