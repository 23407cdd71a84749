//! Where the adapters under test live, and how tests wait: on conditions, never for a time.

use std::{
    env,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sluice_shared::{
    broker::{Broker, Consumer, Delivery, Depth},
    config,
    domain::{AccountId, JobId, Outcome, Request, Span, Time},
    live::Live,
    message::{Dispatch, Reply, Report, VERSION},
};
use tokio::time;
use url::Url;

use crate::proxy::Proxy;

/// How long anything may take. Much more than it takes; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What `future` becomes, if it does.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// Waits until `what` is so, and gives what it then found.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut what: impl FnMut() -> F) -> T {
    soon(async {
        loop {
            if let Some(found) = what().await {
                return found;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

fn setting(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `make test`, which starts the services")
    })
}

/// A broker for one test alone.
pub(crate) struct Site {
    pub(crate) broker: Broker,
    vhost: Option<Vhost>,
}

impl Site {
    #[expect(clippy::unused_async, reason = "as the other")]
    pub(crate) async fn in_process() -> Self {
        Self {
            broker: Broker::in_process(),
            vhost: None,
        }
    }

    pub(crate) async fn rabbit() -> Self {
        let vhost = Vhost::create();
        let broker = connect(vhost.url()).await;
        Self {
            broker,
            vhost: Some(vhost),
        }
    }

    /// The broker as another process sees it.
    pub(crate) async fn elsewhere(&self) -> Broker {
        match &self.vhost {
            Some(vhost) => connect(vhost.url()).await,
            None => self.broker.clone(),
        }
    }

    pub(crate) fn vhost(&self) -> &Vhost {
        self.vhost.as_ref().expect("only RabbitMQ has one")
    }

    /// The broker over a network that can be cut.
    pub(crate) async fn over_proxy(&self) -> (Broker, Proxy) {
        let url = Url::parse(self.vhost().url()).unwrap();
        let proxy = Proxy::start(&url).await;
        (connect(proxy.url()).await, proxy)
    }

    pub(crate) async fn declared(&self) -> AccountId {
        let account = account();
        self.broker.declare(&account).await.unwrap();
        account
    }
}

pub(crate) async fn connect(url: &str) -> Broker {
    try_connect(url).await.unwrap()
}

pub(crate) async fn try_connect(url: &str) -> Result<Broker, sluice_shared::broker::BrokerError> {
    let config = config::Rabbitmq {
        url: url.into(),
        management_url: "".into(),
    };
    soon(Broker::connect(&config, "contract")).await
}

/// A virtual host of RabbitMQ: queues of the same names as in every other test, all its own.
pub(crate) struct Vhost {
    name: String,
    url: String,
}

impl Vhost {
    fn create() -> Self {
        let name = format!("contract-{}", JobId::generate());
        let mut url = Url::parse(&setting("SLUICE_RABBITMQ__URL")).unwrap();
        url.set_path(&name);
        let vhost = Self {
            name,
            url: url.into(),
        };
        let user = Url::parse(vhost.url()).unwrap().username().to_owned();
        manage("PUT", &format!("vhosts/{}", vhost.name), "{}");
        let rights = r#"{"configure":".*","write":".*","read":".*"}"#;
        manage("PUT", &format!("permissions/{}/{user}", vhost.name), rights);
        vhost
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A channel that is not Sluice's.
    pub(crate) async fn channel(&self) -> lapin::Channel {
        let connection = lapin::Connection::connect(self.url(), Default::default())
            .await
            .unwrap();
        connection.create_channel().await.unwrap()
    }

    pub(crate) async fn publish(&self, exchange: &str, key: &str, body: &[u8]) {
        let channel = self.channel().await;
        channel.confirm_select(Default::default()).await.unwrap();
        let properties = lapin::BasicProperties::default().with_delivery_mode(2);
        let confirm = channel
            .basic_publish(
                exchange.into(),
                key.into(),
                Default::default(),
                body,
                properties,
            )
            .await
            .unwrap();
        assert!(confirm.await.unwrap().is_ack());
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        manage("DELETE", &format!("vhosts/{}", self.name), "");
    }
}

/// One request to RabbitMQ's management API. Blocking, so that a test that fails tidies up too.
fn manage(method: &str, path: &str, body: &str) {
    let url = Url::parse(&setting("SLUICE_RABBITMQ__MANAGEMENT_URL")).unwrap();
    let broker = Url::parse(&setting("SLUICE_RABBITMQ__URL")).unwrap();
    let credentials = BASE64_STANDARD.encode(format!(
        "{}:{}",
        broker.username(),
        broker.password().unwrap_or_default()
    ));
    let (host, port) = (
        url.host_str().unwrap(),
        url.port_or_known_default().unwrap(),
    );
    let mut stream = TcpStream::connect((host, port)).unwrap();
    write!(
        stream,
        "{method} /api/{path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Basic {credentials}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default();
    assert!(status.starts_with('2'), "{method} {path}: {answer}");
}

/// An account that no other test knows.
pub(crate) fn account() -> AccountId {
    format!("a-{}", JobId::generate()).parse().unwrap()
}

pub(crate) fn attempt(account: &AccountId) -> Dispatch {
    Dispatch {
        v: VERSION,
        job: JobId::generate(),
        attempt: 1,
        account: account.clone(),
        delivery: Default::default(),
        timeout: Span::seconds(60),
        session: None,
        traceparent: None,
        request: Request::prompt("why is the sky blue?"),
    }
}

pub(crate) fn attempts(account: &AccountId, count: usize) -> Vec<Dispatch> {
    (0..count).map(|_| attempt(account)).collect()
}

pub(crate) fn reply(job: JobId) -> Reply {
    Reply {
        learned: Box::default(),
        job,
        attempt: 1,
        account: "any".parse().unwrap(),
        worker: "worker".into(),
        report: Report::Finished {
            started_at: Some(Time::from_millis(1)),
            finished_at: Time::from_millis(2),
            outcome: Outcome::failed("test", "it was only a test"),
        },
    }
}

pub(crate) async fn dispatch(broker: &Broker, attempts: &[Dispatch]) {
    for result in soon(broker.dispatch(attempts)).await {
        result.unwrap();
    }
}

/// The next delivery.
pub(crate) async fn next<T>(consumer: &mut Consumer<T>) -> T {
    soon(consumer.next()).await.expect("the consumer has ended")
}

/// The next `count` deliveries.
pub(crate) async fn take<T>(consumer: &mut Consumer<T>, count: usize) -> Vec<T> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let most = count - taken.len();
        assert!(
            soon(consumer.next_many(&mut taken, most)).await > 0,
            "the consumer has ended"
        );
    }
    taken
}

pub(crate) fn jobs(deliveries: &[Delivery]) -> Vec<JobId> {
    deliveries
        .iter()
        .map(|delivery| delivery.dispatch.job)
        .collect()
}

pub(crate) fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}

/// Waits until so many messages of the account's are held by nobody.
pub(crate) async fn ready(broker: &Broker, account: &AccountId, count: u64) {
    eventually(|| async { (broker.depth(account).await.unwrap().ready == count).then_some(()) })
        .await;
}

/// Nobody consumes the account's queue, and nothing is in it. Known by what comes next: what is
/// dispatched now.
pub(crate) async fn nothing_left(broker: &Broker, account: &AccountId) {
    eventually(|| async {
        let depth = broker.depth(account).await.unwrap();
        (depth
            == Depth {
                ready: 0,
                consumers: 0,
            })
        .then_some(())
    })
    .await;
    let last = attempt(account);
    dispatch(broker, std::slice::from_ref(&last)).await;
    let mut consumer = broker.consume(account, 10).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(
        (delivery.dispatch.job, delivery.redelivered),
        (last.job, false)
    );
    consumer.acker().ack(&[delivery.tag]).await;
}

/// A live plane under test.
pub(crate) fn live_memory() -> Live {
    Live::memory()
}

pub(crate) fn live_redis() -> Live {
    live_at(&redis_url())
}

pub(crate) fn live_at(url: &str) -> Live {
    Live::connect(&config::Redis { url: url.into() }).unwrap()
}

pub(crate) fn redis_url() -> String {
    setting("SLUICE_REDIS__URL")
}
