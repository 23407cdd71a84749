//! Batches: staged unseen, accepted whole, fed once, ended once.

use std::collections::BTreeSet;

use sluice_producer_api::store::{Accepted, Filter, Idempotency, Line, NewBatch, Store, Verdict};
use sluice_shared::{
    api::{BatchCounts, LineError},
    clock,
    domain::{BatchId, JobId, Quota, State, quota::Violation},
    message::Dispatch,
};
use tokio::task::JoinSet;

use crate::{account, answer, claim_any, finished, row, settle};

on_every_store!(
    what_is_staged_is_seen_by_nobody,
    an_accepted_batch_becomes_its_jobs_once,
    a_key_stands_for_one_upload,
    a_quota_refuses_a_batch_as_a_whole,
    a_cancelled_batch_ends_whatever_it_was_doing,
    outcomes_come_in_the_order_of_the_lines,
    a_batch_ends_once_whoever_looks,
);

/// Binds waiting jobs to an account with so many slots.
async fn dispatch_all(store: &Store, slots: u32) -> Vec<Dispatch> {
    let accounts = [account("a", slots)];
    store.sync_accounts(&accounts).await.unwrap();
    claim_any(store, &accounts).await
}

async fn succeed_all(store: &Store, dispatched: &[Dispatch]) {
    let verdicts: Vec<Verdict> = dispatched
        .iter()
        .map(|dispatch| finished(dispatch, answer("done")))
        .collect();
    let settled = settle(store, &verdicts).await;
    assert_eq!(settled.ended.len(), dispatched.len());
    assert_eq!(settled.batches.len(), 1);
}

fn new_batch() -> NewBatch {
    NewBatch {
        id: BatchId::generate(),
        client: "test".into(),
        kind: "sluice",
        name: None,
        details: "{}".into(),
    }
}

fn lines(numbers: impl Iterator<Item = u64>) -> Vec<Line> {
    numbers.map(|number| Line { number, row: row() }).collect()
}

async fn stage(store: &Store, batch: &NewBatch, jobs: u64) {
    let now = clock::now();
    store.open_batch(batch, now).await.unwrap();
    let all = lines(1..=jobs);
    for chunk in all.chunks(100) {
        let last = chunk.last().unwrap().number;
        assert!(store.stage(batch.id, chunk, &[], last, now).await.unwrap());
    }
}

async fn accept(store: &Store, batch: &NewBatch, key: Option<&Idempotency>) -> Accepted {
    store
        .accept_batch(batch.id, &batch.client, key, clock::now())
        .await
        .unwrap()
}

async fn accepted(store: &Store, jobs: u64) -> BatchId {
    let batch = new_batch();
    stage(store, &batch, jobs).await;
    assert_eq!(accept(store, &batch, None).await, Accepted::New);
    batch.id
}

async fn feed(store: &Store, id: BatchId) -> Vec<JobId> {
    let mut jobs = Vec::new();
    loop {
        let fed = store.feed_batch(id, 100, clock::now()).await.unwrap();
        if fed.jobs.is_empty() {
            return jobs;
        }
        jobs.extend(fed.jobs.into_iter().map(|(job, _)| job));
    }
}

async fn counts(store: &Store, id: BatchId) -> BatchCounts {
    let batch = store.batch(id).await.unwrap().unwrap();
    store.batch_counts(&batch).await.unwrap()
}

async fn what_is_staged_is_seen_by_nobody(store: Store) {
    let batch = new_batch();
    stage(&store, &batch, 250).await;
    assert_eq!(store.batch(batch.id).await.unwrap(), None);
    assert_eq!(store.batches(None, None, None, 10).await.unwrap(), []);
    assert!(store.open_batches().await.unwrap().is_empty());
    assert!(feed(&store, batch.id).await.is_empty());
    assert_eq!(store.backlog().await.unwrap(), 0);

    // The upload broke off: nothing is left of it, and nothing can be made of it any more.
    let later = clock::now() + std::time::Duration::from_secs(1);
    assert_eq!(store.sweep_stages(later).await.unwrap(), 1);
    assert_eq!(store.sweep_stages(later).await.unwrap(), 0);
    assert_eq!(accept(&store, &batch, None).await, Accepted::Gone);
    let more = lines(251..=251);
    assert!(
        !store
            .stage(batch.id, &more, &[], 251, clock::now())
            .await
            .unwrap()
    );
}

