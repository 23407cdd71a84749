//! Fair shares between clients, as the truth plane keeps them.

use std::{collections::BTreeMap, time::Duration};

use sluice_producer_api::store::{ClientRow, NewRow, Store, Submission};
use sluice_shared::{
    clock,
    domain::{Account, JobId, Lane, Outcome},
    message::Dispatch,
};
use tokio::task::JoinSet;

use super::{account, answer, claim, claim_any, finished, row, settle};

on_every_store!(
    a_hundred_jobs_beside_fifty_thousand_take_as_long_as_at_equal_share,
    a_rest_earns_no_credit_in_any_lane,
    submits_of_many_processes_take_one_place_each,
    a_blocked_lane_costs_its_client_nothing_elsewhere,
    a_scheduled_job_takes_its_place_when_its_time_comes,
    what_was_cancelled_holds_nobody_back,
    what_was_cancelled_at_the_front_holds_nobody_back,
    a_client_that_was_held_does_not_hold_others_then,
    mending_changes_nothing_that_is_right,
);

async fn submit_as(store: &Store, client: &str, rows: Vec<NewRow>) -> Vec<JobId> {
    let ids = rows.iter().map(|row| row.id).collect();
    let submission = Submission {
        client: client.into(),
        rows,
        idempotency: None,
    };
    store.submit(&[submission], clock::now()).await.unwrap();
    ids
}

async fn submit_many(store: &Store, client: &str, jobs: usize) -> Vec<JobId> {
    let mut ids = Vec::with_capacity(jobs);
    while ids.len() < jobs {
        let rows = (ids.len()..jobs.min(ids.len() + 1000))
            .map(|_| row())
            .collect();
        ids.extend(submit_as(store, client, rows).await);
    }
    ids
}

/// Binds what fits and ends it at once, until this many jobs have run; gives them in order.
async fn serve(store: &Store, accounts: &[Account], lanes: &[Lane], jobs: usize) -> Vec<JobId> {
    let mut served = Vec::new();
    while served.len() < jobs {
        let bound: Vec<Dispatch> = claim(store, accounts, lanes, jobs - served.len())
            .await
            .dispatches;
        if bound.is_empty() {
            break;
        }
        let ends: Vec<_> = bound
            .iter()
            .map(|dispatch| finished(dispatch, answer("")))
            .collect();
        settle(store, &ends).await;
        served.extend(bound.into_iter().map(|dispatch| dispatch.job));
    }
    served
}

async fn clients_of(store: &Store, jobs: &[JobId]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for job in jobs {
        let client = store.job(*job).await.unwrap().unwrap().client;
        *counts.entry(client).or_default() += 1;
    }
    counts
}

async fn a_hundred_jobs_beside_fifty_thousand_take_as_long_as_at_equal_share(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    submit_many(&store, "a", 50_000).await;
    assert_eq!(
        serve(&store, &accounts, &[Lane::default()], 50).await.len(),
        50
    );
    let mut open = submit_many(&store, "b", 100).await;
    let mut rounds = 0;
    while !open.is_empty() {
        let served = serve(&store, &accounts, &[Lane::default()], 10).await;
        assert_eq!(served.len(), 10);
        open.retain(|job| !served.contains(job));
        rounds += 1;
    }
    // At equal share, 100 jobs take the time of 200: 20 rounds of ten slots.
    assert!((20..=21).contains(&rounds), "{rounds}");
}

async fn a_rest_earns_no_credit_in_any_lane(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let busy = Lane::default();
    let quiet = Lane::new(Some("a".parse().unwrap()), None, vec![]);
    let rows = |jobs: usize, lane: &Lane| -> Vec<NewRow> {
        let lane = lane.clone();
        (0..jobs)
            .map(|_| NewRow {
                lane: lane.clone(),
                ..row()
            })
            .collect()
    };
    let lanes = [busy.clone(), quiet.clone()];
    submit_as(&store, "idle", rows(1, &quiet)).await;
    for _ in 0..5 {
        submit_as(&store, "busy", rows(100, &busy)).await;
        serve(&store, &accounts, &lanes, 101).await;
    }
    submit_as(&store, "busy", rows(100, &busy)).await;
    submit_as(&store, "idle", rows(100, &quiet)).await;
    submit_as(&store, "new", rows(100, &busy)).await;
    let served = serve(&store, &accounts, &lanes, 60).await;
    for (client, jobs) in clients_of(&store, &served).await {
        assert!((19..=21).contains(&jobs), "{client} got {jobs} of 60");
    }
}

async fn submits_of_many_processes_take_one_place_each(store: Store) {
    let accounts = [account("a", 100)];
    store.sync_accounts(&accounts).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                submit_as(&store, "many", (0..5).map(|_| row()).collect()).await;
            }
        });
    }
    tasks.join_all().await;
    submit_many(&store, "one", 300).await;
    let served = serve(&store, &accounts, &[Lane::default()], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["many"]), "{counts:?}");
}

