//! Replies on their way to the truth plane.
//!
//! One publisher per worker sends them in messages that are formed by load: the first reply goes
//! at once, and what comes while messages are under way goes together. **The promise.** A reply
//! is sent until it is confirmed, however long the broker is away, and a delivery is acked after
//! that and not before.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt};
use metrics::Gauge;
use sluice_shared::{
    broker::{Broker, BrokerError},
    clock,
    domain::Outcome,
    message::{Reply, Report},
};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        oneshot,
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::Attempt,
    hands::{Hands, Hold, Key},
    outage::Outage,
};

/// Replies in one message, at most.
const MOST_REPLIES: usize = 128;

/// Bytes of text in one message, unless a single reply has more.
const MOST_BYTES: usize = 1 << 20;

/// Messages that may be under way at once.
const MOST_UNDER_WAY: usize = 8;

/// Replies that are worth a message of their own while others are under way. Fewer wait for a
/// confirm, about a millisecond: a message costs the broker more than a reply.
const WORTHWHILE: usize = 32;

/// Where attempts leave their replies; sending never waits.
#[derive(Debug)]
pub(crate) struct Replies {
    worker: String,
    sender: UnboundedSender<Outgoing>,
    pending: Arc<AtomicUsize>,
}

/// What follows from a reply's confirm.
#[derive(Debug)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// Someone waits for it.
    Tell(oneshot::Sender<()>),
    /// The attempt leaves this worker's hands.
    Settle,
    /// The attempt is held by a lease of this time.
    Lease { since: Instant },
}

#[derive(Debug)]
struct Outgoing {
    reply: Reply,
    then: Then,
}

/// What sends the replies.
#[derive(Debug)]
pub(crate) struct Publisher {
    broker: Broker,
    hands: Arc<Hands>,
    outage: Arc<Outage>,
    receiver: UnboundedReceiver<Outgoing>,
    pending: Arc<AtomicUsize>,
    gauge: Gauge,
}

/// The way for replies of `worker`, and what must be run at the end of it.
pub(crate) fn channel(
    worker: String,
    broker: Broker,
    hands: Arc<Hands>,
    outage: Arc<Outage>,
) -> (Replies, Publisher) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let pending = Arc::new(AtomicUsize::new(0));
    let gauge = metrics::gauge!("sluice_worker_replies_pending");
    let replies = Replies {
        worker,
        sender,
        pending: pending.clone(),
    };
    (
        replies,
        Publisher {
            broker,
            hands,
            outage,
            receiver,
            pending,
            gauge,
        },
    )
}

impl Replies {
    pub(crate) fn send(&self, attempt: &Attempt, report: Report, then: Then) {
        let reply = Reply {
            learned: attempt.take_learned().into(),
            job: attempt.job,
            attempt: attempt.number,
            account: attempt.account.id.clone(),
            worker: self.worker.clone(),
            report,
        };
        self.pending.fetch_add(1, Ordering::Relaxed);
        // A publisher that has ended has given up on what is left; so has its worker.
        drop(self.sender.send(Outgoing { reply, then }));
    }

    /// The receiver fails when the worker goes away before the reply is confirmed.
    pub(crate) fn send_and_confirm(
        &self,
        attempt: &Attempt,
        report: Report,
    ) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.send(attempt, report, Then::Tell(sender));
        receiver
    }

    /// Replies that are not confirmed yet.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }
}

impl Publisher {
    /// Sends replies as they come; once `finish` is cancelled, sends what is left and ends.
    pub(crate) async fn run(mut self, finish: CancellationToken) {
        // Apart from `self`, so that messages under way and the receiver can be borrowed at once.
        let (_, closed) = mpsc::unbounded_channel();
        let mut receiver = std::mem::replace(&mut self.receiver, closed);
        let mut waiting = VecDeque::new();
        let mut arrived = Vec::new();
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        loop {
            while under_way.len() < MOST_UNDER_WAY
                && (waiting.len() >= WORTHWHILE || (under_way.is_empty() && !waiting.is_empty()))
            {
                under_way.push(self.publish(take_message(&mut waiting)));
            }
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            self.gauge.set(self.pending.load(Ordering::Relaxed) as f64);
            tokio::select! {
                biased;
                Some(()) = under_way.next() => {}
                count = receiver.recv_many(&mut arrived, 1024), if open => {
                    open = count > 0;
                    waiting.extend(arrived.drain(..));
                }
                () = finish.cancelled(), if !receiver.is_closed() => receiver.close(),
                else => return,
            }
        }
    }

    /// Publishes one message for as long as it takes, then does what follows from it.
    async fn publish(&self, message: Vec<Outgoing>) {
        let (mut replies, mut thens) = (Vec::new(), Vec::new());
        for outgoing in message {
            replies.push(outgoing.reply);
            thens.push(outgoing.then);
        }
        let together = self.until_confirmed(&replies).await;
        if together.is_err() {
            for (reply, then) in replies.iter_mut().zip(&mut thens) {
                if !self.publish_alone(reply).await {
                    *then = Then::Nothing;
                }
            }
        }
        self.pending.fetch_sub(replies.len(), Ordering::Relaxed);
        self.follow_up(&replies, thens).await;
    }