async fn an_accepted_batch_becomes_its_jobs_once(store: Store) {
    let id = accepted(&store, 1_250).await;
    let queued = counts(&store, id).await;
    assert_eq!((queued.queued, queued.ended()), (1_250, 0));
    let mut feeders = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        feeders.spawn(async move {
            let mut jobs = Vec::new();
            while !store.batch(id).await.unwrap().unwrap().is_fed {
                let fed = store.feed_batch(id, 100, clock::now()).await.unwrap();
                jobs.extend(fed.jobs.into_iter().map(|(job, _)| job));
            }
            jobs
        });
    }
    let jobs: Vec<JobId> = feeders.join_all().await.concat();
    assert_eq!(jobs.len(), 1_250);
    assert_eq!(BTreeSet::from_iter(&jobs).len(), 1_250);
    assert_eq!(store.backlog().await.unwrap(), 1_250);
    assert_eq!(counts(&store, id).await.queued, 1_250);
    assert!(feed(&store, id).await.is_empty());
    let filter = Filter {
        batch: Some(id),
        ..Filter::default()
    };
    let page = store.jobs(&filter, None, 500).await.unwrap();
    assert_eq!(page.jobs.len(), 500);
    assert!(page.jobs.iter().all(|job| job.batch == Some(id)));
}

async fn a_key_stands_for_one_upload(store: Store) {
    let key = |fingerprint: &str| Idempotency {
        key: "k".into(),
        fingerprint: fingerprint.into(),
    };
    let (first, second, third) = (new_batch(), new_batch(), new_batch());
    for batch in [&first, &second, &third] {
        stage(&store, batch, 3).await;
    }
    assert_eq!(accept(&store, &first, Some(&key("a"))).await, Accepted::New);
    assert_eq!(
        accept(&store, &second, Some(&key("a"))).await,
        Accepted::Replayed(first.id)
    );
    assert_eq!(
        accept(&store, &third, Some(&key("b"))).await,
        Accepted::Mismatch
    );
    assert_eq!(store.batch(second.id).await.unwrap(), None);
    store.drop_stage(second.id).await.unwrap();
    // One that was accepted is not dropped by mistake.
    store.drop_stage(first.id).await.unwrap();
    assert_eq!(feed(&store, first.id).await.len(), 3);
}

