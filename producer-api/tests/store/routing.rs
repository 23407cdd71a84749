//! Strategies and sessions, fallbacks, what waits for what, and lanes that do not delay each other.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use sluice_producer_api::store::{Claim, LaneDemand, NewRow, Store};
use sluice_shared::{
    api::NewRouting,
    clock,
    domain::{
        Account, JobId, Lane, Outcome, Request, State, Step,
        route::{Cursor, Routing, Strategy},
    },
};

use crate::{account, claim, claim_any, finished, row, settle, submit};

fn pinned(name: &str) -> Lane {
    Lane::new(Some(name.parse().unwrap()), None, vec![])
}

fn in_lane(lane: Lane) -> NewRow {
    NewRow { lane, ..row() }
}

pub(crate) async fn what_was_chosen_is_kept(store: Store) {
    assert_eq!(store.routing().await.unwrap(), NewRouting::default());
    for chosen in [
        NewRouting {
            strategy: Some(Strategy::Headroom),
            lanes: [("any".to_owned(), Strategy::Weighted)].into(),
        },
        NewRouting::default(),
    ] {
        store.set_routing(&chosen).await.unwrap();
        assert_eq!(store.routing().await.unwrap(), chosen);
    }
}

pub(crate) async fn each_lane_has_its_strategy_and_a_session_its_account(store: Store) {
    let accounts = [
        Account {
            weight: 9,
            ..account("a", 100)
        },
        account("b", 100),
    ];
    store.sync_accounts(&accounts).await.unwrap();
    let weighted = Lane::new(None, Some("m".into()), vec![]);
    let routing = Routing {
        strategy: Strategy::RoundRobin,
        lanes: [(weighted.key(), Strategy::Weighted)].into(),
    };
    let cursor = Mutex::new(Cursor::default());
    let claim = async |lane: &Lane| {
        let lanes = [LaneDemand {
            key: lane.key(),
            lane: lane.clone(),
        }];
        let claim = Claim {
            lanes: &lanes,
            accounts: &accounts,
            routing: &routing,
            speeds: &HashMap::new(),
            most: 1000,
        };
        let claimed = store.claim(&claim, &cursor, clock::now()).await.unwrap();
        let of = |name: &str| {
            let accounts = claimed.dispatches.iter();
            accounts.filter(|one| one.account.as_str() == name).count()
        };
        (of("a"), of("b"))
    };
    submit(&store, (0..20).map(|_| row()).collect()).await;
    assert_eq!(claim(&Lane::default()).await, (10, 10));
    submit(&store, (0..20).map(|_| in_lane(weighted.clone())).collect()).await;
    assert_eq!(claim(&weighted).await, (18, 2));
    let talk = |_| NewRow {
        session: Some("s".into()),
        ..row()
    };
    submit(&store, (0..6).map(talk).collect()).await;
    let (a, b) = claim(&Lane::default()).await;
    assert!(a == 6 || b == 6, "{a} and {b}");
}

pub(crate) async fn a_saturated_lane_delays_no_other(store: Store) {
    let accounts = [account("narrow", 1), account("wide", 1000)];
    store.sync_accounts(&accounts).await.unwrap();
    for _ in 0..10 {
        let rows = (0..1000).map(|_| NewRow {
            priority: 100,
            ..in_lane(pinned("narrow"))
        });
        submit(&store, rows.collect()).await;
    }
    let lanes = [pinned("narrow"), pinned("wide")];
    assert_eq!(
        claim(&store, &accounts, &lanes, 512).await.dispatches.len(),
        1
    );
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        let jobs = submit(&store, vec![in_lane(pinned("wide"))]).await;
        let claimed = claim(&store, &accounts, &lanes, 512).await;
        took.push(began.elapsed());
        let bound: Vec<JobId> = claimed.dispatches.iter().map(|one| one.job).collect();
        assert_eq!(bound, jobs, "the first pass binds it, and nothing else");
    }
    took.sort_unstable();
    // Ten times what it takes on an idle machine; a scan of the backlog takes longer.
    assert!(
        took[50] < Duration::from_millis(50),
        "p50 {:?}, p99 {:?}",
        took[50],
        took[98]
    );
}

fn with_way(step: Step) -> NewRow {
    let first = Step {
        lane: pinned("a").key(),
        model: None,
        after_ms: None,
        on_failure: false,
    };
    NewRow {
        steps: vec![first, step],
        ..in_lane(pinned("a"))
    }
}

fn to_b() -> Step {
    Step {
        lane: Lane::new(Some("b".parse().unwrap()), Some("m2".into()), vec![]).key(),
        model: Some("m2".into()),
        after_ms: None,
        on_failure: false,
    }
}

