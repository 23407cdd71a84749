//! The work plane: dispatched jobs per account, replies, control, dead letters.
//!
//! **The promise.** What [`Broker::dispatch`] or [`Broker::reply`] reported as published is kept
//! until a consumer acks it; a delivery whose consumer goes away is delivered again, marked
//! `redelivered`. At most `prefetch` deliveries of a consumer are unacked. Deliveries may come
//! twice and in any order, so the attempt number in each message is what decides. Both adapters
//! keep this promise, but for one thing: the in-process one dies with its process.
//!
//! Streams outlive a lost connection: they come back by themselves, however long it takes.

mod in_process;
mod rabbit;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    config,
    domain::AccountId,
    message::{Control, DeadLetter, Dispatch, Reply},
};

pub use in_process::{InProcess, InProcessAcker};
pub use rabbit::{Rabbit, RabbitAcker};

/// How often a job's delivery may come back unacked before it is held to be poison and becomes a
/// dead letter. Only RabbitMQ before 4.0 has no such limit of its own, and 20 is the one of 4.0.
const DELIVERY_LIMIT: u32 = 20;

/// Why a message that came back too often is a dead letter; the word is RabbitMQ's.
const OVER_DELIVERY_LIMIT: &str = "delivery_limit";

/// The queue of an account's dispatched jobs.
fn jobs_queue(account: &AccountId) -> String {
    format!("sluice.jobs.{account}")
}

/// The work plane.
#[derive(Clone, Debug)]
pub enum Broker {
    /// RabbitMQ, by AMQP 0-9-1.
    Rabbit(Rabbit),
    /// Queues in this process.
    InProcess(InProcess),
}

/// Why the broker did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// It cannot be reached now. It is being tried again; so may the caller.
    #[error("the broker cannot be reached: {0}")]
    Unavailable(String),
    /// It refused or lost the message: unknown whether it was published, so publish again.
    #[error("the message was not confirmed: {0}")]
    NotConfirmed(String),
    /// There is no such queue: nobody declared the account.
    #[error("there is no queue for it: {0}")]
    Unroutable(String),
    /// The broker's and our idea of a queue differ; someone must act.
    #[error("the broker refuses the topology: {0}")]
    Topology(String),
    /// The message cannot be written or is too large.
    #[error("the message cannot be sent: {0}")]
    Message(String),
}

/// Names one delivery of one consumer. It goes stale when the consumer's channel is lost: an ack
/// of it then does nothing, since the broker delivers the message again anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// Which channel of the consumer's life.
    pub epoch: u32,
    /// The delivery's number on it.
    pub number: u64,
}

/// A dispatched job in a worker's hands.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// To ack it or to give it back.
    pub tag: Tag,
    /// The broker gave it to a consumer before. It may have been run.
    pub redelivered: bool,
    /// The job.
    pub dispatch: Dispatch,
}

/// Replies in an intake's hands.
#[derive(Clone, Debug)]
pub struct ReplyDelivery {
    /// To ack it.
    pub tag: Tag,
    /// The replies, in the order in which they were made.
    pub replies: Vec<Reply>,
}

/// A dead letter in an intake's hands.
#[derive(Clone, Debug)]
pub struct DeadDelivery {
    /// To ack it.
    pub tag: Tag,
    /// What died and why.
    pub letter: DeadLetter,
}

/// What is known of a queue without touching its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that no consumer holds.
    pub ready: u64,
    /// Consumers.
    pub consumers: u32,
}

/// A consumer of deliveries of type `T`: receive from it, and hand its [`Acker`] around.
///
/// Dropping it ends the consumption: what it has not handed out goes back to the queue at once,
/// while what it has handed out can still be acked as long as an [`Acker`] is kept.
#[derive(Debug)]
pub struct Consumer<T> {
    deliveries: UnboundedReceiver<(Tag, T)>,
    /// Reused by [`Consumer::next_many`]; empty between calls.
    arrived: Vec<(Tag, T)>,
    acker: Acker,
}

