//! Consuming, on a channel that is opened again whenever it or its connection is lost.

use std::{fmt, ops::ControlFlow, sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{
    Channel,
    message::Delivery as Message,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time,
};

use super::{
    BrokerError, DeadDelivery, Delivery, ReplyDelivery, Tag,
    acker::{Channels, OpenChannel},
    link::{Backoff, Link, Up},
    topology::{self, Queue},
};
use crate::{
    clock,
    message::{Control, ControlMessage, DeadLetter, Dispatch, Replies, VERSION},
};

/// Quorum queues hold no more than this unacked for one consumer, whatever it asks for.
const LARGEST_PREFETCH: u16 = 2000;

/// How often a retired consumer looks whether all that it handed out is acked.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// How often in a row a queue may leave a consumer without an answer before it is taken to have no
/// leader and to get none any more. An account's queue can be made anew at little cost, since what
/// was in it is dispatched again. What is lost with the others may have been paid for.
const PATIENCE_WITH_JOBS: u32 = 2;
const PATIENCE_WITH_OTHERS: u32 = 6;

/// How a message becomes a delivery.
pub(super) type Read<T> = fn(Tag, &Message) -> Result<T, Unreadable>;

/// Why a message cannot be handed to anyone, now or later.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it does not parse: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("its schema has version {0}, and only {VERSION} is known")]
    Version(u8),
}

/// One channel's worth of a consumer.
pub(super) struct Lane<T> {
    pub(super) link: Link,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    pub(super) channels: Arc<Channels>,
    pub(super) deliveries: UnboundedSender<(Tag, T)>,
    pub(super) read: Read<T>,
}

/// The prefetches of the lanes that make up `prefetch`, as even as they can be.
pub(super) fn lanes(prefetch: u16) -> impl Iterator<Item = u16> {
    let prefetch = prefetch.max(1);
    let count = prefetch.div_ceil(LARGEST_PREFETCH);
    let (share, rest) = (prefetch / count, prefetch % count);
    (0..count).map(move |lane| share + u16::from(lane < rest))
}

/// Why a lane has no channel any more.
enum End {
    /// The channel or its connection was lost, or could not be had.
    Lost(BrokerError),
    /// The connection serves, and the queue has no answer for a consumer.
    Unanswered(BrokerError),
    /// Nobody wants more of it.
    Retired,
}

impl Queue {
    fn patience(&self) -> u32 {
        match self {
            Self::Jobs(_) => PATIENCE_WITH_JOBS,
            Self::Replies | Self::Dead => PATIENCE_WITH_OTHERS,
        }
    }
}

impl<T> Lane<T> {
    /// Consumes until the consumer is dropped or the broker closed. Tells `first` how the first
    /// try went: an error when RabbitMQ has another idea of the queue, and then gives up.
    pub(super) async fn run(self, first: oneshot::Sender<Result<(), BrokerError>>) {
        let mut first = Some(first);
        let mut backoff = Backoff::default();
        let mut unanswered = 0;
        if self.link.now().is_err() {
            // It begins when there is a connection; there is nothing to wait for here.
            tell(&mut first, Ok(()));
        }
        loop {
            let up = tokio::select! {
                () = self.channels.retired.cancelled() => return,
                up = self.link.up() => up,
            };
            let Some(up) = up else { return };
            let error = match self.serve(&up, &mut first, &mut backoff).await {
                End::Retired => return,
                End::Lost(error) => {
                    unanswered = 0;
                    error
                }
                End::Unanswered(error) => {
                    unanswered += 1;
                    if unanswered >= self.queue.patience() {
                        unanswered = 0;
                        self.renew(&up).await;
                    }
                    error
                }
            };
            if matches!(error, BrokerError::Topology(_)) && first.is_some() {
                tell(&mut first, Err(error));
                return;
            }
            tell(&mut first, Ok(()));
            // When the connection is lost, the link says so once for all of its consumers.
            if up.connection.status().connected() {
                let queue = self.queue.name();
                tracing::warn!(%queue, %error, "lost a consumer, opening it again");
            }
            tokio::select! {
                () = self.channels.retired.cancelled() => return,
                () = self.link.closed().cancelled() => return,
                () = time::sleep(backoff.next(clock::chance())) => {}
            }
        }
    }

