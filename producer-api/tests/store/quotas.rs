//! Quotas of clients, as the truth plane holds them.

use std::{collections::BTreeMap, time::Duration};

use sluice_producer_api::store::{
    ClientRow, Idempotency, NewRow, Store, Submission, Submitted, Verdict,
};
use sluice_shared::{
    clock,
    domain::{Completion, Lane, Outcome, Quota, Usage, quota::Policy},
    message::Dispatch,
};
use tokio::task::JoinSet;

use super::{account, answer, claim, claim_any, finished, row, settle};

on_every_store!(
    weights_are_ratios,
    processes_together_take_no_more_than_a_backlog_holds,
    processes_together_run_no_more_than_a_client_may,
    a_client_at_its_limit_holds_nobody_up,
    what_was_forgotten_of_a_place_keeps_no_job_out_of_sight,
    a_slot_comes_back_however_its_attempt_ends,
    a_budget_holds_jobs_until_it_starts_anew,
    a_refusal_costs_no_place_and_no_idempotency_key,
);

fn of(client: &str, jobs: usize) -> Submission {
    Submission {
        client: client.into(),
        rows: (0..jobs).map(|_| row()).collect(),
        idempotency: None,
    }
}

async fn set(store: &Store, name: &str, weight: u32, quota: Quota) {
    let row = ClientRow {
        name: name.into(),
        weight,
        quota,
    };
    store.set_client(&row).await.unwrap();
    assert_eq!(store.client(name).await.unwrap(), row);
}

async fn submit(store: &Store, client: &str, jobs: usize) -> Submitted {
    let mut results = store
        .submit(&[of(client, jobs)], clock::now())
        .await
        .unwrap();
    results.pop().unwrap()
}

async fn by_client(store: &Store, bound: &[Dispatch]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for dispatch in bound {
        let client = store.job(dispatch.job).await.unwrap().unwrap().client;
        *counts.entry(client).or_default() += 1;
    }
    counts
}

async fn weights_are_ratios(store: Store) {
    let accounts = [account("a", 100)];
    store.sync_accounts(&accounts).await.unwrap();
    set(&store, "heavy", 3, Quota::default()).await;
    for client in ["light", "heavy"] {
        submit(&store, client, 200).await;
    }
    let bound = claim_any(&store, &accounts).await;
    let counts = by_client(&store, &bound).await;
    assert!((74..=76).contains(&counts["heavy"]), "{counts:?}");
}

async fn processes_together_take_no_more_than_a_backlog_holds(store: Store) {
    let quota = Quota {
        max_waiting: Some(25),
        ..Quota::default()
    };
    set(&store, "full", 1, quota).await;
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut accepted = 0;
            for _ in 0..10 {
                match submit(&store, "full", 2).await {
                    Submitted::OverQuota(violation) => {
                        assert_eq!(violation.policy, Policy::Waiting);
                    }
                    taken => {
                        assert_eq!(taken, Submitted::Accepted);
                        accepted += 2;
                    }
                }
            }
            accepted
        });
    }
    let accepted: u64 = tasks.join_all().await.into_iter().sum();
    assert_eq!((accepted, store.backlog().await.unwrap()), (24, 24));
}

async fn processes_together_run_no_more_than_a_client_may(store: Store) {
    let accounts = [account("a", 500), account("b", 500)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        max_running: Some(7),
        ..Quota::default()
    };
    set(&store, "few", 1, quota).await;
    submit(&store, "few", 300).await;
    submit(&store, "many", 300).await;
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let (store, accounts) = (store.clone(), accounts.clone());
        tasks.spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..12 {
                mine.extend(
                    claim(&store, &accounts, &[Lane::default()], 20)
                        .await
                        .dispatches,
                );
            }
            mine
        });
    }
    let bound = tasks.join_all().await.concat();
    let counts = by_client(&store, &bound).await;
    assert_eq!((counts["few"], counts["many"]), (7, 300));
}

async fn a_client_at_its_limit_holds_nobody_up(store: Store) {
    let accounts = [account("a", 40)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        max_running: Some(1),
        ..Quota::default()
    };
    set(&store, "few", 1, quota).await;
    for _ in 0..5 {
        submit(&store, "few", 1000).await;
    }
    submit(&store, "other", 30).await;
    let claimed = claim(&store, &accounts, &[Lane::default()], 100).await;
    let counts = by_client(&store, &claimed.dispatches).await;
    assert_eq!((counts["few"], counts["other"]), (1, 30));
    assert_eq!(claimed.waiting, [true]);
    // Its limit lifted, it takes what is free.
    set(&store, "few", 1, Quota::default()).await;
    assert_eq!(claim_any(&store, &accounts).await.len(), 9);
}

