//! Publishing, with a confirm for every message.
//!
//! **One batch, one channel.** A batch has a channel to itself from its first message to its last
//! confirm. That is what makes its results exact: lapin hangs a returned message on whichever
//! confirm of the channel comes next, so the returns of two batches on one channel would mix. It
//! also means that batches do not wait for each other, and that a message which makes RabbitMQ
//! close the channel takes nobody else's down.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use lapin::{
    BasicProperties, Channel, Confirmation, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time,
};

use super::{
    BrokerError,
    link::{Link, Up},
};

/// Batches under way at once; more wait for a channel.
const CHANNELS: usize = 64;

/// How long RabbitMQ may take to confirm a batch. Then it is not known what became of it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take for anything else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message: what RabbitMQ 4 takes when it is not told otherwise.
pub(super) const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

/// The largest message that shares a channel with others.
const LARGEST_SMALL_MESSAGE: usize = 256 * 1024;

/// A message on its way out.
#[derive(Clone)]
pub(super) struct Message<'a> {
    pub(super) exchange: &'static str,
    pub(super) routing_key: ShortString,
    /// Whether it must end in a queue.
    pub(super) mandatory: bool,
    /// Unique within its batch: by this it is known when it is returned.
    pub(super) id: String,
    pub(super) properties: BasicProperties,
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    fn is_small(&self) -> bool {
        self.body.len() <= LARGEST_SMALL_MESSAGE
    }
}

/// The publishing connection and its channels.
pub(super) struct Publisher {
    link: Link,
    idle: Mutex<Vec<(u64, Channel)>>,
    room: Semaphore,
}

/// A channel in use by one batch. It is closed when this is dropped; [`Lease::end`] keeps it.
pub(super) struct Lease<'a> {
    publisher: &'a Publisher,
    _permit: SemaphorePermit<'a>,
    up: Up,
    pub(super) channel: Channel,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            idle: Mutex::default(),
            room: Semaphore::new(CHANNELS),
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
            None => answer(open_channel(&up)).await?,
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
        if messages.iter().all(Message::is_small) {
            return self.publish_batch(messages).await;
        }
        // RabbitMQ answers a message that is too large for it by closing the channel, and the
        // connection when it finds more on it. So a large one travels alone.
        let small: Vec<_> = messages
            .iter()
            .filter(|message| message.is_small())
            .cloned()
            .collect();
        let large: Vec<_> = messages
            .iter()
            .filter(|message| !message.is_small())
            .collect();
        let large = large.into_iter().map(|message| self.publish_large(message));
        let (small, large) =
            tokio::join!(self.publish_batch(&small), futures::future::join_all(large));
        let (mut small, mut large) = (small.into_iter(), large.into_iter());
        messages
            .iter()
            .map(|message| {
                if message.is_small() {
                    small.next()
                } else {
                    large.next()
                }
            })
            .map(|result| result.unwrap_or_else(|| Err(unconfirmed())))
            .collect()
    }

    async fn publish_large(&self, message: &Message<'_>) -> Result<(), BrokerError> {
        if message.body.len() > LARGEST_MESSAGE {
            let length = message.body.len();
            return Err(BrokerError::Message(format!(
                "it has {length} bytes, and {LARGEST_MESSAGE} is the most"
            )));
        }
        self.publish_batch(std::slice::from_ref(message))
            .await
            .remove(0)
    }

    async fn publish_batch(&self, batch: &[Message<'_>]) -> Vec<Result<(), BrokerError>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let lease = match self.lease().await {
            Ok(lease) => lease,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut results = vec![Err(unconfirmed()); batch.len()];
        let finished = time::timeout(CONFIRM_TIMEOUT, lease.publish(batch, &mut results))
            .await
            .is_ok();
        if finished {
            lease.end();
        } else {
            // Late confirms would be of no use to anyone, and neither is a connection like this.
            lease.up.cut();
        }
        results
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
    /// Gives the channel to the next batch, if it still serves.
    pub(super) fn end(self) {
        if self.channel.status().connected() {
            self.publisher.idle().push((self.up.epoch, self.channel));
        }
    }

    async fn publish(&self, batch: &[Message<'_>], results: &mut [Result<(), BrokerError>]) {
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
        let mut returned = HashMap::new();
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
                    note_return(confirmation, &mut returned);
                    outcome
                }
                Err(error) => Err(self.failure(&error)),
            };
        }
        if returned.is_empty() {
            return;
        }
        for (message, result) in batch.iter().zip(results) {
            if let Some(reason) = returned.remove(message.id.as_str()) {
                *result = Err(BrokerError::Unroutable(reason));
            }
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

/// Waits for an answer of RabbitMQ's, but not for ever.
pub(super) async fn answer<T>(
    answer: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(BrokerError::Unavailable(format!(
                "no answer for {seconds} s"
            )))
        })
}

fn unconfirmed() -> BrokerError {
    BrokerError::NotConfirmed(format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs()))
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}
