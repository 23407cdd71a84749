//! The physical limit: a bare program that does what any durable queue on Postgres and RabbitMQ
//! has to do for a job, and nothing else.
//!
//! Each job is inserted in a batch (one statement, one commit, fsync on), published persistently
//! to one of four quorum queues and confirmed, consumed, answered by one persistent and confirmed
//! message, acked, and settled in a batch with its answer. There is no HTTP, no JSON, no account,
//! no choice of one, no attempt and no state machine. All of it runs in this one process, so what
//! Sluice reaches is a ratio to it.

mod broker;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lapin::Channel;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;

use self::{broker::Broker, table::Table};
use crate::{
    measure::bounded,
    payload::prompt,
    services::Services,
    stats::{Latency, per_second},
    usage::Cpu,
};

/// Rows of one insert and of one update, at most.
const BATCH: usize = 256;
/// Batches that are inserted and published at the same time.
const BATCHES_IN_FLIGHT: usize = 4;
/// Updates that run at the same time.
const UPDATES_IN_FLIGHT: usize = 4;

/// What the machine can do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LimitFigures {
    /// Jobs a second, from the first insert to the last update.
    pub(crate) end_to_end: f64,
    /// From the insert of one job to its settled update, one job at a time.
    pub(crate) idle: Latency,
    /// CPU of all processes for one job, in microseconds.
    pub(crate) machine_cpu_us: f64,
    /// CPU of this process for one job, in microseconds.
    pub(crate) client_cpu_us: f64,
}

/// Measures it with `jobs` jobs at once and then `idle_jobs` one at a time.
pub(crate) async fn measure(
    services: &Services,
    jobs: usize,
    idle_jobs: usize,
    deadline: Duration,
) -> Result<LimitFigures> {
    clean(services).await?;
    let measured = bounded(deadline, measure_once(services, jobs, idle_jobs)).await;
    clean(services).await?;
    measured.context("the limit program")
}

/// Removes all that a run leaves behind.
pub(crate) async fn clean(services: &Services) -> Result<()> {
    Broker::connect(services.rabbitmq.as_str())
        .await?
        .remove()
        .await?;
    Table::connect(services.postgres.as_str())
        .await?
        .remove()
        .await
}

async fn measure_once(services: &Services, jobs: usize, idle_jobs: usize) -> Result<LimitFigures> {
    let table = Table::connect(services.postgres.as_str()).await?;
    table.create().await?;
    let broker = Broker::connect(services.rabbitmq.as_str()).await?;
    broker.declare().await?;

    let (settled, mut settlements) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for queue in 0..broker::JOB_QUEUES {
        tasks.spawn(broker::work(broker.worker_channel().await?, queue));
    }
    tasks.spawn(settle(
        broker.settling_channel().await?,
        table.clone(),
        settled,
    ));
    let publisher = broker.publishing_channel().await?;

    let flow = async {
        // Connections, prepared statements and the broker's queue processes are warm after this.
        submit(&table, &publisher, BATCH * 8).await?;
        await_settled(&mut settlements, BATCH * 8).await?;
        let idle = one_at_a_time(&table, &publisher, &mut settlements, idle_jobs).await?;
        let cpu = Cpu::of_machine()?;
        let own_cpu = Cpu::of_process(std::process::id())?;
        let start = Instant::now();
        futures::try_join!(
            submit(&table, &publisher, jobs),
            await_settled(&mut settlements, jobs)
        )?;
        anyhow::Ok(LimitFigures {
            end_to_end: per_second(jobs, start.elapsed()),
            idle,
            machine_cpu_us: (Cpu::of_machine()? - cpu).micros_each(jobs),
            client_cpu_us: (Cpu::of_process(std::process::id())? - own_cpu).micros_each(jobs),
        })
    };
    let figures = tokio::select! {
        figures = flow => figures?,
        Some(ended) = tasks.join_next() => {
            ended??;
            anyhow::bail!("the broker ended a consumer");
        }
    };
    let settled = table.settled().await?;
    let expected = jobs + idle_jobs + BATCH * 8;
    ensure!(
        settled == expected,
        "{settled} of {expected} jobs have an answer in the table"
    );
    Ok(figures)
}

/// Inserts `jobs` jobs and publishes each batch once it is committed.
async fn submit(table: &Table, publisher: &Channel, jobs: usize) -> Result<()> {
    let batches = (0..jobs).step_by(BATCH).map(|first| {
        let ids: Vec<Uuid> = (first..jobs.min(first + BATCH))
            .map(|_| Uuid::now_v7())
            .collect();
        submit_batch(table, publisher, first, ids)
    });
    stream::iter(batches)
        .buffer_unordered(BATCHES_IN_FLIGHT)
        .try_collect()
        .await
}

async fn submit_batch(
    table: &Table,
    publisher: &Channel,
    first: usize,
    ids: Vec<Uuid>,
) -> Result<()> {
    let payloads: Vec<String> = (first..first + ids.len()).map(prompt).collect();
    let messages: Vec<_> = ids
        .iter()
        .zip(&payloads)
        .enumerate()
        .map(|(n, (id, payload))| {
            (
                broker::job_queue(n),
                broker::message(*id, payload.as_bytes()),
            )
        })
        .collect();
    table.insert(ids, payloads).await?;
    broker::publish_all(publisher, messages).await
}

/// Stores the answers that come and says how many it has stored.
async fn settle(
    channel: Channel,
    table: Table,
    settled: mpsc::UnboundedSender<usize>,
) -> Result<()> {
    let replies = broker::consume(&channel, broker::REPLY_QUEUE).await?;
    let mut updates = replies
        .ready_chunks(BATCH)
        .map(|chunk| async {
            let deliveries = chunk.into_iter().collect::<lapin::Result<Vec<_>>>()?;
            let answers = deliveries
                .iter()
                .map(|delivery| broker::parse(&delivery.data))
                .collect::<Result<Vec<(Uuid, Bytes)>>>()?;
            table.settle(answers).await?;
            anyhow::Ok(deliveries)
        })
        .buffered(UPDATES_IN_FLIGHT);
    while let Some(deliveries) = updates.next().await {
        let deliveries = deliveries?;
        // The receiver is gone only when the measurement is over.
        let _ = settled.send(deliveries.len());
        broker::ack_all(&deliveries).await?;
    }
    Ok(())
}

async fn await_settled(
    settlements: &mut mpsc::UnboundedReceiver<usize>,
    mut jobs: usize,
) -> Result<()> {
    while jobs > 0 {
        let settled = settlements
            .recv()
            .await
            .context("nothing settles answers any more")?;
        jobs = jobs
            .checked_sub(settled)
            .context("more answers than jobs")?;
    }
    Ok(())
}

async fn one_at_a_time(
    table: &Table,
    publisher: &Channel,
    settlements: &mut mpsc::UnboundedReceiver<usize>,
    jobs: usize,
) -> Result<Latency> {
    let mut samples = Vec::with_capacity(jobs);
    for number in 0..jobs {
        let start = Instant::now();
        let settled = async {
            await_settled(settlements, 1).await?;
            anyhow::Ok(start.elapsed())
        };
        let (latency, ()) = futures::try_join!(
            settled,
            submit_batch(table, publisher, number, vec![Uuid::now_v7()])
        )?;
        samples.push(latency);
    }
    Latency::of(samples)
}
