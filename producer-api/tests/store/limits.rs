//! Limits and cooldowns, as the truth plane keeps them.

use std::{sync::Arc, time::Duration};

use sluice_producer_api::store::{Claimed, NewRow, Store, Verdict};
use sluice_shared::{
    clock,
    domain::{
        Account, Completion, Figure, Kind, Lane, Limit, Needs, Outcome, Request, Span, State,
        ThrottleKind, Time, Usage,
    },
    message::{Dispatch, Reply, Report},
};
use tokio::task::JoinSet;

use super::{account, answer, claim, finished, row, settle, submit};

on_every_store!(
    claimers_at_once_exceed_no_window,
    a_window_opens_when_its_calls_are_a_window_ago_and_says_when,
    what_never_reached_its_provider_is_refunded,
    what_may_have_reached_its_provider_counts,
    tokens_are_reserved_and_reconciled,
    a_new_limit_counts_what_is_under_way,
    a_limited_account_holds_up_no_other,
    an_account_comes_back_by_one_canary,
    a_family_of_models_cools_alone,
    a_shared_refusal_cools_the_others,
    what_a_provider_says_is_kept,
    an_audit_finds_nothing_to_mend,
);

fn limited(name: &str, kind: Kind, most: u64, window: Duration) -> Account {
    Account {
        limits: vec![Limit {
            kind,
            most,
            window: Span(window),
        }],
        ..account(name, 1000)
    }
}

const MINUTE: Duration = Duration::from_secs(60);

async fn rows(store: &Store, count: usize) {
    submit(store, (0..count).map(|_| row()).collect()).await;
}

async fn claimed(store: &Store, account: &Account) -> Claimed {
    let accounts = std::slice::from_ref(account);
    claim(store, accounts, &[Lane::default()], 1000).await
}

async fn bound(store: &Store, account: &Account) -> Vec<Dispatch> {
    claimed(store, account).await.dispatches
}

fn report(dispatch: &Dispatch, report: Report) -> Verdict {
    Verdict::Report(Reply {
        job: dispatch.job,
        attempt: dispatch.attempt,
        account: dispatch.account.clone(),
        worker: "w".into(),
        report,
        learned: Box::default(),
    })
}

/// An attempt that took no time at all.
fn done(dispatch: &Dispatch, outcome: Outcome) -> Verdict {
    let now = clock::now();
    report(
        dispatch,
        Report::Finished {
            started_at: Some(now),
            finished_at: now,
            outcome,
        },
    )
}

fn returned(dispatch: &Dispatch) -> Verdict {
    report(
        dispatch,
        Report::Returned {
            reason: "unrun".into(),
        },
    )
}

async fn left(store: &Store, account: &Account) -> (u64, u64, u64) {
    let now = clock::now();
    let windows = store.windows(account, now).await.unwrap();
    let (limit, window) = &windows[0];
    (
        window.used(now),
        window.held(),
        window.room(limit.most, now),
    )
}

