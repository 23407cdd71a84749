//! Webhooks on their way: a loop in each API process claims what is due, sends it, and keeps what
//! came of it. **The promise.** What the truth plane holds arrives at least once: a claim of a
//! process that died runs out, and a delivery is only done with when its outcome is on disk.
//!
//! Deliveries are taken by their targets, each with its own bound, so that a receiver that is slow
//! or away delays its own and nobody else's.

mod event;
mod guard;
mod secret;
mod send;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sluice_shared::{
    clock,
    domain::{JobId, Time},
    seal::MasterKey,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::{
    event::{Letter, body_of},
    guard::{Guard, Names},
    secret::{Secret, fresh, rotate, sealed_for_client, sealed_for_webhook},
    send::Sender,
};
use crate::{
    app::App,
    store::{ClaimedDelivery, EndpointRow, Receiver, SealedSecret, StoreError, Then, Tried},
};

/// How often what is due is looked for without a bell.
const POLL: Duration = Duration::from_secs(1);

/// How long to rest when the database does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// What a claim lasts beyond the longest try: until its outcome is on disk.
const SLACK: Duration = Duration::from_secs(15);

/// How long deliveries that are under way may take when the process is asked to stop. What is not
/// done by then is sent again by another.
const GRACE: Duration = Duration::from_secs(5);

/// How often old deliveries are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// Groups of them forgotten between two passes, at most.
const FORGET_GROUPS: usize = 8;

/// Outcomes kept in one transaction, at most.
const GROUP: usize = 256;

/// The bell of the sender; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// There is something to send, or room to send it: look.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

/// What is under way in this process, by target.
#[derive(Clone, Debug, Default)]
struct UnderWay(Arc<Mutex<HashMap<String, usize>>>);

impl UnderWay {
    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn total(&self) -> usize {
        self.counts().values().sum()
    }

    fn to(&self, target: &str) -> usize {
        self.counts().get(target).copied().unwrap_or(0)
    }

    fn add(&self, target: &str, more: usize) {
        *self.counts().entry(target.to_owned()).or_default() += more;
    }

