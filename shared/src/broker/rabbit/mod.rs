//! The broker as RabbitMQ.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{BrokerError, Consumer, DeadDelivery, Delivery, Depth, ReplyDelivery, Tag};
use crate::{
    domain::AccountId,
    message::{Control, Dispatch, Reply},
};

/// RabbitMQ, by AMQP 0-9-1.
#[derive(Clone, Debug, Default)]
pub struct Rabbit(Arc<()>);

/// Acks deliveries of one consumer of an [`Rabbit`] broker.
#[derive(Clone, Debug)]
pub struct RabbitAcker;

fn later<T>() -> Result<T, BrokerError> {
    Err(BrokerError::Unavailable("not written yet".into()))
}

impl Rabbit {
    pub(super) async fn connect(_config: &crate::config::Rabbitmq, _name: &str) -> Result<Self, BrokerError> {
        later()
    }
    pub(super) async fn ready(&self) -> Result<(), BrokerError> {
        later()
    }
    pub(super) async fn declare(&self, _account: &AccountId) -> Result<(), BrokerError> {
        later()
    }
    pub(super) async fn dispatch(&self, attempts: &[Dispatch]) -> Vec<Result<(), BrokerError>> {
        attempts.iter().map(|_| later()).collect()
    }
    pub(super) async fn consume(&self, _account: &AccountId, _prefetch: u16) -> Result<Consumer<Delivery>, BrokerError> {
        later()
    }
    pub(super) async fn reply(&self, _replies: &[Reply]) -> Result<(), BrokerError> {
        later()
    }
    pub(super) async fn replies(&self, _prefetch: u16) -> Result<Consumer<ReplyDelivery>, BrokerError> {
        later()
    }
    pub(super) async fn control(&self, _control: &Control) -> Result<(), BrokerError> {
        later()
    }
    pub(super) async fn controls(&self) -> Result<UnboundedReceiver<Control>, BrokerError> {
        later()
    }
    pub(super) async fn dead_letters(&self, _prefetch: u16) -> Result<Consumer<DeadDelivery>, BrokerError> {
        later()
    }
    pub(super) async fn depth(&self, _account: &AccountId) -> Result<Depth, BrokerError> {
        later()
    }
    pub(super) async fn reply_depth(&self) -> Result<Depth, BrokerError> {
        later()
    }
    pub(super) async fn close(&self) {}
}

impl RabbitAcker {
    pub(super) async fn ack(&self, _tags: &[Tag]) {}
    pub(super) async fn give_back(&self, _tag: Tag) {}
}
