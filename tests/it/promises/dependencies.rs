//! Jobs that come after others run behind them, with their results, whoever settles what.

use serde_json::json;
use sluice_shared::{
    api::{NewJob, Receipt},
    domain::{JobId, State},
};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    a_chain_hands_its_results_on,
    many_come_after_one_and_one_after_many,
    an_end_is_handed_on,
);

fn after(text: &str, parents: &[JobId]) -> NewJob {
    NewJob {
        after: parents.to_vec(),
        ..prompt(text)
    }
}

async fn a_chain_hands_its_results_on(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let mut last = cluster.submit(&prompt("0")).await;
    for n in 1..6 {
        let text = format!("{{{{ results[0] }}}} {n}");
        last = cluster.submit(&after(&text, &[last])).await;
    }
    let job = cluster.wait(last).await;
    assert_eq!(job.state, State::Succeeded, "{job:?}");
    assert_eq!(job.result.unwrap().text, "0 1 2 3 4 5");
}

async fn many_come_after_one_and_one_after_many(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let first = cluster.submit(&prompt("seed")).await;
    let middle: Vec<NewJob> = (0..40)
        .map(|n| after(&format!("{n}-{{{{ results.{first} }}}}"), &[first]))
        .collect();
    let middle = cluster.submit_many(&middle).await;
    let text: String = (0..40)
        .map(|n| format!("{{{{ results[{n}] }}}},"))
        .collect();
    let last = cluster.submit(&after(&text, &middle)).await;
    let jobs = cluster.wait_all(&middle).await;
    let last = cluster.wait(last).await;
    let expected: String = (0..40).map(|n| format!("{n}-seed,")).collect();
    assert_eq!(last.result.unwrap().text, expected);
    let ends = jobs.iter().filter_map(|job| job.finished_at).max();
    assert!(
        last.dispatched_at >= ends,
        "it ran before the last of them had ended"
    );
}

async fn an_end_is_handed_on(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let later = NewJob {
        delay: Some(sluice_shared::domain::Span::seconds(3_600)),
        ..prompt("never")
    };
    let first = cluster.submit(&later).await;
    let second = cluster.submit(&after("x", &[first])).await;
    let third = cluster.submit(&after("x", &[second])).await;
    let skip = json!({"prompt": "x", "after": [first], "on_parent_failure": "skip"});
    let skipped: Receipt = cluster.api().post("/api/jobs", &skip).await.is(202);
    let run = json!({"prompt": "ran", "after": [first], "on_parent_failure": "run"});
    let ran: Receipt = cluster.api().post("/api/jobs", &run).await.is(202);
    assert_eq!(cluster.api().cancel(first).await.status, 200);
    let code = async |id| {
        let job = cluster.wait(id).await;
        (
            job.state,
            job.error.map_or(String::new(), |error| error.code),
        )
    };
    assert_eq!(code(second).await, (State::Failed, "parent_failed".into()));
    assert_eq!(code(third).await, (State::Failed, "parent_failed".into()));
    assert_eq!(code(skipped.id).await, (State::Cancelled, "skipped".into()));
    assert_eq!(code(ran.id).await.0, State::Succeeded);
}
