//! Webhooks arrive whatever happens: to a receiver that fails three times in ten, while API
//! processes are killed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde_json::json;
use sluice_shared::{api::CreatedWebhook, domain::JobId};

use crate::{
    harness::{Cluster, bounded_by, eventually, eventually_within, prompt, rest},
    receiver::{Got, LANGUAGES, Receiver, SETTINGS, verify},
};

/// Jobs, as one of many tests and at full size.
const FEW: usize = 400;
const FULL: usize = 10_000;
const BATCH: usize = 100;

const LIMIT: Duration = Duration::from_secs(540);

fn config() -> String {
    format!("{SETTINGS}\n[accounts.one]\nprovider = \"simulated\"\nmax_concurrency = 64\n")
}

/// Three requests in ten fail, in no order that a sender could know.
fn fails(number: usize) -> u16 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    if mixed % 10 < 3 { 500 } else { 204 }
}

/// Each event arrives at least once, signed, and none of a job that is not so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_webhook_arrives_though_the_receiver_fails_and_the_api_is_killed() {
    bounded_by(LIMIT, Box::pin(survive())).await;
}

async fn survive() {
    let full = std::env::var("SLUICE_TEST_SIZE").is_ok_and(|size| size == "full");
    let jobs = if full { FULL } else { FEW };
    let receiver = Receiver::start(fails).await;
    let mut cluster = Cluster::distributed(&config(), 2, 1, &[]).await;
    let endpoint = json!({ "url": receiver.url });
    let made = cluster.api().post("/api/webhooks", &endpoint).await;
    let secret = made.is::<CreatedWebhook>(201).secret;
    let mut ids: HashSet<JobId> = HashSet::new();
    for victim in ["api-1", "api-2"] {
        for _ in 0..jobs / BATCH / 2 {
            ids.extend(cluster.submit_many(&vec![prompt("a"); BATCH]).await);
        }
        // In the midst of it: some have arrived and others are on their way.
        let some = ids.len() / 2;
        eventually_within(LIMIT, "webhooks arrive", async || {
            (receiver.got().len() >= some).then_some(())
        })
        .await;
        cluster.kill9(victim);
        rest(Duration::from_millis(500)).await;
        cluster.start_again(victim);
        cluster.until_up().await;
    }
    let told = eventually_within(LIMIT, "every event has arrived", async || {
        let got = receiver.got();
        let told: HashSet<JobId> = got
            .iter()
            .filter(|got| got.status < 300)
            .map(Got::job)
            .collect();
        (told.len() >= ids.len()).then_some(told)
    })
    .await;
    assert_eq!(told, ids);
    let got = receiver.got();
    let failed = got.iter().filter(|got| got.status == 500).count();
    assert!(failed > jobs / 5, "the receiver failed {failed} times only");
    let mut events: HashMap<JobId, HashSet<String>> = HashMap::new();
    for got in &got {
        events
            .entry(got.job())
            .or_default()
            .insert(got.id().to_owned());
    }
    let twice = events.values().filter(|ids| ids.len() > 1).count();
    assert_eq!(twice, 0, "jobs with two events");
    for language in LANGUAGES {
        let kinds = verify(language, &secret, &got).await;
        assert_eq!(kinds.len(), got.len());
        assert!(kinds.iter().all(|kind| kind == "job.succeeded"));
    }
    let truth = cluster.truth().await;
    eventually("all is settled", async || {
        let open = "SELECT count(*) FROM webhook_deliveries WHERE state <> 'delivered'";
        (truth.number(open).await == 0).then_some(())
    })
    .await;
    let count = "SELECT count(*) FROM webhook_deliveries";
    assert_eq!(truth.number(count).await, i64::try_from(ids.len()).unwrap());
    eprintln!(
        "{} events of {} jobs arrived in {} requests, {failed} of which failed",
        events.len(),
        ids.len(),
        got.len()
    );
}
