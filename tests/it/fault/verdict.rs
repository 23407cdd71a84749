//! What became of every job, by the truth plane's own rows and by the provider's own book.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use sea_orm::TryGetable;
use sluice_shared::domain::{Completion, Delivery, JobId};
use uuid::Uuid;

use super::{LIMITS, load::Load};
use crate::{
    harness::{Cluster, Truth, rest},
    stub::Stub,
};

/// How long the last jobs may take after the last process is back.
const PATIENCE: Duration = Duration::from_secs(180);

const UNFINISHED: &str = "state NOT IN ('succeeded', 'failed', 'cancelled', 'expired')";

/// Waits for every end, and fails unless every promise was kept.
pub(super) async fn judge(cluster: &Cluster, load: &Load, stub: &Stub) {
    let truth = cluster.truth().await;
    until_all_have_ended(&truth).await;
    every_job_ended_once_and_well(&truth, load, stub).await;
    every_attempt_is_accounted_for(&truth).await;
    no_limit_was_exceeded(&truth, stub).await;
    for api in cluster.apis() {
        for account in api.accounts().await {
            assert_eq!(account.in_flight, 0, "{account:?}");
        }
    }
    for (name, log) in cluster.logs() {
        for words in ["panicked", "a slot count was wrong"] {
            let line = log.lines().find(|line| line.contains(words));
            assert_eq!(line, None, "in the log of {name}");
        }
    }
}

async fn until_all_have_ended(truth: &Truth) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = truth
            .number(&format!("SELECT count(*) FROM jobs WHERE {UNFINISHED}"))
            .await;
        if left == 0 {
            return;
        }
        if Instant::now() > deadline {
            panic!(
                "{left} jobs have not ended after {PATIENCE:?}\n{}",
                report(truth).await
            );
        }
        rest(Duration::from_millis(200)).await;
    }
}

/// The whole state, for people.
async fn report(truth: &Truth) -> String {
    let mut text = String::new();
    for (title, sql, columns) in [
        (
            "states",
            "SELECT state, CAST(count(*) AS TEXT) FROM jobs GROUP BY state".to_owned(),
            2,
        ),
        (
            "accounts",
            "SELECT account, CAST(in_flight AS TEXT), standing, CAST(cooldown_until AS TEXT) \
             FROM account_state"
                .to_owned(),
            4,
        ),
        (
            "jobs that have not ended",
            format!(
                "SELECT CAST(id AS TEXT), state, account, worker, CAST(attempt AS TEXT), \
                 CAST(losses AS TEXT), CAST(run_at AS TEXT), CAST(dispatched_at AS TEXT), \
                 CAST(started_at AS TEXT), CAST(lease_until AS TEXT) \
                 FROM jobs WHERE {UNFINISHED} ORDER BY id LIMIT 40"
            ),
            10,
        ),
    ] {
        text += &format!(
            "{title}:\n  {}\n",
            truth.lines(&sql, columns).await.join("\n  ")
        );
    }
    text += &format!("now: {}\n", sluice_shared::clock::now().as_millis());
    text
}

