//! RabbitMQ away: it comes back by itself, as it was, and nothing waits for it for long.

use std::{collections::HashSet, time::Duration};

use sluice_shared::{
    broker::{Broker, BrokerError},
    domain::{AccountId, JobId},
    message::Control,
};
use tokio::time::{self, Instant};
use url::Url;

use crate::{
    harness::{
        Site, attempt, attempts, connect, dispatch, eventually, jobs, next, nothing_left, ready,
        reply, soon, take, try_connect,
    },
    proxy::Proxy,
};

/// Waits until the broker can be used.
async fn back(broker: &Broker) {
    eventually(|| async { broker.ready().await.ok() }).await;
}

async fn gone(broker: &Broker) {
    eventually(|| async { broker.ready().await.err() }).await;
}

/// The consumer holds as many as it may, of as many as there are.
async fn holds(site: &Site, account: &AccountId, held: u64, of: u64) {
    ready(&site.broker, account, of - held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_comes_back_with_its_prefetch() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (worker, proxy) = site.over_proxy().await;
    dispatch(&site.broker, &attempts(&account, 20)).await;
    let mut consumer = worker.consume(&account, 5).await.unwrap();
    for _ in 0..3 {
        holds(&site, &account, 5, 20).await;
        proxy.cut().await;
        ready(&site.broker, &account, 20).await;
        gone(&worker).await;
        proxy.mend();
        back(&worker).await;
    }
    holds(&site, &account, 5, 20).await;
    let held = take(&mut consumer, 5).await;
    let epoch = held[0].tag.epoch;
    assert!(epoch > 0);
    for delivery in &held {
        assert_eq!((delivery.tag.epoch, delivery.redelivered), (epoch, true));
    }
    // Publishing works again as well.
    dispatch(&worker, &attempts(&account, 10)).await;
    soon(worker.reply(&[reply(JobId::generate())]))
        .await
        .unwrap();
    ready(&site.broker, &account, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_of_a_lost_channel_do_nothing() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (worker, proxy) = site.over_proxy().await;
    dispatch(&site.broker, &attempts(&account, 3)).await;
    let mut consumer = worker.consume(&account, 3).await.unwrap();
    let stale: Vec<_> = take(&mut consumer, 3)
        .await
        .iter()
        .map(|delivery| delivery.tag)
        .collect();
    proxy.cut().await;
    ready(&site.broker, &account, 3).await;
    let acker = consumer.acker();
    acker.ack(&stale).await;
    acker.give_back(stale[0]).await;
    proxy.mend();
    let again = take(&mut consumer, 3).await;
    // The new channel counts from 1 as the old one did.
    acker.ack(&stale).await;
    acker.give_back(stale[2]).await;
    acker.ack(&[again[2].tag]).await;
    drop((consumer, acker));
    ready(&site.broker, &account, 2).await;
    let mut consumer = site.broker.consume(&account, 3).await.unwrap();
    assert_eq!(jobs(&take(&mut consumer, 2).await), jobs(&again[..2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_looked_at_when_the_connection_went_is_not_handed_out() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (worker, proxy) = site.over_proxy().await;
    let sent = attempts(&account, 10);
    dispatch(&site.broker, &sent).await;
    let mut consumer = worker.consume(&account, 10).await.unwrap();
    holds(&site, &account, 10, 10).await;
    proxy.cut().await;
    holds(&site, &account, 0, 10).await;
    proxy.mend();
    holds(&site, &account, 10, 10).await;
    let deliveries = take(&mut consumer, 10).await;
    assert!(deliveries.iter().all(|delivery| delivery.redelivered));
    assert_eq!(
        jobs(&deliveries),
        sent.iter().map(|sent| sent.job).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_closed_alone_is_opened_again() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (worker, proxy) = site.over_proxy().await;
    dispatch(&site.broker, &attempts(&account, 3)).await;
    let mut consumer = worker.consume(&account, 2).await.unwrap();
    assert_eq!(take(&mut consumer, 2).await[0].tag.epoch, 0);
    // An ack of a delivery that never was, on each of the first channels of each connection.
    for channel in 1..4u8 {
        proxy.slip_in(&[
            1, 0, channel, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xce,
        ]);
    }
    let again = take(&mut consumer, 2).await;
    assert!(
        again
            .iter()
            .all(|delivery| delivery.redelivered && delivery.tag.epoch > 0)
    );
    consumer.acker().ack(&[again[0].tag, again[1].tag]).await;
    assert!(!next(&mut consumer).await.redelivered);
    eventually(|| async { worker.dispatch(&attempts(&account, 1)).await.remove(0).ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_comes_back() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let mut consumer = site.broker.consume(&account, 2).await.unwrap();
    let name = format!("sluice.jobs.{account}");
    site.vhost()
        .channel()
        .await
        .queue_delete(name.into(), Default::default())
        .await
        .unwrap();
    eventually(|| async {
        site.broker
            .dispatch(&attempts(&account, 1))
            .await
            .remove(0)
            .ok()
    })
    .await;
    next(&mut consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_comes_back() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let _consumer = site.broker.consume(&account, 2).await.unwrap();
    let channel = site.vhost().channel().await;
    channel
        .exchange_delete("sluice.jobs".into(), Default::default())
        .await
        .unwrap();
    eventually(|| async {
        // The exchange comes with the connection, its bindings with each declaration.
        let _ = site.broker.declare(&account).await;
        site.broker
            .dispatch(&attempts(&account, 1))
            .await
            .remove(0)
            .ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_replies_and_dead_letters_come_back_too() {
    let site = Site::rabbit().await;
    let (worker, proxy) = site.over_proxy().await;
    let mut controls = worker.controls().await.unwrap();
    let mut replies = worker.replies(10).await.unwrap();
    let mut dead = worker.dead_letters(10).await.unwrap();
    proxy.cut().await;
    gone(&worker).await;
    proxy.mend();
    back(&worker).await;
    let control = Control::Cancel {
        job: JobId::generate(),
        attempt: 1,
    };
    // Whoever is away does not hear it, so it is said until it is heard.
    let heard = soon(async {
        loop {
            site.broker.control(&control).await.unwrap();
            let heard = time::timeout(Duration::from_millis(50), controls.recv());
            if let Ok(heard) = heard.await {
                return heard;
            }
        }
    });
    assert_eq!(heard.await, Some(control));
    let sent = [reply(JobId::generate())];
    soon(site.broker.reply(&sent)).await.unwrap();
    assert_eq!(next(&mut replies).await.replies, sent);
    site.vhost().publish("sluice.dead", "", b"?").await;
    assert_eq!(next(&mut dead).await.letter.dispatch, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_away_every_call_fails_at_once() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (broker, proxy) = site.over_proxy().await;
    proxy.cut().await;
    gone(&broker).await;
    let start = Instant::now();
    let unavailable = |error| matches!(error, BrokerError::Unavailable(_));
    for result in broker.dispatch(&attempts(&account, 100)).await {
        assert!(unavailable(result.unwrap_err()));
    }
    assert!(unavailable(
        broker.reply(&[reply(JobId::generate())]).await.unwrap_err()
    ));
    assert!(unavailable(broker.declare(&account).await.unwrap_err()));
    assert!(unavailable(broker.depth(&account).await.unwrap_err()));
    assert!(unavailable(broker.reply_depth().await.unwrap_err()));
    let control = Control::Cancel {
        job: JobId::generate(),
        attempt: 1,
    };
    assert!(unavailable(broker.control(&control).await.unwrap_err()));
    // A consumer begins when it is back.
    let mut consumer = broker.consume(&account, 1).await.unwrap();
    let _controls = broker.controls().await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let sent = attempt(&account);
    dispatch(&site.broker, std::slice::from_ref(&sent)).await;
    proxy.mend();
    assert_eq!(next(&mut consumer).await.dispatch, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_it_goes_is_reported_unconfirmed_or_kept() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let (broker, proxy) = site.over_proxy().await;
    let batches: Vec<_> = (0..20).map(|_| attempts(&account, 200)).collect();
    let sending = futures::future::join_all(batches.iter().map(|batch| broker.dispatch(batch)));
    let cutting = async {
        // In the middle of it.
        eventually(|| async {
            (site.broker.depth(&account).await.unwrap().ready > 100).then_some(())
        })
        .await;
        proxy.cut().await;
    };
    let (results, ()) = soon(futures::future::join(sending, cutting)).await;
    let confirmed: Vec<JobId> = batches
        .iter()
        .flatten()
        .zip(results.into_iter().flatten())
        .filter_map(|(sent, result)| match result {
            Ok(()) => Some(sent.job),
            Err(BrokerError::NotConfirmed(_) | BrokerError::Unavailable(_)) => None,
            Err(error) => panic!("{error}"),
        })
        .collect();
    // What was not confirmed may be there as well, and in between.
    let mut consumer = site.broker.consume(&account, 10_000).await.unwrap();
    let mut missing: HashSet<JobId> = confirmed.into_iter().collect();
    while !missing.is_empty() {
        missing.remove(&next(&mut consumer).await.dispatch.job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_consumers_come_back_at_once() {
    let site = Site::rabbit().await;
    let (worker, proxy) = site.over_proxy().await;
    let mut consumers = Vec::new();
    for _ in 0..10 {
        let account = site.declared().await;
        consumers.push((worker.consume(&account, 3000).await.unwrap(), account));
    }
    proxy.cut().await;
    gone(&worker).await;
    proxy.mend();
    for (consumer, account) in &mut consumers {
        let sent = attempts(account, 20);
        dispatch(&site.broker, &sent).await;
        let deliveries = take(consumer, 20).await;
        let tags: Vec<_> = deliveries.iter().map(|delivery| delivery.tag).collect();
        consumer.acker().ack(&tags).await;
    }
    let (consumer, account) = consumers.remove(0);
    drop(consumer);
    nothing_left(&site.broker, &account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_yet_is_waited_for() {
    let site = Site::rabbit().await;
    let proxy = Proxy::start(&Url::parse(site.vhost().url()).unwrap()).await;
    proxy.cut().await;
    let broker = connect(proxy.url()).await;
    assert!(matches!(
        broker.ready().await,
        Err(BrokerError::Unavailable(_))
    ));
    proxy.mend();
    back(&broker).await;
    let account = crate::harness::account();
    broker.declare(&account).await.unwrap();
    dispatch(&broker, &attempts(&account, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_answer_is_given_up_and_tried_again() {
    let site = Site::rabbit().await;
    let proxy = Proxy::start(&Url::parse(site.vhost().url()).unwrap()).await;
    proxy.freeze();
    let broker = connect(proxy.url()).await;
    assert!(matches!(
        broker.ready().await,
        Err(BrokerError::Unavailable(_))
    ));
    proxy.mend();
    back(&broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_an_error_that_shows_no_password() {
    let site = Site::rabbit().await;
    for (user, password) in [("nobody", "hunter2"), ("guest", "hunter2")] {
        let mut url = Url::parse(site.vhost().url()).unwrap();
        url.set_username(user).unwrap();
        url.set_password(Some(password)).unwrap();
        let error = try_connect(url.as_str()).await.unwrap_err().to_string();
        assert!(
            error.contains("ACCESS_REFUSED") && !error.contains("hunter2"),
            "{error}"
        );
    }
    let mut url = Url::parse(site.vhost().url()).unwrap();
    url.set_path("no-such-vhost");
    let error = try_connect(url.as_str()).await.unwrap_err().to_string();
    assert!(error.contains("no-such-vhost"), "{error}");
}