impl<T> Consumer<T> {
    fn new(deliveries: UnboundedReceiver<(Tag, T)>, acker: Acker) -> Self {
        Self {
            deliveries,
            arrived: Vec::new(),
            acker,
        }
    }

    /// The next delivery; `None` once the broker was closed by [`Broker::close`].
    pub async fn next(&mut self) -> Option<T> {
        loop {
            let (tag, delivery) = self.deliveries.recv().await?;
            if self.acker.is_current(tag) {
                return Some(delivery);
            }
        }
    }

    /// Fills `buffer` with what is there, at most `most`, waiting for the first. Returns how many
    /// came, 0 once the broker was closed.
    pub async fn next_many(&mut self, buffer: &mut Vec<T>, most: usize) -> usize {
        let before = buffer.len();
        loop {
            if self.deliveries.recv_many(&mut self.arrived, most).await == 0 {
                return 0;
            }
            for (tag, delivery) in self.arrived.drain(..) {
                // What came by a channel that is lost comes again: to run it twice helps nobody.
                if self.acker.is_current(tag) {
                    buffer.push(delivery);
                }
            }
            if buffer.len() > before {
                return buffer.len() - before;
            }
        }
    }

    /// What acks this consumer's deliveries.
    #[must_use]
    pub fn acker(&self) -> Acker {
        self.acker.clone()
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.deliveries.close();
        let mut unseen = Vec::new();
        while let Ok((tag, _)) = self.deliveries.try_recv() {
            unseen.push(tag);
        }
        self.acker.retire(unseen);
    }
}

/// Acks deliveries of one consumer; cheap to clone. When every clone and the [`Consumer`] are
/// dropped, all that is still unacked goes back to the queue.
#[derive(Clone, Debug)]
pub enum Acker {
    /// Over AMQP.
    Rabbit(RabbitAcker),
    /// In this process.
    InProcess(InProcessAcker),
}

impl Acker {
    /// Acks these deliveries, many at once where their numbers allow it. Stale tags are ignored.
    #[expect(clippy::unused_async, reason = "an adapter may have to wait")]
    pub async fn ack(&self, tags: &[Tag]) {
        match self {
            Self::Rabbit(acker) => acker.ack(tags),
            Self::InProcess(acker) => acker.ack(tags),
        }
    }

    /// Gives a delivery back, to be delivered again (marked `redelivered`), to any consumer.
    #[expect(clippy::unused_async, reason = "an adapter may have to wait")]
    pub async fn give_back(&self, tag: Tag) {
        match self {
            Self::Rabbit(acker) => acker.give_back(tag),
            Self::InProcess(acker) => acker.give_back(tag),
        }
    }

    /// Whether an ack of this delivery would still reach the broker that made it.
    fn is_current(&self, tag: Tag) -> bool {
        match self {
            Self::Rabbit(acker) => acker.is_current(tag),
            Self::InProcess(_) => true,
        }
    }

    /// No more deliveries, and these were not looked at.
    fn retire(&self, unseen: Vec<Tag>) {
        match self {
            Self::Rabbit(acker) => acker.retire(unseen),
            Self::InProcess(acker) => acker.retire(&unseen),
        }
    }
}

impl Broker {
    /// Connects to RabbitMQ and declares what all accounts share. Returns an error only when the
    /// configuration cannot work (a URL that does not parse, refused credentials); when the
    /// broker is just not there, the connection is made as soon as it is, and until then every
    /// call fails with [`BrokerError::Unavailable`].
    ///
    /// # Errors
    /// As said.
    pub async fn connect(config: &config::Rabbitmq, name: &str) -> Result<Self, BrokerError> {
        Ok(Self::Rabbit(Rabbit::connect(config, name).await?))
    }

    /// A broker in this process.
    #[must_use]
    pub fn in_process() -> Self {
        Self::InProcess(InProcess::default())
    }

