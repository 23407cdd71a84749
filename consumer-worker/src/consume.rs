//! One consumer of an account's queue: each delivery becomes one attempt.

use std::sync::Arc;

use futures::FutureExt;
use sluice_shared::broker::Delivery;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    account::Account,
    attempt,
    engine::Engine,
    hands::{Hold, Received},
    replies::Then,
};

/// Deliveries taken at once.
const BATCH: usize = 64;

/// Why the consumption of a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked for.
    Left,
    /// The broker was closed.
    Closed,
    /// The broker refuses the queue, which someone must mend.
    Refused,
}

/// Consumes until `drain` is cancelled or the broker is closed, then waits for what it has begun.
/// The attempts end with it: dropped, it leaves none behind.
pub(crate) async fn run(
    engine: Arc<Engine>,
    account: Arc<Account>,
    drain: CancellationToken,
) -> Ended {
    let consumed = tokio::select! {
        () = drain.cancelled() => return Ended::Left,
        consumed = engine.broker.consume(&account.id, account.concurrency) => consumed,
    };
    let mut consumer = match consumed {
        Ok(consumer) => consumer,
        Err(error) => {
            tracing::error!(account = %account.id, %error, "this account is not served");
            return Ended::Refused;
        }
    };
    let number = engine.hands.admit(consumer.acker());
    account.set_consumed(true);
    engine.presence_changed.notify_one();
    let mut attempts = JoinSet::new();
    let mut batch = Vec::with_capacity(BATCH);
    let ended = loop {
        tokio::select! {
            () = drain.cancelled() => break Ended::Left,
            Some(ended) = attempts.join_next() => {
                check(ended);
                while let Some(ended) = attempts.try_join_next() {
                    check(ended);
                }
            }
            count = consumer.next_many(&mut batch, BATCH) => {
                if count == 0 {
                    break Ended::Closed;
                }
                receive(&engine, &account, number, &mut batch, &mut attempts).await;
            }
        }
    };
    // What has come and was not looked at is run when only this account is left, and when the
    // worker stops it is answered as unrun, which counts against nobody; what comes later still
    // goes back to the queue.
    while consumer
        .next_many(&mut batch, BATCH)
        .now_or_never()
        .is_some_and(|count| count > 0)
    {
        receive(&engine, &account, number, &mut batch, &mut attempts).await;
    }
    drop(consumer);
    account.set_consumed(false);
    engine.presence_changed.notify_one();
    while let Some(ended) = attempts.join_next().await {
        check(ended);
    }
    if !engine.hands.is_draining() {
        engine.hands.dismiss(number).await;
    }
    ended
}

async fn receive(
    engine: &Arc<Engine>,
    account: &Arc<Account>,
    consumer: usize,
    batch: &mut Vec<Delivery>,
    attempts: &mut JoinSet<()>,
) {
    let mut done: Vec<Hold> = Vec::new();
    for received in engine.hands.receive(account, consumer, batch.drain(..)) {
        match received {
            Received::Run(attempt, dispatch) => {
                attempts.spawn(attempt::run(engine.clone(), attempt, dispatch));
            }
            Received::Answer(attempt, report) => {
                account.meters.count(attempt::name(&report));
                engine.replies.send(&attempt, report, Then::Settle);
            }
            Received::Ack(hold) => done.push(hold),
        }
    }
    engine.hands.ack(&done).await;
}

fn check(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("an attempt's task panicked outside of its provider; please report it");
    }
}
