//! A worker in a test: on the in-process broker and the live plane in memory, which are products
//! and not mocks.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use sluice_shared::{
    broker::{Broker, Consumer, ReplyDelivery},
    config::{self, Config},
    domain::{AccountId, Delivery, JobId, Outcome, Request, Span},
    live::{Live, Presence},
    message::{Dispatch, Reply, Report, VERSION},
    seal::MasterKey,
};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Worker, WorkerError, account::Account, provider::Provider};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The account of every test.
pub(crate) const ACCOUNT: &str = "main";

/// A worker with what it talks to.
pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) live: Live,
    pub(crate) shutdown: CancellationToken,
    replies: Consumer<ReplyDelivery>,
    arrived: VecDeque<Reply>,
    worker: JoinSet<Result<(), WorkerError>>,
}

impl Rig {
    /// Starts a worker with an account `main` that is simulated with these `settings`, and with
    /// this `[worker]` section.
    pub(crate) async fn start(settings: &str, worker: &str) -> Self {
        let live = Live::memory();
        Self::start_on(Broker::in_process(), live, settings, worker).await
    }

    pub(crate) async fn start_on(broker: Broker, live: Live, settings: &str, worker: &str) -> Self {
        Self::start_with(broker, live, settings, worker, None).await
    }

    /// With what opens accounts that are made at run time.
    pub(crate) async fn start_with(
        broker: Broker,
        live: Live,
        settings: &str,
        worker: &str,
        master_key: Option<MasterKey>,
    ) -> Self {
        let replies = broker.replies(64).await.unwrap();
        let config = configured(settings, worker);
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        let parts = (broker.clone(), live.clone(), shutdown.clone());
        running.spawn(async move {
            let (broker, live, shutdown) = parts;
            let home = Path::new(".");
            Worker {
                config: &config,
                home,
                broker,
                live,
                metrics: None,
                master_key,
            }
            .run(shutdown)
            .await
        });
        let rig = Self {
            broker,
            live,
            shutdown,
            replies,
            arrived: VecDeque::new(),
            worker: running,
        };
        until(async || {
            rig.broker
                .depth(&account_id())
                .await
                .is_ok_and(|d| d.consumers > 0)
        })
        .await;
        rig
    }

    pub(crate) async fn dispatch(&self, dispatch: &Dispatch) {
        self.broker
            .dispatch(std::slice::from_ref(dispatch))
            .await
            .remove(0)
            .unwrap();
    }

    /// The next reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.arrived.pop_front() {
                return reply;
            }
            let delivery = in_time(self.replies.next()).await.unwrap();
            self.replies.acker().ack(&[delivery.tag]).await;
            self.arrived.extend(delivery.replies);
        }
    }

    /// The next reply about `dispatch`; others are passed over.
    pub(crate) async fn reply_to(&mut self, dispatch: &Dispatch) -> Report {
        let found = async {
            loop {
                let reply = self.reply().await;
                if (reply.job, reply.attempt) == (dispatch.job, dispatch.attempt) {
                    return reply.report;
                }
            }
        };
        in_time(found).await
    }

    /// Waits for the first report of `dispatch` that is its last.
    pub(crate) async fn end_of(&mut self, dispatch: &Dispatch) -> Report {
        let ended = async {
            loop {
                match self.reply_to(dispatch).await {
                    Report::Started { .. } | Report::Leased { .. } => {}
                    report => return report,
                }
            }
        };
        in_time(ended).await
    }

    /// What the worker says of itself, once `condition` holds of it.
    pub(crate) async fn presence(&self, condition: impl Fn(&Presence) -> bool) -> Presence {
        let seen = std::cell::RefCell::new(None);
        until(async || {
            let mut there = self.live.workers().await.unwrap().into_iter();
            seen.replace(there.find(|one| condition(one)));
            seen.borrow().is_some()
        })
        .await;
        seen.take().unwrap()
    }

    /// Asks the worker to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) -> Result<(), WorkerError> {
        self.shutdown.cancel();
        in_time(self.worker.join_next()).await.unwrap().unwrap()
    }
}

/// A configuration with the account `main`.
pub(crate) fn configured(settings: &str, worker: &str) -> Config {
    let text = format!(
        "[worker]\nid = \"tester\"\nheartbeat = \"20ms\"\n{worker}\n\
         [accounts.{ACCOUNT}]\nprovider = \"simulated\"\n{settings}\n"
    );
    Config::from_toml(&text).unwrap()
}

pub(crate) fn account_id() -> AccountId {
    ACCOUNT.parse().unwrap()
}

/// The account `main`, without a worker.
pub(crate) fn account(settings: &str) -> Arc<Account> {
    let config = configured(settings, "");
    let id = account_id();
    let config = &config.accounts[&id];
    let provider = Provider::build(&id, config, Path::new("."), 1 << 20).unwrap();
    Arc::new(Account::new(id, config, provider))
}

/// A new job's first attempt.
pub(crate) fn dispatch(delivery: Delivery) -> Dispatch {
    Dispatch {
        v: VERSION,
        job: JobId::generate(),
        attempt: 1,
        account: account_id(),
        delivery,
        timeout: Span::seconds(600),
        session: None,
        traceparent: None,
        request: Request::prompt("what is a sluice"),
    }
}

/// A broker that is not there and never will be.
pub(crate) async fn absent_broker() -> Broker {
    let url = "amqp://127.0.0.1:1/%2f".into();
    let config = config::Rabbitmq {
        url,
        management_url: "".into(),
    };
    Broker::connect(&config, "tester").await.unwrap()
}

/// The outcome of an attempt's last report.
pub(crate) fn outcome(report: &Report) -> &Outcome {
    match report {
        Report::Finished { outcome, .. } => outcome,
        other => panic!("not an end: {other:?}"),
    }
}

/// What must come, and soon.
pub(crate) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it never came")
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    in_time(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
