//! One connection to RabbitMQ that is made again whenever it is lost, however long that takes.
//!
//! lapin can recover a connection by itself, but it gives up after a number of tries, does not
//! reopen a channel that was closed alone, and hides from its user which deliveries are stale. So
//! a task here makes a whole new connection instead, and whoever uses it starts afresh on it.

use std::{
    fmt, io,
    net::Shutdown,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, ErrorKind,
    tcp::TLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{BrokerError, topology};
use crate::clock;

/// How long a TCP connection may take, name look-up and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long RabbitMQ may take to greet us after that.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to answer anything else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// RabbitMQ says that a connection is dead after two of these; it suggests 60 by itself, in which
/// a silent cut would go unnoticed for two minutes.
const HEARTBEAT_SECONDS: u16 = 10;

/// The largest frame. lapin keeps room for 64 of them for each connection, which would be 8 MB
/// with RabbitMQ's own 128 KiB; a larger message goes in several.
const LARGEST_FRAME: u32 = 32 * 1024;

/// How often a connection is looked at, should its end have gone unsaid.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// A connection that comes back. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    closed: CancellationToken,
}

#[derive(Clone)]
enum State {
    /// The first try is not over.
    Connecting,
    Up(Up),
    Down(BrokerError),
    /// The first try was refused, so no more are made.
    Refused(BrokerError),
}

/// The connection as it is now.
#[derive(Clone)]
pub(super) struct Up {
    /// Which connection of the link's life.
    pub(super) epoch: u64,
    pub(super) connection: Arc<Connection>,
    socket: Socket,
    gone: CancellationToken,
}

/// A second handle to the connection's socket. lapin has no way to give up a connection that
/// does not answer: it would wait for it, with a thread and megabytes of buffers, for ever.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<std::net::TcpStream>>>);

/// Where to connect to, and who says so.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    name: String,
}

impl Address {
    /// Reads the URL; the error does not repeat it, since it holds a password.
    pub(super) fn parse(url: &str, name: &str) -> Result<Self, BrokerError> {
        let malformed = || {
            BrokerError::Unavailable(
                "rabbitmq.url is not a URL of the form amqp://user:password@host:5672/vhost".into(),
            )
        };
        let mut uri: AMQPUri = url.parse().map_err(|_| malformed())?;
        // What lapin's parser takes for "no host".
        if let Some(url::Host::Ipv6(host)) = url::Url::parse(url).map_err(|_| malformed())?.host() {
            uri.authority.host = host.to_string();
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(LARGEST_FRAME);
        Ok(Self {
            uri,
            name: name.to_owned(),
        })
    }

    pub(super) fn named(&self, suffix: &str) -> Self {
        Self {
            uri: self.uri.clone(),
            name: format!("{} {suffix}", self.name),
        }
    }
}

impl Link {
    /// A link, and the task that keeps it up until `closed`.
    pub(super) fn new(
        address: Address,
        closed: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, state) = watch::channel(State::Connecting);
        let keep_up = keep_up(address, sender, closed.clone());
        (Self { state, closed }, keep_up)
    }