    async fn serve(
        &self,
        up: &Up,
        first: &mut Option<oneshot::Sender<Result<(), BrokerError>>>,
        backoff: &mut Backoff,
    ) -> End {
        let channel = match up.answer(self.open(up)).await {
            Ok(channel) => channel,
            Err(error) => return End::Lost(error),
        };
        let mut messages = match up.answer(self.consume(&channel)).await {
            Ok(messages) => messages,
            Err(error) if channel.status().connected() => return End::Unanswered(error),
            Err(error) => return End::Lost(error),
        };
        let open = self.channels.open(channel.clone());
        *backoff = Backoff::default();
        tell(first, Ok(()));
        let mut stop = std::pin::pin!(self.stop(up));
        let end = loop {
            tokio::select! {
                // Messages first: to look at all else for each of them costs, and they run out
                // when nobody acks them.
                biased;
                message = messages.next() => {
                    if let ControlFlow::Break(error) = self.receive(message, &open) {
                        break End::Lost(error);
                    }
                }
                end = &mut stop => break end,
            }
        };
        if matches!(end, End::Retired) && !self.link.closed().is_cancelled() {
            self.retire(up, &channel, &open, &mut messages).await;
        }
        self.channels.lose(&open);
        end
    }

    /// Returns when this is to end, whatever the messages say.
    async fn stop(&self, up: &Up) -> End {
        tokio::select! {
            () = self.link.closed().cancelled() => End::Retired,
            () = self.channels.retired.cancelled() => End::Retired,
            () = up.gone() => {
                End::Lost(BrokerError::Unavailable("the connection was lost".into()))
            }
        }
    }

    /// Makes the queue anew if it has no leader: one whose broker was killed within half a second
    /// of its declaration can come back so (seen with RabbitMQ 3.10.8), and nothing else ends that.
    async fn renew(&self, up: &Up) {
        let queue = self.queue.name();
        match up.answer(self.queue.renew_leaderless(&up.connection)).await {
            Ok(true) => tracing::warn!(%queue, "the queue had no leader and was made anew"),
            Ok(false) => tracing::warn!(%queue, "the queue does not let anybody consume"),
            Err(error) => tracing::warn!(%queue, %error, "the queue could not be made anew"),
        }
    }

    /// A channel on which the queue is known to exist.
    async fn open(&self, up: &Up) -> Result<Channel, BrokerError> {
        let refusal = |error| topology::refusal(&error);
        let channel = up.connection.create_channel().await.map_err(refusal)?;
        self.queue.declare(&channel).await?;
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await
            .map_err(refusal)?;
        Ok(channel)
    }

    async fn consume(&self, channel: &Channel) -> Result<lapin::Consumer, BrokerError> {
        channel
            .basic_consume(
                self.queue.name(),
                ShortString::default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| topology::refusal(&error))
    }

    fn receive(
        &self,
        message: Option<Result<Message, lapin::Error>>,
        open: &OpenChannel,
    ) -> ControlFlow<BrokerError> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return ControlFlow::Break(topology::refusal(&error)),
            None => {
                let reason = "RabbitMQ cancelled the consumer".into();
                return ControlFlow::Break(BrokerError::Unavailable(reason));
            }
        };
        let tag = open.tag(message.delivery_tag);
        match (self.read)(tag, &message) {
            Ok(delivery) => {
                open.delivered(tag);
                if self.deliveries.send((tag, delivery)).is_err() {
                    self.channels.leave_unseen([tag]);
                }
            }
            Err(error) => {
                let id = message
                    .properties
                    .message_id()
                    .as_ref()
                    .map(ToString::to_string);
                tracing::error!(queue = %self.queue.name(), id, %error, "refused a message");
                open.refuse(tag.number);
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes no more, gives back what nobody looked at, and stays until the rest is acked.
    async fn retire(
        &self,
        up: &Up,
        channel: &Channel,
        open: &OpenChannel,
        messages: &mut lapin::Consumer,
    ) {
        let cancelled = up.answer(async {
            channel
                .basic_cancel(messages.tag(), BasicCancelOptions::default())
                .await
                .map_err(|error| topology::refusal(&error))?;
            // What was on its way; the end of the stream is the end of that.
            while let message @ Some(Ok(_)) = messages.next().await {
                let _ = self.receive(message, open);
            }
            Ok(())
        });
        if cancelled.await.is_err() {
            // It all goes back with the channel, or has gone with it already.
            return;
        }
        self.channels.give_unseen_back(open);
        while !open.is_settled() && channel.status().connected() {
            tokio::select! {
                () = self.link.closed().cancelled() => return,
                () = self.channels.released.cancelled() => break,
                () = time::sleep(SETTLE_INTERVAL) => {}
            }
        }
        // An error says that it is closed already.
        let _ = up
            .answer(async {
                let closed = channel.close(200, "retired".into()).await;
                closed.map_err(|error| topology::refusal(&error))
            })
            .await;
    }
}

fn tell(
    first: &mut Option<oneshot::Sender<Result<(), BrokerError>>>,
    result: Result<(), BrokerError>,
) {
    if let Some(first) = first.take() {
        // Nobody may be waiting any more.
        let _ = first.send(result);
    }
}

/// Passes on what the API tells all workers, until nobody listens or the broker is closed.
pub(super) async fn listen(
    link: Link,
    controls: UnboundedSender<Control>,
    first: oneshot::Sender<Result<(), BrokerError>>,
) {
    let mut first = Some(first);
    let mut backoff = Backoff::default();
    if link.now().is_err() {
        tell(&mut first, Ok(()));
    }
    loop {
        let up = tokio::select! {
            () = controls.closed() => return,
            up = link.up() => up,
        };
        let Some(up) = up else { return };
        match up.answer(subscribe(&up)).await {
            Ok((_channel, mut messages)) => {
                backoff = Backoff::default();
                tell(&mut first, Ok(()));
                loop {
                    let message = tokio::select! {
                        () = controls.closed() => return,
                        () = link.closed().cancelled() => return,
                        () = up.gone() => break,
                        message = messages.next() => message,
                    };
                    let Some(Ok(message)) = message else { break };
                    match read_control(&message) {
                        Ok(control) => {
                            let _ = controls.send(control);
                        }
                        Err(error) => tracing::error!(%error, "ignored a control message"),
                    }
                }
                tracing::warn!("lost the control queue, opening it again");
            }
            Err(error) => {
                if matches!(error, BrokerError::Topology(_)) && first.is_some() {
                    tell(&mut first, Err(error));
                    return;
                }
                tell(&mut first, Ok(()));
                tracing::warn!(%error, "no control queue, trying on");
            }
        }
        tokio::select! {
            () = controls.closed() => return,
            () = link.closed().cancelled() => return,
            () = time::sleep(backoff.next(clock::chance())) => {}
        }
    }
}

async fn subscribe(up: &Up) -> Result<(Channel, lapin::Consumer), BrokerError> {
    let refusal = |error| topology::refusal(&error);
    let channel = up.connection.create_channel().await.map_err(refusal)?;
    let queue = topology::declare_control_queue(&channel).await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        exclusive: true,
        ..Default::default()
    };
    let messages = channel
        .basic_consume(
            queue,
            ShortString::default(),
            options,
            FieldTable::default(),
        )
        .await
        .map_err(refusal)?;
    Ok((channel, messages))
}

