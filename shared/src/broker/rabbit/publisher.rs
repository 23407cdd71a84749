//! Publishing, with a confirm for every message.
//!
//! **One batch, one channel.** What goes to one queue at one time is a batch, and a batch has a
//! channel to itself from its first message to its last confirm. That is what makes its results
//! exact: lapin hangs a returned message on whichever confirm of the channel comes next, so the
//! returns of two batches on one channel would mix. It also keeps trouble apart: a queue that has
//! lost its quorum blocks the channels that publish to it, and a message that is too large closes
//! its channel, and in both cases nobody else is on it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use lapin::{
    BasicProperties, Channel, Confirmation, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{self, Instant},
};

use super::{
    BrokerError,
    link::{Link, Up},
};

/// Batches under way at once; more wait for a channel.
const CHANNELS: usize = 128;

/// How long RabbitMQ may take to confirm a batch. Then it is not known what became of it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a queue that did not confirm in that time is left alone, so that not every caller
/// waits for it in vain.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// The largest message: what RabbitMQ 4 takes when it is not told otherwise.
pub(super) const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

/// The largest message that shares a batch with others.
const LARGEST_SMALL_MESSAGE: usize = 256 * 1024;

/// A message on its way out.
pub(super) struct Message<'a> {
    pub(super) exchange: &'static str,
    pub(super) routing_key: ShortString,
    /// Whether it must end in a queue.
    pub(super) mandatory: bool,
    /// Unique among those published with it: by this it is known when it is returned.
    pub(super) id: String,
    pub(super) properties: BasicProperties,
    pub(super) body: &'a [u8],
}

/// The publishing connection and its channels.
pub(super) struct Publisher {
    link: Link,
    idle: Mutex<Vec<(u64, Channel)>>,
    room: Semaphore,
    /// The routing keys of the queues that do not confirm, and until when to leave them alone.
    stuck: Mutex<HashMap<ShortString, Instant>>,
}

