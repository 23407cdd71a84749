//! What Redis tells by itself, over one subscribed connection for the whole process: wake-ups, and
//! that there is more of a stream that somebody here waits for.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_redis::redis::{Client, Msg, RedisError, aio::PubSubSink};
use futures::StreamExt;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinSet,
    time,
};

use super::{COMMAND_TIMEOUT, CONNECT_TIMEOUT, Wake};
use crate::{
    clock,
    domain::JobId,
    live::waiting::{Listeners, Reader, Waiting},
};

/// The channel of the wake-ups.
pub(super) const WAKES: &str = "sluice:wake";

const STREAM_PREFIX: &str = "sluice:stream:";

/// How often the connection is tried, and jobs that nobody reads any more are forgotten.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);

/// Streams subscribed to with one command.
const MOST_AT_ONCE: usize = 1000;

/// The longest wait before the next try to connect; half of it at least.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The key of a job's stream, and the channel that tells of it.
pub(super) fn stream_key(job: JobId) -> String {
    format!("{STREAM_PREFIX}{job}")
}

/// The news. A process that never asks for any makes no connection.
pub(super) struct News {
    client: Client,
    shared: Arc<Shared>,
    listening: OnceLock<Listening>,
}

/// The task that has the connection; dropped with the news.
struct Listening {
    subscribe: UnboundedSender<JobId>,
    _task: JoinSet<()>,
}

struct Shared {
    come: AtomicBool,
    listeners: Listeners,
    waiting: Waiting,
}

impl News {
    pub(super) fn new(client: Client) -> Self {
        let shared = Shared {
            come: AtomicBool::new(false),
            listeners: Listeners::default(),
            waiting: Waiting::lingering(),
        };
        Self {
            client,
            shared: Arc::new(shared),
            listening: OnceLock::new(),
        }
    }

    pub(super) fn wakes(&self) -> UnboundedReceiver<Wake> {
        self.listening();
        self.shared.listeners.join()
    }

    /// Waits for more of a job's stream. The reader is also woken when the news of it begin, since
    /// what was appended before that went unsaid.
    pub(super) fn read(&self, job: JobId) -> Reader<'_> {
        let listening = self.listening();
        let (reader, new) = self.shared.waiting.read(job);
        if new {
            // The task ends with this value, so it is there.
            let _ = listening.subscribe.send(job);
        }
        reader
    }

    /// Whether news come at present.
    pub(super) fn come(&self) -> bool {
        self.shared.come.load(Ordering::Relaxed)
    }

    fn listening(&self) -> &Listening {
        self.listening.get_or_init(|| {
            let (subscribe, subscriptions) = mpsc::unbounded_channel();
            let (shared, client) = (self.shared.clone(), self.client.clone());
            let mut task = JoinSet::new();
            task.spawn(shared.keep_listening(client, subscriptions));
            Listening {
                subscribe,
                _task: task,
            }
        })
    }
}

impl Shared {
    async fn keep_listening(
        self: Arc<Self>,
        client: Client,
        mut subscriptions: UnboundedReceiver<JobId>,
    ) {
        let mut away = false;
        loop {
            let error = match self.listen(&client, &mut subscriptions, &mut away).await {
                Ok(()) => "the connection was lost".to_owned(),
                Err(error) => error,
            };
            self.come.store(false, Ordering::Relaxed);
            // They look for themselves until there are news again.
            self.waiting.notify_all();
            self.waiting.forget_unread();
            while subscriptions.try_recv().is_ok() {}
            if !std::mem::replace(&mut away, true) {
                tracing::warn!(error, "no news from Redis, trying on");
            }
            time::sleep(RETRY_INTERVAL.mul_f64(1.0 - clock::chance() / 2.0)).await;
        }
    }

    /// Listens until the connection is lost.
    async fn listen(
        &self,
        client: &Client,
        subscriptions: &mut UnboundedReceiver<JobId>,
        away: &mut bool,
    ) -> Result<(), String> {
        let connection = within(CONNECT_TIMEOUT, client.get_async_pubsub()).await?;
        let (mut sink, mut messages) = connection.split();
        let mut channels = vec![WAKES.to_owned()];
        channels.extend(self.waiting.jobs().into_iter().map(stream_key));
        within(COMMAND_TIMEOUT, sink.subscribe(channels)).await?;
        if std::mem::take(away) {
            tracing::info!("there are news from Redis again");
        }
        self.come.store(true, Ordering::Relaxed);
        self.waiting.notify_all();
        let mut tidy = time::interval(TIDY_INTERVAL);
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.pass_on(&message),
                    None => return Ok(()),
                },
                _ = subscriptions.recv_many(&mut jobs, MOST_AT_ONCE) => {
                    let channels: Vec<_> = jobs.iter().copied().map(stream_key).collect();
                    within(COMMAND_TIMEOUT, sink.subscribe(channels)).await?;
                    jobs.drain(..).for_each(|job| self.waiting.notify(job));
                }
                _ = tidy.tick() => self.tidy(&mut sink).await?,
            }
        }
    }

    fn pass_on(&self, message: &Msg) {
        let channel = message.get_channel_name();
        if let Some(job) = channel.strip_prefix(STREAM_PREFIX) {
            if let Ok(job) = job.parse() {
                self.waiting.notify(job);
            }
        } else if let Ok(wake) = serde_json::from_slice(message.get_payload_bytes()) {
            self.listeners.tell(&wake);
        }
    }

    /// Forgets what nobody reads. The answer to it, or to a ping, says that Redis is still there.
    async fn tidy(&self, sink: &mut PubSubSink) -> Result<(), String> {
        let channels: Vec<_> = self
            .waiting
            .forget_unread()
            .into_iter()
            .map(stream_key)
            .collect();
        if channels.is_empty() {
            within(COMMAND_TIMEOUT, sink.ping::<()>()).await
        } else {
            within(COMMAND_TIMEOUT, sink.unsubscribe(channels)).await
        }
    }
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, String> {
    match time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer for {} ms", limit.as_millis())),
    }
}

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("News").finish_non_exhaustive()
    }
}