async fn a_blocked_lane_costs_its_client_nothing_elsewhere(store: Store) {
    let accounts = [account("a", 10), account("full", 0)];
    store.sync_accounts(&accounts).await.unwrap();
    let full = Lane::new(Some("full".parse().unwrap()), None, vec![]);
    let blocked = (0..500)
        .map(|_| NewRow {
            lane: full.clone(),
            ..row()
        })
        .collect();
    submit_as(&store, "a", blocked).await;
    submit_many(&store, "b", 100).await;
    submit_many(&store, "a", 100).await;
    let served = serve(&store, &accounts, &[Lane::default(), full], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["a"]), "{counts:?}");
}

async fn a_scheduled_job_takes_its_place_when_its_time_comes(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let now = clock::now();
    let due = now + Duration::from_secs(60);
    let scheduled = (0..100)
        .map(|_| NewRow {
            run_at: due,
            ..row()
        })
        .collect();
    submit_as(&store, "later", scheduled).await;
    submit_many(&store, "now", 300).await;
    serve(&store, &accounts, &[Lane::default()], 100).await;
    assert_eq!(store.sweep(due).await.unwrap().ready_lanes, ["any"]);
    let served = serve(&store, &accounts, &[Lane::default()], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["later"]), "{counts:?}");
    // One that failed comes back to the place it had.
    let bound = claim_any(&store, &accounts).await;
    let failed = bound[0].job;
    settle(&store, &[finished(&bound[0], Outcome::failed("x", "y"))]).await;
    store.sweep(due + Duration::from_secs(60)).await.unwrap();
    let next = claim(&store, &accounts, &[Lane::default()], 1).await;
    assert_eq!(next.dispatches[0].job, failed);
}

async fn what_was_cancelled_holds_nobody_back(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    for job in submit_many(&store, "a", 200).await {
        store
            .cancel(job, clock::now())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    store.mend_fair_tags(clock::now()).await.unwrap();
    submit_many(&store, "b", 100).await;
    submit_many(&store, "a", 100).await;
    let served = serve(&store, &accounts, &[Lane::default()], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["a"]), "{counts:?}");
    // What says nothing any more is forgotten, and nothing is lost with it.
    serve(&store, &accounts, &[Lane::default()], 100).await;
    store.mend_fair_tags(clock::now()).await.unwrap();
    submit_many(&store, "a", 20).await;
    submit_many(&store, "b", 20).await;
    let served = serve(&store, &accounts, &[Lane::default()], 20).await;
    assert_eq!(clients_of(&store, &served).await["b"], 10);
}

async fn what_was_cancelled_at_the_front_holds_nobody_back(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let all = submit_many(&store, "a", 300).await;
    serve(&store, &accounts, &[Lane::default()], 10).await;
    for job in &all[10..200] {
        store
            .cancel(*job, clock::now())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    submit_many(&store, "b", 100).await;
    store.mend_fair_tags(clock::now()).await.unwrap();
    let served = serve(&store, &accounts, &[Lane::default()], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["a"]), "{counts:?}");
}

async fn a_client_that_was_held_does_not_hold_others_then(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let mut held = ClientRow::unlimited("held");
    held.quota.max_running = Some(1);
    store.set_client(&held).await.unwrap();
    submit_many(&store, "held", 300).await;
    let stuck = claim(&store, &accounts, &[Lane::default()], 1).await;
    assert_eq!(stuck.dispatches.len(), 1);
    submit_many(&store, "free", 600).await;
    let served = serve(&store, &accounts, &[Lane::default()], 300).await;
    assert_eq!(clients_of(&store, &served).await["free"], 300);
    store
        .set_client(&ClientRow::unlimited("held"))
        .await
        .unwrap();
    store.mend_fair_tags(clock::now()).await.unwrap();
    let served = serve(&store, &accounts, &[Lane::default()], 100).await;
    let counts = clients_of(&store, &served).await;
    assert!((49..=51).contains(&counts["held"]), "{counts:?}");
}

async fn mending_changes_nothing_that_is_right(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    submit_many(&store, "a", 500).await;
    serve(&store, &accounts, &[Lane::default()], 200).await;
    submit_many(&store, "b", 300).await;
    let before = store.waiting().await.unwrap();
    for _ in 0..3 {
        store.mend_fair_tags(clock::now()).await.unwrap();
        let served = serve(&store, &accounts, &[Lane::default()], 100).await;
        let counts = clients_of(&store, &served).await;
        assert!((49..=51).contains(&counts["b"]), "{counts:?}");
    }
    let after = store.waiting().await.unwrap();
    assert_eq!((before[0].jobs, before[1].jobs), (300, 300));
    assert_eq!((after[0].jobs, after[1].jobs), (150, 150));
}
