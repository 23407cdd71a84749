//! Steering accounts.

use sluice_shared::{
    api::{AccountView, NewJob},
    domain::{Standing, State},
};

use super::TWO_ACCOUNTS;
use crate::{
    harness::{Cluster, Mode, on_every_mode, prompt},
    stub::{Play, Stub},
};

on_every_mode!(
    accounts_are_shown_as_they_are_configured,
    a_paused_account_takes_no_job_until_it_is_resumed,
    an_account_whose_key_is_refused_is_taken_out_and_its_jobs_move_on,
    an_account_runs_no_more_at_once_than_it_may,
);

async fn accounts_are_shown_as_they_are_configured(mode: Mode) {
    let config = r#"
[accounts.b-two]
provider = "command"
argv = ["cat"]
models = ["m1", "m2"]
tags = ["fast"]
max_concurrency = 3
weight = 5
[accounts.a-one]
provider = "simulated"
"#;
    let cluster = Cluster::start(mode, config).await;
    for api in cluster.apis() {
        let [one, two] = api.accounts().await.try_into().unwrap();
        let (one, two): (AccountView, AccountView) = (one, two);
        assert_eq!(
            (one.id.as_str(), one.provider.as_str(), one.weight),
            ("a-one", "simulated", 1)
        );
        assert!(one.models.is_empty() && one.tags.is_empty());
        assert_eq!(
            (two.id.as_str(), two.provider.as_str(), two.weight),
            ("b-two", "command", 5)
        );
        assert_eq!(
            (two.models, two.tags),
            (vec!["m1".into(), "m2".into()], vec!["fast".into()])
        );
        assert_eq!(
            (two.max_concurrency, two.in_flight, two.standing),
            (3, 0, Standing::Active)
        );
        assert_eq!(
            two.workers,
            Some(if mode == Mode::Embedded { 1 } else { 3 })
        );
    }
}

async fn a_paused_account_takes_no_job_until_it_is_resumed(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let paused = cluster.apis()[0].pause("one").await;
    assert_eq!(paused.standing, Standing::Paused);
    let to_one = NewJob {
        account: Some("one".parse().unwrap()),
        ..prompt("wait")
    };
    let waiting = cluster.submit(&to_one).await;
    let ids = cluster.submit_many(&vec![prompt("elsewhere"); 20]).await;
    for job in cluster.wait_all(&ids).await {
        assert_eq!(job.account.unwrap().as_str(), "two");
    }
    assert_eq!(cluster.job(waiting).await.state, State::Queued);
    let resumed = cluster.other_api(waiting).resume("one").await;
    assert_eq!(resumed.standing, Standing::Active);
    assert_eq!(cluster.wait(waiting).await.account.unwrap().as_str(), "one");
    cluster
        .api()
        .act("/api/accounts/nobody/pause")
        .await
        .refused(404, "no_such_account");
}

async fn an_account_whose_key_is_refused_is_taken_out_and_its_jobs_move_on(mode: Mode) {
    let stub = Stub::start(|ask| match ask.key.as_str() {
        "sk-good" => Play::Answer(format!("echo: {}", ask.prompt)),
        _ => Play::Refuse(401, "invalid_api_key"),
    })
    .await;
    let account = |name, key| {
        format!(
            "[accounts.{name}]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = \"{key}\"\n\
             default_model = \"m\"\n",
            stub.url()
        )
    };
    let config = account("bad", "sk-bad") + &account("good", "sk-good");
    let cluster = Cluster::start(mode, &config).await;
    let jobs: Vec<NewJob> = (0..10)
        .map(|number| prompt(format!("job {number}")))
        .collect();
    let ids = cluster.submit_many(&jobs).await;
    for (number, job) in cluster.wait_all(&ids).await.into_iter().enumerate() {
        assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
        assert_eq!(job.result.unwrap().text, format!("echo: job {number}"));
    }
    let bad = cluster.api().account("bad").await;
    assert_eq!((bad.standing, bad.in_flight), (Standing::AuthFailed, 0));
    assert!(bad.reason.is_some_and(|reason| !reason.contains("sk-bad")));
    let asked = stub.count(|ask| ask.key == "sk-bad");
    assert!((1..=10).contains(&asked), "{asked}");
    cluster.run(&prompt("one more")).await;
    assert_eq!(
        stub.count(|ask| ask.key == "sk-bad"),
        asked,
        "it is not asked again by itself"
    );
}

async fn an_account_runs_no_more_at_once_than_it_may(mode: Mode) {
    let stub = Stub::start(|ask| Play::Slowly(20, format!("echo: {}", ask.prompt))).await;
    let config = format!(
        "[accounts.narrow]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk-x\"\n\
         default_model = \"m\"\nmax_concurrency = 5\n",
        stub.url()
    );
    let cluster = Cluster::start(mode, &config).await;
    let ids = cluster.submit_many(&vec![prompt("x"); 200]).await;
    cluster.wait_all(&ids).await;
    assert_eq!(stub.count(|_| true), 200);
    let most = stub.most_at_once("sk-x");
    assert!((2..=5).contains(&most), "{most} at once");
}
