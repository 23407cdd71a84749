//! A batch is taken whole, runs, and comes back in the order in which it was given.

use reqwest::Method;
use serde_json::{Value, json};
use sluice_shared::api::{BatchResult, BatchState, BatchView};

use super::TWO_ACCOUNTS;
use crate::harness::{Answer, Client, Cluster, Mode, eventually, on_every_mode};

on_every_mode!(
    results_come_in_the_order_of_the_lines,
    results_are_read_on_from_where_they_were_left,
    a_batch_that_was_accepted_outlives_its_api,
    an_upload_that_breaks_off_leaves_nothing,
    a_cancelled_batch_ends,
);

/// An account whose jobs take a while.
const SLOW: &str = r#"
[accounts.one]
provider = "simulated"
latency = "300ms"
max_concurrency = 20
"#;

fn lines(count: usize) -> String {
    let line =
        |n: usize| json!({ "prompt": format!("line {n}"), "metadata": { "n": n.to_string() } });
    (1..=count).map(|n| format!("{}\n", line(n))).collect()
}

async fn post(api: &Client, query: &str, body: String) -> Answer {
    let request = api
        .request(Method::POST, &format!("/api/batches{query}"))
        .header("content-type", "application/jsonl")
        .body(body);
    api.send(request).await
}

async fn upload(api: &Client, count: usize) -> BatchView {
    post(api, "", lines(count)).await.is(202)
}

async fn ended(api: &Client, batch: &BatchView) -> BatchView {
    eventually("the batch ends", async || {
        let batch: BatchView = api.get(&batch.url).await.is(200);
        (batch.state == BatchState::Ended).then_some(batch)
    })
    .await
}

fn parse(body: &str) -> Vec<BatchResult> {
    let lines = body.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn check_lines(results: &[BatchResult], from: u64) {
    for (result, line) in results.iter().zip(from..) {
        assert_eq!(result.line, line);
        assert_eq!(result.metadata["n"], line.to_string());
        let text = result.result.as_ref().map(|result| result.text.as_str());
        assert_eq!(text, Some(format!("line {line}").as_str()), "{result:?}");
    }
}

async fn results_come_in_the_order_of_the_lines(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let apis = cluster.apis();
    let batch = upload(&apis[0], 2_000).await;
    assert_eq!((batch.total, batch.counts.ended()), (2_000, 0));
    let other = &apis[apis.len() - 1];
    let last = ended(other, &batch).await;
    assert_eq!((last.counts.succeeded, last.counts.ended()), (2_000, 2_000));
    let answer = other.get(&batch.results_url).await;
    assert_eq!(answer.header("sluice-batch-state"), Some("ended"));
    let results = parse(&answer.body);
    assert_eq!(results.len(), 2_000);
    check_lines(&results, 1);
    assert!(
        eventually("its end is counted", async || {
            let mut ends = 0.0;
            for api in apis {
                ends += api.metric("sluice_batches_ended_total").await;
            }
            (ends > 0.0).then_some(ends)
        })
        .await
            < 1.5,
        "a batch ends once"
    );
}

async fn results_are_read_on_from_where_they_were_left(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let apis = cluster.apis();
    let batch = upload(&apis[0], 200).await;
    let mut read = Vec::new();
    let mut asked = 0;
    while read.len() < 200 {
        // From any API process, while it runs.
        let api = &apis[asked % apis.len()];
        asked += 1;
        assert!(asked < 500, "{} after {asked} times", read.len());
        let after = read.len();
        let url = format!("{}?after={after}&wait=500ms", batch.results_url);
        let answer = api.get(&url).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = parse(&answer.body);
        check_lines(&results, after as u64 + 1);
        read.extend(results);
    }
    assert!(asked > 1, "it came all at once");
    let last = ended(&apis[0], &batch).await;
    assert_eq!(last.counts.succeeded, 200);
}

async fn a_batch_that_was_accepted_outlives_its_api(mode: Mode) {
    let mut cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let batch = upload(&cluster.apis()[0].clone(), 2_500).await;
    // While its lines become jobs.
    for server in cluster.servers() {
        cluster.kill9(&server);
        cluster.start_again(&server);
    }
    cluster.until_up().await;
    let api = cluster.apis()[0].clone();
    let last = ended(&api, &batch).await;
    assert_eq!(last.counts.succeeded, 2_500, "{last:?}");
    let results = parse(&api.get(&batch.results_url).await.body);
    assert_eq!(results.len(), 2_500);
    check_lines(&results, 1);
    let jobs = api.list_all(&format!("batch={}&limit=500", batch.id)).await;
    assert_eq!(jobs.len(), 2_500, "each line is one job");
}

async fn an_upload_that_breaks_off_leaves_nothing(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let api = &cluster.apis()[0];
    let pieces = vec![
        Ok(lines(2_500)),
        Err(std::io::Error::other("the client is gone")),
    ];
    let request = api
        .request(Method::POST, "/api/batches")
        .header("content-type", "application/jsonl")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
    assert!(api.try_send(request).await.is_err());
    let wrong = post(api, "", format!("{}{{}}\n", lines(2_500))).await;
    assert_eq!(
        wrong.refused(422, "invalid_batch").errors[0].field,
        "line 2501"
    );
    let page: Value = api.get("/api/batches").await.is(200);
    assert_eq!(page["batches"], json!([]));
    assert_eq!(api.list("limit=1").await.jobs.len(), 0);
}

async fn a_cancelled_batch_ends(mode: Mode) {
    let slow = SLOW.replace("300ms", "20s");
    let cluster = Cluster::start(mode, &slow).await;
    let apis = cluster.apis();
    let batch = upload(&apis[0], 1_500).await;
    eventually("jobs run", async || {
        let batch: BatchView = apis[0].get(&batch.url).await.is(200);
        (batch.counts.running == 20).then_some(())
    })
    .await;
    let other = &apis[apis.len() - 1];
    let cancelled: BatchView = other.act(&format!("{}/cancel", batch.url)).await.is(202);
    assert!(matches!(
        cancelled.state,
        BatchState::Cancelling | BatchState::Ended
    ));
    let last = ended(&apis[0], &batch).await;
    assert_eq!(last.counts.cancelled, 1_500, "{last:?}");
    let results = parse(&other.get(&batch.results_url).await.body);
    assert_eq!(results.len(), 1_500);
    assert!(results.iter().all(|result| result.error.is_some()));
}
