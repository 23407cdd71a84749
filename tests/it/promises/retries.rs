//! What becomes of an attempt that does not go well.

use std::{fs, path::Path, time::Duration};

use sluice_shared::{
    api::{JobView, NewJob},
    clock,
    domain::{Delivery, State},
};

use crate::harness::{Cluster, Mode, eventually, on_every_mode, prompt};

on_every_mode!(
    a_failing_job_is_tried_with_growing_pauses_until_its_last_attempt,
    a_throttle_costs_no_attempt_and_the_job_moves_on,
    an_overload_costs_no_attempt_and_the_job_moves_on,
    a_refused_request_is_not_tried_again,
    a_failing_program_says_why,
    a_job_whose_worker_dies_is_run_by_another,
    an_at_most_once_job_never_runs_twice,
    an_at_most_once_job_that_fails_is_not_tried_again,
);

fn outcomes(job: &JobView) -> Vec<&str> {
    job.attempts
        .iter()
        .flatten()
        .map(|attempt| attempt.outcome.as_str())
        .collect()
}

async fn a_failing_job_is_tried_with_growing_pauses_until_its_last_attempt(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nfaults = { failed = 1.0 }";
    let cluster = Cluster::start(mode, config).await;
    let job = cluster
        .run(&NewJob {
            max_attempts: Some(3),
            ..prompt("fail")
        })
        .await;
    assert_eq!(
        (job.state, job.failures, job.attempt),
        (State::Failed, 3, 3)
    );
    assert_eq!(outcomes(&job), ["failed", "failed", "failed"]);
    assert_eq!(job.error.unwrap().code, "simulated");
    assert!(job.result.is_none());
    let attempts = job.attempts.unwrap();
    for (step, pair) in (0..).zip(attempts.windows(2)) {
        let pause = pair[1].dispatched_at.since(pair[0].finished_at);
        let full = Duration::from_secs(1 << step);
        assert!(
            pause >= full / 2 && pause < full + Duration::from_secs(5),
            "{step}: {pause:?}"
        );
    }
}

/// One account that always says no, and one that answers; the first one is asked first, since
/// jobs take accounts in turn.
fn one_says(fault: &str) -> String {
    format!(
        "[accounts.bad]\nprovider = \"simulated\"\nfaults = {{ {fault} = 1.0 }}\n\
         [accounts.good]\nprovider = \"simulated\"\n"
    )
}

async fn the_job_moves_on(mode: Mode, outcome: &str) {
    let cluster = Cluster::start(mode, &one_says(outcome)).await;
    let ids = cluster
        .submit_many(&vec![
            NewJob {
                max_attempts: Some(1),
                ..prompt("x")
            };
            6
        ])
        .await;
    let jobs = cluster.wait_all(&ids).await;
    for job in &jobs {
        assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
        assert_eq!(job.account.as_ref().unwrap().as_str(), "good");
        let (last, before) = outcomes(job)
            .split_last()
            .map(|(l, b)| (*l, b.to_vec()))
            .unwrap();
        assert_eq!(last, "completed");
        // What was on its way when the account began to rest comes back unrun.
        let fits = |before: &&str| *before == outcome || *before == "returned";
        assert!(before.iter().all(fits), "{before:?}");
    }
    assert!(
        jobs.iter()
            .any(|job| job.attempts.as_ref().unwrap().len() > 1)
    );
    let account = cluster.api().account("bad").await;
    let until = account.cooldown_until.expect("it rests");
    assert!(until > clock::now() - Duration::from_secs(5));
    assert!(
        account.reason.is_some() && account.in_flight == 0,
        "{account:?}"
    );
}

async fn a_throttle_costs_no_attempt_and_the_job_moves_on(mode: Mode) {
    the_job_moves_on(mode, "throttled").await;
}

async fn an_overload_costs_no_attempt_and_the_job_moves_on(mode: Mode) {
    the_job_moves_on(mode, "overloaded").await;
}

