//! Accounts that come and go while a worker runs.

use serde_json::{Map, Value, json};
use sluice_shared::{
    api::AccountTest,
    broker::Broker,
    domain::{Delivery, JobId, Outcome, Span},
    live::{Live, Piece, StreamId},
    message::{Control, Dispatch},
    roll::{Definition, Roll},
    seal::MasterKey,
};

use crate::testing::{Rig, account_id, dispatch, in_time, outcome, until};

fn id(name: &str) -> sluice_shared::domain::AccountId {
    name.parse().unwrap()
}

/// A roll of simulated accounts: name, revision, latency.
fn roll(key: &MasterKey, revision: i64, accounts: &[(&str, i64, &str)]) -> Roll {
    let entry = |(name, revision, latency): &(&str, i64, &str)| {
        let Value::Object(settings) = json!({"provider": "simulated", "latency": latency}) else {
            panic!()
        };
        let definition = Definition {
            settings,
            ..Definition::default()
        };
        (id(name), definition.entry(key, &id(name), *revision))
    };
    Roll {
        revision,
        accounts: accounts.iter().map(entry).collect(),
    }
}

async fn tell(rig: &Rig, roll: &Roll) {
    rig.live.keep_roll(roll).await.unwrap();
    rig.broker.control(&Control::Accounts).await.unwrap();
}

fn job_of(account: &str) -> Dispatch {
    Dispatch {
        account: id(account),
        ..dispatch(Delivery::AtLeastOnce)
    }
}

async fn start(key: &MasterKey, accounts: &str) -> Rig {
    let worker = format!("accounts = {accounts}");
    let (broker, live) = (Broker::in_process(), Live::memory());
    Rig::start_with(broker, live, "", &worker, Some(key.clone())).await
}

#[tokio::test]
async fn an_account_is_served_as_soon_as_it_is_told_of_and_left_when_it_is_gone() {
    let key = MasterKey::generate();
    let mut rig = start(&key, "[\"*\"]").await;
    tell(&rig, &roll(&key, 1, &[("new", 1, "1ms")])).await;
    let there = rig.presence(|it| it.accounts.contains(&id("new"))).await;
    assert!(there.serves_all && there.troubles.is_empty());
    let job = job_of("new");
    rig.dispatch(&job).await;
    assert!(matches!(
        outcome(&rig.end_of(&job).await),
        Outcome::Completed(_)
    ));

    tell(&rig, &roll(&key, 2, &[])).await;
    rig.presence(|it| it.accounts == [account_id()]).await;
    until(async || rig.broker.depth(&id("new")).await.unwrap().consumers == 0).await;
    rig.stop().await.unwrap();
}

#[tokio::test]
async fn what_runs_goes_on_while_its_account_changes() {
    let key = MasterKey::generate();
    let mut rig = start(&key, "[\"*\"]").await;
    tell(&rig, &roll(&key, 1, &[("new", 1, "600ms")])).await;
    rig.presence(|it| it.accounts.contains(&id("new"))).await;
    let slow = job_of("new");
    rig.dispatch(&slow).await;
    rig.presence(|it| it.in_flight.contains(&(slow.job, 1)))
        .await;
    tell(&rig, &roll(&key, 2, &[("new", 2, "1ms")])).await;
    // By the new settings, before the old one is done.
    until(async || rig.broker.depth(&id("new")).await.unwrap().consumers == 1).await;
    assert!(matches!(
        outcome(&rig.end_of(&slow).await),
        Outcome::Completed(_)
    ));
    let quick = job_of("new");
    rig.dispatch(&quick).await;
    assert!(matches!(
        outcome(&rig.end_of(&quick).await),
        Outcome::Completed(_)
    ));
    rig.presence(|it| it.in_flight.is_empty()).await;
}

#[tokio::test]
async fn an_older_roll_and_silence_change_nothing() {
    let key = MasterKey::generate();
    let rig = start(&key, "[\"*\"]").await;
    tell(
        &rig,
        &roll(&key, 5, &[("new", 5, "1ms"), ("more", 5, "1ms")]),
    )
    .await;
    rig.presence(|it| it.accounts.len() == 3).await;
    tell(&rig, &roll(&key, 4, &[])).await;
    tell(&rig, &roll(&key, 6, &[("new", 5, "1ms")])).await;
    let there = rig.presence(|it| it.accounts.len() != 3).await;
    assert_eq!(there.accounts, [account_id(), id("new")]);
}

