//! Services that go away and come back, one at a time.

use std::time::{Duration, Instant};

use reqwest::Method;
use sluice_shared::{
    api::{Health, HealthStatus, NewJob, Receipt},
    broker::Broker,
    config,
    domain::{AccountId, Delivery, JobId, Request, Span, State},
    message::{Dispatch, Reply, Report, VERSION},
};

use crate::{
    harness::{Addresses, Cluster, PrivateSet, Service, bounded_by, eventually, prompt, rest},
    stub::{Play, Stub},
};

const LIMIT: Duration = Duration::from_secs(240);

const CONFIG: &str = r#"
[accounts.quick]
provider = "simulated"
tags = ["quick"]
[accounts.slow]
provider = "simulated"
latency = "3s"
tags = ["slow"]
max_concurrency = 100
"#;

fn tagged(tag: &str) -> NewJob {
    NewJob {
        tags: vec![tag.into()],
        ..prompt(format!("a {tag} one"))
    }
}

async fn health(cluster: &Cluster, index: usize) -> Health {
    let answer = cluster.apis()[index].get("/health").await;
    answer.is(answer.status)
}

/// Each API says that this plane is down, or up again.
async fn every_api_sees(cluster: &Cluster, plane: &str, up: bool) {
    for index in 0..cluster.apis().len() {
        eventually(
            &format!("API {index} sees that {plane} is up: {up}"),
            async || (health(cluster, index).await.planes[plane].up == up).then_some(()),
        )
        .await;
    }
}

#[tokio::test]
async fn while_postgres_is_down_submits_are_refused_and_what_runs_is_not_lost() {
    bounded_by(LIMIT, async {
        let cluster = Cluster::distributed(CONFIG, 2, 3, &[Service::Postgres]).await;
        let ids = cluster.submit_many(&vec![tagged("slow"); 30]).await;
        for id in &ids {
            cluster
                .until(*id, "runs", |job| job.state == State::Running)
                .await;
        }
        cluster.kill9_service(Service::Postgres).await;
        every_api_sees(&cluster, "truth", false).await;
        for (index, api) in cluster.apis().iter().enumerate() {
            assert_eq!(health(&cluster, index).await.status, HealthStatus::Down);
            let ready = api.get("/health/ready").await;
            assert_eq!(ready.status, 503);
            assert!(
                ready.body.contains("truth") || ready.body.contains("postgres"),
                "{ready:?}"
            );
            assert_eq!(api.get("/health/live").await.status, 200);
            for answer in [
                api.post("/api/jobs", &tagged("quick")).await,
                api.get("/api/jobs").await,
                api.get(&format!("/api/jobs/{}", ids[0])).await,
                api.cancel(ids[0]).await,
            ] {
                let retry_after = answer.header("retry-after").map(str::parse::<u32>);
                assert!(matches!(retry_after, Some(Ok(1..=60))), "{answer:?}");
                answer.refused(503, "truth_unavailable");
            }
        }
        // All are done at their workers before the database is back.
        rest(Duration::from_secs(5)).await;
        cluster.start_service(Service::Postgres).await;
        every_api_sees(&cluster, "truth", true).await;
        for job in cluster.wait_all(&ids).await {
            assert_eq!((job.state, job.attempt), (State::Succeeded, 1), "{job:?}");
        }
        assert_eq!(cluster.run(&tagged("quick")).await.state, State::Succeeded);
        assert_eq!(cluster.api().account("slow").await.in_flight, 0);
    })
    .await;
}

