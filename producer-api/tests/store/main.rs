//! The truth plane's promises, kept on SQLite and on Postgres alike.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod at_once;
mod definitions;
mod fresh;
mod ground;
mod routing;

use std::{sync::Arc, time::Duration};

use sluice_producer_api::store::{
    Filter, Idempotency, NewRow, Revoked, Store, Submission, Submitted, Verdict,
};
use sluice_shared::{
    clock,
    domain::{JobId, Lane, Outcome, Request, Span, Standing, State, Time},
};
use tokio::task::JoinSet;

use self::at_once::{
    a_new_job_that_need_not_wait_is_bound_at_once, submitters_and_claimers_at_once_exceed_no_slot,
    what_is_bound_at_the_door_is_charged_to_its_windows, who_comes_gets_no_account_that_takes_none,
    who_waits_goes_before_who_comes,
};

use self::ground::{
    account, answer, claim, claim_any, finished, row, settle, state, submission, submit,
};

/// Each promise on each database.
macro_rules! on_every_store {
    ($($promise:ident),+ $(,)?) => {
        mod on_sqlite { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let fresh = crate::fresh::sqlite().await;
                super::$promise(fresh.store.clone()).await;
                fresh.remove().await;
            }
        )+ }
        mod on_postgres { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let fresh = crate::fresh::postgres().await;
                super::$promise(fresh.store.clone()).await;
                fresh.remove().await;
            }
        )+ }
    };
}
pub(crate) use on_every_store;

mod batches;
mod dependencies;
mod fair;
mod limits;
mod quotas;
mod webhooks;

on_every_store!(
    the_schema_is_complete,
    a_submission_is_whole,
    an_idempotency_key_stands_for_one_submission,
    claimers_at_once_bind_each_job_once_and_exceed_no_slot,
    a_waiting_job_is_bound_to_no_account,
    priority_goes_first_and_a_full_lane_delays_no_other,
    an_attempt_is_settled_once,
    a_superseded_attempt_changes_nothing,
    a_failed_attempt_comes_back_later_and_ends_in_the_end,
    a_throttle_cools_the_account_and_costs_the_job_nothing,
    a_refused_credential_takes_the_account_out_until_someone_acts,
    a_cancel_ends_a_waiting_job_and_marks_a_running_one,
    times_come,
    slots_are_counted_right,
    lists_are_filtered_and_paged,
    a_revoked_key_is_no_key,
    large_batches_are_taken,
    a_new_job_that_need_not_wait_is_bound_at_once,
    who_waits_goes_before_who_comes,
    who_comes_gets_no_account_that_takes_none,
    submitters_and_claimers_at_once_exceed_no_slot,
    what_is_bound_at_the_door_is_charged_to_its_windows,
    what_was_chosen_is_kept,
    each_lane_has_its_strategy_and_a_session_its_account,
    a_saturated_lane_delays_no_other,
    a_job_falls_back_when_its_time_has_come,
    a_job_in_flight_stays_where_it_is,
    a_failure_leads_to_the_fallback_at_once,
    the_backlog_says_what_waits_where,
);

use routing::{
    a_failure_leads_to_the_fallback_at_once, a_job_falls_back_when_its_time_has_come,
    a_job_in_flight_stays_where_it_is, a_saturated_lane_delays_no_other,
    each_lane_has_its_strategy_and_a_session_its_account, the_backlog_says_what_waits_where,
    what_was_chosen_is_kept,
};

async fn the_schema_is_complete(store: Store) {
    assert!(store.is_migrated().await.unwrap());
    store.ready().await.unwrap();
}

async fn a_submission_is_whole(store: Store) {
    let good = row();
    let twin = NewRow {
        id: good.id,
        ..row()
    };
    let other = row();
    let ids = [good.id, other.id];
    store
        .submit(&[submission(vec![other, good, twin])], clock::now())
        .await
        .unwrap_err();
    for id in ids {
        assert!(store.job(id).await.unwrap().is_none());
    }
}

