//! Every broker: what is published is kept until it is acked, whoever goes away meanwhile.

use sluice_shared::{
    broker::{BrokerError, Depth, Tag},
    domain::JobId,
    message::Control,
};

use crate::harness::{
    Site, attempt, attempts, dispatch, eventually, jobs, next, nothing_left, ready, reply, soon,
    sorted, take,
};

/// Makes a test of `$test` for each broker.
macro_rules! on_every_broker {
    ($($test:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Site::in_process().await).await;
            })+
        }
        mod rabbit {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Site::rabbit().await).await;
            })+
        }
    };
}

on_every_broker!(
    a_batch_is_delivered_in_order_and_gone_when_acked,
    a_delivery_says_all_that_was_dispatched,
    unacked_deliveries_of_a_dead_worker_come_back_marked,
    a_retired_consumer_keeps_what_it_handed_out,
    prefetch_bounds_what_is_unacked,
    consumers_share_a_queue,
    accounts_do_not_share_a_queue,
    what_is_given_back_comes_back_marked,
    an_unroutable_attempt_is_named_exactly,
    replies_arrive_together_and_in_order,
    unacked_replies_come_back,
    a_control_message_reaches_every_listener,
    what_always_comes_back_ends_as_a_dead_letter,
    a_dead_letter_is_kept_until_it_is_acked,
    unknown_acks_do_nothing,
    depth_touches_nothing,
    closing_ends_every_consumer,
);

async fn a_batch_is_delivered_in_order_and_gone_when_acked(site: Site) {
    let account = site.declared().await;
    let sent = attempts(&account, 500);
    dispatch(&site.broker, &sent).await;
    let mut consumer = site.broker.consume(&account, 1000).await.unwrap();
    let deliveries = take(&mut consumer, sent.len()).await;
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
    assert_eq!(
        jobs(&deliveries),
        sent.iter().map(|attempt| attempt.job).collect::<Vec<_>>()
    );
    // Out of order and in several steps, as jobs end.
    let (even, odd): (Vec<Tag>, Vec<Tag>) = deliveries
        .iter()
        .map(|delivery| delivery.tag)
        .partition(|tag| tag.number % 2 == 0);
    let acker = consumer.acker();
    acker.ack(&odd[..100]).await;
    acker.ack(&even).await;
    acker.ack(&odd[100..]).await;
    drop((consumer, acker));
    nothing_left(&site.broker, &account).await;
}

async fn a_delivery_says_all_that_was_dispatched(site: Site) {
    let account = site.declared().await;
    let mut sent = attempt(&account);
    sent.attempt = 7;
    sent.session = Some("session".into());
    sent.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    sent.request.params.insert("temperature".into(), 0.5.into());
    dispatch(&site.broker, std::slice::from_ref(&sent)).await;
    let mut consumer = site.broker.consume(&account, 1).await.unwrap();
    assert_eq!(next(&mut consumer).await.dispatch, sent);
}

async fn unacked_deliveries_of_a_dead_worker_come_back_marked(site: Site) {
    let account = site.declared().await;
    let sent = attempts(&account, 3);
    dispatch(&site.broker, &sent).await;
    let mut consumer = site.broker.consume(&account, 10).await.unwrap();
    let held = take(&mut consumer, 3).await;
    consumer.acker().ack(&[held[1].tag]).await;
    drop(consumer);
    let mut consumer = site.elsewhere().await.consume(&account, 10).await.unwrap();
    let again = take(&mut consumer, 2).await;
    assert!(again.iter().all(|delivery| delivery.redelivered));
    assert_eq!(jobs(&again), [sent[0].job, sent[2].job]);
}

async fn a_retired_consumer_keeps_what_it_handed_out(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 10)).await;
    let mut consumer = site.broker.consume(&account, 10).await.unwrap();
    ready(&site.broker, &account, 0).await;
    let running = take(&mut consumer, 2).await;
    let acker = consumer.acker();
    drop(consumer);
    ready(&site.broker, &account, 8).await;
    let mut other = site.elsewhere().await.consume(&account, 10).await.unwrap();
    let deliveries = take(&mut other, 8).await;
    assert!(
        jobs(&deliveries)
            .iter()
            .all(|job| !jobs(&running).contains(job))
    );
    for delivery in &deliveries {
        other.acker().ack(&[delivery.tag]).await;
    }
    acker.ack(&[running[0].tag]).await;
    // The other attempt ends with its worker.
    drop(acker);
    let back = next(&mut other).await;
    assert_eq!(
        (back.dispatch.job, back.redelivered),
        (running[1].dispatch.job, true)
    );
}

