//! Jobs that come after others: let go when those have ended, never before, and ended with them.

use std::collections::HashMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use sluice_producer_api::store::{NewRow, Store, Verdict};
use sluice_shared::{
    clock,
    domain::{After, JobId, OnParentFailure, Outcome, Request, State, after::HELD},
};

use crate::{account, answer, claim_any, finished, row, settle, state, submit};

on_every_store!(
    a_job_runs_when_those_before_it_have_succeeded,
    a_job_waits_for_the_last_of_many,
    results_stand_where_they_were_asked_for,
    a_failure_is_handled_as_it_was_wished,
    one_that_is_cancelled_waits_no_more,
    any_web_of_jobs_ends_children_after_parents,
);

const MOST: usize = 1_000;

fn child(text: &str, parents: &[JobId], on_failure: OnParentFailure) -> NewRow {
    NewRow {
        run_at: HELD,
        request: Request::prompt(text),
        after: Some(After {
            parents: parents.to_vec(),
            on_failure,
            run_at: clock::now(),
        }),
        ..row()
    }
}

fn rejected() -> Outcome {
    Outcome::Rejected {
        code: "bad".into(),
        detail: "no".into(),
    }
}

/// Decides about all that wait, again and again until nothing changes, and lets them in.
async fn release(store: &Store) -> usize {
    let mut released = 0;
    loop {
        let found = store.release_any(None, MOST, clock::now()).await.unwrap();
        released += found.released;
        if found.released == 0 && found.ended.is_empty() {
            store.sweep(clock::now()).await.unwrap();
            return released;
        }
    }
}

async fn a_job_runs_when_those_before_it_have_succeeded(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let parents = submit(&store, vec![row(), row()]).await;
    let child = child("x", &parents, OnParentFailure::Fail);
    let id = child.id;
    submit(&store, vec![child]).await;
    let view = store.job(id).await.unwrap().unwrap();
    assert_eq!(
        (view.state, view.run_at, view.after),
        (State::Queued, None, parents.clone())
    );
    assert!(view.waiting_for.is_some());

    let bound = claim_any(&store, &accounts).await;
    assert_eq!(bound.len(), 2, "the child is not among them");
    let settled = settle(&store, &[finished(&bound[0], answer("one"))]).await;
    assert_eq!(settled.parents, [bound[0].job]);
    assert_eq!(release(&store).await, 0);
    let settled = settle(&store, &[finished(&bound[1], answer("two"))]).await;
    let released = store
        .release_after(&settled.parents, MOST, clock::now())
        .await
        .unwrap();
    assert_eq!(released.released, 1);
    assert_eq!(
        store.sweep(clock::now()).await.unwrap().ready_lanes,
        ["any"]
    );
    assert_eq!(claim_any(&store, &accounts).await[0].job, id);
    assert_eq!(release(&store).await, 0);
}

async fn a_job_waits_for_the_last_of_many(store: Store) {
    let accounts = [account("a", 30)];
    store.sync_accounts(&accounts).await.unwrap();
    let parents = submit(&store, (0..22).map(|_| row()).collect()).await;
    let child = child("{{ results[21] }}", &parents, OnParentFailure::Fail);
    let id = child.id;
    submit(&store, vec![child]).await;
    let bound = claim_any(&store, &accounts).await;
    let verdicts: Vec<Verdict> = bound
        .iter()
        .map(|dispatch| finished(dispatch, answer("x")))
        .collect();
    let settled = settle(&store, &verdicts[..21]).await;
    let release = async |parents: &[JobId]| {
        let found = store.release_after(parents, MOST, clock::now()).await;
        let found = found.unwrap();
        (found.released, found.ended.len())
    };
    assert_eq!(release(&settled.parents).await, (0, 0));
    assert_eq!(state(&store, id).await, State::Queued);
    settle(&store, &verdicts[21..]).await;
    assert_eq!(release(&parents).await, (1, 0));
}

async fn results_stand_where_they_were_asked_for(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let parents = submit(&store, vec![row(), row()]).await;
    let text = format!(
        "1: {{{{ results[0] }}}} 2: {{{{ results.{} }}}}",
        parents[1]
    );
    let good = child(&text, &parents, OnParentFailure::Fail);
    let long = child(
        &"{{ results[0] }}".repeat(100),
        &parents,
        OnParentFailure::Fail,
    );
    let (good_id, long_id) = (good.id, long.id);
    submit(&store, vec![good, long]).await;
    for dispatch in claim_any(&store, &accounts).await {
        // What a result says is text and nothing else.
        let text = match dispatch.job == parents[0] {
            true => "{{ results[1] }} & more",
            false => "two",
        };
        settle(&store, &[finished(&dispatch, answer(text))]).await;
    }
    assert_eq!(release(&store).await, 1);
    let bound = claim_any(&store, &accounts).await;
    assert_eq!((bound.len(), bound[0].job), (1, good_id));
    assert_eq!(
        bound[0].request.messages[0].content,
        "1: {{ results[1] }} & more 2: two"
    );
    let long = store.job(long_id).await.unwrap().unwrap();
    assert_eq!(long.state, State::Failed);
    assert_eq!(long.error.unwrap().code, "template_failed");
}

