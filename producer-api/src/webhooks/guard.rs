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
