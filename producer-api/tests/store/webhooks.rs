//! Webhooks: each event is written once with what it tells of, and sent by one process at a time.

use std::{collections::HashSet, time::Duration};

use sluice_producer_api::store::{
    ClaimedDelivery, DeliveryFilter, EndpointRow, Receiver, SealedSecret, Store, Then, Tried,
};
use sluice_shared::{
    api::{DeliveryState, DeliveryView, JobWebhook},
    clock,
    domain::{EventKind, Outcome, Span, Time},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{NewRow, account, answer, claim_any, finished, row, settle, submission, submit};

on_every_store!(
    an_end_is_told_once,
    who_asked_for_nothing_is_told_nothing,
    a_job_that_expires_or_is_cancelled_is_told_of,
    an_endpoint_is_told_of_its_clients_jobs_only,
    a_delivery_is_claimed_by_one_at_a_time,
    an_outcome_of_an_old_claim_changes_nothing,
    a_disabled_endpoint_has_its_deliveries_held,
    an_endpoint_is_given_up_only_when_nothing_arrived_for_long,
    what_is_old_or_of_a_removed_endpoint_is_forgotten,
);

const HOOK: &str = "https://example.com/hook";
const HOUR: Duration = Duration::from_secs(3600);
const NEVER: Span = Span::seconds(1_000_000);

fn endpoint(events: &[EventKind]) -> EndpointRow {
    EndpointRow {
        id: Uuid::now_v7(),
        url: HOOK.into(),
        description: String::new(),
        events: events.to_vec(),
        client: None,
        secrets: vec![SealedSecret {
            sealed: "sealed".into(),
            until: None,
        }],
        enabled: true,
        reason: None,
        failing_since: None,
        created_at: clock::now(),
    }
}

async fn register(store: &Store, events: &[EventKind]) -> Uuid {
    let endpoint = endpoint(events);
    store.insert_webhook(&endpoint).await.unwrap();
    endpoint.id
}

fn told_of(events: &[EventKind]) -> NewRow {
    let webhook = JobWebhook {
        url: HOOK.into(),
        events: events.to_vec(),
    };
    NewRow {
        webhook: Some(webhook),
        ..row()
    }
}

/// Runs jobs to these ends.
async fn run(store: &Store, rows: Vec<NewRow>, outcome: &Outcome) {
    let many = u32::try_from(rows.len()).unwrap();
    let accounts = [account("a", many)];
    store.sync_accounts(&accounts).await.unwrap();
    submit(store, rows).await;
    let dispatches = claim_any(store, &accounts).await;
    let verdicts: Vec<_> = dispatches
        .iter()
        .map(|dispatch| finished(dispatch, outcome.clone()))
        .collect();
    settle(store, &verdicts).await;
}

async fn all(store: &Store) -> Vec<DeliveryView> {
    let any = DeliveryFilter::default();
    store.deliveries(&any, None, 1000).await.unwrap()
}

async fn claim(store: &Store, most: usize, now: Time) -> Vec<ClaimedDelivery> {
    let mut claimed = Vec::new();
    for (target, due) in store.webhook_targets().await.unwrap() {
        if due <= now {
            let until = now + HOUR;
            let taken = store.claim_deliveries(&target, most, now, until).await;
            claimed.append(&mut taken.unwrap());
        }
    }
    claimed
}

fn tried(delivery: &ClaimedDelivery, then: Then) -> Tried {
    Tried {
        delivery: delivery.clone(),
        began_at: clock::now(),
        took: Span::from_millis(5),
        status: Some(if then == Then::Delivered { 200 } else { 500 }),
        error: None,
        response: Some("ok".into()),
        then,
    }
}

async fn outcome(store: &Store, tried: &[Tried], hopeless_after: Span) -> usize {
    let disabled = store.settle_deliveries(tried, hopeless_after, clock::now());
    disabled.await.unwrap().len()
}

async fn an_end_is_told_once(store: Store) {
    let endpoint = register(&store, &[]).await;
    let accounts = [account("a", 1)];
    store.sync_accounts(&accounts).await.unwrap();
    let job = submit(&store, vec![told_of(&[])]).await[0];
    assert!(all(&store).await.is_empty(), "nothing has happened yet");
    let dispatch = claim_any(&store, &accounts).await.remove(0);
    let verdict = finished(&dispatch, answer("hello"));
    let settled = settle(&store, std::slice::from_ref(&verdict)).await;
    assert_eq!(settled.webhooks, 2);
    // The reply comes once more.
    assert_eq!(settle(&store, &[verdict]).await.webhooks, 0);
    let deliveries = all(&store).await;
    let to: Vec<Option<Uuid>> = deliveries.iter().map(|one| one.webhook).collect();
    assert_eq!(to.len(), 2);
    assert!(to.contains(&Some(endpoint)) && to.contains(&None));
    for delivery in &deliveries {
        assert_eq!(delivery.job, Some(job));
        assert_eq!(delivery.event, deliveries[0].event, "it is one event");
        assert_eq!(delivery.r#type, EventKind::JobSucceeded);
        assert_eq!(delivery.url, HOOK);
    }
    let jobs = store.ended_jobs(&[job]).await.unwrap();
    assert_eq!(jobs[&job].result.as_ref().unwrap().text, "hello");
}

async fn who_asked_for_nothing_is_told_nothing(store: Store) {
    run(&store, vec![row()], &answer("a")).await;
    let rows = vec![told_of(&[EventKind::JobFailed]), row()];
    run(&store, rows, &answer("a")).await;
    register(&store, &[EventKind::JobFailed]).await;
    run(&store, vec![row()], &answer("a")).await;
    assert!(all(&store).await.is_empty());
    let failed = Outcome::Rejected {
        code: "bad".into(),
        detail: "no".into(),
    };
    run(&store, vec![told_of(&[EventKind::JobFailed])], &failed).await;
    assert_eq!(all(&store).await.len(), 2);
}

async fn a_job_that_expires_or_is_cancelled_is_told_of(store: Store) {
    register(&store, &[]).await;
    let now = clock::now();
    let late = NewRow {
        expires_at: Some(now + Duration::from_millis(1)),
        ..told_of(&[])
    };
    let ids = submit(&store, vec![late, told_of(&[]), row()]).await;
    store.sweep(now + HOUR).await.unwrap();
    store.cancel(ids[1], clock::now()).await.unwrap();
    let mut told: Vec<_> = all(&store).await;
    told.sort_unstable_by_key(|delivery| (delivery.job, delivery.webhook));
    let told: Vec<_> = told.iter().map(|one| (one.job, one.r#type)).collect();
    let (expired, cancelled) = (EventKind::JobExpired, EventKind::JobCancelled);
    assert_eq!(told.len(), 4);
    for kind in [(Some(ids[0]), expired), (Some(ids[1]), cancelled)] {
        assert_eq!(told.iter().filter(|one| **one == kind).count(), 2);
    }
}

async fn an_endpoint_is_told_of_its_clients_jobs_only(store: Store) {
    for client in ["test", "other"] {
        let endpoint = EndpointRow {
            client: Some(client.into()),
            ..endpoint(&[])
        };
        store.insert_webhook(&endpoint).await.unwrap();
    }
    assert_eq!(submission(vec![]).client, "test");
    run(&store, vec![row()], &answer("a")).await;
    assert_eq!(all(&store).await.len(), 1);
}

async fn a_delivery_is_claimed_by_one_at_a_time(store: Store) {
    register(&store, &[]).await;
    let rows = (0..200).map(|_| row()).collect();
    run(&store, rows, &answer("a")).await;
    let now = clock::now();
    let mut claimers = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let more = claim(&store, 7, now).await;
                if more.is_empty() {
                    return mine;
                }
                mine.extend(more);
            }
        });
    }
    let claimed = claimers.join_all().await.concat();
    let different: HashSet<Uuid> = claimed.iter().map(|one| one.id).collect();
    assert_eq!((claimed.len(), different.len()), (200, 200));
    // Whoever had them is gone: they are due again, and not before.
    let most = 1000;
    let early = now + HOUR - Duration::from_secs(1);
    assert!(claim(&store, most, early).await.is_empty());
    assert_eq!(claim(&store, most, now + HOUR).await.len(), 200);
}

