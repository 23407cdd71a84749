//! Accounts made at run time.

use serde_json::json;
use sluice_producer_api::store::{Removed, Store};
use sluice_shared::{
    clock,
    domain::{Lane, Standing, Time},
    roll::Definition,
};

use crate::{account, claim, on_every_store, row, submit};

on_every_store!(
    an_account_is_made_once_and_seen_by_all,
    a_change_is_made_to_what_was_seen,
    only_an_empty_account_is_removed,
    what_the_configuration_takes_over_is_its_own,
    changes_at_once_each_have_their_own_revision,
);

fn definition(weight: u32) -> Definition {
    let mut definition = Definition::default();
    definition.settings.insert("weight".into(), json!(weight));
    definition.secrets.insert("api_key".into(), "v1.x".into());
    definition
}

async fn an_account_is_made_once_and_seen_by_all(store: Store) {
    let now = clock::now();
    let one = account("one", 4);
    let before = store.account_revision().await.unwrap();
    assert!(store.make_account(&one, &definition(1), now).await.unwrap());
    assert!(!store.make_account(&one, &definition(2), now).await.unwrap());
    let after = store.account_revision().await.unwrap();
    assert!(after > before && after >= now.as_millis());
    // What the configuration says of others leaves it alone.
    store.sync_accounts(&[account("two", 1)]).await.unwrap();
    assert!(store.account_revision().await.unwrap() > after);
    let rows = store.accounts().await.unwrap();
    let made: Vec<bool> = rows.iter().map(|row| row.definition.is_some()).collect();
    assert_eq!((rows.len(), made), (2, vec![true, false]));
    assert_eq!(rows[0].account, one);
    let kept = rows[0].definition.as_ref().unwrap();
    assert_eq!((&kept.definition, kept.revision), (&definition(1), after));
}

async fn a_change_is_made_to_what_was_seen(store: Store) {
    let now = clock::now();
    let one = account("one", 4);
    store.make_account(&one, &definition(1), now).await.unwrap();
    let seen = store.account_revision().await.unwrap();
    let wider = account("one", 9);
    let change = |to, at| store.change_account(&wider, to, at, now);
    let (two, three) = (definition(2), definition(3));
    assert!(change(&two, seen).await.unwrap());
    assert!(!change(&three, seen).await.unwrap(), "it was overtaken");
    let rows = store.accounts().await.unwrap();
    assert_eq!(rows[0].account.max_concurrency, 9);
    assert_eq!(rows[0].definition.as_ref().unwrap().definition, two);
    store.sync_accounts(&[account("two", 1)]).await.unwrap();
    let configured = account("two", 2);
    let refused = store.change_account(&configured, &three, seen, now).await;
    assert!(!refused.unwrap(), "it is the configuration's");
}

async fn only_an_empty_account_is_removed(store: Store) {
    let now = clock::now();
    let one = account("one", 4);
    store.make_account(&one, &definition(1), now).await.unwrap();
    submit(&store, vec![row(), row()]).await;
    let bound = claim(&store, std::slice::from_ref(&one), &[Lane::default()], 1).await;
    assert_eq!(bound.dispatches.len(), 1);
    let removed = store.remove_account(&one.id, now).await.unwrap();
    assert_eq!(removed, Removed::Busy(1));
    assert_eq!(store.accounts().await.unwrap().len(), 1);

    let two = account("two", 4);
    store.make_account(&two, &definition(1), now).await.unwrap();
    let removed = store.remove_account(&two.id, now).await.unwrap();
    assert_eq!(removed, Removed::Gone);
    // Another API process does not know yet: it must bind nothing all the same.
    let bound = claim(&store, std::slice::from_ref(&two), &[Lane::default()], 1).await;
    assert!(bound.dispatches.is_empty());
    let removed = store.remove_account(&two.id, now).await.unwrap();
    assert_eq!(removed, Removed::NotThere);
    assert_eq!(store.accounts().await.unwrap().len(), 1);
    // And there it is again, good as new.
    assert!(store.make_account(&two, &definition(1), now).await.unwrap());
    let rows = store.accounts().await.unwrap();
    assert_eq!(
        (rows[1].standing, &rows[1].reason),
        (Standing::Active, &None)
    );
}

async fn what_the_configuration_takes_over_is_its_own(store: Store) {
    let now = clock::now();
    let one = account("one", 4);
    store.make_account(&one, &definition(1), now).await.unwrap();
    store.sync_accounts(&[account("one", 5)]).await.unwrap();
    let rows = store.accounts().await.unwrap();
    assert_eq!(rows[0].account.max_concurrency, 5);
    assert!(rows[0].definition.is_none());
    let removed = store.remove_account(&one.id, now).await.unwrap();
    assert_eq!(removed, Removed::NotThere);
    store.sync_accounts(&[]).await.unwrap();
    assert!(store.accounts().await.unwrap().is_empty());
}

async fn changes_at_once_each_have_their_own_revision(store: Store) {
    let accounts: Vec<_> = (0..8).map(|n| account(&format!("a{n}"), 1)).collect();
    let new = definition(1);
    let made = accounts
        .iter()
        .map(|account| store.make_account(account, &new, Time::EPOCH));
    for made in futures::future::join_all(made).await {
        assert!(made.unwrap());
    }
    let rows = store.accounts().await.unwrap();
    let mut revisions: Vec<i64> = rows
        .iter()
        .map(|row| row.definition.as_ref().unwrap().revision)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=8).collect::<Vec<i64>>());
}