pub(crate) async fn a_job_falls_back_when_its_time_has_come(store: Store) {
    let accounts = [account("a", 0), account("b", 9)];
    store.sync_accounts(&accounts).await.unwrap();
    let step = Step {
        after_ms: Some(30_000),
        ..to_b()
    };
    let lane = Lane::parse(&step.lane).unwrap();
    let jobs = submit(&store, vec![with_way(step), in_lane(pinned("a"))]).await;
    let now = clock::now();
    assert!(
        store
            .fall_back(now + Duration::from_secs(29))
            .await
            .unwrap()
            .is_empty()
    );
    let later = now + Duration::from_secs(31);
    assert_eq!(store.fall_back(later).await.unwrap(), [lane.key()]);
    assert!(store.fall_back(later).await.unwrap().is_empty(), "once");
    let dispatched = claim(&store, &accounts, &[pinned("a"), lane], 9)
        .await
        .dispatches;
    assert_eq!(dispatched.len(), 1);
    assert_eq!(dispatched[0].job, jobs[0]);
    assert_eq!(dispatched[0].account.as_str(), "b");
    assert_eq!(dispatched[0].request.model.as_deref(), Some("m2"));
}

pub(crate) async fn a_job_in_flight_stays_where_it_is(store: Store) {
    let accounts = [account("a", 9), account("b", 9)];
    store.sync_accounts(&accounts).await.unwrap();
    let step = Step {
        after_ms: Some(1000),
        ..to_b()
    };
    submit(&store, vec![with_way(step)]).await;
    let dispatch = claim(&store, &accounts, &[pinned("a")], 9)
        .await
        .dispatches
        .remove(0);
    let later = clock::now() + Duration::from_secs(60);
    assert!(store.fall_back(later).await.unwrap().is_empty());
    settle(&store, &[finished(&dispatch, Outcome::Cancelled)]).await;
    assert_eq!(
        store.fall_back(later).await.unwrap().len(),
        1,
        "it waits again"
    );
}

pub(crate) async fn a_failure_leads_to_the_fallback_at_once(store: Store) {
    let accounts = [account("a", 9), account("b", 9)];
    store.sync_accounts(&accounts).await.unwrap();
    let step = Step {
        on_failure: true,
        ..to_b()
    };
    let lane = Lane::parse(&step.lane).unwrap();
    for outcome in [
        Outcome::failed("timeout", "x"),
        Outcome::rejected("prompt_too_long", "x"),
    ] {
        let job = submit(&store, vec![with_way(step.clone())]).await[0];
        let dispatch = claim(&store, &accounts, &[pinned("a")], 9)
            .await
            .dispatches
            .remove(0);
        let settled = settle(&store, &[finished(&dispatch, outcome.clone())]).await;
        assert_eq!(settled.requeued, [lane.key()], "{outcome:?}");
        let again = claim(&store, &accounts, std::slice::from_ref(&lane), 9).await;
        let again = &again.dispatches[0];
        assert_eq!(
            (again.job, again.attempt, again.account.as_str()),
            (job, 2, "b")
        );
        assert_eq!(again.request.model.as_deref(), Some("m2"));
        // There is no step after the last: what is rejected there has ended.
        settle(&store, &[finished(again, Outcome::rejected("no", "x"))]).await;
        let view = store.job(job).await.unwrap().unwrap();
        assert_eq!((view.state, view.failures), (State::Failed, 1));
        assert_eq!(view.attempts.unwrap().len(), 2);
    }
}

pub(crate) async fn the_backlog_says_what_waits_where(store: Store) {
    let accounts = [account("a", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let rows = (0..30).map(|number| NewRow {
        priority: number % 3,
        ..row()
    });
    let jobs = submit(&store, rows.collect()).await;
    submit(&store, vec![in_lane(pinned("a"))]).await;
    let scheduled = NewRow {
        run_at: clock::now() + Duration::from_secs(60),
        ..row()
    };
    submit(&store, vec![scheduled]).await;
    let backlogs = store.backlogs().await.unwrap();
    let lanes: Vec<_> = backlogs
        .lanes
        .iter()
        .map(|lane| (lane.key.as_str(), lane.waiting.jobs, lane.waiting.more))
        .collect();
    assert_eq!(lanes, [("account=a", 1, false), ("any", 30, false)]);
    assert!(!backlogs.more_lanes && backlogs.lanes[1].oldest.is_some());
    assert_eq!(
        (backlogs.scheduled.jobs, backlogs.next_due.is_some()),
        (1, true)
    );
    // Priority 2 goes first, then 1: the first of priority 0 has 20 before it.
    for (index, ahead) in [(2, 0), (5, 1), (1, 10), (0, 20), (27, 29)] {
        let counted = store.ahead_of(jobs[index]).await.unwrap().unwrap();
        assert_eq!((counted.jobs, counted.more), (ahead, false), "{index}");
    }
    let dispatch = claim_any(&store, &accounts).await.remove(0);
    assert_eq!(store.ahead_of(dispatch.job).await.unwrap(), None);
    assert_eq!(Request::prompt("hello"), dispatch.request);
}