    /// Waits until the first try is over; an error when it says that no other can succeed.
    pub(super) async fn first_try(&self) -> Result<(), BrokerError> {
        let mut state = self.state.clone();
        match state
            .wait_for(|state| !matches!(state, State::Connecting))
            .await
            .as_deref()
        {
            Ok(State::Refused(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// The connection, if it is there now.
    pub(super) fn now(&self) -> Result<Up, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Unavailable("it was closed".into()));
        }
        match &*self.state.borrow() {
            // It reads nothing at all then, and what is sent waits for as long as that lasts.
            State::Up(up) if up.connection.status().blocked() => Err(BrokerError::Unavailable(
                "RabbitMQ takes no messages: it is short of memory or disk".into(),
            )),
            State::Up(up) if up.connection.status().connected() => Ok(up.clone()),
            State::Up(_) => Err(BrokerError::Unavailable("the connection was lost".into())),
            State::Connecting => Err(BrokerError::Unavailable("it is being connected to".into())),
            State::Down(error) | State::Refused(error) => Err(error.clone()),
        }
    }

    /// The connection as soon as it is there; `None` when there will be none any more.
    pub(super) async fn up(&self) -> Option<Up> {
        let mut state = self.state.clone();
        let up = state.wait_for(|state| match state {
            State::Up(up) => up.connection.status().connected(),
            _ => false,
        });
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            found = up => match found.as_deref() {
                Ok(State::Up(up)) => Some(up.clone()),
                _ => None,
            },
        }
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

impl Up {
    /// Gives the connection up: it does not do what it should. A new one is made.
    pub(super) fn cut(&self) {
        self.socket.cut();
    }

    /// Waits for an answer of RabbitMQ's, but not for ever, and not when it is gone.
    pub(super) async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        tokio::select! {
            biased;
            answer = within_answer_timeout(answer) => answer,
            () = self.gone() => Err(BrokerError::Unavailable("the connection was lost".into())),
        }
    }

    /// Returns when the connection is lost and known to be.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Finds out when the connection is lost.
    async fn lost(&self) {
        let mut events = Box::pin(self.connection.events_listener());
        while self.connection.status().connected() {
            let _ = time::timeout(WATCH_INTERVAL, events.next()).await;
        }
    }
}

impl Socket {
    fn keep(&self, stream: &impl AsFd) -> io::Result<()> {
        let twin = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(twin);
        Ok(())
    }

    fn cut(&self) {
        if let Some(stream) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An error says that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

async fn keep_up(address: Address, state: watch::Sender<State>, closed: CancellationToken) {
    let mut backoff = Backoff::default();
    let mut epoch = 0;
    loop {
        let attempt = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            attempt = connect(&address, epoch) => attempt,
        };
        match attempt {
            Ok(up) => {
                tracing::info!(connection = address.name, "connected to RabbitMQ");
                backoff = Backoff::default();
                epoch += 1;
                state.send_replace(State::Up(up.clone()));
                tokio::select! {
                    biased;
                    () = closed.cancelled() => {
                        let goodbye = up.connection.close(200, "closed".into());
                        let _ = time::timeout(CLOSE_TIMEOUT, goodbye).await;
                        up.cut();
                        up.gone.cancel();
                        return;
                    }
                    () = up.lost() => {}
                }
                tracing::warn!(connection = address.name, "lost RabbitMQ, connecting again");
                state.send_replace(State::Down(BrokerError::Unavailable(
                    "the connection was lost, it is being made again".into(),
                )));
                up.cut();
                up.gone.cancel();
            }
            Err(failure) => {
                let first = matches!(&*state.borrow(), State::Connecting);
                if first && failure.hopeless {
                    state.send_replace(State::Refused(failure.error));
                    return;
                }
                if backoff.tries == 0 {
                    let error = &failure.error;
                    tracing::warn!(connection = address.name, %error, "no RabbitMQ, trying on");
                }
                state.send_replace(State::Down(failure.error));
            }
        }
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            () = time::sleep(backoff.next(clock::chance())) => {}
        }
    }
}

/// Why a connection was not made.
struct Failure {
    error: BrokerError,
    /// The next try would fail for the same reason, until someone changes the configuration.
    hopeless: bool,
}

impl Failure {
    fn unavailable(reason: impl Into<String>) -> Self {
        Self {
            error: BrokerError::Unavailable(reason.into()),
            hopeless: false,
        }
    }

