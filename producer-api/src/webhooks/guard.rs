//! Which addresses a name leads to, less those where no webhook goes. It is asked by the
//! connection itself, so that what was judged is what is connected to, however often a name
//! changes its mind (DNS rebinding).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use sluice_shared::domain::Egress;

/// Who knows the addresses of names.
#[derive(Clone, Debug)]
pub enum Names {
    /// The system.
    System,
    /// A table, each name with the answers that it gives one after the other; for tests.
    Table(Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>),
}

impl Names {
    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0)).await?.collect()),
            Self::Table(table) => {
                let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                let answers = table.get_mut(name);
                let answers = answers.ok_or_else(|| io::Error::other("there is no such name"))?;
                let now = match answers.len() {
                    0 | 1 => answers.first().cloned().unwrap_or_default(),
                    _ => answers.remove(0),
                };
                Ok(now.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect())
            }
        }
    }
}

/// A resolver that gives no address to which no webhook goes.
#[derive(Clone, Debug)]
pub struct Guard {
    names: Names,
    egress: Arc<Egress>,
}

impl Guard {
    /// A resolver over `names`.
    #[must_use]
    pub fn new(names: Names, egress: Egress) -> Self {
        Self {
            names,
            egress: Arc::new(egress),
        }
    }

    /// Where requests may go.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    async fn open_addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let found = self.names.addresses(name).await?;
        let mut refusal = None;
        let mut open = Vec::with_capacity(found.len());
        for address in found {
            match self.egress.check(address.ip()) {
                Ok(()) => open.push(address),
                Err(closed) => refusal = Some(closed),
            }
        }
        match (open.is_empty(), refusal) {
            (true, Some(closed)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, closed)),
            (true, None) => Err(io::Error::other("it has no address")),
            (false, _) => Ok(open),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let open = guard.open_addresses(name.as_str()).await?;
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, http::header, routing::post};
    use sluice_shared::{config::Config, domain::Time};
    use tokio::{net::TcpListener, task::JoinSet};
    use uuid::Uuid;

    use super::*;
    use crate::{
        store::{ClaimedDelivery, Receiver, Then, Tried},
        webhooks::{Letter, Secret, Sender, fresh},
    };

    /// A server on two addresses of loopback, of which only the second is allowed.
    struct Servers {
        port: u16,
        hits: [Arc<AtomicUsize>; 2],
        _tasks: JoinSet<()>,
    }

    impl Servers {
        async fn start() -> Self {
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
            let hits = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let mut tasks = JoinSet::new();
            for (listener, hits) in [first, second].into_iter().zip(hits.clone()) {
                let take = move || async move {
                    hits.fetch_add(1, Ordering::Relaxed);
                    // So that the next try asks for the address again.
                    [(header::CONNECTION, "close")]
                };
                let router = Router::new().route("/", post(take));
                tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
            }
            Self {
                port,
                hits,
                _tasks: tasks,
            }
        }

        fn hits(&self) -> [usize; 2] {
            self.hits
                .each_ref()
                .map(|hits| hits.load(Ordering::Relaxed))
        }
    }

    fn sender(answers: &[&[&str]]) -> Sender {
        let answers = answers
            .iter()
            .map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect());
        let table = HashMap::from([("hook.test".to_owned(), answers.collect())]);
        let settings = "[webhooks]\nallow_networks = [\"127.0.0.2/32\"]\ntimeout = \"5s\"";
        let config = Config::from_toml(settings).unwrap();
        Sender::new(&config.webhooks, Names::Table(Arc::new(Mutex::new(table)))).unwrap()
    }

    async fn send(sender: &Sender, url: &str) -> Tried {
        let delivery = ClaimedDelivery {
            id: Uuid::now_v7(),
            claim: 1,
            event: Uuid::now_v7(),
            event_type: "webhook.test".into(),
            event_at: Time::EPOCH,
            job: None,
            data: None,
            receiver: Receiver::Endpoint(Uuid::nil()),
            target: String::new(),
            step: 0,
            tries: 0,
        };
        let letter = Letter {
            url: url.to_owned(),
            body: "{}".into(),
            secrets: vec![Secret::new(fresh())],
        };
        sender.send(delivery, letter).await
    }

    fn is_refused(tried: &Tried) -> bool {
        let error = tried.error.as_deref().unwrap_or_default();
        matches!(tried.then, Then::Again(_)) && error.contains("no webhook goes there")
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_gains_nothing() {
        let servers = Servers::start().await;
        let sender = sender(&[&["127.0.0.2"], &["127.0.0.1"]]);
        let url = format!("http://hook.test:{}/", servers.port);
        assert_eq!(send(&sender, &url).await.then, Then::Delivered);
        let tried = send(&sender, &url).await;
        assert!(is_refused(&tried), "{tried:?}");
        assert_eq!(servers.hits(), [0, 1]);
    }

    #[tokio::test]
    async fn of_many_addresses_only_those_that_are_open_are_connected_to() {
        let servers = Servers::start().await;
        let sender = sender(&[&["127.0.0.1", "127.0.0.2", "::1"]]);
        let url = format!("http://hook.test:{}/", servers.port);
        assert_eq!(send(&sender, &url).await.then, Then::Delivered);
        assert_eq!(servers.hits(), [0, 1]);
    }

    #[tokio::test]
    async fn an_address_is_refused_whatever_form_a_name_or_a_url_gives_it() {
        let servers = Servers::start().await;
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1"] {
            let sender = sender(&[&[address]]);
            let url = format!("http://hook.test:{}/", servers.port);
            let tried = send(&sender, &url).await;
            assert!(is_refused(&tried), "{address}: {tried:?}");
        }
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "[::ffff:7f00:1]",
        ] {
            let url = format!("http://{host}:{}/", servers.port);
            let tried = send(&sender(&[]), &url).await;
            assert!(is_refused(&tried), "{host}: {tried:?}");
        }
        assert_eq!(servers.hits(), [0, 0]);
    }
}