async fn an_outcome_of_an_old_claim_changes_nothing(store: Store) {
    run(&store, vec![told_of(&[])], &answer("a")).await;
    let now = clock::now();
    let first = claim(&store, 1, now).await.remove(0);
    let second = claim(&store, 1, now + HOUR).await.remove(0);
    assert!(matches!(&first.receiver, Receiver::Own { client, .. } if client == "test"));
    outcome(&store, &[tried(&first, Then::Failed)], NEVER).await;
    assert_eq!(all(&store).await[0].state, DeliveryState::Pending);
    let again = tried(&second, Then::Again(now));
    outcome(&store, &[again], NEVER).await;
    let third = claim(&store, 1, now).await.remove(0);
    assert_eq!((third.step, third.tries), (1, 1));
    outcome(&store, &[tried(&third, Then::Delivered)], NEVER).await;
    let row = store.delivery(third.id).await.unwrap().unwrap();
    assert_eq!(row.view.state, DeliveryState::Delivered);
    assert_eq!(row.view.tries, 2);
    assert!(store.webhook_targets().await.unwrap().is_empty());
}

async fn a_disabled_endpoint_has_its_deliveries_held(store: Store) {
    let id = register(&store, &[]).await;
    let rows = (0..3).map(|_| row()).collect();
    run(&store, rows, &answer("a")).await;
    let now = clock::now();
    let claimed = claim(&store, 2, now).await;
    let gone = [tried(&claimed[0], Then::Gone)];
    assert_eq!(outcome(&store, &gone, NEVER).await, 1);
    let states = || async {
        let mut states: Vec<_> = all(&store)
            .await
            .iter()
            .map(|one| one.state.as_str())
            .collect();
        states.sort_unstable();
        states
    };
    assert_eq!(states().await, ["failed", "held", "held"]);
    // What was under way has arrived all the same.
    outcome(&store, &[tried(&claimed[1], Then::Delivered)], NEVER).await;
    assert_eq!(states().await, ["delivered", "failed", "held"]);
    run(&store, vec![row()], &answer("a")).await;
    assert_eq!(states().await, ["delivered", "failed", "held", "held"]);
    let (from, to) = (Time::EPOCH, now + HOUR);
    let which = [DeliveryState::Held, DeliveryState::Pending];
    let enabled = store.change_webhook(id, |row| row.enabled = true).await;
    assert!(enabled.unwrap().unwrap().enabled);
    let replayed = store.replay_deliveries(id, from, to, &which, now).await;
    assert_eq!(replayed.unwrap(), 2);
    assert_eq!(claim(&store, 9, clock::now()).await.len(), 2);
}