    /// Makes sure that the account's queue exists. Idempotent.
    ///
    /// # Errors
    /// When the broker cannot be reached, or has a queue of that name with other arguments.
    pub async fn declare(&self, account: &AccountId) -> Result<(), BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.declare(account).await,
            Self::InProcess(queues) => queues.declare(account),
        }
    }

    /// Publishes each attempt to its account's queue, all in flight at once, and waits for the
    /// confirms: one result per attempt, in the same order. `Unroutable` for an account that was
    /// never declared.
    pub async fn dispatch(&self, attempts: &[Dispatch]) -> Vec<Result<(), BrokerError>> {
        match self {
            Self::Rabbit(rabbit) => rabbit.dispatch(attempts).await,
            Self::InProcess(queues) => queues.dispatch(attempts),
        }
    }

    /// Consumes an account's queue, with at most `prefetch` deliveries unacked. Declares the
    /// queue. When the broker is away it begins as soon as it is back.
    ///
    /// # Errors
    /// Only [`BrokerError::Topology`].
    pub async fn consume(
        &self,
        account: &AccountId,
        prefetch: u16,
    ) -> Result<Consumer<Delivery>, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.consume(account, prefetch).await,
            Self::InProcess(queues) => queues.consume(account, prefetch),
        }
    }

    /// Publishes replies as one message (or as several, when they are too large for one) and
    /// waits for its confirm.
    ///
    /// # Errors
    /// When it was not confirmed; the caller keeps the replies and tries again.
    pub async fn reply(&self, replies: &[Reply]) -> Result<(), BrokerError> {
        if replies.is_empty() {
            return Ok(());
        }
        match self {
            Self::Rabbit(rabbit) => rabbit.reply(replies).await,
            Self::InProcess(queues) => queues.reply(replies),
        }
    }

    /// Consumes the replies of all workers. Any number of intakes may.
    ///
    /// # Errors
    /// As [`Broker::consume`].
    pub async fn replies(&self, prefetch: u16) -> Result<Consumer<ReplyDelivery>, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.replies(prefetch).await,
            Self::InProcess(queues) => queues.replies(prefetch),
        }
    }

    /// Tells every worker that is connected now. A worker that is away does not hear it.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn control(&self, control: &Control) -> Result<(), BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.control(control).await,
            Self::InProcess(queues) => queues.control(control),
        }
    }

    /// What the API tells this worker from now on; comes back after a lost connection.
    ///
    /// # Errors
    /// As [`Broker::consume`].
    pub async fn controls(&self) -> Result<UnboundedReceiver<Control>, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.controls().await,
            Self::InProcess(queues) => queues.controls(),
        }
    }

    /// Consumes the dead letters.
    ///
    /// # Errors
    /// As [`Broker::consume`].
    pub async fn dead_letters(&self, prefetch: u16) -> Result<Consumer<DeadDelivery>, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.dead_letters(prefetch).await,
            Self::InProcess(queues) => queues.dead_letters(prefetch),
        }
    }

    /// What is in the account's queue. No message is touched: a peek would count as a delivery.
    ///
    /// # Errors
    /// When the broker cannot be reached or there is no such queue.
    pub async fn depth(&self, account: &AccountId) -> Result<Depth, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.depth(account).await,
            Self::InProcess(queues) => queues.depth(account),
        }
    }

    /// What is in the reply queue.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn reply_depth(&self) -> Result<Depth, BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.reply_depth().await,
            Self::InProcess(queues) => queues.reply_depth(),
        }
    }

    /// Whether the broker can be used now.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), BrokerError> {
        match self {
            Self::Rabbit(rabbit) => rabbit.ready().await,
            Self::InProcess(_) => Ok(()),
        }
    }

    /// Ends every consumer of this process and closes the connection.
    pub async fn close(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.close().await,
            Self::InProcess(queues) => queues.close(),
        }
    }
}