async fn a_refused_request_is_not_tried_again(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nfaults = { rejected = 1.0 }";
    let cluster = Cluster::start(mode, config).await;
    let job = cluster
        .run(&NewJob {
            max_attempts: Some(5),
            ..prompt("no")
        })
        .await;
    assert_eq!(
        (job.state, outcomes(&job)),
        (State::Failed, vec!["rejected"])
    );
    assert_eq!(job.error.unwrap().code, "simulated");
}

async fn a_failing_program_says_why(mode: Mode) {
    let config = r#"
[accounts.program]
provider = "command"
argv = ["sh", "-c", "echo half an answer; echo no such luck >&2; exit 3"]
"#;
    let cluster = Cluster::start(mode, config).await;
    let job = cluster
        .run(&NewJob {
            max_attempts: Some(1),
            ..prompt("x")
        })
        .await;
    assert_eq!((job.state, job.result.is_none()), (State::Failed, true));
    let error = job.error.unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("exit_3", "no such luck")
    );
}

/// A program that notes each of its runs in a file and then takes its time. One whose worker dies
/// before it has its prompt has not run.
fn noting(file: &Path, seconds: u32) -> String {
    let file = file.display();
    let script = format!(
        "read -r line; [ -n \"$line\" ] || exit 1; echo \"$line\" >> '{file}'; sleep {seconds}"
    );
    format!(
        "[accounts.program]\nprovider = \"command\"\nmax_concurrency = 30\n\
         argv = [\"sh\", \"-c\", '''{script}''']\n"
    )
}

fn noted(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Kills the worker that has the job, or all of Sluice, and starts it again.
async fn lose_worker(cluster: &mut Cluster) {
    for name in cluster.workers() {
        cluster.kill9(&name);
    }
    for name in cluster.workers() {
        cluster.start_again(&name);
    }
    cluster.until_up().await;
}

async fn a_job_whose_worker_dies_is_run_by_another(mode: Mode) {
    let notes = tempfile::tempdir().unwrap();
    let file = notes.path().join("runs");
    let mut cluster = Cluster::start(mode, &noting(&file, 2)).await;
    let id = cluster.submit(&prompt("twice")).await;
    eventually("it runs", async || (!noted(&file).is_empty()).then_some(())).await;
    lose_worker(&mut cluster).await;
    let job = cluster.wait(id).await;
    assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
    assert_eq!(outcomes(&job), ["lost", "completed"]);
    assert_eq!(noted(&file), ["twice", "twice"]);
}

async fn an_at_most_once_job_never_runs_twice(mode: Mode) {
    let notes = tempfile::tempdir().unwrap();
    let file = notes.path().join("runs");
    let mut cluster = Cluster::start(mode, &noting(&file, 2)).await;
    let once = |number| NewJob {
        delivery: Some(Delivery::AtMostOnce),
        ..prompt(format!("job {number:02}"))
    };
    let jobs: Vec<NewJob> = (0..20).map(once).collect();
    let ids = cluster.submit_many(&jobs).await;
    // In the middle: some run, some are about to, some are on their way.
    eventually("some run", async || (noted(&file).len() >= 3).then_some(())).await;
    lose_worker(&mut cluster).await;
    let mut lost = 0;
    for job in cluster.wait_all(&ids).await {
        match job.state {
            State::Succeeded => {}
            State::Failed => {
                lost += 1;
                assert_eq!(job.error.as_ref().unwrap().code, "worker_lost", "{job:?}");
            }
            _ => panic!("{job:?}"),
        }
    }
    assert!(
        lost >= 3,
        "those that ran when their worker died end: {lost}"
    );
    let mut runs = noted(&file);
    let all = runs.len();
    runs.dedup();
    assert_eq!(runs.len(), all, "{runs:?}");
}

async fn an_at_most_once_job_that_fails_is_not_tried_again(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nfaults = { failed = 1.0 }";
    let cluster = Cluster::start(mode, config).await;
    let once = NewJob {
        delivery: Some(Delivery::AtMostOnce),
        ..prompt("once")
    };
    let job = cluster.run(&once).await;
    assert_eq!((job.state, outcomes(&job)), (State::Failed, vec!["failed"]));
}