#[tokio::test]
async fn only_wanted_accounts_are_served_and_the_configuration_goes_first() {
    let key = MasterKey::generate();
    let rig = start(&key, "[\"main\", \"new\"]").await;
    let accounts = [("main", 1, "1h"), ("new", 1, "1ms"), ("other", 1, "1ms")];
    tell(&rig, &roll(&key, 1, &accounts)).await;
    let there = rig.presence(|it| it.accounts.len() > 1).await;
    assert_eq!(there.accounts, [account_id(), id("new")]);
    assert!(!there.serves_all);
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_and_stops_nothing_else() {
    let (key, other) = (MasterKey::generate(), MasterKey::generate());
    let mut rig = start(&key, "[\"*\"]").await;
    let mut told = roll(&other, 1, &[("foreign", 1, "1ms")]);
    told.accounts
        .extend(roll(&key, 1, &[("new", 1, "1ms")]).accounts);
    tell(&rig, &told).await;
    let there = rig
        .presence(|it| it.accounts.len() == 2 && !it.troubles.is_empty())
        .await;
    assert!(there.troubles[&id("foreign")].contains("SLUICE_MASTER_KEY"));
    // Sealed with the right key after all: all is well.
    let mended = [("foreign", 2, "1ms"), ("new", 1, "1ms")];
    tell(&rig, &roll(&key, 2, &mended)).await;
    rig.presence(|it| it.accounts.len() == 3 && it.troubles.is_empty())
        .await;
    let job = dispatch(Delivery::AtLeastOnce);
    rig.dispatch(&job).await;
    assert!(matches!(
        outcome(&rig.end_of(&job).await),
        Outcome::Completed(_)
    ));
}

#[tokio::test]
async fn a_credential_that_is_missing_here_is_said_with_its_setting() {
    let key = MasterKey::generate();
    let rig = start(&key, "[\"*\"]").await;
    let settings = json!({
        "provider": "anthropic", "api_key_env": "SLUICE_TEST_NO_SUCH_VARIABLE",
    });
    let settings: Map<String, Value> = serde_json::from_value(settings).unwrap();
    let definition = Definition {
        settings,
        ..Definition::default()
    };
    let entry = definition.entry(&key, &id("new"), 1);
    let told = Roll {
        revision: 1,
        accounts: [(id("new"), entry)].into(),
    };
    tell(&rig, &told).await;
    let there = rig.presence(|it| !it.troubles.is_empty()).await;
    let trouble = &there.troubles[&id("new")];
    assert!(
        trouble.contains("SLUICE_TEST_NO_SUCH_VARIABLE"),
        "{trouble}"
    );
}

#[tokio::test]
async fn a_test_is_one_call_by_the_worker_that_is_meant() {
    let key = MasterKey::generate();
    let rig = start(&key, "[\"*\"]").await;
    let call = async |worker: &str, account: &str| {
        let test = JobId::generate();
        let control = Control::Test {
            worker: worker.into(),
            account: id(account),
            test,
        };
        rig.broker.control(&control).await.unwrap();
        test
    };
    let not_meant = call("another", "main").await;
    for (account, expected) in [("main", "completed"), ("nobody", "failed")] {
        let test = call("tester", account).await;
        let read = rig.live.read(test, StreamId::START, 10, Span::seconds(20));
        let pieces = in_time(read).await.unwrap();
        let Piece::Text { text, .. } = &pieces[0].1 else {
            panic!("{pieces:?}")
        };
        let said: AccountTest = serde_json::from_str(text).unwrap();
        assert_eq!(
            (said.outcome.as_str(), said.worker.as_str()),
            (expected, "tester")
        );
    }
    let none = Span::from_millis(0);
    let silence = rig.live.read(not_meant, StreamId::START, 1, none).await;
    assert!(silence.unwrap().is_empty());
}
