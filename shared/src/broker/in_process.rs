//! The broker within one process.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{BrokerError, Consumer, DeadDelivery, Delivery, Depth, ReplyDelivery, Tag};
use crate::{
    domain::AccountId,
    message::{Control, Dispatch, Reply},
};

/// Queues in this process.
#[derive(Clone, Debug, Default)]
pub struct InProcess(Arc<()>);

/// Acks deliveries of one consumer of an [`InProcess`] broker.
#[derive(Clone, Debug)]
pub struct InProcessAcker;

fn later<T>() -> Result<T, BrokerError> {
    Err(BrokerError::Unavailable("not written yet".into()))
}

impl InProcess {
    pub(super) fn declare(&self, _account: &AccountId) -> Result<(), BrokerError> {
        later()
    }
    pub(super) fn dispatch(&self, attempts: &[Dispatch]) -> Vec<Result<(), BrokerError>> {
        attempts.iter().map(|_| later()).collect()
    }
    pub(super) fn consume(&self, _account: &AccountId, _prefetch: u16) -> Result<Consumer<Delivery>, BrokerError> {
        later()
    }
    pub(super) fn reply(&self, _replies: &[Reply]) -> Result<(), BrokerError> {
        later()
    }
    pub(super) fn replies(&self, _prefetch: u16) -> Result<Consumer<ReplyDelivery>, BrokerError> {
        later()
    }
    pub(super) fn control(&self, _control: &Control) -> Result<(), BrokerError> {
        later()
    }
    pub(super) fn controls(&self) -> Result<UnboundedReceiver<Control>, BrokerError> {
        later()
    }
    pub(super) fn dead_letters(&self, _prefetch: u16) -> Result<Consumer<DeadDelivery>, BrokerError> {
        later()
    }
    pub(super) fn depth(&self, _account: &AccountId) -> Result<Depth, BrokerError> {
        later()
    }
    pub(super) fn reply_depth(&self) -> Result<Depth, BrokerError> {
        later()
    }
    pub(super) fn close(&self) {}
}

impl InProcessAcker {
    pub(super) fn ack(&self, _tags: &[Tag]) {}
    pub(super) fn give_back(&self, _tag: Tag) {}
}
