//! The intake: it settles what workers reply, and takes dead letters in.
//!
//! A reply is acked after its settlement is committed, so a crash in between brings it again,
//! and the attempt's number makes the second time harmless. A redelivery alone is settled later:
//! see [`redelivered`].

use std::{sync::Arc, time::Duration};

use sluice_shared::{
    broker::{Broker, Consumer, DeadDelivery, ReplyDelivery},
    message::{Reply, Report},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{app::App, redelivered, store::Verdict};

/// Reply messages that may be unacked.
pub const PREFETCH: u16 = 64;

/// Messages settled in one transaction, at most. Each may hold many replies.
const GROUP: usize = 32;

/// Dead letters that may be unacked.
const DEAD_PREFETCH: u16 = 16;

/// How long to rest when the broker refuses a consumer.
const PAUSE: Duration = Duration::from_secs(1);

/// Settles replies until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let (doubtful, redelivered) = mpsc::unbounded_channel();
    let weighing = redelivered::run(app.clone(), redelivered, shutdown.clone());
    let settling = async {
        loop {
            match app.broker.replies(PREFETCH).await {
                Ok(consumer) => replies(&app, consumer, &doubtful, &shutdown).await,
                Err(error) => tracing::error!(%error, "replies cannot be consumed"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    };
    tokio::join!(weighing, settling);
}

async fn replies(
    app: &App,
    mut consumer: Consumer<ReplyDelivery>,
    doubtful: &mpsc::UnboundedSender<Reply>,
    shutdown: &CancellationToken,
) {
    let acker = consumer.acker();
    let mut messages = Vec::with_capacity(GROUP);
    // What an in-process broker holds is gone with this process, so that it is settled before the
    // end. RabbitMQ keeps it, and gives it to another.
    let is_kept = matches!(app.broker, Broker::Rabbit(_));
    loop {
        if is_kept && shutdown.is_cancelled() {
            return;
        }
        let came = tokio::select! {
            biased;
            came = consumer.next_many(&mut messages, GROUP) => came,
            () = shutdown.cancelled() => return,
        };
        if came == 0 {
            return;
        }
        let mut tags = Vec::with_capacity(messages.len());
        let mut verdicts = Vec::new();
        for message in messages.drain(..) {
            tags.push(message.tag);
            for reply in message.replies {
                match reply.report {
                    // Not a loss yet: whether it is one takes a while to find out.
                    Report::Redelivered => drop(doubtful.send(reply)),
                    _ => verdicts.push(Verdict::Report(reply)),
                }
            }
        }
        // Settled or the API is stopping; in that case they are not acked and come again.
        if app.settle_until(&verdicts, shutdown).await {
            acker.ack(&tags).await;
        }
    }
}

/// Takes dead letters in until `shutdown`: their jobs are settled as lost.
pub async fn run_dead(app: Arc<App>, shutdown: CancellationToken) {
    loop {
        match app.broker.dead_letters(DEAD_PREFETCH).await {
            Ok(consumer) => dead(&app, consumer, &shutdown).await,
            Err(error) => tracing::error!(%error, "dead letters cannot be consumed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn dead(app: &App, mut consumer: Consumer<DeadDelivery>, shutdown: &CancellationToken) {
    let acker = consumer.acker();
    loop {
        let delivery = tokio::select! {
            () = shutdown.cancelled() => return,
            delivery = consumer.next() => delivery,
        };
        let Some(DeadDelivery { tag, letter }) = delivery else {
            return;
        };
        metrics::counter!("sluice_dead_letters_total", "reason" => letter.reason.clone())
            .increment(1);
        match letter.dispatch {
            Some(dispatch) => {
                tracing::warn!(
                    job = %dispatch.job, attempt = dispatch.attempt, queue = letter.queue,
                    reason = letter.reason, "a dispatched job ended in the dead letters"
                );
                let lost = Verdict::Lost {
                    job: dispatch.job,
                    attempt: dispatch.attempt,
                    began: false,
                };
                if !app.settle_until(&[lost], shutdown).await {
                    return;
                }
            }
            // What cannot be read names no job; the reaper finds the attempt by its absence.
            None => tracing::error!(
                queue = letter.queue,
                reason = letter.reason,
                "an unreadable message ended in the dead letters"
            ),
        }
        acker.ack(&[tag]).await;
    }
}
