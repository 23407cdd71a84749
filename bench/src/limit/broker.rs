//! The limit program's queues, and the worker that answers what is in them.

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use uuid::Uuid;

/// As many as Sluice gets accounts.
pub(super) const JOB_QUEUES: usize = 4;
/// Where all answers go.
pub(super) const REPLY_QUEUE: &str = "bench_limit.replies";
const EXCHANGE: &str = "bench_limit";
/// Deliveries of one queue that are not acked yet, at most.
const PREFETCH: u16 = 512;
/// Deliveries that are answered and acked together, at most.
const ACK_BATCH: usize = 64;
/// Batches of answers that wait for their confirms at the same time.
const ANSWERS_IN_FLIGHT: usize = 4;
const PERSISTENT: u8 = 2;

/// The queue of the `n`th job.
pub(super) fn job_queue(n: usize) -> &'static str {
    const NAMES: [&str; JOB_QUEUES] = [
        "bench_limit.jobs.0",
        "bench_limit.jobs.1",
        "bench_limit.jobs.2",
        "bench_limit.jobs.3",
    ];
    NAMES[n % JOB_QUEUES]
}

/// One connection for each side, as separate processes would have.
#[derive(Debug)]
pub(super) struct Broker {
    submitting: Connection,
    working: Connection,
}

impl Broker {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        let (submitting, working) =
            futures::try_join!(connect(), connect()).context("RabbitMQ cannot be reached")?;
        Ok(Self {
            submitting,
            working,
        })
    }

    pub(super) async fn declare(&self) -> Result<()> {
        let channel = self.submitting.create_channel().await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let direct = lapin::ExchangeKind::Direct;
        channel
            .exchange_declare(EXCHANGE.into(), direct, durable, FieldTable::default())
            .await?;
        for queue in all_queues() {
            let mut arguments = FieldTable::default();
            arguments.insert(
                "x-queue-type".into(),
                AMQPValue::LongString("quorum".into()),
            );
            channel
                .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
                .await?;
            let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
            channel
                .queue_bind(
                    queue.into(),
                    EXCHANGE.into(),
                    queue.into(),
                    options,
                    arguments,
                )
                .await?;
        }
        Ok(())
    }

    pub(super) async fn remove(self) -> Result<()> {
        let channel = self.submitting.create_channel().await?;
        for queue in all_queues() {
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await?;
        }
        channel
            .exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default())
            .await?;
        for connection in [self.submitting, self.working] {
            connection.close(200, "done".into()).await?;
        }
        Ok(())
    }

    pub(super) async fn publishing_channel(&self) -> Result<Channel> {
        channel(&self.submitting, 0).await
    }

    pub(super) async fn settling_channel(&self) -> Result<Channel> {
        channel(&self.submitting, PREFETCH * 4).await
    }

    pub(super) async fn worker_channel(&self) -> Result<Channel> {
        channel(&self.working, PREFETCH).await
    }
}

fn all_queues() -> impl Iterator<Item = &'static str> {
    (0..JOB_QUEUES).map(job_queue).chain([REPLY_QUEUE])
}

async fn channel(connection: &Connection, prefetch: u16) -> Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await?;
    Ok(channel)
}

/// A message is the job's id and its payload.
pub(super) fn message(id: Uuid, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(16 + payload.len());
    message.put_slice(id.as_bytes());
    message.put_slice(payload);
    message.freeze()
}

pub(super) fn parse(message: &[u8]) -> Result<(Uuid, Bytes)> {
    let (id, payload) = message
        .split_first_chunk()
        .context("a message without an id")?;
    Ok((Uuid::from_bytes(*id), Bytes::copy_from_slice(payload)))
}

/// Publishes all and returns when all are confirmed.
pub(super) async fn publish_all(
    channel: &Channel,
    messages: Vec<(&'static str, Bytes)>,
) -> Result<()> {
    // All are on their way before the first confirm is awaited.
    let confirms = try_join_all(messages.iter().map(|(queue, message)| {
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        channel.basic_publish(
            EXCHANGE.into(),
            (*queue).into(),
            options,
            message,
            properties,
        )
    }))
    .await?;
    for confirm in confirms {
        let confirmation = confirm.await?;
        let kept = confirmation.is_ack() && confirmation.take_message().is_none();
        ensure!(kept, "the broker did not keep a message");
    }
    Ok(())
}

pub(super) async fn consume(channel: &Channel, queue: &str) -> Result<Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    Ok(channel
        .basic_consume(queue.into(), queue.into(), options, arguments)
        .await?)
}

/// Acks the last delivery and all before it.
pub(super) async fn ack_all(deliveries: &[Delivery]) -> Result<()> {
    if let Some(last) = deliveries.last() {
        ensure!(
            last.ack(BasicAckOptions { multiple: true }).await?,
            "an ack came too late"
        );
    }
    Ok(())
}

/// Answers each job of a queue with one message that echoes its payload. A job is acked after its
/// answer is confirmed.
pub(super) async fn work(channel: Channel, queue: usize) -> Result<()> {
    consume(&channel, job_queue(queue))
        .await?
        .ready_chunks(ACK_BATCH)
        .map(|chunk| async {
            let deliveries = chunk.into_iter().collect::<lapin::Result<Vec<_>>>()?;
            let answers = deliveries
                .iter()
                .map(|delivery| (REPLY_QUEUE, Bytes::copy_from_slice(&delivery.data)))
                .collect();
            publish_all(&channel, answers).await?;
            anyhow::Ok(deliveries)
        })
        .buffered(ANSWERS_IN_FLIGHT)
        .try_for_each(|deliveries| async move { ack_all(&deliveries).await })
        .await
}
