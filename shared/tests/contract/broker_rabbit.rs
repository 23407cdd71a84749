//! What only RabbitMQ can be asked: foreign messages, large numbers, other people's queues.

use lapin::types::{AMQPValue, FieldTable};
use sluice_shared::{
    broker::BrokerError,
    domain::{JobId, Request},
    message::{Replies, VERSION},
};

use crate::harness::{
    Site, attempt, attempts, dispatch, next, nothing_left, ready, reply, soon, take,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_beyond_what_one_consumer_may_have_is_had_all_the_same() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    for batch in attempts(&account, 5000).chunks(1000) {
        dispatch(&site.broker, batch).await;
    }
    let mut consumer = site.broker.consume(&account, 4500).await.unwrap();
    ready(&site.broker, &account, 500).await;
    let held = take(&mut consumer, 4500).await;
    let tags: Vec<_> = held.iter().map(|delivery| delivery.tag).collect();
    consumer.acker().ack(&tags[..4000]).await;
    ready(&site.broker, &account, 0).await;
    let rest: Vec<_> = take(&mut consumer, 500)
        .await
        .iter()
        .map(|rest| rest.tag)
        .collect();
    consumer
        .acker()
        .ack(&[&tags[4000..], &rest[..]].concat())
        .await;
    drop(consumer);
    nothing_left(&site.broker, &account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_prefetch_works() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let mut consumer = site.broker.consume(&account, u16::MAX).await.unwrap();
    let sent = attempts(&account, 100);
    dispatch(&site.broker, &sent).await;
    assert_eq!(take(&mut consumer, 100).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_job_becomes_a_dead_letter() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let key = format!("account.{account}");
    let mut other_version = serde_json::to_value(attempt(&account)).unwrap();
    other_version["v"] = (VERSION + 1).into();
    let mut consumer = site.broker.consume(&account, 10).await.unwrap();
    let mut dead = site.broker.dead_letters(10).await.unwrap();
    for body in ["", "?", "{}", &other_version.to_string()] {
        site.vhost()
            .publish("sluice.jobs", &key, body.as_bytes())
            .await;
        let delivery = next(&mut dead).await;
        assert_eq!(delivery.letter.dispatch, None, "{body}");
        assert_eq!(delivery.letter.reason, "rejected");
        assert_eq!(delivery.letter.queue, format!("sluice.jobs.{account}"));
        dead.acker().ack(&[delivery.tag]).await;
    }
    // The consumer has survived it.
    let sent = attempt(&account);
    dispatch(&site.broker, std::slice::from_ref(&sent)).await;
    assert_eq!(next(&mut consumer).await.dispatch, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_replies_become_a_dead_letter() {
    let site = Site::rabbit().await;
    let mut intake = site.broker.replies(10).await.unwrap();
    let mut dead = site.broker.dead_letters(10).await.unwrap();
    let other_version = Replies {
        v: VERSION + 1,
        replies: vec![reply(JobId::generate())],
    };
    for body in [
        "?".to_owned(),
        serde_json::to_string(&other_version).unwrap(),
    ] {
        site.vhost()
            .publish("", "sluice.replies", body.as_bytes())
            .await;
        let letter = next(&mut dead).await.letter;
        assert_eq!(
            (letter.reason.as_str(), letter.queue.as_str()),
            ("rejected", "sluice.replies")
        );
    }
    let sent = [reply(JobId::generate())];
    soon(site.broker.reply(&sent)).await.unwrap();
    assert_eq!(next(&mut intake).await.replies, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_persistent_and_says_what_it_is() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let mut sent = attempt(&account);
    sent.attempt = 3;
    sent.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    dispatch(&site.broker, std::slice::from_ref(&sent)).await;
    let queue = format!("sluice.jobs.{account}");
    let channel = site.vhost().channel().await;
    let message = channel
        .basic_get(queue.into(), Default::default())
        .await
        .unwrap()
        .unwrap();
    let properties = &message.delivery.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    let id = properties.message_id().as_ref().map(ToString::to_string);
    assert_eq!(id, Some(format!("{}:3", sent.job)));
    let headers = properties.headers().as_ref().unwrap().inner();
    let traceparent = AMQPValue::LongString(sent.traceparent.unwrap().into());
    assert_eq!(headers.get("traceparent"), Some(&traceparent));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_idea_of_a_queue_is_an_error() {
    let site = Site::rabbit().await;
    let account = crate::harness::account();
    let name = format!("sluice.jobs.{account}");
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    let options = lapin::options::QueueDeclareOptions::durable();
    site.vhost()
        .channel()
        .await
        .queue_declare(name.into(), options, arguments)
        .await
        .unwrap();
    let error = site.broker.declare(&account).await.unwrap_err();
    assert!(matches!(error, BrokerError::Topology(_)), "{error}");
    let error = site.broker.consume(&account, 5000).await.unwrap_err();
    assert!(matches!(error, BrokerError::Topology(_)), "{error}");
    // All others are as before.
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_takes_no_other_down() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let mut batch = attempts(&account, 5);
    batch[1].request = Request::prompt("x".repeat(17 * 1024 * 1024));
    batch[3].request = Request::prompt("x".repeat(1024 * 1024));
    let results = soon(site.broker.dispatch(&batch)).await;
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(number, 1),
            Err(BrokerError::Message(_)) => assert_eq!(number, 1),
            Err(error) => panic!("{number}: {error}"),
        }
    }
    ready(&site.broker, &account, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replies_than_one_message_holds_arrive_all_the_same() {
    let site = Site::rabbit().await;
    let mut intake = site.broker.replies(10).await.unwrap();
    let replies: Vec<_> = (0..6)
        .map(|_| {
            let mut reply = reply(JobId::generate());
            reply.worker = "w".repeat(5 * 1024 * 1024);
            reply
        })
        .collect();
    soon(site.broker.reply(&replies)).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < replies.len() {
        arrived.extend(next(&mut intake).await.replies);
    }
    arrived.sort_by_key(|reply| reply.job);
    assert_eq!(arrived, replies);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_publish_at_once() {
    let site = Site::rabbit().await;
    let account = site.declared().await;
    let calls = (0..300).map(|_| async {
        dispatch(&site.broker, &attempts(&account, 2)).await;
    });
    soon(futures::future::join_all(calls)).await;
    ready(&site.broker, &account, 600).await;
}
