//! News of cooldowns: workers give back what is on its way to an account that cools, and what one
//! account learns of its provider or of a machine holds for the others there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sluice_shared::{
    clock,
    domain::{Account, AccountId, Outcome, Span, ThrottleKind, Time},
    live::Presence,
    message::{Control, Report},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{app::App, store::Verdict};

/// How long a control message may take to be sent. One that is not sent costs deliveries that are
/// refused by the provider, no more.
const TELL: Duration = Duration::from_secs(1);

/// What was heard about cooldowns.
#[derive(Debug)]
pub enum News {
    /// An account cools until a time, or no more.
    Cools(AccountId, Option<Time>),
    /// A worker at this account heard a refusal that is not about the account alone.
    Shared(AccountId, String, Outcome),
}

/// Where news of cooldowns is left; telling never waits.
#[derive(Clone, Debug)]
pub struct Cooling(mpsc::UnboundedSender<News>);

impl Cooling {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<News>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// These accounts cool; the verdicts that were settled say what is shared.
    pub fn tell(&self, cooling: Vec<(AccountId, Option<Time>)>, verdicts: &[Verdict]) {
        for (account, until) in cooling {
            let cools = until.is_some();
            drop(self.0.send(News::Cools(account.clone(), until)));
            if cools && let Some((worker, outcome)) = shared(&account, verdicts) {
                drop(self.0.send(News::Shared(account, worker, outcome)));
            }
        }
    }
}

/// The refusal among the verdicts about `account` that holds for others too, and the worker that
/// heard it.
fn shared(account: &AccountId, verdicts: &[Verdict]) -> Option<(String, Outcome)> {
    verdicts.iter().find_map(|verdict| match verdict {
        Verdict::Report(reply) if reply.account == *account => match &reply.report {
            Report::Finished {
                outcome:
                    outcome @ (Outcome::Overloaded { .. }
                    | Outcome::Throttled {
                        throttle: ThrottleKind::Host,
                        ..
                    }),
                ..
            } => Some((reply.worker.clone(), outcome.clone())),
            _ => None,
        },
        _ => None,
    })
}

/// Passes news on until `shutdown`.
pub(crate) async fn run(
    app: Arc<App>,
    mut news: mpsc::UnboundedReceiver<News>,
    shutdown: CancellationToken,
) {
    loop {
        let news = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(news) = news.recv() => news,
        };
        match news {
            News::Cools(account, until) => tell_workers(&app, account, until).await,
            News::Shared(account, worker, outcome) => {
                let workers = app.workers.last_heard();
                let others = others(
                    &app.roster.accounts(),
                    &account,
                    &worker,
                    &outcome,
                    &workers,
                );
                match app
                    .store
                    .cool(&others, &outcome, clock::now(), clock::chance)
                    .await
                {
                    Ok(cooled) => {
                        for (account, until) in cooled {
                            tell_workers(&app, account, until).await;
                        }
                    }
                    Err(error) => tracing::debug!(%error, "a shared limit could not be noted"),
                }
            }
        }
    }
}

/// Tells workers that an account cools until a time, or no more.
pub(crate) async fn tell_workers(app: &App, account: AccountId, until: Option<Time>) {
    let span = until.map_or(Duration::ZERO, |until| until.since(clock::now()));
    let control = Control::Cooling {
        account,
        span: Span(span),
    };
    match tokio::time::timeout(TELL, app.broker.control(&control)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "workers could not be told of a cooldown"),
        Err(_) => tracing::debug!("workers could not be told of a cooldown in time"),
    }
}

/// The other accounts that a refusal holds for: all at an endpoint that is overloaded; those whose
/// every worker is on a machine that is limited.
fn others(
    accounts: &[Account],
    account: &AccountId,
    worker: &str,
    outcome: &Outcome,
    workers: &[Presence],
) -> Vec<AccountId> {
    let Some(refused) = accounts.iter().find(|known| known.id == *account) else {
        return Vec::new();
    };
    let host = workers
        .iter()
        .find(|presence| presence.worker == worker)
        .map(|presence| presence.host.as_str());
    let only_there = |id: &AccountId| {
        let hosts: BTreeSet<&str> = workers
            .iter()
            .filter(|presence| presence.accounts.contains(id))
            .map(|presence| presence.host.as_str())
            .collect();
        host.is_some_and(|host| hosts.iter().eq([&host]))
    };
    accounts
        .iter()
        .filter(|other| other.id != *account && other.endpoint == refused.endpoint)
        .filter(|other| !other.endpoint.is_empty())
        .filter(|other| matches!(outcome, Outcome::Overloaded { .. }) || only_there(&other.id))
        .map(|other| other.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, endpoint: &str) -> Account {
        Account {
            id: name.parse().unwrap(),
            provider: "anthropic".into(),
            endpoint: endpoint.into(),
            models: vec![],
            tags: vec![],
            max_concurrency: 1,
            weight: 1,
            limits: vec![],
        }
    }

    fn presence(worker: &str, host: &str, accounts: &[&str]) -> Presence {
        Presence {
            worker: worker.into(),
            host: host.into(),
            pid: 1,
            version: String::new(),
            since: Time::EPOCH,
            beat_at: Time::EPOCH,
            accounts: accounts.iter().map(|name| name.parse().unwrap()).collect(),
            in_flight: vec![],
            serves_all: false,
            troubles: Default::default(),
        }
    }

    #[test]
    fn an_overload_holds_for_its_endpoint_and_a_limited_machine_for_what_only_it_serves() {
        let accounts = [
            account("a", "here"),
            account("b", "here"),
            account("c", "here"),
            account("d", "there"),
        ];
        let workers = [
            presence("one", "h1", &["a", "b", "c", "d"]),
            presence("two", "h2", &["c"]),
        ];
        let who = |outcome: &Outcome| {
            let others = others(&accounts, &accounts[0].id, "one", outcome, &workers);
            others.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let overloaded = Outcome::Overloaded {
            until: None,
            detail: String::new(),
        };
        let limited = Outcome::Throttled {
            until: None,
            throttle: ThrottleKind::Host,
            detail: String::new(),
        };
        assert_eq!(who(&overloaded), ["b", "c"]);
        assert_eq!(who(&limited), ["b"]);
    }
}