async fn a_quota_refuses_a_batch_as_a_whole(store: Store) {
    let mut client = store.client("test").await.unwrap();
    client.quota = Quota {
        max_waiting: Some(10),
        ..Quota::default()
    };
    store.set_client(&client).await.unwrap();
    let first = accepted(&store, 8).await;
    // It counts from its acceptance, whether its lines are jobs already or not.
    for fed in [false, true] {
        if fed {
            assert_eq!(feed(&store, first).await.len(), 8);
        }
        let second = new_batch();
        stage(&store, &second, 3).await;
        let refused = accept(&store, &second, None).await;
        assert!(
            matches!(
                refused,
                Accepted::OverQuota(Violation {
                    used: 8,
                    limit: 10,
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(store.batch(second.id).await.unwrap(), None);
    }
}

async fn a_cancelled_batch_ends_whatever_it_was_doing(store: Store) {
    let id = accepted(&store, 250).await;
    let now = clock::now();
    store.feed_batch(id, 100, now).await.unwrap();
    let running = dispatch_all(&store, 10).await;
    assert!(store.cancel_batch(id, now).await.unwrap());

    // What had not become a job becomes one that has ended.
    let fed = store.feed_batch(id, 1_000, now).await.unwrap();
    assert_eq!(fed.jobs.len(), 150);
    assert!(fed.jobs.iter().all(|(_, state)| *state == State::Cancelled));
    assert!(fed.lanes.is_empty());
    let done = store.cancel_jobs(id, 1_000, now).await.unwrap();
    assert_eq!((done.ended.len(), done.in_flight.len()), (90, 0));
    let done = store.cancel_jobs(id, 1_000, now).await.unwrap();
    assert_eq!((done.ended.len(), done.in_flight.len()), (0, 10));
    let done = store.cancel_jobs(id, 1_000, now).await.unwrap();
    assert_eq!((done.ended.len(), done.in_flight.len()), (0, 0));
    assert!(store.end_batches(now).await.unwrap().is_empty());

    // An answer that was under way counts.
    succeed_all(&store, &running).await;
    let ended = store.end_batches(now).await.unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!(
        (ended[0].counts.succeeded, ended[0].counts.cancelled),
        (10, 240)
    );
    assert!(!store.cancel_batch(id, now).await.unwrap());
    assert_eq!(counts(&store, id).await, ended[0].counts);
}

async fn outcomes_come_in_the_order_of_the_lines(store: Store) {
    let batch = new_batch();
    let now = clock::now();
    store.open_batch(&batch, now).await.unwrap();
    let reject = |line| LineError {
        line,
        code: "invalid_job".into(),
        detail: "prompt: is empty".into(),
    };
    let numbers = [2, 4, 5];
    let jobs = lines(numbers.into_iter());
    let ids: Vec<JobId> = jobs.iter().map(|line| line.row.id).collect();
    let rejects = [reject(1), reject(3), reject(7)];
    assert!(
        store
            .stage(batch.id, &jobs, &rejects, 7, now)
            .await
            .unwrap()
    );
    assert_eq!(accept(&store, &batch, None).await, Accepted::New);
    let read = async |after, most| {
        let row = store.batch(batch.id).await.unwrap().unwrap();
        let outcomes = store.batch_outcomes(&row, after, most).await.unwrap();
        outcomes
            .into_iter()
            .map(|outcome| (outcome.line, outcome.job, outcome.answer.is_some()))
            .collect::<Vec<_>>()
    };
    assert_eq!(read(0, 10).await, []);
    assert_eq!(feed(&store, batch.id).await, ids);
    let waiting = |line, index: usize| (line, Some((ids[index], State::Queued)), false);
    let all = [
        (1, None, false),
        waiting(2, 0),
        (3, None, false),
        waiting(4, 1),
        waiting(5, 2),
        (7, None, false),
    ];
    assert_eq!(read(0, 10).await, all);
    assert_eq!(read(3, 10).await, all[3..]);
    // A page that ends before its last job says nothing of what stands behind it.
    assert_eq!(read(0, 2).await, all[..2]);
    assert_eq!(read(2, 2).await, all[2..4]);
    let dispatched = dispatch_all(&store, 1).await;
    succeed_all(&store, &dispatched).await;
    assert_eq!(
        read(1, 1).await,
        [(2, Some((ids[0], State::Succeeded)), true)]
    );
    let row = store.batch(batch.id).await.unwrap().unwrap();
    assert_eq!((row.total, row.rejected), (3, 3));
    assert_eq!(store.batch_rejects(batch.id, 1, 9).await.unwrap().len(), 2);
}

async fn a_batch_ends_once_whoever_looks(store: Store) {
    let id = accepted(&store, 40).await;
    feed(&store, id).await;
    assert!(store.end_batches(clock::now()).await.unwrap().is_empty());
    let dispatched = dispatch_all(&store, 40).await;
    assert_eq!(dispatched.len(), 40);
    succeed_all(&store, &dispatched).await;
    let mut lookers = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        lookers.spawn(async move { store.end_batches(clock::now()).await.unwrap() });
    }
    let ended = lookers.join_all().await.concat();
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].id, ended[0].counts.succeeded), (id, 40));
    assert_eq!(
        store.batch(id).await.unwrap().unwrap().ended_at,
        Some(ended[0].ended_at)
    );
    assert!(store.open_batches().await.unwrap().is_empty());
}
