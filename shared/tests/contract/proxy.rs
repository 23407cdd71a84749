//! A network between a client and a service that the test can cut, mend and tamper with.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
    task::JoinSet,
    time,
};
use tokio_util::task::TaskTracker;
use url::Url;

/// Passes on what goes to a service and comes from it.
pub(crate) struct Proxy {
    url: String,
    network: watch::Sender<Network>,
    to_service: broadcast::Sender<Arc<[u8]>>,
    connections: TaskTracker,
    _accepting: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Whole,
    /// Connections break, and none can be made.
    Cut,
    /// Connections stay, and nothing passes.
    Frozen,
}

impl Proxy {
    /// A proxy for the service at `url`.
    pub(crate) async fn start(url: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut own = url.clone();
        own.set_host(Some("127.0.0.1")).unwrap();
        own.set_port(Some(listener.local_addr().unwrap().port()))
            .unwrap();
        let service = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        let (network, _) = watch::channel(Network::Whole);
        let (to_service, _) = broadcast::channel(16);
        let connections = TaskTracker::new();
        let accept = {
            let (network, to_service) = (network.clone(), to_service.clone());
            let connections = connections.clone();
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    if *network.borrow() != Network::Cut {
                        let service = TcpStream::connect(service.clone()).await.unwrap();
                        let (network, extra) = (network.subscribe(), to_service.subscribe());
                        connections.spawn(pass(client, service, network, extra));
                    }
                }
            }
        };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept);
        Self {
            url: own.into(),
            network,
            to_service,
            connections,
            _accepting: accepting,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Breaks every connection and lets none be made; returns when all are broken.
    pub(crate) async fn cut(&self) {
        self.network.send_replace(Network::Cut);
        self.connections.close();
        self.connections.wait().await;
        self.connections.reopen();
    }

    pub(crate) fn freeze(&self) {
        self.network.send_replace(Network::Frozen);
    }

    pub(crate) fn mend(&self) {
        self.network.send_replace(Network::Whole);
    }

    /// Slips bytes into what goes to the service, on every connection.
    pub(crate) fn slip_in(&self, bytes: &[u8]) {
        self.to_service.send(bytes.into()).unwrap();
    }
}

async fn pass(
    mut client: TcpStream,
    mut service: TcpStream,
    mut network: watch::Receiver<Network>,
    mut extra: broadcast::Receiver<Arc<[u8]>>,
) {
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let state = *network.borrow_and_update();
        if state == Network::Cut {
            return;
        }
        let flows = state == Network::Whole;
        let done = tokio::select! {
            changed = network.changed() => changed.is_err(),
            Ok(bytes) = extra.recv() => {
                // Not into the middle of what the client is about to say.
                time::sleep(Duration::from_millis(50)).await;
                service.write_all(&bytes).await.is_err()
            }
            count = client.read(&mut up), if flows => match count {
                Ok(count @ 1..) => service.write_all(&up[..count]).await.is_err(),
                _ => true,
            },
            count = service.read(&mut down), if flows => match count {
                Ok(count @ 1..) => client.write_all(&down[..count]).await.is_err(),
                _ => true,
            },
        };
        if done {
            return;
        }
    }
}
