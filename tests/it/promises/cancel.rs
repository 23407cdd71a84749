//! Cancelling a job, and running an ended one again.

use sluice_shared::{
    api::{JobView, NewJob, Receipt},
    domain::{JobId, State},
};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, eventually, on_every_mode, processes_of, prompt};

on_every_mode!(
    a_queued_job_is_cancelled_at_once,
    a_running_job_is_stopped,
    a_cancelled_program_leaves_no_process,
    an_ended_job_cannot_be_cancelled,
    an_ended_job_is_run_again_as_a_new_one,
    what_is_not_there_cannot_be_cancelled_or_retried,
);

const SLOW: &str = r#"
[accounts.slow]
provider = "simulated"
latency = "10m"
"#;

async fn a_queued_job_is_cancelled_at_once(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let later = NewJob {
        delay: Some("1h".parse().unwrap()),
        ..prompt("later")
    };
    let id = cluster.submit(&later).await;
    let job: JobView = cluster.other_api(id).cancel(id).await.is(200);
    assert_eq!((job.state, job.attempt), (State::Cancelled, 0));
    assert_eq!(job.error.unwrap().code, "cancelled");
    assert!(job.finished_at.is_some());
    assert_eq!(cluster.wait(id).await.state, State::Cancelled);
}

async fn a_running_job_is_stopped(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let ids = cluster.submit_many(&vec![prompt("stop me"); 4]).await;
    for id in &ids {
        cluster
            .until(*id, "is on its way", |job| job.state.is_in_flight())
            .await;
        let asked: JobView = cluster.other_api(*id).cancel(*id).await.is(202);
        assert!(
            asked.cancel_requested || asked.state == State::Cancelled,
            "{asked:?}"
        );
    }
    for job in cluster.wait_all(&ids).await {
        assert_eq!(job.state, State::Cancelled);
        assert_eq!(job.attempts.unwrap()[0].outcome, "cancelled");
    }
    assert_eq!(cluster.api().account("slow").await.in_flight, 0);
}

/// The program starts another one and waits for it, as agents do.
async fn a_cancelled_program_leaves_no_process(mode: Mode) {
    let config = r#"
[accounts.program]
provider = "command"
argv = ["sh", "-c", "sleep 4711 & sleep 4712; wait"]
"#;
    let cluster = Cluster::start(mode, config).await;
    let sleeping = || {
        let processes = processes_of(cluster.dir());
        processes
            .iter()
            .filter(|(_, line)| line.starts_with("sleep 471"))
            .count()
    };
    let id = cluster.submit(&prompt("run")).await;
    eventually("the program and its child run", async || {
        (sleeping() == 2).then_some(())
    })
    .await;
    cluster.api().cancel(id).await;
    assert_eq!(cluster.wait(id).await.state, State::Cancelled);
    eventually("both are gone", async || (sleeping() == 0).then_some(())).await;
}

async fn an_ended_job_cannot_be_cancelled(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let job = cluster.run(&prompt("done")).await;
    let problem = cluster.api().cancel(job.id).await.problem();
    assert_eq!(problem.status, 409);
    assert_eq!(cluster.job(job.id).await, job);
}

async fn an_ended_job_is_run_again_as_a_new_one(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let asked = NewJob {
        system: Some("be brief".into()),
        account: Some("two".parse().unwrap()),
        priority: Some(7),
        metadata: [("team".to_owned(), "a".to_owned())].into(),
        ..prompt("again")
    };
    let first = cluster.run(&asked).await;
    let answer = cluster.other_api(first.id).retry(first.id).await;
    assert!(answer.header("location").is_some());
    let receipt: Receipt = answer.is(202);
    let second = cluster.wait(receipt.id).await;
    assert_ne!(first.id, second.id);
    assert_eq!(
        (second.retry_of, second.state),
        (Some(first.id), State::Succeeded)
    );
    assert_eq!(
        (&first.request, &first.lane),
        (&second.request, &second.lane)
    );
    assert_eq!(
        (first.priority, &first.metadata),
        (second.priority, &second.metadata)
    );
    assert_eq!(
        cluster.job(first.id).await,
        first,
        "the first one stays as it was"
    );

    let waiting = cluster
        .submit(&NewJob {
            delay: Some("1h".parse().unwrap()),
            ..asked
        })
        .await;
    assert_eq!(cluster.api().retry(waiting).await.problem().status, 409);
}

async fn what_is_not_there_cannot_be_cancelled_or_retried(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let nobody = JobId::generate();
    let api = cluster.api();
    for answer in [
        api.get(&format!("/api/jobs/{nobody}")).await,
        api.cancel(nobody).await,
        api.retry(nobody).await,
    ] {
        answer.refused(404, "no_such_job");
    }
}