fn current(version: u8) -> Result<(), Unreadable> {
    if version == VERSION {
        Ok(())
    } else {
        Err(Unreadable::Version(version))
    }
}

fn read_dispatch(message: &Message) -> Result<Dispatch, Unreadable> {
    let dispatch: Dispatch = serde_json::from_slice(&message.data)?;
    current(dispatch.v)?;
    Ok(dispatch)
}

pub(super) fn read_delivery(tag: Tag, message: &Message) -> Result<Delivery, Unreadable> {
    let dispatch = read_dispatch(message)?;
    Ok(Delivery {
        tag,
        redelivered: message.redelivered,
        dispatch,
    })
}

pub(super) fn read_replies(tag: Tag, message: &Message) -> Result<ReplyDelivery, Unreadable> {
    let Replies { v, replies } = serde_json::from_slice(&message.data)?;
    current(v)?;
    Ok(ReplyDelivery { tag, replies })
}

/// A dead letter is always readable: what it was is part of what it says, if that can be known.
pub(super) fn read_dead_letter(tag: Tag, message: &Message) -> Result<DeadDelivery, Unreadable> {
    let death = |key| last_death(message, key).unwrap_or_default();
    let (reason, queue) = (death("reason"), death("queue"));
    let letter = DeadLetter {
        dispatch: read_dispatch(message).ok(),
        reason,
        queue,
    };
    Ok(DeadDelivery { tag, letter })
}

fn read_control(message: &Message) -> Result<Control, Unreadable> {
    let ControlMessage { v, control } = serde_json::from_slice(&message.data)?;
    current(v)?;
    Ok(control)
}

/// What RabbitMQ noted when it moved the message here last.
fn last_death(message: &Message, key: &str) -> Option<String> {
    let headers = message.properties.headers().as_ref()?.inner();
    let AMQPValue::FieldArray(deaths) = headers.get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else {
        return None;
    };
    match last.inner().get(key)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

impl<T> fmt::Debug for Lane<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_a_prefetch() {
        assert_eq!(lanes(0).collect::<Vec<_>>(), [1]);
        assert_eq!(lanes(2000).collect::<Vec<_>>(), [2000]);
        assert_eq!(lanes(2001).collect::<Vec<_>>(), [1001, 1000]);
        for prefetch in [1, 1999, 4001, 10_000, u16::MAX] {
            let lanes: Vec<u16> = lanes(prefetch).collect();
            assert_eq!(lanes.iter().sum::<u16>(), prefetch);
            assert!(
                lanes
                    .iter()
                    .all(|lane| (1..=LARGEST_PREFETCH).contains(lane))
            );
        }
    }
}