async fn a_slot_comes_back_however_its_attempt_ends(store: Store) {
    let accounts = [account("a", 40)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        max_running: Some(2),
        ..Quota::default()
    };
    set(&store, "few", 1, quota).await;
    submit(&store, "few", 50).await;
    for round in 0..8 {
        let bound = claim_any(&store, &accounts).await;
        assert_eq!(bound.len(), 2, "round {round}");
        assert!(claim_any(&store, &accounts).await.is_empty());
        let ends: Vec<Verdict> = bound
            .iter()
            .enumerate()
            .map(|(index, dispatch)| {
                let (job, attempt) = (dispatch.job, dispatch.attempt);
                match (round + index) % 4 {
                    0 => finished(dispatch, answer("")),
                    1 => finished(dispatch, Outcome::failed("x", "")),
                    2 => Verdict::Lost {
                        job,
                        attempt,
                        began: false,
                    },
                    _ => Verdict::Unpublished { job, attempt },
                }
            })
            .collect();
        settle(&store, &ends).await;
    }
}

async fn a_budget_holds_jobs_until_it_starts_anew(store: Store) {
    let accounts = [account("a", 40)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        tokens_per_day: Some(1_000),
        ..Quota::default()
    };
    set(&store, "poor", 1, quota).await;
    submit(&store, "poor", 30).await;
    let uses = |tokens: u64| {
        Outcome::Completed(Completion {
            usage: Usage {
                output_tokens: tokens,
                ..Usage::default()
            },
            ..Completion::default()
        })
    };
    // What one uses is not known yet, so only a few go; then as many as the budget has room for.
    let mut used = 0;
    for expected in [4, 6, 0] {
        let bound = claim_any(&store, &accounts).await;
        assert_eq!(bound.len(), expected);
        assert!(claim_any(&store, &accounts).await.is_empty());
        let ends: Vec<Verdict> = bound
            .iter()
            .map(|dispatch| finished(dispatch, uses(100)))
            .collect();
        settle(&store, &ends).await;
        used += 100 * bound.len() as u64;
    }
    let violation = match submit(&store, "poor", 1).await {
        Submitted::OverQuota(violation) => Some(violation),
        _ => None,
    };
    let violation = violation.expect("it is refused");
    assert_eq!(
        (violation.policy, violation.used),
        (Policy::TokensPerDay, used)
    );
    let lanes = [sluice_producer_api::store::LaneDemand {
        key: Lane::default().key(),
        lane: Lane::default(),
    }];
    let tomorrow = sluice_producer_api::store::Claim {
        lanes: &lanes,
        accounts: &accounts,
        routing: &sluice_shared::domain::route::Routing::default(),
        speeds: &std::collections::HashMap::new(),
        most: 100,
    };
    let then = clock::now() + Duration::from_secs(86_400);
    let cursor = std::sync::Mutex::default();
    let claimed = store.claim(&tomorrow, &cursor, then).await.unwrap();
    assert!(!claimed.dispatches.is_empty());
}

async fn a_refusal_costs_no_place_and_no_idempotency_key(store: Store) {
    let accounts = [account("a", 20)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        max_waiting: Some(50),
        ..Quota::default()
    };
    set(&store, "full", 1, quota).await;
    let with_key = |jobs: usize| Submission {
        idempotency: Some(Idempotency {
            key: "k".into(),
            fingerprint: "f".into(),
        }),
        rows: (0..jobs).map(|_| NewRow { ..row() }).collect(),
        ..of("full", 0)
    };
    for _ in 0..5 {
        let results = store
            .submit(&[with_key(60), with_key(60)], clock::now())
            .await
            .unwrap();
        for result in results {
            assert!(matches!(result, Submitted::OverQuota(_)), "{result:?}");
        }
    }
    submit(&store, "other", 50).await;
    let accepted = store.submit(&[with_key(50)], clock::now()).await.unwrap();
    assert_eq!(accepted, [Submitted::Accepted]);
    let bound = claim_any(&store, &accounts).await;
    assert_eq!(by_client(&store, &bound).await["full"], 10);
}

async fn what_was_forgotten_of_a_place_keeps_no_job_out_of_sight(store: Store) {
    let accounts = [account("a", 40)];
    store.sync_accounts(&accounts).await.unwrap();
    let quota = Quota {
        max_running: Some(1),
        ..Quota::default()
    };
    set(&store, "few", 1, quota).await;
    submit(&store, "few", 1).await;
    submit(&store, "other", 1).await;
    // All are dispatched, so nothing needs to be known of their places; then they come back.
    let bound = claim_any(&store, &accounts).await;
    assert_eq!(bound.len(), 2);
    for _ in 0..2 {
        store.mend_fair_tags(clock::now()).await.unwrap();
    }
    let back: Vec<Verdict> = bound
        .iter()
        .map(|dispatch| Verdict::Unpublished {
            job: dispatch.job,
            attempt: dispatch.attempt,
        })
        .collect();
    settle(&store, &back).await;
    assert_eq!(claim_any(&store, &accounts).await.len(), 2);
}
