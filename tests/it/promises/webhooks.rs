//! Webhooks: whoever asks for it is told of a job's end, signed, and not before it is so.

use std::collections::HashSet;

use serde_json::{Value, json};
use sluice_shared::{
    api::{
        CreatedWebhook, DeliveryDetail, DeliveryPage, DeliveryState, DeliveryView, JobWebhook,
        NewJob, WebhookSecret, WebhookView,
    },
    domain::{EventKind, JobId, State},
};

use super::TWO_ACCOUNTS;
use crate::{
    harness::{Client, Cluster, Mode, eventually, on_every_mode, prompt},
    receiver::{Got, LANGUAGES, Receiver, SETTINGS, verify},
};

on_every_mode!(
    each_end_is_told_of_and_both_public_libraries_verify_it,
    a_delivery_is_shown_with_its_answers_and_sent_again,
    nobody_is_told_at_a_private_address,
    the_events_of_an_installation_are_forwarded_to_a_developer,
);

fn config() -> String {
    format!("{SETTINGS}{TWO_ACCOUNTS}")
}

async fn register(api: &Client, endpoint: Value) -> CreatedWebhook {
    api.post("/api/webhooks", &endpoint).await.is(201)
}

/// The deliveries of a job, once each has come to this state.
async fn deliveries(api: &Client, job: &str, state: DeliveryState) -> Vec<DeliveryView> {
    eventually("the deliveries are so", async || {
        let page: DeliveryPage = api.get(&format!("/api/deliveries?job={job}")).await.is(200);
        let so = page.deliveries.iter().all(|one| one.state == state);
        (so && !page.deliveries.is_empty()).then_some(page.deliveries)
    })
    .await
}

async fn each_end_is_told_of_and_both_public_libraries_verify_it(mode: Mode) {
    let cluster = Cluster::start(mode, &config()).await;
    let all = Receiver::asking(&cluster.apis()[0]).await;
    let own = Receiver::asking(cluster.apis().last().unwrap()).await;
    let endpoint = register(cluster.api(), json!({ "url": all.url })).await;
    let made = cluster.api().post("/api/webhook-secret", &json!({})).await;
    let secret = made.is::<WebhookSecret>(200).secret;
    let told = NewJob {
        webhook: Some(JobWebhook {
            url: own.url.clone(),
            events: vec![EventKind::JobSucceeded],
        }),
        ..prompt("told")
    };
    let ids = cluster.submit_many(&vec![told; 20]).await;
    for (receiver, secret) in [(&all, &endpoint.secret), (&own, &secret)] {
        let got = receiver.wait_for(ids.len()).await;
        let jobs: HashSet<JobId> = got.iter().map(Got::job).collect();
        assert_eq!(jobs, ids.iter().copied().collect());
        // When it was told, it was so for everyone.
        for got in &got {
            assert_eq!(got.job_was, Some(State::Succeeded));
        }
        for language in LANGUAGES {
            let good = verify(language, secret, &got).await;
            assert!(good.iter().all(|kind| kind == "job.succeeded"), "{good:?}");
            assert_eq!(good.len(), got.len());
            let mut forged = got[0].clone();
            forged.body = forged.body.replace("succeeded", "failed");
            let mut late = got[0].clone();
            late.headers.insert("webhook-timestamp", 1.into());
            let bad = verify(language, secret, &[forged, late]).await;
            assert_eq!(bad, ["no", "no"], "{language}");
        }
    }
}

async fn a_delivery_is_shown_with_its_answers_and_sent_again(mode: Mode) {
    let cluster = Cluster::start(mode, &config()).await;
    let receiver = Receiver::start(|number| if number == 0 { 503 } else { 200 }).await;
    let endpoint = register(cluster.api(), json!({ "url": receiver.url })).await;
    let job = cluster.run(&prompt("hello")).await.id.to_string();
    let found = deliveries(cluster.api(), &job, DeliveryState::Delivered).await;
    assert_eq!(found[0].webhook, Some(endpoint.view.id));
    let path = format!("/api/deliveries/{}", found[0].id);
    let shown: DeliveryDetail = cluster.api().get(&path).await.is(200);
    let statuses: Vec<_> = shown.attempts.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [Some(503), Some(200)]);
    assert_eq!(shown.request, receiver.got()[0].event());
    cluster
        .api()
        .act(&format!("{path}/replay"))
        .await
        .is::<DeliveryView>(202);
    let got = receiver.wait_for(3).await;
    assert_eq!(got[0].id(), got[2].id());
    assert_eq!(got[0].body, got[2].body);
}

async fn nobody_is_told_at_a_private_address(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let receiver = Receiver::start(|_| 200).await;
    let refused = cluster
        .api()
        .post("/api/webhooks", &json!({ "url": receiver.url }))
        .await;
    refused.refused(422, "invalid_webhook");
    // A name is found out about when it is connected to.
    let url = receiver.url.replace("127.0.0.1", "localhost");
    let told = NewJob {
        webhook: Some(JobWebhook {
            url,
            events: vec![],
        }),
        ..prompt("told")
    };
    let job = cluster.run(&told).await.id;
    let tried = eventually("it is tried", async || {
        let path = format!("/api/deliveries?job={job}");
        let page: DeliveryPage = cluster.api().get(&path).await.is(200);
        page.deliveries.into_iter().find(|one| one.tries > 0)
    })
    .await;
    let path = format!("/api/deliveries/{}", tried.id);
    let shown: DeliveryDetail = cluster.api().get(&path).await.is(200);
    let error = shown.attempts[0].error.clone().unwrap();
    assert!(error.contains("no webhook goes there"), "{error}");
    assert!(receiver.got().is_empty());
}

async fn the_events_of_an_installation_are_forwarded_to_a_developer(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let receiver = Receiver::start(|_| 200).await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let mut listen = cluster
        .cli(&["listen", "--forward-to", &receiver.url, "--secret", secret])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It tells of what happens from then on: until it listens, nothing comes.
    let mut jobs = HashSet::new();
    let job = eventually("an event is forwarded", async || {
        jobs.insert(cluster.run(&prompt("hello")).await.id);
        receiver.got().first().map(Got::job)
    })
    .await;
    assert!(jobs.contains(&job));
    let got = receiver.got();
    for language in LANGUAGES {
        let kinds = verify(language, secret, &got).await;
        assert!(
            kinds.iter().all(|kind| kind == "job.succeeded"),
            "{kinds:?}"
        );
    }
    listen.kill().await.unwrap();
    let printed = listen.wait_with_output().await.unwrap().stdout;
    let printed = String::from_utf8(printed).unwrap();
    assert!(
        printed.contains("job.succeeded") && printed.contains(&job.to_string()),
        "{printed}"
    );
    let list: Value = cluster.api().get("/api/webhooks").await.is(200);
    let none: Vec<WebhookView> = serde_json::from_value(list["webhooks"].clone()).unwrap();
    assert!(none.is_empty(), "it leaves nothing behind");
}