async fn claimers_at_once_exceed_no_window(store: Store) {
    let limited = Arc::new(limited("a", Kind::Requests, 37, MINUTE));
    store
        .sync_accounts(std::slice::from_ref(&*limited))
        .await
        .unwrap();
    rows(&store, 200).await;
    let mut tasks = JoinSet::new();
    for claimer in 0..8 {
        let (store, account) = (store.clone(), limited.clone());
        tasks.spawn(async move {
            let mut count = 0;
            for _ in 0..5 {
                let bound = bound(&store, &account).await;
                count += bound.len();
                // Some come to an end meanwhile, which gives no room back.
                let (ends, keeps): (Vec<_>, Vec<_>) = bound
                    .iter()
                    .enumerate()
                    .partition(|(index, _)| (index + claimer) % 2 == 0);
                let verdicts: Vec<Verdict> = ends
                    .iter()
                    .map(|(_, dispatch)| done(dispatch, answer("x")))
                    .collect();
                settle(&store, &verdicts).await;
                drop(keeps);
            }
            count
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 37);
    let (used, held, room) = left(&store, &limited).await;
    assert_eq!((used + held, room), (37, 0));
}

async fn a_window_opens_when_its_calls_are_a_window_ago_and_says_when(store: Store) {
    let window = Duration::from_millis(1500);
    let limited = limited("a", Kind::Requests, 2, window);
    store
        .sync_accounts(std::slice::from_ref(&limited))
        .await
        .unwrap();
    rows(&store, 5).await;
    let first = bound(&store, &limited).await;
    assert_eq!(first.len(), 2);
    let waits = claimed(&store, &limited).await;
    assert_eq!(
        (waits.dispatches.len(), waits.next_change),
        (0, None),
        "that takes news"
    );
    assert!(waits.waiting[0]);
    let called = std::time::Instant::now();
    let verdicts: Vec<Verdict> = first
        .iter()
        .map(|dispatch| done(dispatch, answer("x")))
        .collect();
    settle(&store, &verdicts).await;
    let next = claimed(&store, &limited).await;
    assert!(next.dispatches.is_empty());
    let mut change = next.next_change.expect("it says when");
    // To the millisecond when it says, or a little after where clocks differ, and not before.
    let again = loop {
        let wait = change.since(clock::now()).max(Duration::from_millis(1));
        tokio::time::sleep(wait).await;
        let again = claimed(&store, &limited).await;
        if !again.dispatches.is_empty() {
            break again;
        }
        change = again.next_change.expect("it says when");
    };
    assert_eq!(again.dispatches.len(), 2);
    let passed = called.elapsed();
    assert!(passed >= window, "{passed:?}");
    assert!(passed < window + Duration::from_secs(1), "{passed:?}");
}

async fn what_never_reached_its_provider_is_refunded(store: Store) {
    let limited = limited("a", Kind::Requests, 1, MINUTE);
    store
        .sync_accounts(std::slice::from_ref(&limited))
        .await
        .unwrap();
    rows(&store, 1).await;
    for round in 0..3 {
        let dispatch = bound(&store, &limited).await.remove(0);
        assert_eq!(left(&store, &limited).await, (0, 1, 0));
        let verdict = match round {
            0 => returned(&dispatch),
            1 => Verdict::Unpublished {
                job: dispatch.job,
                attempt: dispatch.attempt,
            },
            _ => report(
                &dispatch,
                Report::Finished {
                    started_at: None,
                    finished_at: clock::now(),
                    outcome: Outcome::Cancelled,
                },
            ),
        };
        settle(&store, &[verdict.clone(), verdict]).await;
        assert_eq!(left(&store, &limited).await, (0, 0, 1), "round {round}");
    }
}

async fn what_may_have_reached_its_provider_counts(store: Store) {
    let limited = limited("a", Kind::Requests, 3, MINUTE);
    store
        .sync_accounts(std::slice::from_ref(&limited))
        .await
        .unwrap();
    rows(&store, 3).await;
    let attempts = bound(&store, &limited).await;
    let started = Report::Started { at: clock::now() };
    settle(
        &store,
        &[
            Verdict::Lost {
                job: attempts[0].job,
                attempt: 1,
                began: false,
            },
            report(&attempts[1], started.clone()),
            report(&attempts[2], started),
            finished(&attempts[2], Outcome::failed("x", "")),
        ],
    )
    .await;
    assert_eq!(left(&store, &limited).await, (3, 0, 0));
    // Late and repeated reports about what is over change nothing.
    settle(&store, &[returned(&attempts[0]), returned(&attempts[2])]).await;
    assert_eq!(left(&store, &limited).await, (3, 0, 0));
}

async fn tokens_are_reserved_and_reconciled(store: Store) {
    let limited = limited("a", Kind::OutputTokens, 1_000, MINUTE);
    store
        .sync_accounts(std::slice::from_ref(&limited))
        .await
        .unwrap();
    let mut request = Request::prompt("hello");
    request.params.insert("max_tokens".into(), 400.into());
    let asking = || NewRow {
        request: request.clone(),
        ..row()
    };
    submit(&store, vec![asking(), asking(), asking()]).await;
    let attempts = bound(&store, &limited).await;
    assert_eq!(attempts.len(), 2, "there is no room for a third of 400");
    assert_eq!(left(&store, &limited).await, (0, 800, 200));
    let completion = Completion {
        usage: Usage {
            output_tokens: 30,
            ..Usage::default()
        },
        ..Completion::default()
    };
    settle(
        &store,
        &[done(&attempts[0], Outcome::Completed(completion))],
    )
    .await;
    assert_eq!(left(&store, &limited).await, (30, 400, 570));
    assert_eq!(bound(&store, &limited).await.len(), 1);
    // One that does not say how much it will write is taken for one like those before.
    rows(&store, 100).await;
    let more = bound(&store, &limited).await.len();
    let typical = 30 + 30 / 4;
    assert_eq!(more, (1_000 - 30 - 800) / typical);
    assert_eq!(Needs::of(4, None).output_tokens, None);
}

async fn a_new_limit_counts_what_is_under_way(store: Store) {
    let free = account("a", 1000);
    store
        .sync_accounts(std::slice::from_ref(&free))
        .await
        .unwrap();
    rows(&store, 10).await;
    let before = claim(&store, std::slice::from_ref(&free), &[Lane::default()], 3).await;
    assert_eq!(before.dispatches.len(), 3);
    let limited = limited("a", Kind::Requests, 5, MINUTE);
    store
        .sync_accounts(std::slice::from_ref(&limited))
        .await
        .unwrap();
    assert_eq!(bound(&store, &limited).await.len(), 2);
    settle(&store, &[returned(&before.dispatches[0])]).await;
    settle(&store, &[done(&before.dispatches[1], answer("x"))]).await;
    assert_eq!(left(&store, &limited).await, (1, 3, 1));
}

async fn a_limited_account_holds_up_no_other(store: Store) {
    let accounts = [limited("a", Kind::Requests, 1, MINUTE), account("b", 5)];
    store.sync_accounts(&accounts).await.unwrap();
    rows(&store, 20).await;
    let dispatches = claim(&store, &accounts, &[Lane::default()], 100)
        .await
        .dispatches;
    let at = |name: &str| {
        let here = |dispatch: &&Dispatch| dispatch.account.as_str() == name;
        dispatches.iter().filter(here).count()
    };
    assert_eq!((at("a"), at("b")), (1, 5));
}

fn throttled(throttle: ThrottleKind, until: Option<Time>) -> Outcome {
    Outcome::Throttled {
        until,
        throttle,
        detail: "slow down".into(),
    }
}

async fn an_account_comes_back_by_one_canary(store: Store) {
    let account = account("a", 50);
    store
        .sync_accounts(std::slice::from_ref(&account))
        .await
        .unwrap();
    rows(&store, 20).await;
    let lanes = [Lane::default()];
    let accounts = std::slice::from_ref(&account);
    let first = claim(&store, accounts, &lanes, 3).await.dispatches;
    let until = clock::now() + Duration::from_millis(300);
    let refused = throttled(ThrottleKind::Burst, Some(until));
    let settled = settle(&store, &[done(&first[0], refused)]).await;
    assert_eq!(settled.cooling, [(account.id.clone(), Some(until))]);
    let waits = claimed(&store, &account).await;
    assert_eq!(
        (waits.dispatches.len(), waits.next_change),
        (0, Some(until))
    );
    tokio::time::sleep(until.since(clock::now()) + Duration::from_millis(1)).await;
    let canary = bound(&store, &account).await;
    assert_eq!(canary.len(), 1);
    let waits = claimed(&store, &account).await;
    assert_eq!((waits.dispatches.len(), waits.next_change), (0, None));
    // What was sent before proves nothing, and a canary that never ran makes way for another.
    settle(&store, &[done(&first[1], answer("late"))]).await;
    assert_eq!(bound(&store, &account).await.len(), 0);
    settle(&store, &[returned(&canary[0])]).await;
    let canary = bound(&store, &account).await;
    assert_eq!(canary.len(), 1);
    let settled = settle(&store, &[done(&canary[0], answer("well"))]).await;
    assert_eq!(settled.cooling, [(account.id.clone(), None)]);
    assert_eq!(bound(&store, &account).await.len(), 17);
    let shown = store.accounts().await.unwrap().remove(0);
    assert!(shown.cooldowns.is_empty() && shown.cooldown_until.is_none());
}

async fn a_family_of_models_cools_alone(store: Store) {
    let account = account("a", 50);
    store
        .sync_accounts(std::slice::from_ref(&account))
        .await
        .unwrap();
    let lane = |model: &str| Lane::new(None, Some(model.into()), vec![]);
    let (opus, sonnet) = (lane("claude-opus-4-8"), lane("claude-sonnet-5"));
    let asking = |lane: &Lane| {
        let mut request = Request::prompt("hello");
        request.model.clone_from(&lane.model);
        NewRow {
            lane: lane.clone(),
            request,
            ..row()
        }
    };
    submit(&store, (0..4).map(|_| asking(&opus)).collect()).await;
    submit(&store, (0..4).map(|_| asking(&sonnet)).collect()).await;
    let lanes = [opus.clone(), sonnet];
    let accounts = std::slice::from_ref(&account);
    let one = claim(&store, accounts, &[opus], 1).await.dispatches;
    let until = clock::now() + Duration::from_millis(300);
    settle(
        &store,
        &[done(&one[0], throttled(ThrottleKind::Model, Some(until)))],
    )
    .await;
    let others = claim(&store, accounts, &lanes, 100).await;
    assert_eq!(others.dispatches.len(), 4);
    assert_eq!(others.next_change, Some(until));
    tokio::time::sleep(until.since(clock::now()) + Duration::from_millis(1)).await;
    let canary = claim(&store, accounts, &lanes, 100).await.dispatches;
    assert_eq!(canary.len(), 1);
    settle(&store, &[done(&canary[0], answer("well"))]).await;
    assert_eq!(
        claim(&store, accounts, &lanes, 100).await.dispatches.len(),
        3
    );
}

async fn a_shared_refusal_cools_the_others(store: Store) {
    let accounts = [account("a", 5), account("b", 5)];
    store.sync_accounts(&accounts).await.unwrap();
    let overloaded = Outcome::Overloaded {
        until: None,
        detail: "busy".into(),
    };
    let others = [accounts[1].id.clone()];
    let cooled = store
        .cool(&others, &overloaded, clock::now(), || 0.0)
        .await
        .unwrap();
    assert_eq!(cooled.len(), 1);
    rows(&store, 4).await;
    let dispatches = claim(&store, &accounts, &[Lane::default()], 100)
        .await
        .dispatches;
    assert!(
        dispatches
            .iter()
            .all(|dispatch| dispatch.account.as_str() == "a")
    );
    assert_eq!(dispatches.len(), 4);
}

async fn what_a_provider_says_is_kept(store: Store) {
    let account = account("a", 5);
    store
        .sync_accounts(std::slice::from_ref(&account))
        .await
        .unwrap();
    rows(&store, 2).await;
    let figure = |remaining, heard: i64| Figure {
        name: "requests".into(),
        remaining: Some(remaining),
        heard_at: Time::from_millis(heard),
        ..Figure::default()
    };
    for (dispatch, figure) in bound(&store, &account)
        .await
        .iter()
        .zip([figure(5, 2), figure(9, 1)])
    {
        let Verdict::Report(reply) = done(dispatch, answer("x")) else {
            unreachable!("it is a report")
        };
        let verdict = Verdict::Report(Reply {
            learned: vec![figure].into(),
            ..reply
        });
        settle(&store, &[verdict]).await;
    }
    assert_eq!(store.learned(&account.id).await.unwrap(), [figure(5, 2)]);
}

async fn an_audit_finds_nothing_to_mend(store: Store) {
    let limited = limited("a", Kind::Requests, 20, MINUTE);
    let accounts = std::slice::from_ref(&limited);
    store.sync_accounts(accounts).await.unwrap();
    rows(&store, 20).await;
    let attempts = bound(&store, &limited).await;
    assert_eq!(attempts.len(), 20);
    let verdicts: Vec<Verdict> = attempts
        .iter()
        .enumerate()
        .filter_map(|(index, dispatch)| match index % 4 {
            0 => Some(done(dispatch, answer("x"))),
            1 => Some(returned(dispatch)),
            2 => Some(report(dispatch, Report::Started { at: clock::now() })),
            _ => None,
        })
        .collect();
    settle(&store, &verdicts).await;
    let before = left(&store, &limited).await;
    assert_eq!(before, (10, 5, 5));
    let wrong = store.audit_windows(accounts, clock::now()).await.unwrap();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(left(&store, &limited).await, before);
    assert_eq!(
        store.job(attempts[3].job).await.unwrap().unwrap().state,
        State::Dispatched
    );
}