async fn a_failure_is_handled_as_it_was_wished(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let parents = submit(&store, vec![row()]).await;
    let children: Vec<NewRow> = [
        OnParentFailure::Fail,
        OnParentFailure::Skip,
        OnParentFailure::Run,
    ]
    .into_iter()
    .map(|on| child("[{{ results[0] }}]", &parents, on))
    .collect();
    let ids: Vec<JobId> = children.iter().map(|child| child.id).collect();
    let grandchild = child("x", &ids[..1], OnParentFailure::Fail);
    let grandchild_id = grandchild.id;
    submit(&store, children).await;
    submit(&store, vec![grandchild]).await;
    let bound = claim_any(&store, &accounts).await;
    settle(&store, &[finished(&bound[0], rejected())]).await;
    assert_eq!(release(&store).await, 1);
    let end = async |id| {
        let job = store.job(id).await.unwrap().unwrap();
        (
            job.state,
            job.error.map_or(String::new(), |error| error.code),
        )
    };
    assert_eq!(end(ids[0]).await, (State::Failed, "parent_failed".into()));
    assert_eq!(end(ids[1]).await, (State::Cancelled, "skipped".into()));
    assert_eq!(
        end(grandchild_id).await,
        (State::Failed, "parent_failed".into())
    );
    let bound = claim_any(&store, &accounts).await;
    assert_eq!((bound.len(), bound[0].job), (1, ids[2]));
    assert_eq!(bound[0].request.messages[0].content, "[]");
}

async fn one_that_is_cancelled_waits_no_more(store: Store) {
    let accounts = [account("a", 10)];
    store.sync_accounts(&accounts).await.unwrap();
    let parents = submit(&store, vec![row()]).await;
    let child = child("x", &parents, OnParentFailure::Run);
    let id = child.id;
    submit(&store, vec![child]).await;
    store.cancel(id, clock::now()).await.unwrap();
    for dispatch in claim_any(&store, &accounts).await {
        settle(&store, &[finished(&dispatch, answer("x"))]).await;
    }
    assert_eq!(release(&store).await, 0);
    assert_eq!(state(&store, id).await, State::Cancelled);
    assert!(claim_any(&store, &accounts).await.is_empty());
}

async fn any_web_of_jobs_ends_children_after_parents(store: Store) {
    let accounts = [account("a", 7)];
    store.sync_accounts(&accounts).await.unwrap();
    for seed in 0..6 {
        web(&store, &accounts, &mut StdRng::seed_from_u64(seed)).await;
    }
}

async fn web(store: &Store, accounts: &[sluice_shared::domain::Account], chance: &mut impl Rng) {
    let mut parents: HashMap<JobId, (Vec<JobId>, OnParentFailure)> = HashMap::new();
    let mut ids: Vec<JobId> = Vec::new();
    let mut ended: HashMap<JobId, State> = HashMap::new();
    let wishes = [
        OnParentFailure::Fail,
        OnParentFailure::Skip,
        OnParentFailure::Run,
    ];
    for round in 0..200 {
        // Some come while others have ended already.
        while ids.len() < 50 && chance.random_bool(0.7) {
            let mut before: Vec<JobId> = (0..chance.random_range(0..4))
                .filter_map(|_| ids.get(chance.random_range(0..ids.len().max(1))).copied())
                .collect();
            before.sort_unstable();
            before.dedup();
            let wish = wishes[chance.random_range(0..3)];
            let new = match before.is_empty() {
                true => row(),
                false => child("{{ results[0] }}", &before, wish),
            };
            parents.insert(new.id, (before, wish));
            ids.push(new.id);
            submit(store, vec![new]).await;
        }
        let found = store.release_any(None, MOST, clock::now()).await.unwrap();
        ended.extend(found.ended);
        store.sweep(clock::now()).await.unwrap();
        let bound = claim_any(store, accounts).await;
        for dispatch in &bound {
            let (before, wish) = &parents[&dispatch.job];
            for parent in before {
                let state = ended.get(parent).copied();
                assert!(state.is_some(), "{} runs before {parent}", dispatch.job);
                assert!(*wish == OnParentFailure::Run || state == Some(State::Succeeded));
            }
        }
        let verdicts: Vec<Verdict> = bound
            .iter()
            .map(|dispatch| match chance.random_bool(0.2) {
                true => finished(dispatch, rejected()),
                false => finished(dispatch, answer("x")),
            })
            .collect();
        ended.extend(settle(store, &verdicts).await.ended);
        if ids.len() == 50 && ended.len() == 50 {
            return;
        }
        assert!(round < 199, "{} of {} ended", ended.len(), ids.len());
    }
}
