//! Jobs that are bound in the transaction that accepts them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use sluice_producer_api::store::{Claim, LaneDemand, NewRow, Store, Taken};
use sluice_shared::{
    clock,
    domain::{
        Account, JobId, Kind, Lane, Limit, Outcome, Span, Standing, State, ThrottleKind,
        route::{Refusal, Routing},
    },
    message::Dispatch,
};
use tokio::task::JoinSet;

use crate::{account, answer, claim, finished, row, settle, state, submission, submit};

/// Submits these as one, and gives what became of them with the attempts that are bound.
async fn arrive(
    store: &Store,
    rows: Vec<NewRow>,
    accounts: &[Account],
    most: usize,
) -> (Taken, Vec<Dispatch>) {
    let mut lanes: Vec<Lane> = rows.iter().map(|row| row.lane.clone()).collect();
    lanes.sort();
    lanes.dedup();
    let lanes: Vec<LaneDemand> = lanes
        .into_iter()
        .map(|lane| LaneDemand {
            key: lane.key(),
            lane,
        })
        .collect();
    let claim = Claim {
        lanes: &lanes,
        accounts,
        routing: &Routing::default(),
        speeds: &HashMap::new(),
        most,
    };
    let taken = store
        .submit_and_bind(
            &[submission(rows.clone())],
            &claim,
            &Mutex::default(),
            clock::now(),
        )
        .await
        .unwrap();
    let bound = |row: NewRow| {
        let (_, account) = taken.bound.iter().find(|(job, _)| *job == row.id)?;
        Some(row.into_dispatch(account.clone()))
    };
    let dispatches = rows.into_iter().filter_map(bound).collect();
    (taken, dispatches)
}

fn pinned(name: &str) -> NewRow {
    NewRow {
        lane: Lane::new(Some(name.parse().unwrap()), None, vec![]),
        ..row()
    }
}

fn ids(dispatches: &[Dispatch]) -> Vec<JobId> {
    dispatches.iter().map(|dispatch| dispatch.job).collect()
}