async fn prefetch_bounds_what_is_unacked(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 20)).await;
    let mut consumer = site.broker.consume(&account, 5).await.unwrap();
    ready(&site.broker, &account, 15).await;
    let held = take(&mut consumer, 5).await;
    consumer
        .acker()
        .ack(&[held[0].tag, held[1].tag, held[3].tag])
        .await;
    ready(&site.broker, &account, 12).await;
    take(&mut consumer, 3).await;
    assert_eq!(site.broker.depth(&account).await.unwrap().ready, 12);
}

async fn consumers_share_a_queue(site: Site) {
    let account = site.declared().await;
    let elsewhere = site.elsewhere().await;
    let mut one = site.broker.consume(&account, 5).await.unwrap();
    let mut other = elsewhere.consume(&account, 5).await.unwrap();
    let sent = attempts(&account, 10);
    dispatch(&site.broker, &sent).await;
    let mut deliveries = take(&mut one, 5).await;
    deliveries.extend(take(&mut other, 5).await);
    assert_eq!(
        sorted(jobs(&deliveries)),
        sorted(sent.iter().map(|sent| sent.job).collect())
    );
}

async fn accounts_do_not_share_a_queue(site: Site) {
    let (one, other) = (site.declared().await, site.declared().await);
    let sent = [attempt(&one), attempt(&other)];
    dispatch(&site.broker, &sent).await;
    let mut consumer = site.broker.consume(&other, 10).await.unwrap();
    assert_eq!(next(&mut consumer).await.dispatch, sent[1]);
    assert_eq!(site.broker.depth(&one).await.unwrap().ready, 1);
}

async fn what_is_given_back_comes_back_marked(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 1)).await;
    let mut consumer = site.broker.consume(&account, 1).await.unwrap();
    let first = next(&mut consumer).await;
    assert!(!first.redelivered);
    consumer.acker().give_back(first.tag).await;
    let second = next(&mut consumer).await;
    assert!(second.redelivered);
    assert_eq!(second.dispatch, first.dispatch);
    assert_ne!(second.tag, first.tag);
}

async fn an_unroutable_attempt_is_named_exactly(site: Site) {
    let (account, stranger) = (site.declared().await, crate::harness::account());
    let batch = |number: usize| {
        let mut batch = attempts(&account, 50);
        let at = (number * 7) % 50;
        batch[at] = attempt(&stranger);
        (at, batch)
    };
    // Several at once, so that a return could be taken for another batch's.
    let batches = (0..40).map(|number| {
        let broker = site.broker.clone();
        let (at, batch) = batch(number);
        async move { (at, broker.dispatch(&batch).await) }
    });
    for (at, results) in soon(futures::future::join_all(batches)).await {
        for (number, result) in results.iter().enumerate() {
            match result {
                Ok(()) => assert_ne!(number, at),
                Err(BrokerError::Unroutable(_)) => assert_eq!(number, at),
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(matches!(
        site.broker.depth(&stranger).await,
        Err(BrokerError::Unroutable(_))
    ));
}

async fn replies_arrive_together_and_in_order(site: Site) {
    let mut intake = site.broker.replies(10).await.unwrap();
    let worker = site.elsewhere().await;
    let replies: Vec<_> = (0..100).map(|_| reply(JobId::generate())).collect();
    soon(worker.reply(&replies)).await.unwrap();
    let delivery = next(&mut intake).await;
    assert_eq!(delivery.replies, replies);
    intake.acker().ack(&[delivery.tag]).await;
    drop(intake);
    let last = [reply(JobId::generate())];
    soon(worker.reply(&last)).await.unwrap();
    let mut intake = site.broker.replies(10).await.unwrap();
    assert_eq!(next(&mut intake).await.replies, last);
}

async fn unacked_replies_come_back(site: Site) {
    let replies = [reply(JobId::generate())];
    soon(site.broker.reply(&replies)).await.unwrap();
    // An intake that dies again and again loses none: there is no limit here.
    for _ in 0..25 {
        let mut intake = site.broker.replies(10).await.unwrap();
        assert_eq!(next(&mut intake).await.replies, replies);
    }
    let ready = || async {
        (site.broker.reply_depth().await.unwrap()
            == Depth {
                ready: 1,
                consumers: 0,
            })
        .then_some(())
    };
    eventually(ready).await;
}

async fn a_control_message_reaches_every_listener(site: Site) {
    let elsewhere = site.elsewhere().await;
    let mut one = site.broker.controls().await.unwrap();
    let mut other = elsewhere.controls().await.unwrap();
    drop(site.broker.controls().await.unwrap());
    for attempt in 1..4 {
        let control = Control::Cancel {
            job: JobId::generate(),
            attempt,
        };
        soon(site.broker.control(&control)).await.unwrap();
        assert_eq!(soon(one.recv()).await.unwrap(), control);
        assert_eq!(soon(other.recv()).await.unwrap(), control);
    }
}

async fn what_always_comes_back_ends_as_a_dead_letter(site: Site) {
    let account = site.declared().await;
    let sent = attempts(&account, 2);
    dispatch(&site.broker, &sent[..1]).await;
    let mut consumer = site.broker.consume(&account, 10).await.unwrap();
    // Twenty times it comes back, so it is delivered once more than that.
    for number in 0..21 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.redelivered, number > 0);
        consumer.acker().give_back(delivery.tag).await;
    }
    let mut dead = site.broker.dead_letters(10).await.unwrap();
    let letter = next(&mut dead).await.letter;
    assert_eq!(letter.dispatch.as_ref(), Some(&sent[0]));
    assert_eq!(letter.reason, "delivery_limit");
    assert_eq!(letter.queue, format!("sluice.jobs.{account}"));
    // Nothing of it is left, and the queue goes on.
    dispatch(&site.broker, &sent[1..]).await;
    assert_eq!(next(&mut consumer).await.dispatch, sent[1]);
}

async fn a_dead_letter_is_kept_until_it_is_acked(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 1)).await;
    let mut consumer = site.broker.consume(&account, 10).await.unwrap();
    for _ in 0..21 {
        let delivery = next(&mut consumer).await;
        consumer.acker().give_back(delivery.tag).await;
    }
    for _ in 0..25 {
        let mut dead = site.broker.dead_letters(10).await.unwrap();
        assert!(next(&mut dead).await.letter.dispatch.is_some());
    }
}