    fn done(&self, target: &str) {
        let mut counts = self.counts();
        if let Some(count) = counts.get_mut(target) {
            *count -= 1;
            if *count == 0 {
                counts.remove(target);
            }
        }
    }
}

/// What the loop works with.
struct Post {
    app: Arc<App>,
    key: MasterKey,
    sender: Arc<Sender>,
    under_way: UnderWay,
    tasks: TaskTracker,
    outcomes: mpsc::UnboundedSender<Tried>,
}

/// Sends what is due until `shutdown`. Without the master key nothing can be signed: then it is
/// left to other processes, or to this one when it has been started with it.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let Some(key) = app.master_key.clone() else {
        return;
    };
    let sender = match Sender::new(&app.config.webhooks, Names::System) {
        Ok(sender) => Arc::new(sender),
        Err(error) => {
            tracing::error!(%error, "no webhook can be sent");
            return;
        }
    };
    let (outcomes, told) = mpsc::unbounded_channel();
    let post = Post {
        app: app.clone(),
        key,
        sender,
        under_way: UnderWay::default(),
        tasks: TaskTracker::new(),
        outcomes,
    };
    let keeper = TaskTracker::new();
    keeper.spawn(keep(
        app.clone(),
        told,
        post.under_way.clone(),
        shutdown.clone(),
    ));
    let mut forgot = Time::EPOCH;
    loop {
        let rest = match post.pass().await {
            Ok(rest) => rest,
            Err(error) => {
                tracing::debug!(%error, "webhooks wait for the database");
                PAUSE
            }
        };
        let now = clock::now();
        if now.since(forgot) >= FORGET {
            forgot = forget(&app, now).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = app.webhooks.0.notified() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    post.tasks.close();
    drop(tokio::time::timeout(GRACE, post.tasks.wait()).await);
    drop(post);
    keeper.close();
    drop(tokio::time::timeout(GRACE, keeper.wait()).await);
}

async fn forget(app: &App, now: Time) -> Time {
    let before = now - app.config.webhooks.keep.0;
    for _ in 0..FORGET_GROUPS {
        match app.store.forget_deliveries(before).await {
            Ok(true) => {}
            Ok(false) => return now,
            Err(error) => {
                tracing::debug!(%error, "old deliveries could not be forgotten");
                return now;
            }
        }
    }
    // There is more: go on after the next pass.
    Time::EPOCH
}

impl Post {
    /// Claims what is due, as far as there is room, and sends it off. How long to rest.
    async fn pass(&self) -> Result<Duration, StoreError> {
        let settings = &self.app.config.webhooks;
        let mut room = settings
            .max_in_flight
            .saturating_sub(self.under_way.total());
        if room == 0 {
            return Ok(POLL);
        }
        let now = clock::now();
        let mut targets = self.app.store.webhook_targets().await?;
        targets.sort_unstable_by_key(|(_, due)| *due);
        let mut rest = POLL;
        let mut claimed = Vec::new();
        for (target, due) in targets {
            if due > now {
                // In the order of their times: all others are later.
                rest = rest.min(due.since(now));
                break;
            }
            let free = settings
                .max_in_flight_per_target
                .saturating_sub(self.under_way.to(&target))
                .min(room);
            if free == 0 {
                continue;
            }
            let until = now + settings.timeout.0 + SLACK;
            let taken = self
                .app
                .store
                .claim_deliveries(&target, free, now, until)
                .await?;
            self.under_way.add(&target, taken.len());
            room -= taken.len();
            claimed.extend(taken);
            if room == 0 {
                break;
            }
        }
        if !claimed.is_empty() {
            self.send(claimed).await;
        }
        Ok(rest.max(Duration::from_millis(1)))
    }

    async fn send(&self, claimed: Vec<ClaimedDelivery>) {
        let ground = match self.survey(&claimed).await {
            Ok(ground) => ground,
            Err(error) => {
                tracing::debug!(%error, "webhooks could not be made up");
                // They are due again when their claims have run out.
                for delivery in claimed {
                    self.under_way.done(&delivery.target);
                }
                return;
            }
        };
        for delivery in claimed {
            let (sender, outcomes) = (self.sender.clone(), self.outcomes.clone());
            match ground.letter(&self.key, &delivery, clock::now()) {
                Ok(letter) => {
                    self.tasks.spawn(async move {
                        let tried = sender.send(delivery, letter).await;
                        drop(outcomes.send(tried));
                    });
                }
                Err(tried) => drop(outcomes.send(tried.of(delivery, clock::now()))),
            }
        }
    }

    async fn survey(&self, claimed: &[ClaimedDelivery]) -> Result<Ground, StoreError> {
        let store = &self.app.store;
        let endpoints = store.webhooks().await?;
        let mut signers = HashMap::new();
        for delivery in claimed {
            if let Receiver::Own { client, .. } = &delivery.receiver
                && !signers.contains_key(client)
            {
                let secrets = store.webhook_signer(client).await?.unwrap_or_default();
                signers.insert(client.clone(), secrets);
            }
        }
        let ids: Vec<JobId> = claimed.iter().filter_map(|delivery| delivery.job).collect();
        Ok(Ground {
            endpoints: endpoints
                .into_iter()
                .map(|endpoint| (endpoint.id, endpoint))
                .collect(),
            signers,
            jobs: store.ended_jobs(&ids).await?,
        })
    }
}

/// What letters are made up of.
struct Ground {
    endpoints: HashMap<Uuid, EndpointRow>,
    signers: HashMap<String, Vec<SealedSecret>>,
    jobs: HashMap<JobId, sluice_shared::api::JobView>,
}

/// Why a delivery is not tried.
enum Untried {
    /// Its endpoint is disabled or removed.
    Held,
    /// It cannot be made up or signed.
    Broken(&'static str),
}

impl Untried {
    fn of(self, delivery: ClaimedDelivery, now: Time) -> Tried {
        let (then, error) = match self {
            Self::Held => (Then::Held, None),
            Self::Broken(why) => (Then::Failed, Some(why.to_owned())),
        };
        Tried {
            delivery,
            began_at: now,
            took: sluice_shared::domain::Span::from_millis(0),
            status: None,
            error,
            response: None,
            then,
        }
    }
}

impl Ground {
    fn letter(
        &self,
        key: &MasterKey,
        delivery: &ClaimedDelivery,
        now: Time,
    ) -> Result<Letter, Untried> {
        let (url, secrets) = match &delivery.receiver {
            Receiver::Endpoint(id) => {
                let endpoint = self.endpoints.get(id).filter(|endpoint| endpoint.enabled);
                let endpoint = endpoint.ok_or(Untried::Held)?;
                let open = |sealed: &str| secret::open_for_webhook(key, *id, sealed);
                (&endpoint.url, secret::valid(&endpoint.secrets, now, open))
            }
            Receiver::Own { client, url } => {
                let sealed = self.signers.get(client).map_or(&[][..], Vec::as_slice);
                let open = |sealed: &str| secret::open_for_client(key, client, sealed);
                (url, secret::valid(sealed, now, open))
            }
        };
        if secrets.is_empty() {
            return Err(Untried::Broken(
                "its secret was sealed with another master key: start with that key again, or \
                 rotate the secret, and replay it",
            ));
        }
        let job = delivery.job.map(|job| self.jobs.get(&job));
        let body = match job {
            Some(None) => None,
            Some(Some(job)) => body_of(delivery, Some(job)),
            None => body_of(delivery, None),
        };
        let body = body.ok_or(Untried::Broken("what it tells of is no longer there"))?;
        Ok(Letter {
            url: url.clone(),
            body,
            secrets,
        })
    }
}

/// Keeps outcomes, many in one transaction, until nothing more can come.
async fn keep(
    app: Arc<App>,
    mut told: mpsc::UnboundedReceiver<Tried>,
    under_way: UnderWay,
    shutdown: CancellationToken,
) {
    let mut tried = Vec::new();
    while told.recv_many(&mut tried, GROUP).await > 0 {
        let hopeless_after = app.config.webhooks.disable_after;
        loop {
            match app
                .store
                .settle_deliveries(&tried, hopeless_after, clock::now())
                .await
            {
                Ok(disabled) => {
                    for (webhook, reason) in disabled {
                        tracing::warn!(%webhook, reason, "a webhook was disabled");
                        metrics::counter!("sluice_webhooks_disabled_total").increment(1);
                    }
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, deliveries = tried.len(), "outcomes of webhooks could not be kept");
                    if shutdown.is_cancelled() {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        for tried in tried.drain(..) {
            let outcome = match tried.then {
                Then::Delivered => "delivered",
                Then::Again(_) => "again",
                Then::Failed | Then::Gone => "failed",
                Then::Held => "held",
            };
            metrics::counter!("sluice_webhook_tries_total", "outcome" => outcome).increment(1);
            under_way.done(&tried.delivery.target);
        }
        app.webhooks.ring();
    }
}