    /// Publishes one reply of a message that cannot be sent as a whole. Whether it was.
    async fn publish_alone(&self, reply: &mut Reply) -> bool {
        let Err(error) = self.until_confirmed(std::slice::from_ref(reply)).await else {
            return true;
        };
        if let Report::Finished { outcome, .. } = &mut reply.report {
            // To run it again would cost the same and come to the same.
            *outcome = Outcome::rejected(
                "result_too_large",
                "the result is too large for the message broker; ask for a shorter answer or \
                 lower worker.max_output_bytes",
            );
            if self
                .until_confirmed(std::slice::from_ref(reply))
                .await
                .is_ok()
            {
                return true;
            }
        }
        tracing::error!(
            job = %reply.job, attempt = reply.attempt, %error, "a reply cannot be sent at all"
        );
        false
    }

    async fn until_confirmed(&self, replies: &[Reply]) -> Result<(), BrokerError> {
        until_confirmed(&self.outage, || self.broker.reply(replies)).await
    }

    async fn follow_up(&self, replies: &[Reply], thens: Vec<Then>) {
        let mut settled: Vec<Key> = Vec::with_capacity(thens.len());
        let mut holds: Vec<Hold> = Vec::new();
        for (reply, then) in replies.iter().zip(thens) {
            let key = (reply.job, reply.attempt);
            match then {
                Then::Nothing => {}
                // Who waited may have gone meanwhile.
                Then::Tell(waiter) => drop(waiter.send(())),
                Then::Settle => settled.push(key),
                Then::Lease { since } => holds.extend(self.hands.leased(key, since)),
            }
        }
        holds.extend(self.hands.settle(settled.into_iter()));
        self.hands.ack(&holds).await;
    }
}

/// Takes what goes into one message: never empty, and at most one reply too large.
fn take_message(waiting: &mut VecDeque<Outgoing>) -> Vec<Outgoing> {
    let mut bytes = 0;
    let fitting = waiting.iter().take(MOST_REPLIES).take_while(|outgoing| {
        bytes += weight(&outgoing.reply);
        bytes <= MOST_BYTES
    });
    let count = fitting.count().max(1).min(waiting.len());
    waiting.drain(..count).collect()
}

/// About how many bytes a reply takes.
fn weight(reply: &Reply) -> usize {
    let text = match &reply.report {
        Report::Finished {
            outcome: Outcome::Completed(completion),
            ..
        } => completion.text.len(),
        Report::Finished { outcome, .. } => outcome.error().map_or(0, |(_, words)| words.len()),
        _ => 0,
    };
    256 + text
}

/// Publishes until it is confirmed. Fails only when the message can never be sent.
async fn until_confirmed<F: Future<Output = Result<(), BrokerError>>>(
    outage: &Outage,
    publish: impl Fn() -> F,
) -> Result<(), BrokerError> {
    let mut failures = 0;
    loop {
        match publish().await {
            Ok(()) => {
                outage.worked();
                return Ok(());
            }
            Err(error @ BrokerError::Message(_)) => return Err(error),
            Err(error) => outage.failed(&error),
        }
        failures += 1;
        tokio::time::sleep(pause(failures, clock::chance())).await;
    }
}