async fn an_idempotency_key_stands_for_one_submission(store: Store) {
    let with_key = |fingerprint: &str| Submission {
        idempotency: Some(Idempotency {
            key: "k".into(),
            fingerprint: fingerprint.into(),
        }),
        ..submission(vec![row(), row()])
    };
    let (first, again, other) = (with_key("a"), with_key("a"), with_key("b"));
    let elsewhere = Submission {
        client: "another".into(),
        ..with_key("b")
    };
    let ids: Vec<JobId> = first.rows.iter().map(|row| row.id).collect();
    let mut tasks = JoinSet::new();
    for submission in [first.clone(), first.clone()] {
        let store = store.clone();
        tasks.spawn(async move { store.submit(&[submission], clock::now()).await.unwrap() });
    }
    let results = tasks.join_all().await.concat();
    assert!(results.contains(&Submitted::Accepted));
    assert!(results.contains(&Submitted::Replayed(ids.clone())));
    let results = store
        .submit(
            &[again.clone(), other, elsewhere.clone(), elsewhere],
            clock::now(),
        )
        .await
        .unwrap();
    assert_eq!(results[0], Submitted::Replayed(ids));
    assert_eq!(results[1], Submitted::Mismatch);
    assert_eq!(results[2], Submitted::Accepted);
    assert!(matches!(results[3], Submitted::Replayed(_)));
    assert!(store.job(again.rows[0].id).await.unwrap().is_none());
    let later = clock::now() + Duration::from_secs(1);
    assert_eq!(store.forget_idempotency_keys(later).await.unwrap(), 2);
}

async fn claimers_at_once_bind_each_job_once_and_exceed_no_slot(store: Store) {
    let accounts = Arc::new([account("a", 130), account("b", 70)]);
    store.sync_accounts(&accounts[..]).await.unwrap();
    submit(&store, (0..400).map(|_| row()).collect()).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, accounts) = (store.clone(), accounts.clone());
        tasks.spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..10 {
                mine.extend(
                    claim(&store, &accounts[..], &[Lane::default()], 13)
                        .await
                        .dispatches,
                );
            }
            mine
        });
    }
    let bound = tasks.join_all().await.concat();
    let mut jobs: Vec<JobId> = bound.iter().map(|dispatch| dispatch.job).collect();
    jobs.sort_unstable();
    jobs.dedup();
    assert_eq!((bound.len(), jobs.len()), (200, 200));
    for (account, slots) in [("a", 130), ("b", 70)] {
        let taken = bound
            .iter()
            .filter(|dispatch| dispatch.account.as_str() == account)
            .count();
        assert_eq!(taken, slots);
    }
}

