//! `sluice listen`: the events of an installation, as webhooks to a developer's own machine.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use sluice_producer_api::webhooks::{Secret, fresh};
use sluice_shared::{
    api::{JobChange, JobEvent, WebhookEvent},
    clock,
    domain::{EventKind, State, Time},
};
use url::Url;
use uuid::Uuid;

use super::Server;
use crate::{Exit, Failure, client::Client, home::Home, output, signals};

/// How long the receiver may take, as Sluice itself waits by default.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Forward webhooks to your own machine while you write what receives them
///
/// Tells of jobs that end from now on, as an endpoint would be told, signed; once each, and not
/// again when it fails. Nothing is registered, and nothing is left behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice listen --forward-to http://127.0.0.1:8080/hook
  sluice listen --forward-to http://127.0.0.1:8080/hook --event job.failed --event job.expired")]
pub(crate) struct Args {
    /// Where to send them
    #[arg(long, value_name = "URL")]
    forward_to: Url,

    /// Only this kind of event, such as job.failed; may be given again
    #[arg(long = "event", value_name = "TYPE", value_parser = event_kind)]
    events: Vec<EventKind>,

    /// The secret to sign with, as the receiver has it [default: a new one, which is shown]
    #[arg(
        long,
        value_name = "whsec_...",
        env = "SLUICE_WEBHOOK_SECRET",
        hide_env_values = true
    )]
    secret: Option<SecretString>,

    #[command(flatten)]
    server: Server,
}

fn event_kind(text: &str) -> Result<EventKind, String> {
    let kind = EventKind::from_name(text).filter(|kind| kind.is_of_a_job());
    kind.ok_or_else(|| {
        let of_jobs = EventKind::ALL.into_iter().filter(|kind| kind.is_of_a_job());
        let names: Vec<&str> = of_jobs.map(EventKind::as_str).collect();
        format!("there are {}", names.join(", "))
    })
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let http = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| Failure::Role(error.into()))?;
    let text = args.secret.clone().unwrap_or_else(fresh);
    let secret = Secret::new(text.clone());
    if secret.sign("", 0, "").is_none() {
        let wrong = "--secret is none: write whsec_ and base64, as Sluice showed it";
        return Err(Failure::Usage(wrong.into()));
    }
    if args.secret.is_none() {
        output::note(&format!("Signing secret: {}", text.expose_secret()));
    }
    let states: Vec<State> = State::ALL
        .into_iter()
        .filter(|state| EventKind::of(*state).is_some_and(|kind| kind.is_wanted(&args.events)))
        .collect();
    let forward = Forward {
        client: &client,
        http,
        secret,
        to: &args.forward_to,
    };
    tokio::select! {
        stopped = signals::stop() => stopped.map(|()| Exit::Done),
        failed = forward.run(&states) => failed,
    }
}

struct Forward<'a> {
    client: &'a Client,
    http: reqwest::Client,
    secret: Secret,
    to: &'a Url,
}

impl Forward<'_> {
    /// Goes on for as long as the API can be asked at all, however often it is away.
    async fn run(&self, states: &[State]) -> Result<Exit, Failure> {
        let mut failures = 0;
        loop {
            match self.client.changes(states).await {
                Ok(mut changes) => {
                    failures = 0;
                    output::note(&format!(
                        "Forwarding what happens at {} to {}",
                        self.client.url(),
                        self.to
                    ));
                    while let Some(batch) = changes.next().await? {
                        if batch.missed > 0 {
                            output::note(&format!("{} more were not told", batch.missed));
                        }
                        for change in &batch.changes {
                            self.forward(change).await?;
                        }
                    }
                    output::note("The stream has ended; opening it again.");
                }
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if failures == 1 {
                        output::note(&error.explain());
                    }
                    tokio::time::sleep(error.pause(failures)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn forward(&self, change: &JobChange) -> Result<(), Failure> {
        let Some(kind) = EventKind::of(change.state) else {
            return Ok(());
        };
        let job = match self.client.job(change.job, None).await {
            Ok(job) => job,
            Err(error) => {
                output::note(&format!("{}: {}", change.job, error.explain()));
                return Ok(());
            }
        };
        let event = WebhookEvent {
            r#type: kind,
            timestamp: job.finished_at.unwrap_or_else(clock::now),
            data: JobEvent::new(job),
        };
        let body = serde_json::to_string(&event).map_err(|error| Failure::Role(error.into()))?;
        let (id, now) = (Uuid::now_v7().to_string(), clock::now());
        let came = self.send(&id, now, body).await;
        output::line(&format!("{now} {} {} -> {came}", kind.as_str(), change.job))
    }

    /// Sends it once, and says in a few words what came of it.
    async fn send(&self, id: &str, now: Time, body: String) -> String {
        let timestamp = now.as_millis() / 1000;
        let signature = self.secret.sign(id, timestamp, &body).unwrap_or_default();
        let request = self
            .http
            .post(self.to.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body);
        match request.send().await {
            Ok(response) => response.status().to_string(),
            Err(error) if error.is_timeout() => "it took longer than 20 s".into(),
            Err(error) if error.is_connect() => "nobody is there".into(),
            Err(error) => error.without_url().to_string(),
        }
    }
}
