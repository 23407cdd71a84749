//! Redis away or emptied: it costs the moment, and nobody waits for it for long.

use std::time::Duration;

use sluice_shared::{
    domain::{JobId, Span},
    live::{Live, LiveError, Piece, StreamId, Wake},
    roll::Roll,
};
use tokio::time::Instant;
use url::Url;

use crate::{
    harness::{eventually, live_at, live_redis, redis_url, soon},
    live::{MINUTE, find, presence, text},
    proxy::Proxy,
};

/// The longest that a caller may be held up.
const LONGEST: Duration = Duration::from_millis(1500);

async fn over_proxy() -> (Live, Proxy) {
    let proxy = Proxy::start(&Url::parse(&redis_url()).unwrap()).await;
    (live_at(proxy.url()), proxy)
}

async fn every_call_fails(live: &Live) {
    let job = JobId::generate();
    let presence = presence();
    let wake = Wake::Ended { jobs: vec![job] };
    let (start, mut calls) = (Instant::now(), 0);
    let mut failed = |result: Result<(), LiveError>| {
        result.unwrap_err();
        calls += 1;
        assert!(start.elapsed() < LONGEST * calls, "call {calls}");
    };
    failed(live.ready().await);
    failed(live.wake(&wake).await);
    failed(live.beat(&presence, MINUTE).await);
    failed(live.leave(&presence.worker).await);
    failed(live.workers().await.map(drop));
    failed(live.keep_roll(&Roll::default()).await);
    failed(live.roll_revision().await.map(drop));
    failed(live.roll().await.map(drop));
    failed(live.append(job, &[Piece::End], MINUTE).await);
    failed(live.read(job, StreamId::START, 1, MINUTE).await.map(drop));
}

/// Waits until a wake-up comes through; others' may come too.
async fn hears(live: &Live, wakes: &mut tokio::sync::mpsc::UnboundedReceiver<Wake>) {
    let wake = Wake::Ended {
        jobs: vec![JobId::generate()],
    };
    soon(async {
        loop {
            let _ = live.wake(&wake).await;
            let heard = tokio::time::timeout(Duration::from_millis(100), wakes.recv()).await;
            if heard.ok().flatten().as_ref() == Some(&wake) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_fails_fast_and_is_recovered_from() {
    let (live, proxy) = over_proxy().await;
    let mut wakes = live.wakes();
    hears(&live, &mut wakes).await;
    for _ in 0..2 {
        proxy.cut().await;
        every_call_fails(&live).await;
        proxy.mend();
        eventually(|| async { live.ready().await.ok() }).await;
        hears(&live, &mut wakes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_holds_nobody_up() {
    let (live, proxy) = over_proxy().await;
    let mut wakes = live.wakes();
    hears(&live, &mut wakes).await;
    proxy.freeze();
    every_call_fails(&live).await;
    proxy.mend();
    eventually(|| async { live.ready().await.ok() }).await;
    hears(&live, &mut wakes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_there_yet_is_waited_for() {
    let proxy = Proxy::start(&Url::parse(&redis_url()).unwrap()).await;
    proxy.cut().await;
    let live = live_at(proxy.url());
    let mut wakes = live.wakes();
    every_call_fails(&live).await;
    proxy.mend();
    hears(&live, &mut wakes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_survives_the_loss_of_the_news_alone() {
    let (live, proxy) = over_proxy().await;
    let mut wakes = live.wakes();
    hears(&live, &mut wakes).await;
    let job = JobId::generate();
    let reading = live.read(job, StreamId::START, 1, MINUTE);
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.cut().await;
        proxy.mend();
        live_redis()
            .append(job, &[text("a")], MINUTE)
            .await
            .unwrap();
    };
    let (read, ()) = soon(futures::future::join(reading, meanwhile)).await;
    // Or it fails at once, and the reader asks again.
    if let Ok(read) = read {
        assert_eq!(read[0].1, text("a"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_filled_again() {
    // A database of its own, since it is emptied.
    let mut url = Url::parse(&redis_url()).unwrap();
    url.set_path("/9");
    let live = live_at(url.as_str());
    let presence = presence();
    let job = JobId::generate();
    live.beat(&presence, MINUTE).await.unwrap();
    live.append(job, &[text("a")], MINUTE).await.unwrap();
    live.keep_roll(&Roll::default()).await.unwrap();
    let client = deadpool_redis::redis::Client::open(url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = deadpool_redis::redis::cmd("FLUSHDB")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(find(&live, &presence.worker).await, None);
    assert_eq!(live.roll_revision().await.unwrap(), None);
    assert_eq!(live.roll().await.unwrap(), None);
    let none = Span::from_millis(0);
    assert_eq!(live.read(job, StreamId::START, 1, none).await.unwrap(), []);
    live.beat(&presence, MINUTE).await.unwrap();
    live.append(job, &[text("b")], MINUTE).await.unwrap();
    assert!(find(&live, &presence.worker).await.is_some());
    assert_eq!(
        live.read(job, StreamId::START, 1, none).await.unwrap()[0].1,
        text("b")
    );
}
