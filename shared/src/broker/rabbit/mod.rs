//! The work plane in RabbitMQ, 3.10 to 4.x, with one topology for all of them.
//!
//! There are two connections, since RabbitMQ may block one that publishes, and acks must go on
//! then: [`publisher`] has the one, the [`consumer`]s share the other. A [`link`] keeps each of
//! them up. Everything on a connection starts afresh when the connection does; nothing is
//! repaired.

mod acker;
mod consumer;
mod link;
mod publisher;
mod topology;

use std::{fmt, sync::Arc, time::Duration};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    },
    time,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use self::acker::RabbitAcker;
use self::{
    acker::Channels,
    consumer::{Lane, Read, lanes, listen},
    link::{Address, Link},
    publisher::{LARGEST_MESSAGE, Message, Publisher},
    topology::{CONTROL_EXCHANGE, JOBS_EXCHANGE, Queue, REPLY_QUEUE, routing_key},
};
use super::{
    Acker, BrokerError, Consumer, DeadDelivery, Delivery, Depth, ReplyDelivery, Tag, jobs_queue,
};
use crate::{
    config,
    domain::AccountId,
    message::{Control, ControlMessage, Dispatch, Reply, VERSION},
};

/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// AMQP's word for a message that is kept on disk.
const PERSISTENT: u8 = 2;

/// RabbitMQ, by AMQP 0-9-1.
#[derive(Clone)]
pub struct Rabbit(Arc<Inner>);

struct Inner {
    publisher: Publisher,
    consuming: Link,
    tasks: TaskTracker,
    closed: CancellationToken,
    /// The last clone takes the tasks with it.
    _close: DropGuard,
}

/// The replies of one message, without owning them.
#[derive(Serialize)]
struct Replies<'a> {
    v: u8,
    replies: &'a [Reply],
}

impl Rabbit {
    pub(super) async fn connect(
        config: &config::Rabbitmq,
        name: &str,
    ) -> Result<Self, BrokerError> {
        let address = Address::parse(config.url.expose_secret(), name)?;
        let closed = CancellationToken::new();
        let tasks = TaskTracker::new();
        let link = |suffix| {
            let (link, keep_up) = Link::new(address.named(suffix), closed.clone());
            tasks.spawn(keep_up);
            link
        };
        let publisher = Publisher::new(link("publisher"));
        let consuming = link("consumer");
        let close = closed.clone().drop_guard();
        tokio::try_join!(publisher.link().first_try(), consuming.first_try())?;
        Ok(Self(Arc::new(Inner {
            publisher,
            consuming,
            tasks,
            closed,
            _close: close,
        })))
    }

    pub(super) async fn declare(&self, account: &AccountId) -> Result<(), BrokerError> {
        let queue = Queue::Jobs(account.clone());
        let lease = self.0.publisher.lease().await?;
        lease
            .ask(async |channel| queue.declare(channel).await)
            .await
    }

    pub(super) async fn dispatch(&self, attempts: &[Dispatch]) -> Vec<Result<(), BrokerError>> {
        // One buffer for all bodies: they are copied into frames anyway.
        let mut bodies = Vec::new();
        let mut ends = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let start = bodies.len();
            if let Err(error) = serde_json::to_writer(&mut bodies, attempt) {
                bodies.truncate(start);
                return vec![Err(BrokerError::Message(error.to_string())); attempts.len()];
            }
            ends.push(bodies.len());
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let messages: Vec<_> = attempts
            .iter()
            .zip(starts.zip(&ends))
            .map(|(attempt, (start, end))| Message {
                exchange: JOBS_EXCHANGE,
                routing_key: routing_key(&attempt.account),
                mandatory: true,
                id: format!("{}:{}", attempt.job, attempt.attempt),
                properties: properties(attempt.traceparent.as_deref()),
                body: &bodies[start..*end],
            })
            .collect();
        self.0.publisher.publish(&messages).await
    }

    pub(super) async fn consume(
        &self,
        account: &AccountId,
        prefetch: u16,
    ) -> Result<Consumer<Delivery>, BrokerError> {
        self.consumer(
            Queue::Jobs(account.clone()),
            prefetch,
            consumer::read_delivery,
        )
        .await
    }