async fn an_endpoint_is_given_up_only_when_nothing_arrived_for_long(store: Store) {
    let id = register(&store, &[]).await;
    let rows = (0..4).map(|_| row()).collect();
    run(&store, rows, &answer("a")).await;
    let now = clock::now();
    let claimed = claim(&store, 4, now).await;
    let day = Span::seconds(86_400);
    let failed = |index: usize| [tried(&claimed[index], Then::Again(now + HOUR))];
    let at = |hours: u32| now + HOUR * hours;
    let disabled = store.settle_deliveries(&failed(0), day, at(0)).await;
    assert!(disabled.unwrap().is_empty());
    assert!(
        store
            .webhook(id)
            .await
            .unwrap()
            .unwrap()
            .failing_since
            .is_some()
    );
    let arrived = [tried(&claimed[1], Then::Delivered)];
    store
        .settle_deliveries(&arrived, day, at(23))
        .await
        .unwrap();
    assert_eq!(
        store.webhook(id).await.unwrap().unwrap().failing_since,
        None
    );
    let disabled = store.settle_deliveries(&failed(2), day, at(25)).await;
    assert!(disabled.unwrap().is_empty());
    let disabled = store.settle_deliveries(&failed(3), day, at(50)).await;
    assert_eq!(disabled.unwrap()[0].0, id);
    assert!(!store.webhook(id).await.unwrap().unwrap().enabled);
}

async fn what_is_old_or_of_a_removed_endpoint_is_forgotten(store: Store) {
    let id = register(&store, &[]).await;
    run(&store, vec![told_of(&[])], &answer("a")).await;
    let now = clock::now();
    for delivery in claim(&store, 9, now).await {
        outcome(&store, &[tried(&delivery, Then::Delivered)], NEVER).await;
    }
    store.forget_deliveries(now - HOUR).await.unwrap();
    assert_eq!(all(&store).await.len(), 2);
    assert!(store.remove_webhook(id).await.unwrap());
    assert!(!store.remove_webhook(id).await.unwrap());
    assert!(store.webhooks().await.unwrap().is_empty());
    store.forget_deliveries(now - HOUR).await.unwrap();
    assert_eq!(all(&store).await.len(), 1);
    store.forget_deliveries(now + HOUR).await.unwrap();
    assert!(all(&store).await.is_empty());
}