async fn a_waiting_job_is_bound_to_no_account(store: Store) {
    let accounts = [account("a", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(&store, vec![row(), row()]).await;
    let bound = claim_any(&store, &accounts).await;
    assert_eq!(bound.len(), 1);
    assert_eq!(bound[0].job, ids[0]);
    let waiting = store.job(ids[1]).await.unwrap().unwrap();
    assert_eq!((waiting.state, waiting.account), (State::Queued, None));
    let newcomer = [account("a", 1), account("b", 1)];
    store.sync_accounts(&newcomer).await.unwrap();
    assert_eq!(claim_any(&store, &newcomer).await[0].account.as_str(), "b");
}

async fn priority_goes_first_and_a_full_lane_delays_no_other(store: Store) {
    let accounts = [account("a", 1), account("b", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let pinned = Lane::new(Some("b".parse().unwrap()), None, vec![]);
    let full = Lane::new(Some("a".parse().unwrap()), None, vec![]);
    let urgent = NewRow {
        priority: 5,
        lane: full.clone(),
        ..row()
    };
    let urgent_id = urgent.id;
    let mut rows: Vec<NewRow> = (0..50)
        .map(|_| NewRow {
            lane: full.clone(),
            ..row()
        })
        .collect();
    rows.push(urgent);
    submit(&store, rows).await;
    let other = submit(
        &store,
        vec![NewRow {
            lane: pinned.clone(),
            ..row()
        }],
    )
    .await;
    let claimed = claim(&store, &accounts, &[full.clone(), pinned.clone()], 100).await;
    let jobs: Vec<JobId> = claimed
        .dispatches
        .iter()
        .map(|dispatch| dispatch.job)
        .collect();
    assert_eq!(jobs, [urgent_id, other[0]]);
    let mut lanes = store.waiting_lanes().await.unwrap();
    lanes.sort();
    assert_eq!(lanes, [full.key()]);
}

async fn an_attempt_is_settled_once(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(&store, vec![row()]).await;
    let bound = claim_any(&store, &accounts).await;
    let first = settle(&store, &[finished(&bound[0], answer("one"))]).await;
    assert_eq!(first.ended, [(ids[0], State::Succeeded)]);
    let again = settle(
        &store,
        &[
            finished(&bound[0], answer("two")),
            finished(&bound[0], Outcome::failed("x", "late")),
            Verdict::Lost {
                job: ids[0],
                attempt: 1,
                began: false,
            },
        ],
    )
    .await;
    assert_eq!((again.ended.len(), again.refused, again.freed), (0, 3, 0));
    let job = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!(job.result.unwrap().text, "one");
    assert_eq!(job.attempts.unwrap().len(), 1);
    assert_eq!(store.accounts().await.unwrap()[0].in_flight, 0);
}

async fn a_superseded_attempt_changes_nothing(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(&store, vec![row()]).await;
    let first = claim_any(&store, &accounts).await;
    settle(
        &store,
        &[Verdict::Lost {
            job: ids[0],
            attempt: 1,
            began: false,
        }],
    )
    .await;
    let second = claim_any(&store, &accounts).await;
    assert_eq!(second[0].attempt, 2);
    assert_eq!(
        settle(&store, &[finished(&first[0], answer("old"))])
            .await
            .refused,
        1
    );
    assert_eq!(state(&store, ids[0]).await, State::Dispatched);
    settle(&store, &[finished(&second[0], answer("new"))]).await;
    let job = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!(job.result.unwrap().text, "new");
    let outcomes: Vec<String> = job
        .attempts
        .unwrap()
        .into_iter()
        .map(|attempt| attempt.outcome)
        .collect();
    assert_eq!(outcomes, ["lost", "completed"]);
}

async fn a_failed_attempt_comes_back_later_and_ends_in_the_end(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(
        &store,
        vec![NewRow {
            max_attempts: 2,
            ..row()
        }],
    )
    .await;
    let bound = claim_any(&store, &accounts).await;
    settle(&store, &[finished(&bound[0], Outcome::failed("boom", "x"))]).await;
    assert!(
        claim_any(&store, &accounts).await.is_empty(),
        "it must wait"
    );
    let later = clock::now() + Duration::from_secs(5);
    assert_eq!(store.sweep(later).await.unwrap().ready_lanes, ["any"]);
    let bound = claim_any(&store, &accounts).await;
    settle(&store, &[finished(&bound[0], Outcome::failed("boom", "y"))]).await;
    let job = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!((job.state, job.failures), (State::Failed, 2));
    assert_eq!(job.error.unwrap().code, "boom");
}

async fn a_throttle_cools_the_account_and_costs_the_job_nothing(store: Store) {
    let accounts = [account("a", 10), account("b", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(&store, vec![row()]).await;
    let bound = claim_any(&store, &accounts[..1]).await;
    let until = clock::now() + Duration::from_secs(60);
    let outcome = Outcome::Throttled {
        until: Some(until),
        throttle: sluice_shared::domain::ThrottleKind::Burst,
        detail: "slow down".into(),
    };
    let settled = settle(&store, &[finished(&bound[0], outcome)]).await;
    assert_eq!(settled.requeued, ["any"]);
    let claimed = claim(&store, &accounts[..1], &[Lane::default()], 10).await;
    assert!(claimed.dispatches.is_empty());
    assert_eq!(claimed.next_change, Some(until));
    assert_eq!(claim_any(&store, &accounts).await[0].account.as_str(), "b");
    let job = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!((job.failures, job.attempt), (0, 2));
}

async fn a_refused_credential_takes_the_account_out_until_someone_acts(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    submit(&store, vec![row()]).await;
    let bound = claim_any(&store, &accounts).await;
    let refused = Outcome::AuthFailed {
        detail: "bad key".into(),
    };
    settle(&store, &[finished(&bound[0], refused)]).await;
    let shown = &store.accounts().await.unwrap()[0];
    assert_eq!(shown.standing, Standing::AuthFailed);
    assert_eq!(shown.reason.as_deref(), Some("bad key"));
    assert!(claim_any(&store, &accounts).await.is_empty());
    assert!(
        store
            .set_standing(&accounts[0].id, Standing::Active, None)
            .await
            .unwrap()
    );
    assert_eq!(claim_any(&store, &accounts).await.len(), 1);
}

async fn a_cancel_ends_a_waiting_job_and_marks_a_running_one(store: Store) {
    let accounts = [account("a", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let ids = submit(&store, vec![row(), row()]).await;
    let bound = claim_any(&store, &accounts).await;
    let now = clock::now();
    let waiting = store.cancel(ids[1], now).await.unwrap().unwrap().unwrap();
    assert_eq!(waiting, (State::Cancelled, 0, true));
    let running = store.cancel(ids[0], now).await.unwrap().unwrap().unwrap();
    assert_eq!(running, (State::Dispatched, 1, false));
    let in_flight = store.in_flight(Time::EPOCH, 10).await.unwrap();
    assert!(in_flight[0].cancel_requested);
    settle(&store, &[finished(&bound[0], Outcome::Cancelled)]).await;
    assert_eq!(state(&store, ids[0]).await, State::Cancelled);
    assert!(store.cancel(ids[0], now).await.unwrap().unwrap().is_err());
    assert!(
        store
            .cancel(JobId::generate(), now)
            .await
            .unwrap()
            .is_none()
    );
}

async fn times_come(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let now = clock::now();
    let soon = NewRow {
        run_at: now + Duration::from_secs(50),
        ..row()
    };
    let short = NewRow {
        expires_at: Some(now + Duration::from_secs(10)),
        ..row()
    };
    let (soon_id, short_id) = (soon.id, short.id);
    submit(&store, vec![soon]).await;
    assert!(claim_any(&store, &accounts).await.is_empty());
    submit(&store, vec![short]).await;
    let swept = store.sweep(now).await.unwrap();
    assert_eq!(swept.next_ready, Some(now + Duration::from_secs(50)));
    let swept = store.sweep(now + Duration::from_secs(20)).await.unwrap();
    assert_eq!(swept.expired, [short_id]);
    assert_eq!(state(&store, short_id).await, State::Expired);
    let swept = store.sweep(now + Duration::from_secs(50)).await.unwrap();
    assert_eq!(swept.ready_lanes, ["any"]);
    assert_eq!(claim_any(&store, &accounts).await[0].job, soon_id);
}

async fn slots_are_counted_right(store: Store) {
    let accounts = [account("a", 50)];
    store.sync_accounts(&accounts).await.unwrap();
    submit(&store, (0..60).map(|_| row()).collect()).await;
    let bound = claim_any(&store, &accounts).await;
    let verdicts: Vec<Verdict> = bound
        .iter()
        .enumerate()
        .map(|(index, dispatch)| match index % 4 {
            0 => finished(dispatch, answer("")),
            1 => finished(dispatch, Outcome::failed("x", "")),
            2 => Verdict::Lost {
                job: dispatch.job,
                attempt: 1,
                began: false,
            },
            _ => Verdict::Unpublished {
                job: dispatch.job,
                attempt: 1,
            },
        })
        .collect();
    settle(&store, &verdicts).await;
    assert_eq!(store.accounts().await.unwrap()[0].in_flight, 0);
    assert_eq!(store.audit_slots().await.unwrap(), []);
    claim_any(&store, &accounts).await;
    assert_eq!(store.audit_slots().await.unwrap(), []);
}

async fn lists_are_filtered_and_paged(store: Store) {
    let strange = [
        "strange key'$",
        "$.a",
        "$",
        "7",
        "[0]",
        "a.b",
        "a\"b",
        "a\\b",
        "ä",
        "%",
    ];
    let noted = |number: usize| {
        let mut notes: serde_json::Map<String, serde_json::Value> = strange
            .iter()
            .map(|key| ((*key).to_owned(), "ü".into()))
            .collect();
        notes.insert("group".into(), (number % 2).to_string().into());
        NewRow {
            metadata: serde_json::to_string(&notes).unwrap(),
            ..row()
        }
    };
    let ids = submit(&store, (0..25).map(noted).collect()).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = store.jobs(&Filter::default(), cursor, 10).await.unwrap();
        seen.extend(page.jobs.iter().map(|job| job.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let newest_first: Vec<JobId> = ids.iter().rev().copied().collect();
    assert_eq!(seen, newest_first);
    let count = async |filter: Filter| store.jobs(&filter, None, 100).await.unwrap().jobs.len();
    let metadata = |key: &str, value: &str| Filter {
        metadata: vec![(key.into(), value.into())],
        ..Filter::default()
    };
    assert_eq!(count(metadata("group", "1")).await, 12);
    for key in strange {
        assert_eq!(count(metadata(key, "ü")).await, 25, "{key}");
        assert_eq!(count(metadata(key, "u")).await, 0, "{key}");
    }
    assert_eq!(count(metadata("group", "2")).await, 0);
    let now = clock::now();
    let later = now + Duration::from_secs(3600);
    assert_eq!(
        count(Filter {
            from: Some(now - Duration::from_secs(60)),
            ..Filter::default()
        })
        .await,
        25
    );
    assert_eq!(
        count(Filter {
            from: Some(later),
            ..Filter::default()
        })
        .await,
        0
    );
    assert_eq!(
        count(Filter {
            to: Some(later),
            ..Filter::default()
        })
        .await,
        25
    );
    let queued = Filter {
        states: vec![State::Queued],
        client: Some("test".into()),
        ..Filter::default()
    };
    assert_eq!(count(queued).await, 25);
    assert_eq!(
        count(Filter {
            states: vec![State::Failed],
            ..Filter::default()
        })
        .await,
        0
    );
    let state_of = store.states(&ids).await.unwrap();
    assert_eq!(state_of.len(), 25);
}

async fn a_revoked_key_is_no_key(store: Store) {
    use sluice_producer_api::auth::{Keys, MintedKey};
    use sluice_shared::api::Scope;
    assert!(!store.has_keys().await.unwrap());
    let minted = MintedKey::generate("ci".into(), vec![Scope::Submit], clock::now());
    store.insert_key(&minted.row, &minted.hash).await.unwrap();
    let keys = Keys::default();
    let secret = secrecy::ExposeSecret::expose_secret(&minted.secret).to_owned();
    let client = keys.client(&store, &secret).await.unwrap().unwrap();
    assert!(client.may(Scope::Read) && client.may(Scope::Submit) && !client.may(Scope::Operate));
    assert!(keys.client(&store, "sluice_wrong").await.unwrap().is_none());
    let revoked = store.revoke_key(minted.row.id, clock::now()).await.unwrap();
    assert_eq!(revoked, Revoked::Done);
    let again = store.revoke_key(minted.row.id, clock::now()).await.unwrap();
    assert_eq!(again, Revoked::Unknown);
    keys.forget(minted.row.id);
    assert!(keys.client(&store, &secret).await.unwrap().is_none());
    assert!(!store.has_keys().await.unwrap());
}

async fn large_batches_are_taken(store: Store) {
    let accounts = [account("a", 5000)];
    store.sync_accounts(&accounts).await.unwrap();
    let rows = (0..1337)
        .map(|number| NewRow {
            request: Request::prompt(format!("{number} {}", "x".repeat(2000))),
            timeout_ms: Span::seconds(5).as_millis(),
            ..row()
        })
        .collect();
    let ids = submit(&store, rows).await;
    let bound = claim(&store, &accounts, &[Lane::default()], 2000)
        .await
        .dispatches;
    assert_eq!(bound.len(), 1337);
    let verdicts: Vec<Verdict> = bound
        .iter()
        .map(|dispatch| finished(dispatch, answer(&dispatch.request.messages[0].content)))
        .collect();
    assert_eq!(settle(&store, &verdicts).await.ended.len(), 1337);
    let last = store.job(ids[1336]).await.unwrap().unwrap();
    assert!(last.result.unwrap().text.starts_with("1336 "));
}