    pub(super) async fn reply(&self, replies: &[Reply]) -> Result<(), BrokerError> {
        let bodies = reply_bodies(replies)?;
        let messages: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(number, body)| Message {
                exchange: "",
                routing_key: REPLY_QUEUE.into(),
                mandatory: true,
                id: number.to_string(),
                properties: properties(None),
                body,
            })
            .collect();
        self.0
            .publisher
            .publish(&messages)
            .await
            .into_iter()
            .collect()
    }

    pub(super) async fn replies(
        &self,
        prefetch: u16,
    ) -> Result<Consumer<ReplyDelivery>, BrokerError> {
        self.consumer(Queue::Replies, prefetch, consumer::read_replies)
            .await
    }

    pub(super) async fn control(&self, control: &Control) -> Result<(), BrokerError> {
        let message = ControlMessage {
            v: VERSION,
            control: control.clone(),
        };
        let body = serde_json::to_vec(&message)
            .map_err(|error| BrokerError::Message(error.to_string()))?;
        let message = Message {
            exchange: CONTROL_EXCHANGE,
            routing_key: ShortString::default(),
            // With no worker there it has no queue to go to, and that is all right.
            mandatory: false,
            id: String::new(),
            properties: BasicProperties::default().with_content_type("application/json".into()),
            body: &body,
        };
        self.0
            .publisher
            .publish(&[message])
            .await
            .into_iter()
            .collect()
    }

    pub(super) async fn controls(&self) -> Result<UnboundedReceiver<Control>, BrokerError> {
        let (sender, controls) = mpsc::unbounded_channel();
        let (first, first_try) = oneshot::channel();
        self.0
            .tasks
            .spawn(listen(self.0.consuming.clone(), sender, first));
        first_try.await.unwrap_or(Ok(()))?;
        Ok(controls)
    }

    pub(super) async fn dead_letters(
        &self,
        prefetch: u16,
    ) -> Result<Consumer<DeadDelivery>, BrokerError> {
        self.consumer(Queue::Dead, prefetch, consumer::read_dead_letter)
            .await
    }

    pub(super) async fn depth(&self, account: &AccountId) -> Result<Depth, BrokerError> {
        self.depth_of(jobs_queue(account).into()).await
    }

    pub(super) async fn reply_depth(&self) -> Result<Depth, BrokerError> {
        self.depth_of(REPLY_QUEUE.into()).await
    }

    #[expect(clippy::unused_async, reason = "the port may have to ask")]
    pub(super) async fn ready(&self) -> Result<(), BrokerError> {
        self.0.publisher.link().now()?;
        self.0.consuming.now()?;
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.0.closed.cancel();
        self.0.tasks.close();
        let _ = time::timeout(CLOSE_TIMEOUT, self.0.tasks.wait()).await;
    }

    async fn depth_of(&self, queue: ShortString) -> Result<Depth, BrokerError> {
        let lease = self.0.publisher.lease().await?;
        lease
            .ask(async |channel| topology::depth(channel, queue).await)
            .await
    }

    async fn consumer<T: Send + 'static>(
        &self,
        queue: Queue,
        prefetch: u16,
        read: Read<T>,
    ) -> Result<Consumer<T>, BrokerError> {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let channels = Arc::new(Channels::default());
        let acker = RabbitAcker::new(channels.clone(), self.clone());
        // From here on a failure drops it, and that ends what was begun.
        let consumer = Consumer::new(deliveries, Acker::Rabbit(acker));
        let first_tries: Vec<_> = lanes(prefetch)
            .map(|prefetch| {
                let lane = Lane {
                    link: self.0.consuming.clone(),
                    queue: queue.clone(),
                    prefetch,
                    channels: channels.clone(),
                    deliveries: sender.clone(),
                    read,
                };
                let (first, first_try) = oneshot::channel();
                self.0.tasks.spawn(lane.run(first));
                first_try
            })
            .collect();
        for first_try in first_tries {
            first_try.await.unwrap_or(Ok(()))?;
        }
        Ok(consumer)
    }
}

fn properties(traceparent: Option<&str>) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT);
    let Some(traceparent) = traceparent else {
        return properties;
    };
    let mut headers = FieldTable::default();
    headers.insert(
        "traceparent".into(),
        AMQPValue::LongString(traceparent.into()),
    );
    properties.with_headers(headers)
}

/// The replies as one message, or as more when one would be too large for RabbitMQ.
fn reply_bodies(replies: &[Reply]) -> Result<Vec<Vec<u8>>, BrokerError> {
    let body = serde_json::to_vec(&Replies {
        v: VERSION,
        replies,
    })
    .map_err(|error| BrokerError::Message(error.to_string()))?;
    if body.len() <= LARGEST_MESSAGE || replies.len() < 2 {
        return Ok(vec![body]);
    }
    let (one_half, other_half) = replies.split_at(replies.len() / 2);
    let mut bodies = reply_bodies(one_half)?;
    bodies.extend(reply_bodies(other_half)?);
    Ok(bodies)
}

impl fmt::Debug for Rabbit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rabbit").finish_non_exhaustive()
    }
}
