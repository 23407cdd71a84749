//! One round of one mode, from a Sluice with nothing in it to its figures.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    deployment::{Deployment, Mode, Plan},
    load,
    process::Process,
    stats::{Latency, per_second},
    usage::{Cpu, Memory},
    verify,
};

/// Connections of the single submits: the bar is for 64.
const SINGLE_CONNECTIONS: usize = 64;
/// Connections of the array submits.
pub(crate) const ARRAY_CONNECTIONS: usize = 4;
/// Jobs before anything is measured: caches, statements and connections are warm then.
const WARM_UP: usize = 2_000;

/// How much load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Jobs of the end-to-end load and of the array submits.
    pub(crate) jobs: usize,
    /// Jobs of the single submits.
    pub(crate) singles: usize,
    /// Jobs that run one at a time.
    pub(crate) idle_jobs: usize,
    /// How long one measurement may take.
    pub(crate) deadline: Duration,
}

/// What one round found of Sluice in one mode.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModeFigures {
    /// What is accepted while nothing runs.
    pub(crate) accepted: Accepted,
    /// Jobs a second from the first submit to the last terminal state.
    pub(crate) end_to_end: f64,
    /// From submit to result, one job at a time.
    pub(crate) idle: Latency,
    /// What the end-to-end load cost.
    pub(crate) cost: Cost,
}

/// Jobs accepted a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Accepted {
    /// One in a request, over 64 connections.
    pub(crate) single: f64,
    /// 100 in a request.
    pub(crate) array: f64,
}

/// What a load cost, by who paid it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    /// The process that serves HTTP; embedded, it is the only one.
    pub(crate) server: ProcessCost,
    /// The worker.
    pub(crate) worker: Option<ProcessCost>,
    /// CPU of the load generator for one job, in microseconds.
    pub(crate) load_cpu_us: f64,
    /// CPU of the whole machine for one job, in microseconds.
    pub(crate) machine_cpu_us: f64,
}

/// What a load cost one process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ProcessCost {
    /// Memory after it.
    pub(crate) memory: Memory,
    /// CPU for one job, in microseconds.
    pub(crate) cpu_us: f64,
}

/// Measures one mode once.
pub(crate) async fn mode(mode: Mode, load: Load, plan: &Plan<'_>) -> Result<ModeFigures> {
    // A Sluice for itself, since what it has accepted would be in the way of the rest.
    let mut sluice = Deployment::fresh(mode, plan).await?;
    let accepted = bounded(load.deadline, accept(load, &sluice)).await;
    let accepted = sluice.explain(accepted)?;
    sluice.stop().await;

    let mut sluice = Deployment::fresh(mode, plan).await?;
    if mode == Mode::Distributed {
        sluice.start_worker(plan)?;
    }
    let executed = execute(load, accepted, &sluice).await;
    let figures = sluice.explain(executed)?;
    sluice.stop().await;
    Ok(figures)
}

/// No job runs meanwhile: all are for an hour later, and distributed there is no worker. So both
/// modes do the same, which is to keep a job durably.
async fn accept(load: Load, sluice: &Deployment) -> Result<Accepted> {
    let target = sluice.target();
    load::submit_arrays(target, WARM_UP, ARRAY_CONNECTIONS).await?;
    let single = load::submit_singles(target, load.singles, SINGLE_CONNECTIONS).await?;
    let array = load::submit_arrays(target, load.jobs, ARRAY_CONNECTIONS).await?;
    Ok(Accepted { single, array })
}

async fn execute(load: Load, accepted: Accepted, sluice: &Deployment) -> Result<ModeFigures> {
    let target = sluice.target();
    bounded(
        load.deadline,
        load::run_all(target, WARM_UP, ARRAY_CONNECTIONS),
    )
    .await?;
    let idle = bounded(load.deadline, load::one_at_a_time(target, load.idle_jobs)).await?;
    let before = Meters::read(sluice)?;
    let run = load::run_all(target, load.jobs, ARRAY_CONNECTIONS);
    let (elapsed, ids) = bounded(load.deadline, run).await?;
    let cost = Meters::read(sluice)?.cost_since(&before, sluice, load.jobs)?;
    bounded(load.deadline, verify::all_succeeded(target, &ids)).await?;
    Ok(ModeFigures {
        accepted,
        end_to_end: per_second(load.jobs, elapsed),
        idle,
        cost,
    })
}

/// A load that hangs is a failure, not a long benchmark.
pub(crate) async fn bounded<T>(
    deadline: Duration,
    measurement: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(deadline, measurement)
        .await
        .with_context(|| format!("not done after {deadline:?}"))?
}

/// What everyone has used so far.
struct Meters {
    server: Cpu,
    worker: Option<Cpu>,
    load: Cpu,
    machine: Cpu,
}

impl Meters {
    fn read(sluice: &Deployment) -> Result<Self> {
        Ok(Self {
            server: sluice.server().cpu()?,
            worker: sluice.worker().map(Process::cpu).transpose()?,
            load: Cpu::of_process(std::process::id())?,
            machine: Cpu::of_machine()?,
        })
    }

    fn cost_since(&self, before: &Self, sluice: &Deployment, jobs: usize) -> Result<Cost> {
        let worker = match (sluice.worker(), self.worker, before.worker) {
            (Some(process), Some(now), Some(before)) => Some(ProcessCost {
                memory: process.memory()?,
                cpu_us: (now - before).micros_each(jobs),
            }),
            _ => None,
        };
        Ok(Cost {
            server: ProcessCost {
                memory: sluice.server().memory()?,
                cpu_us: (self.server - before.server).micros_each(jobs),
            },
            worker,
            load_cpu_us: (self.load - before.load).micros_each(jobs),
            machine_cpu_us: (self.machine - before.machine).micros_each(jobs),
        })
    }
}