async fn unknown_acks_do_nothing(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 2)).await;
    let mut consumer = site.broker.consume(&account, 1).await.unwrap();
    let held = next(&mut consumer).await;
    let acker = consumer.acker();
    let unknown = [
        Tag {
            number: held.tag.number + 1,
            ..held.tag
        },
        Tag {
            number: held.tag.number + 1000,
            ..held.tag
        },
    ];
    acker.ack(&unknown).await;
    acker.give_back(unknown[0]).await;
    acker.ack(&[]).await;
    // The consumer has survived it, and nothing was acked.
    acker.ack(&[held.tag]).await;
    acker.ack(&[held.tag]).await;
    let second = next(&mut consumer).await;
    assert!(!second.redelivered);
    acker.ack(&[second.tag, held.tag, second.tag]).await;
    drop((consumer, acker));
    nothing_left(&site.broker, &account).await;
}

async fn depth_touches_nothing(site: Site) {
    let account = site.declared().await;
    dispatch(&site.broker, &attempts(&account, 3)).await;
    for _ in 0..30 {
        let depth = site.broker.depth(&account).await.unwrap();
        assert_eq!(
            depth,
            Depth {
                ready: 3,
                consumers: 0
            }
        );
    }
    let mut consumer = site.broker.consume(&account, 1).await.unwrap();
    assert!(!next(&mut consumer).await.redelivered);
    assert_eq!(
        site.broker.depth(&account).await.unwrap(),
        Depth {
            ready: 2,
            consumers: 1
        }
    );
}

async fn closing_ends_every_consumer(site: Site) {
    let account = site.declared().await;
    let mut consumer = site.broker.consume(&account, 1).await.unwrap();
    let mut replies = site.broker.replies(1).await.unwrap();
    let mut controls = site.broker.controls().await.unwrap();
    site.broker.ready().await.unwrap();
    soon(site.broker.close()).await;
    assert!(soon(consumer.next()).await.is_none());
    assert_eq!(soon(replies.next_many(&mut Vec::new(), 10)).await, 0);
    assert!(soon(controls.recv()).await.is_none());
    let results = soon(site.broker.dispatch(&attempts(&account, 2))).await;
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Err(BrokerError::Unavailable(_))))
    );
    assert!(site.broker.declare(&account).await.is_err());
}
