//! What the promises stand on: jobs, accounts, claims and verdicts as tests need them.

use std::{collections::HashMap, sync::Mutex};

use sluice_producer_api::store::{
    Claim, Claimed, LaneDemand, NewRow, Store, Submission, Submitted, Verdict,
};
use sluice_shared::{
    clock,
    domain::{
        Account, Completion, Delivery, JobId, Lane, Outcome, Request, State, Time, route::Routing,
    },
    message::{Dispatch, Reply, Report},
};

pub(crate) fn account(name: &str, max_concurrency: u32) -> Account {
    Account {
        id: name.parse().unwrap(),
        provider: "simulated".into(),
        endpoint: String::new(),
        models: vec![],
        tags: vec![],
        max_concurrency,
        weight: 1,
        limits: vec![],
    }
}

pub(crate) fn row() -> NewRow {
    NewRow {
        id: JobId::generate(),
        lane: Lane::default(),
        priority: 0,
        run_at: Time::EPOCH,
        expires_at: None,
        timeout_ms: 60_000,
        max_attempts: 3,
        delivery: Delivery::AtLeastOnce,
        session: None,
        metadata: "{}".into(),
        retry_of: None,
        traceparent: None,
        request: Request::prompt("hello"),
        steps: vec![],
        after: None,
        webhook: None,
    }
}

pub(crate) fn submission(rows: Vec<NewRow>) -> Submission {
    Submission {
        client: "test".into(),
        rows,
        idempotency: None,
    }
}

pub(crate) async fn submit(store: &Store, rows: Vec<NewRow>) -> Vec<JobId> {
    let ids = rows.iter().map(|row| row.id).collect();
    let result = store
        .submit(&[submission(rows)], clock::now())
        .await
        .unwrap();
    assert_eq!(result, [Submitted::Accepted]);
    ids
}

pub(crate) async fn claim(
    store: &Store,
    accounts: &[Account],
    lanes: &[Lane],
    most: usize,
) -> Claimed {
    let lanes: Vec<LaneDemand> = lanes
        .iter()
        .map(|lane| LaneDemand {
            key: lane.key(),
            lane: lane.clone(),
        })
        .collect();
    let claim = Claim {
        lanes: &lanes,
        accounts,
        routing: &Routing::default(),
        speeds: &HashMap::new(),
        most,
    };
    store
        .claim(&claim, &Mutex::default(), clock::now())
        .await
        .unwrap()
}

pub(crate) async fn claim_any(store: &Store, accounts: &[Account]) -> Vec<Dispatch> {
    claim(store, accounts, &[Lane::default()], 1000)
        .await
        .dispatches
}

pub(crate) fn finished(dispatch: &Dispatch, outcome: Outcome) -> Verdict {
    Verdict::Report(Reply {
        learned: Box::default(),
        job: dispatch.job,
        attempt: dispatch.attempt,
        account: dispatch.account.clone(),
        worker: "w".into(),
        report: Report::Finished {
            started_at: Some(clock::now()),
            finished_at: clock::now(),
            outcome,
        },
    })
}

pub(crate) fn answer(text: &str) -> Outcome {
    Outcome::Completed(Completion {
        text: text.into(),
        ..Completion::default()
    })
}

pub(crate) async fn settle(
    store: &Store,
    verdicts: &[Verdict],
) -> sluice_producer_api::store::Settled {
    store.settle(verdicts, clock::now(), || 0.0).await.unwrap()
}

pub(crate) async fn state(store: &Store, job: JobId) -> State {
    store.job(job).await.unwrap().unwrap().state
}