#[tokio::test]
async fn while_rabbitmq_is_down_jobs_are_accepted_and_run_when_it_is_back() {
    bounded_by(LIMIT, async {
        let cluster = Cluster::distributed(CONFIG, 2, 3, &[Service::RabbitMq]).await;
        let running = cluster.submit_many(&vec![tagged("slow"); 20]).await;
        for id in &running {
            cluster
                .until(*id, "is on its way", |job| job.state.is_in_flight())
                .await;
        }
        cluster.kill9_service(Service::RabbitMq).await;
        every_api_sees(&cluster, "work", false).await;
        let mut ids: Vec<JobId> = Vec::new();
        for (index, api) in cluster.apis().iter().enumerate() {
            assert_eq!(health(&cluster, index).await.status, HealthStatus::Degraded);
            let receipt: Receipt = api.post("/api/jobs", &tagged("quick")).await.is(202);
            ids.push(receipt.id);
            ids.extend(
                api.submit_many(&vec![tagged("slow"); 10])
                    .await
                    .iter()
                    .map(|job| job.id),
            );
        }
        for id in &ids {
            assert_eq!(cluster.job(*id).await.state, State::Queued);
        }
        cluster.start_service(Service::RabbitMq).await;
        every_api_sees(&cluster, "work", true).await;
        for job in cluster.wait_all(&[running, ids].concat()).await {
            assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
        }
        for account in cluster.api().accounts().await {
            assert_eq!(account.in_flight, 0, "{account:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn while_redis_is_down_everything_but_live_streams_works() {
    bounded_by(LIMIT, async {
        let mut cluster = Cluster::distributed(CONFIG, 2, 3, &[]).await;
        let running = cluster.submit_many(&vec![tagged("slow"); 20]).await;
        cluster.kill9_service(Service::Redis).await;
        every_api_sees(&cluster, "live", false).await;
        for (index, api) in cluster.apis().iter().enumerate() {
            assert_eq!(health(&cluster, index).await.status, HealthStatus::Degraded);
            assert_eq!(api.get("/health/ready").await.status, 200);
            let accounts = api.send(api.request(Method::GET, "/api/accounts")).await;
            assert_eq!(accounts.status, 200);
        }
        for _ in 0..10 {
            assert_eq!(cluster.run(&tagged("quick")).await.state, State::Succeeded);
        }
        let stopped = cluster.submit(&tagged("slow")).await;
        cluster
            .until(stopped, "is on its way", |job| job.state.is_in_flight())
            .await;
        cluster.api().cancel(stopped).await;
        assert_eq!(cluster.wait(stopped).await.state, State::Cancelled);
        // A process that starts while it is down works as well.
        cluster.kill9("worker-1");
        cluster.start_again("worker-1");
        cluster.kill9("api-1");
        cluster.start_again("api-1");
        eventually("the restarted API serves", async || {
            let api = &cluster.apis()[0];
            let ready = api
                .try_send(api.request(Method::GET, "/health/ready"))
                .await;
            ready.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
        let ids = cluster.submit_many(&vec![tagged("quick"); 50]).await;
        for job in cluster.wait_all(&[ids, running].concat()).await {
            assert_eq!(job.state, State::Succeeded, "{job:?}");
        }
        cluster.start_service(Service::Redis).await;
        every_api_sees(&cluster, "live", true).await;
        assert_eq!(cluster.run(&tagged("quick")).await.state, State::Succeeded);
    })
    .await;
}

/// A broker that comes back delivers again what it had delivered, and to anyone. The workers that
/// have it in hand go on, so that whoever gets it must not make it run a second time beside.
#[tokio::test]
async fn what_runs_while_rabbitmq_restarts_does_not_run_twice_at_once() {
    bounded_by(LIMIT, async {
        let stub = Stub::start(|ask| Play::Slowly(40_000, format!("echo: {}", ask.prompt))).await;
        let config = format!(
            "[accounts.long]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk-long\"\n\
             default_model = \"m\"\nmax_concurrency = 6\n",
            stub.url()
        );
        let cluster = Cluster::distributed(&config, 2, 3, &[Service::RabbitMq]).await;
        let jobs: Vec<NewJob> = (0..6)
            .map(|number| prompt(format!("job {number}")))
            .collect();
        let ids = cluster.submit_many(&jobs).await;
        eventually("all run", async || {
            (stub.count(|_| true) == 6).then_some(())
        })
        .await;
        cluster.kill9_service(Service::RabbitMq).await;
        cluster.start_service(Service::RabbitMq).await;
        for job in cluster.wait_all(&ids).await {
            assert_eq!(job.state, State::Succeeded, "{job:?}");
        }
        assert_eq!((stub.most_at_once("sk-long"), stub.count(|_| true)), (6, 6));
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_holds_nothing_up() {
    bounded_by(LIMIT, async {
        let cluster = Cluster::distributed(CONFIG, 2, 3, &[]).await;
        cluster.freeze_service(Service::Redis);
        for round in 0..3 {
            // Once before anyone has noticed, and then when all have.
            let before = Instant::now();
            for _ in 0..5 {
                assert_eq!(cluster.run(&tagged("quick")).await.state, State::Succeeded);
            }
            let took = before.elapsed();
            assert!(took < Duration::from_secs(15), "round {round}: {took:?}");
            every_api_sees(&cluster, "live", false).await;
        }
        cluster.thaw_service(Service::Redis);
        every_api_sees(&cluster, "live", true).await;
        assert_eq!(cluster.run(&tagged("quick")).await.state, State::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_rabbitmq_that_hangs_keeps_no_job_from_being_accepted() {
    bounded_by(LIMIT, async {
        let cluster = Cluster::distributed(CONFIG, 2, 3, &[Service::RabbitMq]).await;
        cluster.freeze_service(Service::RabbitMq);
        let mut ids: Vec<JobId> = Vec::new();
        for _ in 0..6 {
            let before = Instant::now();
            ids.extend(cluster.submit_many(&vec![tagged("quick"); 20]).await);
            let took = before.elapsed();
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        let delay = Some("1h".parse().unwrap());
        let later = NewJob {
            delay,
            ..tagged("quick")
        };
        let waiting = cluster.submit(&later).await;
        cluster.api().cancel(waiting).await;
        assert_eq!(cluster.wait(waiting).await.state, State::Cancelled);
        cluster.thaw_service(Service::RabbitMq);
        for job in cluster.wait_all(&ids).await {
            assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
        }
    })
    .await;
}

/// A quorum queue whose broker is killed in its first half second can come back without a leader,
/// for good: nothing can be published to it or consumed from it (seen with RabbitMQ 3.10.8, which
/// notes that late which queues it has begun).
#[tokio::test]
async fn a_queue_that_comes_back_without_a_leader_is_made_anew() {
    bounded_by(LIMIT, async {
        let set = PrivateSet::start(&[Service::RabbitMq]).await;
        let url = set.addresses(&Addresses::shared()).await.rabbitmq;
        let config = config::Rabbitmq {
            url: url.as_str().into(),
            management_url: "".into(),
        };
        let broker = Broker::connect(&config, "test").await.unwrap();
        let account: AccountId = "a".parse().unwrap();
        broker.declare(&account).await.unwrap();
        set.kill9(Service::RabbitMq).await;
        set.start_again(Service::RabbitMq).await;
        let mut jobs = broker.consume(&account, 5).await.unwrap();
        let mut replies = broker.replies(5).await.unwrap();
        let dispatch = Dispatch {
            v: VERSION,
            job: JobId::generate(),
            attempt: 1,
            account: account.clone(),
            delivery: Delivery::AtLeastOnce,
            timeout: Span::from_millis(1000),
            session: None,
            traceparent: None,
            request: Request::prompt("hello"),
        };
        let reply = Reply {
            job: dispatch.job,
            attempt: 1,
            account,
            worker: "w".into(),
            learned: Box::default(),
            report: Report::Redelivered,
        };
        let attempts = [dispatch];
        eventually("the queue has a consumer", async || {
            let depth = broker.depth(&attempts[0].account).await;
            depth.is_ok_and(|depth| depth.consumers == 1).then_some(())
        })
        .await;
        eventually("the queue takes a job", async || {
            broker.dispatch(&attempts).await.remove(0).ok()
        })
        .await;
        assert_eq!(jobs.next().await.unwrap().dispatch.job, reply.job);
        eventually("the reply queue takes a reply", async || {
            broker.reply(std::slice::from_ref(&reply)).await.ok()
        })
        .await;
        assert_eq!(replies.next().await.unwrap().replies, [reply]);
        broker.close().await;
    })
    .await;
}
