//! What the tasks of one worker share.

use std::sync::Arc;

use sluice_shared::{broker::Broker, config, domain::AccountId, live::Live};
use tokio::sync::Notify;

use crate::{
    account::Account,
    hands::Hands,
    outage::Outage,
    replies::{self, Publisher, Replies},
    services::Services,
    streams::Streams,
};

/// Attempts that have left the worker's hands and are remembered, at most and at least. A lost
/// connection can bring back as many as a consumer may hold.
const MOST_DONE: usize = 65_536;
const LEAST_DONE: usize = 16_384;

/// One worker's parts.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) name: String,
    pub(crate) settings: config::Worker,
    pub(crate) services: Services,
    pub(crate) broker: Broker,
    pub(crate) live: Live,
    pub(crate) hands: Arc<Hands>,
    pub(crate) replies: Replies,
    pub(crate) streams: Streams,
    /// The accounts that it consumes are others than before.
    pub(crate) presence_changed: Notify,
    /// There may be a newer roll of accounts.
    pub(crate) roll_changed: Notify,
    /// Whether it serves every account that is made at run time.
    pub(crate) serves_all: bool,
}

impl Engine {
    /// The parts, and the publisher that must be run for them.
    pub(crate) fn new(
        name: String,
        settings: config::Worker,
        accounts: Vec<Arc<Account>>,
        broker: Broker,
        live: Live,
    ) -> (Self, Publisher) {
        let holds: usize = accounts
            .iter()
            .map(|account| usize::from(account.concurrency))
            .sum();
        let hands = Arc::new(Hands::new(holds.clamp(LEAST_DONE, MOST_DONE)));
        let outage = Arc::new(Outage::of("the broker, for replies,"));
        let (replies, publisher) =
            replies::channel(name.clone(), broker.clone(), hands.clone(), outage);
        let engine = Self {
            name,
            settings,
            services: Services::new(accounts),
            broker,
            streams: Streams::new(live.clone()),
            live,
            hands,
            replies,
            presence_changed: Notify::new(),
            roll_changed: Notify::new(),
            serves_all: false,
        };
        (engine, publisher)
    }

    /// The accounts whose queues it consumes now.
    pub(crate) fn consumed(&self) -> Vec<AccountId> {
        self.services.consumed()
    }
}