/// How long to wait after so many failures: 50 ms doubling to 2 s, less up to half by chance.
fn pause(failures: u32, chance: f64) -> Duration {
    let full = Duration::from_millis(50 << failures.saturating_sub(1).min(6));
    full.min(Duration::from_secs(2)).mul_f64(1.0 - chance / 2.0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use sluice_shared::domain::{Completion, Delivery, JobId};
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        hands::Received,
        testing::{absent_broker, account, account_id, dispatch, until},
    };

    fn outgoing(text: &str) -> Outgoing {
        let outcome = Outcome::Completed(Completion {
            text: text.into(),
            ..Default::default()
        });
        let report = Report::Finished {
            started_at: None,
            finished_at: clock::now(),
            outcome,
        };
        let (job, account, worker) = (JobId::generate(), account_id(), String::new());
        Outgoing {
            reply: Reply {
                learned: Box::default(),
                job,
                attempt: 1,
                account,
                worker,
                report,
            },
            then: Then::Nothing,
        }
    }

    #[tokio::test]
    async fn a_reply_is_sent_until_it_is_confirmed() {
        let outage = Outage::of("the broker");
        let tries = Cell::new(0);
        let published = until_confirmed(&outage, || {
            tries.set(tries.get() + 1);
            std::future::ready(match tries.get() {
                1 => Err(BrokerError::Unavailable("away".into())),
                2 => Err(BrokerError::NotConfirmed("lost".into())),
                _ => Ok(()),
            })
        });
        published.await.unwrap();
        assert_eq!(tries.get(), 3);
        assert!(!outage.is_on());
    }

    #[tokio::test]
    async fn a_message_that_can_never_be_sent_is_not_tried_for_ever() {
        let outage = Outage::of("the broker");
        let too_large = || std::future::ready(Err(BrokerError::Message("too large".into())));
        assert!(until_confirmed(&outage, too_large).await.is_err());
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        for failures in 1..100 {
            let full = pause(failures, 0.0);
            assert!(full >= pause(failures.saturating_sub(1), 0.0));
            assert!(full <= Duration::from_secs(2) && pause(failures, 0.99) >= full / 2);
        }
    }

    #[test]
    fn messages_are_bounded_in_count_and_size() {
        let take = |texts: Vec<Outgoing>| {
            let mut waiting = VecDeque::from(texts);
            let taken = take_message(&mut waiting).len();
            (taken, waiting.len())
        };
        let many = (0..200).map(|_| outgoing("short")).collect();
        assert_eq!(take(many), (MOST_REPLIES, 200 - MOST_REPLIES));
        let half = "x".repeat(MOST_BYTES / 2 - 300);
        assert_eq!(take((0..3).map(|_| outgoing(&half)).collect()), (2, 1));
        let huge = "x".repeat(2 * MOST_BYTES);
        assert_eq!(take(vec![outgoing(&huge), outgoing("short")]), (1, 1));
    }

    #[tokio::test]
    async fn a_delivery_is_acked_after_its_reply_is_confirmed_and_not_before() {
        for confirms in [false, true] {
            let jobs = Broker::in_process();
            jobs.declare(&account_id()).await.unwrap();
            let sent = dispatch(Delivery::AtLeastOnce);
            jobs.dispatch(std::slice::from_ref(&sent))
                .await
                .remove(0)
                .unwrap();

            let broker = if confirms {
                jobs.clone()
            } else {
                absent_broker().await
            };
            let outage = Arc::new(Outage::of("the broker"));
            let hands = Arc::new(Hands::new(1));
            let (replies, publisher) =
                channel("tester".into(), broker, hands.clone(), outage.clone());
            let mut publishing = JoinSet::new();
            publishing.spawn(publisher.run(CancellationToken::new()));

            let mut consumer = jobs.consume(&account_id(), 1).await.unwrap();
            let number = hands.admit(consumer.acker());
            let delivery = consumer.next().await.unwrap();
            let mut received = hands.receive(&account(""), number, std::iter::once(delivery));
            let Some(Received::Run(attempt, _)) = received.pop() else {
                panic!("not run")
            };
            replies.send(&attempt, Report::Redelivered, Then::Settle);
            until(async || outage.is_on() || hands.count() == 0).await;
            until(async || confirms || hands.count() == 1).await;

            // The worker dies: what was not acked comes back.
            publishing.shutdown().await;
            hands.release();
            drop(consumer);
            let ready = jobs.depth(&account_id()).await.unwrap().ready;
            assert_eq!(ready, u64::from(!confirms), "confirms = {confirms}");
        }
    }

    #[tokio::test]
    async fn what_is_left_is_sent_before_the_publisher_ends() {
        let broker = Broker::in_process();
        let mut heard = broker.replies(1_000).await.unwrap();
        let hands = Arc::new(Hands::new(1));
        let outage = Arc::new(Outage::of("the broker"));
        let (replies, publisher) = channel("tester".into(), broker, hands, outage);
        let attempt = Attempt::new(account(""), &dispatch(Delivery::AtLeastOnce));
        for _ in 0..1_000 {
            replies.send(&attempt, Report::Redelivered, Then::Nothing);
        }
        let finish = CancellationToken::new();
        finish.cancel();
        publisher.run(finish).await;
        assert_eq!(replies.pending(), 0);
        let (mut messages, mut count) = (0, 0);
        while count < 1_000 {
            count += heard.next().await.unwrap().replies.len();
            messages += 1;
        }
        assert!(messages <= 10, "{messages} messages");
    }

    #[tokio::test]
    async fn the_publisher_does_not_end_with_a_reply_unconfirmed() {
        let outage = Arc::new(Outage::of("the broker"));
        let hands = Arc::new(Hands::new(1));
        let broker = absent_broker().await;
        let (replies, publisher) = channel("tester".into(), broker, hands, outage.clone());
        let attempt = Attempt::new(account(""), &dispatch(Delivery::AtLeastOnce));
        replies.send(&attempt, Report::Redelivered, Then::Nothing);
        let finish = CancellationToken::new();
        finish.cancel();
        let mut publishing = JoinSet::new();
        publishing.spawn(publisher.run(finish));
        until(async || outage.is_on()).await;
        assert!(publishing.try_join_next().is_none());
        assert_eq!(replies.pending(), 1);
    }
}
