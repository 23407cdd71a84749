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

/// Consumes until `drain` is cancelled or the broker is closed, then waits for what it has begun.
/// The attempts end with it: dropped, it leaves none behind. False when the broker refuses the
/// queue, which someone must mend.
pub(crate) async fn run(
    engine: Arc<Engine>,
    account: Arc<Account>,
    drain: CancellationToken,
) -> bool {
    let consumed = tokio::select! {
        () = drain.cancelled() => return true,
        consumed = engine.broker.consume(&account.id, account.concurrency) => consumed,
    };
    let mut consumer = match consumed {
        Ok(consumer) => consumer,
        Err(error) => {
            tracing::error!(account = %account.id, %error, "this account is not served");
            return false;
        }
    };
    let number = engine.hands.admit(consumer.acker());
    account.set_consumed(true);
    engine.presence_changed.notify_one();
    let mut attempts = JoinSet::new();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            Some(ended) = attempts.join_next() => {
                check(ended);
                while let Some(ended) = attempts.try_join_next() {
                    check(ended);
                }
            }
            count = consumer.next_many(&mut batch, BATCH) => {
                if count == 0 {
                    break;
                }
                receive(&engine, &account, number, &mut batch, &mut attempts).await;
            }
        }
    }
    // What has come and was not looked at is answered as unrun, which counts against nobody; what
    // comes later still goes back to the queue.
    while engine.hands.is_draining()
        && consumer
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
    true
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