/// A channel in use by one caller. It is closed when this is dropped.
pub(super) struct Lease<'a> {
    publisher: &'a Publisher,
    _permit: SemaphorePermit<'a>,
    up: Up,
    channel: Channel,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            idle: Mutex::default(),
            room: Semaphore::new(CHANNELS),
            stuck: Mutex::default(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// A channel of one's own.
    pub(super) async fn lease(&self) -> Result<Lease<'_>, BrokerError> {
        // Before waiting for anybody: while it is away the answer comes at once.
        self.link.now()?;
        let permit = self
            .room
            .acquire()
            .await
            .map_err(|_| BrokerError::Unavailable("it was closed".into()))?;
        let up = self.link.now()?;
        let channel = match self.idle_channel(up.epoch) {
            Some(channel) => channel,
            None => up.answer(open_channel(&up)).await?,
        };
        Ok(Lease {
            publisher: self,
            _permit: permit,
            up,
            channel,
        })
    }

    /// Publishes messages and waits until each is confirmed: one result per message.
    pub(super) async fn publish(&self, messages: &[Message<'_>]) -> Vec<Result<(), BrokerError>> {
        let batches = batches(messages);
        let publishing = batches.iter().map(async |batch| {
            let batch: Vec<_> = batch.iter().map(|index| &messages[*index]).collect();
            self.publish_batch(&batch).await
        });
        let mut results = vec![Err(unconfirmed()); messages.len()];
        for (batch, of_batch) in batches.iter().zip(join_all(publishing).await) {
            for (index, result) in batch.iter().zip(of_batch) {
                results[*index] = result;
            }
        }
        results
    }

    /// Publishes what goes to one queue.
    async fn publish_batch(&self, batch: &[&Message<'_>]) -> Vec<Result<(), BrokerError>> {
        let lease = match self.check(batch) {
            Ok(()) => self.lease().await,
            Err(error) => Err(error),
        };
        let lease = match lease {
            Ok(lease) => lease,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut results = vec![Err(unconfirmed()); batch.len()];
        let mut returned = HashMap::new();
        let publishing = lease.publish(batch, &mut results, &mut returned);
        tokio::select! {
            biased;
            finished = time::timeout(CONFIRM_TIMEOUT, publishing) => {
                if finished.is_ok() {
                    lease.end();
                } else if let Some(message) = batch.first() {
                    let until = Instant::now() + LEFT_ALONE;
                    self.stuck().insert(message.routing_key.clone(), until);
                }
            }
            // lapin ends what it waits for then, but for what it was asked at that very moment.
            () = lease.up.gone() => {}
        }
        if !returned.is_empty() {
            for (message, result) in batch.iter().zip(&mut results) {
                if let Some(reason) = returned.remove(message.id.as_str()) {
                    *result = Err(BrokerError::Unroutable(reason));
                }
            }
        }
        results
    }

    /// Whether it is of any use to try and publish this.
    fn check(&self, batch: &[&Message<'_>]) -> Result<(), BrokerError> {
        let Some(message) = batch.first() else {
            return Ok(());
        };
        let length = message.body.len();
        if length > LARGEST_MESSAGE {
            let reason = format!("it has {length} bytes, and {LARGEST_MESSAGE} is the most");
            return Err(BrokerError::Message(reason));
        }
        let mut stuck = self.stuck();
        match stuck.get(&message.routing_key) {
            Some(until) if *until > Instant::now() => {
                let reason = "its queue did not confirm what was published lately";
                Err(BrokerError::Unavailable(reason.into()))
            }
            Some(_) => {
                stuck.remove(&message.routing_key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn stuck(&self) -> MutexGuard<'_, HashMap<ShortString, Instant>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_channel(&self, epoch: u64) -> Option<Channel> {
        let mut idle = self.idle();
        idle.retain(|(of, channel)| *of == epoch && channel.status().connected());
        idle.pop().map(|(_, channel)| channel)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(u64, Channel)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease<'_> {
    /// Asks something on the channel. An error closes it.
    pub(super) async fn ask<T>(
        self,
        question: impl AsyncFnOnce(&Channel) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let answer = self.up.answer(question(&self.channel)).await?;
        self.end();
        Ok(answer)
    }

    /// Gives the channel to the next batch, if it still serves.
    fn end(self) {
        if self.channel.status().connected() {
            self.publisher.idle().push((self.up.epoch, self.channel));
        }
    }

    async fn publish(
        &self,
        batch: &[&Message<'_>],
        results: &mut [Result<(), BrokerError>],
        returned: &mut HashMap<String, String>,
    ) {
        let mut written = Vec::with_capacity(batch.len());
        for message in batch {
            let mut write = Box::pin(
                self.channel.basic_publish(
                    message.exchange.into(),
                    message.routing_key.clone(),
                    BasicPublishOptions {
                        mandatory: message.mandatory,
                        immediate: false,
                    },
                    message.body,
                    message
                        .properties
                        .clone()
                        .with_message_id(message.id.as_str().into()),
                ),
            );
            // The first poll hands the message to the connection. Waiting for each to be written
            // before the next is begun would make every one of them wait for the other thread.
            let done = write.as_mut().now_or_never();
            written.push((write, done));
        }
        for ((write, done), result) in written.into_iter().zip(results.iter_mut()) {
            let confirm = match done {
                Some(done) => done,
                None => write.await,
            };
            let confirmation = match confirm {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            *result = match confirmation {
                Ok(confirmation) => {
                    let outcome = if confirmation.is_ack() {
                        Ok(())
                    } else {
                        Err(BrokerError::NotConfirmed("RabbitMQ refused it".into()))
                    };
                    note_return(confirmation, returned);
                    outcome
                }
                Err(error) => Err(self.failure(&error)),
            };
        }
    }

    fn failure(&self, error: &lapin::Error) -> BrokerError {
        if let ErrorKind::ProtocolError(said) = error.kind() {
            match said.get_id() {
                311 | 406 => return BrokerError::Message(said.get_message().to_string()),
                // The exchange is gone. A new connection declares it again.
                404 => self.up.cut(),
                _ => {}
            }
        }
        BrokerError::NotConfirmed(error.to_string())
    }
}

/// What can be published as one: the messages to one queue, and a large one alone, since RabbitMQ
/// answers one that is too large for it by closing the channel.
fn batches(messages: &[Message<'_>]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut of_queue: HashMap<&str, usize> = HashMap::new();
    for (index, message) in messages.iter().enumerate() {
        if message.body.len() > LARGEST_SMALL_MESSAGE {
            batches.push(vec![index]);
            continue;
        }
        match of_queue.get(message.routing_key.as_str()) {
            Some(batch) => batches[*batch].push(index),
            None => {
                of_queue.insert(message.routing_key.as_str(), batches.len());
                batches.push(vec![index]);
            }
        }
    }
    batches
}

/// Remembers a message that came back. It need not be the one that the confirm is about.
fn note_return(confirmation: Confirmation, returned: &mut HashMap<String, String>) {
    let Some(message) = confirmation.take_message() else {
        return;
    };
    if let Some(id) = message.delivery.properties.message_id() {
        returned.insert(id.to_string(), message.reply_text.to_string());
    }
}

async fn open_channel(up: &Up) -> Result<Channel, BrokerError> {
    let unavailable = |error: lapin::Error| BrokerError::Unavailable(error.to_string());
    let channel = up.connection.create_channel().await.map_err(unavailable)?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .map_err(unavailable)?;
    Ok(channel)
}

fn unconfirmed() -> BrokerError {
    BrokerError::NotConfirmed("RabbitMQ did not say what became of it".into())
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}