async fn every_job_ended_once_and_well(truth: &Truth, load: &Load, stub: &Stub) {
    let receipts = load.receipts();
    assert_eq!(receipts.len(), load.total());
    let rows = truth.rows("SELECT id, state, error_code FROM jobs").await;
    assert_eq!(rows.len(), receipts.len(), "as many jobs as were accepted");
    let answers: HashMap<JobId, String> = truth
        .rows("SELECT job, answer FROM attempts WHERE outcome = 'completed'")
        .await
        .iter()
        .map(|row| {
            let answer: String = row.try_get_by_index(1).unwrap();
            let answer: Completion = serde_json::from_str(&answer).unwrap();
            (JobId(row.try_get_by_index::<Uuid>(0).unwrap()), answer.text)
        })
        .collect();
    let asked = stub.prompts();
    let mut lost = 0;
    for row in rows {
        let id = JobId(row.try_get_by_index::<Uuid>(0).unwrap());
        let state: String = row.try_get_by_index(1).unwrap();
        let code: Option<String> = row.try_get_by_index(2).unwrap();
        let job = receipts
            .get(&id)
            .unwrap_or_else(|| panic!("{id} was never accepted"));
        let prompt = job.prompt.as_deref().unwrap();
        let once = job.delivery == Some(Delivery::AtMostOnce);
        if once {
            let times = asked.get(prompt).copied().unwrap_or(0);
            assert!(
                times <= 1,
                "{id} ({prompt}) must not run twice, and ran {times} times"
            );
        }
        match state.as_str() {
            "succeeded" => {
                let answer = &answers[&id];
                let right = answer == prompt || *answer == format!("echo: {prompt}");
                assert!(
                    right && code.is_none(),
                    "{id} was asked {prompt} and answered {answer}"
                );
            }
            "failed" if once && code.as_deref() == Some("worker_lost") => lost += 1,
            _ => panic!("{id} ({prompt}) ended {state} with {code:?}"),
        }
    }
    eprintln!(
        "{} jobs, {lost} of them ended with their worker",
        receipts.len()
    );
}

/// No attempt is settled twice, and a job that succeeded did so by its last attempt alone. An
/// attempt that could not be published leaves no row, so that numbers may be missing.
async fn every_attempt_is_accounted_for(truth: &Truth) {
    for (promise, sql) in [
        (
            "an attempt is settled once",
            "SELECT count(*) FROM (SELECT job, number FROM attempts GROUP BY job, number \
             HAVING count(*) > 1) twice",
        ),
        (
            "one answer a job",
            "SELECT count(*) FROM (SELECT job FROM attempts WHERE outcome = 'completed' \
             GROUP BY job HAVING count(*) > 1) twice",
        ),
        (
            "its last attempt answered",
            "SELECT count(*) FROM jobs WHERE state = 'succeeded' AND NOT EXISTS (SELECT 1 FROM \
             attempts WHERE job = jobs.id AND number = jobs.attempt AND outcome = 'completed')",
        ),
        (
            "no attempt is newer than its job knows",
            "SELECT count(*) FROM attempts JOIN jobs ON jobs.id = job WHERE number > attempt",
        ),
        (
            "no attempt failed",
            "SELECT count(*) FROM attempts WHERE outcome NOT IN ('completed', 'lost', 'returned')",
        ),
        (
            "no failure was counted",
            "SELECT count(*) FROM jobs WHERE failures > 0",
        ),
        (
            "every slot is free",
            "SELECT count(*) FROM account_state WHERE in_flight <> 0",
        ),
    ] {
        assert_eq!(truth.number(sql).await, 0, "{promise}");
    }
    let ends = "SELECT outcome, CAST(count(*) AS TEXT) FROM attempts GROUP BY outcome";
    eprintln!("attempts: {}", truth.lines(ends, 2).await.join(", "));
}

async fn no_limit_was_exceeded(truth: &Truth, stub: &Stub) {
    let mut spans: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
    let sql = "SELECT account, started_at, finished_at FROM attempts WHERE started_at IS NOT NULL";
    for row in truth.rows(sql).await {
        let span = (number(&row, 1), number(&row, 2));
        spans
            .entry(row.try_get_by_index(0).unwrap())
            .or_default()
            .push(span);
    }
    for (account, limit) in LIMITS {
        let most = most_at_once(spans.get(account).map_or(&[], Vec::as_slice));
        let seen = stub.most_at_once(&format!("sk-{account}"));
        eprintln!("{account}: {most} at once by the rows, {seen} by the provider, of {limit}");
        assert!(
            most <= limit && seen <= limit,
            "{account} may run {limit} at once"
        );
    }
}

fn number<T: TryGetable>(row: &sea_orm::QueryResult, index: usize) -> T {
    row.try_get_by_index(index).unwrap()
}

/// The most spans that contain one moment. One may begin in the millisecond another ends in.
fn most_at_once(spans: &[(i64, i64)]) -> usize {
    let mut changes: Vec<(i64, i32)> = spans
        .iter()
        .flat_map(|(from, to)| [(*from, 1), (*to, -1)])
        .collect();
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap()
}