pub(crate) async fn a_new_job_that_need_not_wait_is_bound_at_once(store: Store) {
    let accounts = [account("a", 2), account("b", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let urgent = NewRow {
        priority: 9,
        ..row()
    };
    let later = NewRow {
        run_at: clock::now() + Duration::from_secs(3600),
        ..row()
    };
    let rows = vec![later, row(), row(), row(), urgent];
    let all: Vec<JobId> = rows.iter().map(|row| row.id).collect();
    let (_, bound) = arrive(&store, rows, &accounts, 100).await;
    // Three slots: the one of the highest priority and the two oldest.
    assert_eq!(ids(&bound), [all[1], all[2], all[4]]);
    for dispatch in &bound {
        let job = store.job(dispatch.job).await.unwrap().unwrap();
        assert_eq!((job.state, job.attempt), (State::Dispatched, 1));
        assert_eq!(job.account.as_ref(), Some(&dispatch.account));
        assert!(job.dispatched_at.is_some());
    }
    for waiting in [all[0], all[3]] {
        let job = store.job(waiting).await.unwrap().unwrap();
        assert_eq!((job.state, job.account), (State::Queued, None));
    }
    assert_eq!(store.audit_slots().await.unwrap(), []);
    assert_eq!(store.accounts().await.unwrap()[0].in_flight, 2);

    let verdicts: Vec<_> = bound
        .iter()
        .map(|dispatch| finished(dispatch, answer("done")))
        .collect();
    assert_eq!(settle(&store, &verdicts).await.ended.len(), 3);
    assert_eq!(store.accounts().await.unwrap()[0].in_flight, 0);
    let claimed = claim(&store, &accounts, &[Lane::default()], 100).await;
    assert_eq!(ids(&claimed.dispatches), [all[3]]);
}

pub(crate) async fn who_waits_goes_before_who_comes(store: Store) {
    let accounts = [account("a", 1), account("b", 9)];
    store.sync_accounts(&accounts).await.unwrap();
    let first = submit(&store, vec![pinned("a"), pinned("a")]).await;
    let claimed = claim(&store, &accounts, &[pinned("a").lane], 100).await;
    assert_eq!(ids(&claimed.dispatches), [first[0]]);
    settle(&store, &[finished(&claimed.dispatches[0], answer(""))]).await;

    // Its slot is free now, and whoever waits in another lane has the first claim to it.
    let (_, bound) = arrive(&store, vec![row(), pinned("a")], &accounts, 100).await;
    assert_eq!(bound.len(), 1);
    assert_eq!(bound[0].account.as_str(), "b");

    // One that may run anywhere waits, so that nobody new gets any.
    submit(&store, vec![row()]).await;
    let (_, bound) = arrive(&store, vec![row(), pinned("b")], &accounts, 100).await;
    assert!(bound.is_empty());
}

pub(crate) async fn who_comes_gets_no_account_that_takes_none(store: Store) {
    let accounts = [account("a", 9), account("b", 9), account("c", 9)];
    store.sync_accounts(&accounts).await.unwrap();
    let (_, bound) = arrive(&store, vec![pinned("a"), pinned("b")], &accounts, 100).await;
    let throttled = Outcome::Throttled {
        until: Some(clock::now() + Duration::from_secs(600)),
        throttle: ThrottleKind::Burst,
        detail: String::new(),
    };
    let refused = Outcome::AuthFailed {
        detail: String::new(),
    };
    settle(
        &store,
        &[finished(&bound[0], throttled), finished(&bound[1], refused)],
    )
    .await;
    assert_eq!(
        store.accounts().await.unwrap()[1].standing,
        Standing::AuthFailed
    );
    // Nobody waits, so that the accounts' own state decides.
    for dispatch in &bound {
        let cancelled = store.cancel(dispatch.job, clock::now()).await.unwrap();
        assert!(cancelled.unwrap().unwrap().2);
    }
    let (taken, bound) = arrive(&store, vec![pinned("c")], &accounts, 100).await;
    assert_eq!((taken.bound.len(), bound[0].account.as_str()), (1, "c"));
    for name in ["a", "b"] {
        let (_, bound) = arrive(&store, vec![pinned(name)], &accounts, 100).await;
        assert!(bound.is_empty(), "{name}");
    }
    // No worker serves it.
    let (_, bound) = arrive(&store, vec![pinned("c")], &accounts[..2], 100).await;
    assert!(bound.is_empty());
}

pub(crate) async fn submitters_and_claimers_at_once_exceed_no_slot(store: Store) {
    let accounts = Arc::new([account("a", 60), account("b", 40)]);
    store.sync_accounts(&accounts[..]).await.unwrap();
    let mut tasks = JoinSet::new();
    for worker in 0..8 {
        let (store, accounts) = (store.clone(), accounts.clone());
        tasks.spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..10 {
                if worker % 2 == 0 {
                    let rows = (0..7).map(|_| row()).collect();
                    mine.extend(arrive(&store, rows, &accounts[..], 5).await.1);
                } else {
                    let lanes = [Lane::default()];
                    mine.extend(claim(&store, &accounts[..], &lanes, 7).await.dispatches);
                }
            }
            mine
        });
    }
    let mut bound = tasks.join_all().await.concat();
    bound.extend(
        claim(&store, &accounts[..], &[Lane::default()], 1000)
            .await
            .dispatches,
    );
    let mut jobs = ids(&bound);
    jobs.sort_unstable();
    jobs.dedup();
    assert_eq!((bound.len(), jobs.len()), (100, 100));
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    for dispatch in &bound {
        *taken.entry(dispatch.account.as_str()).or_default() += 1;
    }
    assert_eq!(taken, BTreeMap::from([("a", 60), ("b", 40)]));
    assert_eq!(store.audit_slots().await.unwrap(), []);
    assert_eq!(state(&store, bound[0].job).await, State::Dispatched);
}

pub(crate) async fn what_is_bound_at_the_door_is_charged_to_its_windows(store: Store) {
    let limit = Limit {
        kind: Kind::Requests,
        most: 3,
        window: Span(Duration::from_secs(60)),
    };
    let accounts = [Account {
        limits: vec![limit],
        ..account("a", 100)
    }];
    store.sync_accounts(&accounts).await.unwrap();
    let (_, first) = arrive(&store, vec![row(), row()], &accounts, 100).await;
    assert_eq!(first.len(), 2);
    let (_, second) = arrive(&store, vec![row(), row()], &accounts, 100).await;
    assert_eq!(second.len(), 1, "the window has room for one more");
    let now = clock::now();
    let (_, window) = &store.windows(&accounts[0], now).await.unwrap()[0];
    assert_eq!((window.held(), window.room(3, now)), (3, 0));
    let waits = claim(&store, &accounts, &[Lane::default()], 100).await;
    assert_eq!(waits.dispatches.len(), 0);
    assert_eq!(
        store.audit_windows(&accounts, now).await.unwrap(),
        Vec::<String>::new()
    );
    // The seat that a strategy and an explanation see is the one of the books.
    let seen = &store.accounts().await.unwrap()[0];
    let seat = seen.seat(None, now);
    assert_eq!((seat.room(), seat.windows[0].left), (0, 0.0));
    assert!(matches!(
        seen.refusal(None, now),
        Some(Refusal::WindowFull { .. })
    ));
}
