//! What is declared in RabbitMQ, and under which names. One topology that 3.10 and 4.x both take;
//! a queue that exists is never changed by it, since RabbitMQ refuses other arguments.

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{BrokerError, Depth};
use crate::{
    broker::{DELIVERY_LIMIT, jobs_queue},
    domain::AccountId,
};

pub(super) const JOBS_EXCHANGE: &str = "sluice.jobs";
pub(super) const CONTROL_EXCHANGE: &str = "sluice.control";
pub(super) const REPLY_QUEUE: &str = "sluice.replies";
const DEAD: &str = "sluice.dead";

/// For queues whose messages nobody may give up. "Unlimited" has no word that all versions know:
/// none at all means 20 from 4.0 on, and -1 drops at the first return before it.
const AS_GOOD_AS_NO_LIMIT: u32 = 1_000_000_000;

/// A queue that is consumed with acks.
#[derive(Clone, Debug)]
pub(super) enum Queue {
    Jobs(AccountId),
    Replies,
    Dead,
}

impl Queue {
    pub(super) fn name(&self) -> ShortString {
        match self {
            Self::Jobs(account) => jobs_queue(account).into(),
            Self::Replies => REPLY_QUEUE.into(),
            Self::Dead => DEAD.into(),
        }
    }

    /// Declares the queue and, for an account's, what leads to it.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let arguments = match self {
            Self::Jobs(_) => quorum(DELIVERY_LIMIT, true),
            Self::Replies => quorum(AS_GOOD_AS_NO_LIMIT, true),
            Self::Dead => quorum(AS_GOOD_AS_NO_LIMIT, false),
        };
        channel
            .queue_declare(self.name(), QueueDeclareOptions::durable(), arguments)
            .await
            .map_err(|error| refusal(&error))?;
        let (exchange, key) = match self {
            Self::Jobs(account) => (JOBS_EXCHANGE, routing_key(account)),
            Self::Replies => return Ok(()),
            Self::Dead => (DEAD, "".into()),
        };
        let bound = channel.queue_bind(
            self.name(),
            exchange.into(),
            key,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.map_err(|error| refusal(&error))
    }
}

impl Queue {
    /// Deletes the queue and declares it anew, if nobody leads it: RabbitMQ then says that it is
    /// empty and that nobody consumes it, since it has nobody to ask. Tells whether that was so.
    pub(super) async fn renew_leaderless(
        &self,
        connection: &Connection,
    ) -> Result<bool, BrokerError> {
        let refusal = |error| refusal(&error);
        // Apart from that of the consumer, which still waits for its answer.
        let channel = connection.create_channel().await.map_err(refusal)?;
        if depth(&channel, self.name()).await? != Depth::default() {
            return Ok(false);
        }
        channel
            .queue_delete(self.name(), QueueDeleteOptions::default())
            .await
            .map_err(refusal)?;
        self.declare(&channel).await?;
        Ok(true)
    }
}

/// The key that leads from the jobs exchange to an account's queue.
pub(super) fn routing_key(account: &AccountId) -> ShortString {
    format!("account.{account}").into()
}

/// Declares the exchanges and the queues that all accounts share.
pub(super) async fn declare_shared(channel: &Channel) -> Result<(), BrokerError> {
    for (name, kind) in [
        (JOBS_EXCHANGE, ExchangeKind::Direct),
        (CONTROL_EXCHANGE, ExchangeKind::Fanout),
        (DEAD, ExchangeKind::Fanout),
    ] {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        channel
            .exchange_declare(name.into(), kind, options, FieldTable::default())
            .await
            .map_err(|error| refusal(&error))?;
    }
    // The dead letters first: what leads to them must not lead nowhere for a moment.
    Queue::Dead.declare(channel).await?;
    Queue::Replies.declare(channel).await
}

/// A queue of this process's own, for what the API tells all workers. It has no name of ours: a
/// name could still be held by the connection that we have lost and RabbitMQ has not.
pub(super) async fn declare_control_queue(channel: &Channel) -> Result<ShortString, BrokerError> {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare("".into(), options, FieldTable::default())
        .await
        .map_err(|error| refusal(&error))?;
    let bound = channel.queue_bind(
        queue.name().clone(),
        CONTROL_EXCHANGE.into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.map_err(|error| refusal(&error))?;
    Ok(queue.name().clone())
}

/// What is in a queue, without touching it.
pub(super) async fn depth(channel: &Channel, queue: ShortString) -> Result<Depth, BrokerError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare(queue, options, FieldTable::default())
        .await
        .map_err(|error| refusal(&error))?;
    Ok(Depth {
        ready: queue.message_count().into(),
        consumers: queue.consumer_count(),
    })
}

/// What an error to a declaration or a look at a queue means.
pub(super) fn refusal(error: &lapin::Error) -> BrokerError {
    match error.kind() {
        ErrorKind::ProtocolError(said) => match said.get_id() {
            404 => BrokerError::Unroutable(said.get_message().to_string()),
            403 | 405 | 406 => BrokerError::Topology(said.get_message().to_string()),
            _ => BrokerError::Unavailable(error.to_string()),
        },
        _ => BrokerError::Unavailable(error.to_string()),
    }
}

fn quorum(delivery_limit: u32, dead_letters: bool) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut text = |key: &str, value: &str| {
        arguments.insert(key.into(), AMQPValue::LongString(value.into()));
    };
    text("x-queue-type", "quorum");
    if dead_letters {
        text("x-dead-letter-exchange", DEAD);
        // The default drops what cannot be moved at that moment. This keeps it, and it works with
        // no other overflow than this, which without a length limit never happens.
        text("x-dead-letter-strategy", "at-least-once");
        text("x-overflow", "reject-publish");
    }
    arguments.insert(
        "x-delivery-limit".into(),
        AMQPValue::LongLongInt(delivery_limit.into()),
    );
    arguments
}
