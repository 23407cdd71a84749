//! Accepted means kept: whatever process is killed at any moment and started again, every job
//! that got a receipt reaches exactly one end, and no limit is exceeded on the way.

mod load;
mod verdict;
mod webhooks;

use std::{sync::Arc, time::Duration};

use self::{
    load::{Chance, Load},
    verdict::judge,
};
use crate::{
    harness::{Cluster, Mode, Service, bounded_by, eventually, rest},
    stub::{Play, Stub},
};

/// Jobs that may run more than once, and besides, jobs that must not.
const JOBS: usize = 5_000;
const ONCE: usize = 250;

/// How long a whole test may take.
const LIMIT: Duration = Duration::from_secs(540);

/// What each account may run at once.
const LIMITS: [(&str, usize); 3] = [("left", 6), ("right", 3), ("made-up", 16)];

fn config(stub: &Stub) -> String {
    let [
        (left, left_limit),
        (right, right_limit),
        (made_up, made_up_limit),
    ] = LIMITS;
    let http = |name: &str, limit: usize| {
        format!(
            "[accounts.{name}]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk-{name}\"\n\
             default_model = \"m\"\nmax_concurrency = {limit}\n",
            stub.url()
        )
    };
    let simulated = format!(
        "[accounts.{made_up}]\nprovider = \"simulated\"\nlatency = \"10ms\"\n\
         latency_jitter = \"40ms\"\nmax_concurrency = {made_up_limit}\n"
    );
    http(left, left_limit) + &http(right, right_limit) + &simulated
}

async fn provider() -> Stub {
    Stub::start(|ask| Play::Slowly(15, format!("echo: {}", ask.prompt))).await
}

/// What is killed.
#[derive(Clone, Debug)]
enum Victim {
    Process(String),
    Service(Service),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_any_process_of_a_cluster_is_killed() {
    bounded_by(LIMIT, async {
        let mut chance = Chance::from_environment();
        let stub = provider().await;
        let mut cluster = Cluster::distributed(&config(&stub), 2, 3, &Service::ALL).await;
        let mut victims: Vec<Victim> = Vec::new();
        for round in 1..=2 {
            victims.extend(Service::ALL.map(Victim::Service));
            victims.push(Victim::Process(format!("api-{round}")));
            victims.push(Victim::Process(format!("worker-{round}")));
        }
        chance.shuffle(&mut victims);
        Box::pin(survive(&mut cluster, &stub, &victims, &mut chance)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_one_process_is_killed_again_and_again() {
    bounded_by(LIMIT, async {
        let mut chance = Chance::from_environment();
        let stub = provider().await;
        let mut cluster = Cluster::embedded(&config(&stub)).await;
        let victims = vec![Victim::Process("up".into()); 10];
        Box::pin(survive(&mut cluster, &stub, &victims, &mut chance)).await;
    })
    .await;
}

/// Submits jobs while one victim after the other is killed, and judges what became of them.
async fn survive(cluster: &mut Cluster, stub: &Stub, victims: &[Victim], chance: &mut Chance) {
    let load = Arc::new(Load::plan(JOBS, ONCE, chance));
    let submitting = load.begin(cluster.apis());
    let share = load.total().div_ceil(victims.len());
    for (round, victim) in victims.iter().enumerate() {
        eprintln!("round {round}: {victim:?}, {} accepted", load.accepted());
        load.release(share);
        // In the middle of it, and at no moment in particular.
        let some = round * share + share / 4;
        eventually("jobs are accepted", async || {
            (load.accepted() >= some).then_some(())
        })
        .await;
        rest(chance.up_to(400)).await;
        match victim {
            Victim::Process(name) => {
                cluster.kill9(name);
                rest(chance.up_to(1500)).await;
                cluster.start_again(name);
            }
            Victim::Service(service) => {
                cluster.kill9_service(*service).await;
                rest(chance.up_to(1500)).await;
                cluster.start_service(*service).await;
            }
        }
        if cluster.mode == Mode::Embedded {
            cluster.until_up().await;
        }
    }
    load.release(share);
    eventually("every submit has its receipt", async || {
        (load.accepted() == load.total()).then_some(())
    })
    .await;
    submitting.join_all().await;
    cluster.until_up().await;
    judge(cluster, &load, stub).await;
}