    fn lapin(error: &lapin::Error) -> Self {
        let reason = error.to_string();
        let hopeless = match error.kind() {
            ErrorKind::ProtocolError(error) => match error.get_id() {
                403 => true,
                // It says the same of a vhost that has too many connections.
                530 => reason.contains("not found"),
                _ => false,
            },
            ErrorKind::AuthProviderError(_) => true,
            _ => false,
        };
        Self {
            error: BrokerError::Unavailable(reason),
            hopeless,
        }
    }
}

/// Makes a connection and declares what all accounts share.
async fn connect(address: &Address, epoch: u64) -> Result<Up, Failure> {
    let socket = Socket::default();
    let connected =
        match time::timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT, open(address, &socket)).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::unavailable(
                "it accepts a connection and does not answer",
            )),
        };
    let declared = match connected {
        Ok(connection) => declare(&connection).await.map(|()| connection),
        Err(failure) => Err(failure),
    };
    match declared {
        Ok(connection) => Ok(Up {
            epoch,
            connection: Arc::new(connection),
            socket,
            gone: CancellationToken::new(),
        }),
        Err(failure) => {
            socket.cut();
            Err(failure)
        }
    }
}

async fn open(address: &Address, socket: &Socket) -> Result<Connection, Failure> {
    let properties = ConnectionProperties::default()
        .with_connection_name(address.name.as_str().into())
        .with_client_property("product".into(), "Sluice".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| Failure::lapin(&error))?;
    let socket = socket.clone();
    // lapin's own way to connect, but for the handle that is kept and for the timeout.
    let connecting = Connection::connector(
        address.uri.clone(),
        runtime,
        async move |uri, runtime| {
            let host = uri.authority.host.as_str();
            let connect = async {
                let addresses: Vec<_> = tokio::net::lookup_host((host, uri.authority.port))
                    .await?
                    .collect();
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    socket.keep(plain.get_ref())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => stream.into_tls(host, TLSConfig::default()).await,
                }
            };
            match time::timeout(CONNECT_TIMEOUT, connect).await {
                Ok(stream) => stream.map_err(lapin::Error::from),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        },
        properties,
    );
    connecting.await.map_err(|error| Failure::lapin(&error))
}

async fn declare(connection: &Connection) -> Result<(), Failure> {
    let declared = within_answer_timeout(async {
        let channel = connection
            .create_channel()
            .await
            .map_err(|error| BrokerError::Unavailable(error.to_string()))?;
        topology::declare_shared(&channel).await
    });
    declared.await.map_err(|error| Failure {
        error,
        hopeless: false,
    })
}

async fn within_answer_timeout<T>(
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

/// Growing waits between tries, spread so that a hundred workers do not come back as one.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    /// The next wait; `chance` in `[0, 1)` shortens it by up to a half.
    pub(super) fn next(&mut self, chance: f64) -> Duration {
        let whole = Self::FIRST
            .saturating_mul(1 << self.tries.min(8))
            .min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(1.0 - chance / 2.0)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next(0.0)).collect();
        assert_eq!(waits[0], Backoff::FIRST);
        assert!(waits.is_sorted());
        assert_eq!(waits[39], Backoff::LONGEST);
        assert!(backoff.next(0.999) >= Backoff::LONGEST / 2);
    }

    #[test]
    fn an_address_says_what_people_mean() {
        let address = |url| Address::parse(url, "test").unwrap().uri;
        assert_eq!(address("amqp://host").vhost, "/");
        assert_eq!(address("amqp://host/").vhost, "/");
        assert_eq!(address("amqp://host/%2f").vhost, "/");
        assert_eq!(address("amqp://host/team").vhost, "team");
        assert_eq!(address("amqp://[::1]:5673/team").authority.host, "::1");
        assert_eq!(
            address("amqp://host?heartbeat=30").query.heartbeat,
            Some(30)
        );
    }

    #[test]
    fn a_bad_address_is_not_repeated() {
        for url in [
            "amqp://user:hunter2@:x",
            "hunter2",
            "http://user:hunter2@host",
        ] {
            let error = Address::parse(url, "test").err().unwrap().to_string();
            assert!(
                error.contains("rabbitmq.url") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
