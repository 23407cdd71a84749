//! The work plane within one process: queues in memory, with the promises of RabbitMQ's.
//!
//! One lock guards it all and is taken once per batch: what happens under it is a push, a clone
//! or a removal per message, far less than a task or a channel per message would cost.

mod queue;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use self::queue::{Desk, Queue};
use super::{
    Acker, BrokerError, Consumer, DELIVERY_LIMIT, DeadDelivery, Delivery, Depth,
    OVER_DELIVERY_LIMIT, ReplyDelivery, Tag, jobs_queue,
};
use crate::{
    domain::AccountId,
    message::{Control, DeadLetter, Dispatch, Reply},
};

/// Queues in this process.
#[derive(Clone, Default)]
pub struct InProcess(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    closed: bool,
    consumers: u64,
    jobs: HashMap<AccountId, Queue<Dispatch, Delivery>>,
    replies: Replies,
    dead: DeadLetters,
    controls: Vec<UnboundedSender<Control>>,
}

struct Replies(Queue<Vec<Reply>, ReplyDelivery>);
struct DeadLetters(Queue<DeadLetter, DeadDelivery>);

/// Acks deliveries of one consumer of an [`InProcess`] broker.
#[derive(Clone, Debug)]
pub struct InProcessAcker(Arc<Seat>);

/// A consumer's place at its queue, kept for as long as one of its ackers is.
#[derive(Debug)]
struct Seat {
    broker: InProcess,
    place: Place,
    consumer: u64,
}

/// Which queue.
#[derive(Clone, Debug)]
enum Place {
    Jobs(AccountId),
    Replies,
    Dead,
}

impl InProcess {
    pub(super) fn declare(&self, account: &AccountId) -> Result<(), BrokerError> {
        self.open()?.jobs_of(account);
        Ok(())
    }

    pub(super) fn dispatch(&self, attempts: &[Dispatch]) -> Vec<Result<(), BrokerError>> {
        let mut state = match self.open() {
            Ok(state) => state,
            Err(error) => return vec![Err(error); attempts.len()],
        };
        let publish = |attempt: &Dispatch| match state.jobs.get_mut(&attempt.account) {
            Some(queue) => {
                queue.push(attempt.clone());
                Ok(())
            }
            None => Err(unroutable(&attempt.account)),
        };
        attempts.iter().map(publish).collect()
    }

    pub(super) fn consume(
        &self,
        account: &AccountId,
        prefetch: u16,
    ) -> Result<Consumer<Delivery>, BrokerError> {
        let mut state = self.open()?;
        let consumer = state.next_consumer();
        let deliveries = state.jobs_of(account).join(consumer, prefetch);
        Ok(self.seat(Place::Jobs(account.clone()), consumer, deliveries))
    }

    pub(super) fn reply(&self, replies: &[Reply]) -> Result<(), BrokerError> {
        let replies = replies.to_vec();
        self.open()?.replies.0.push(replies);
        Ok(())
    }

    pub(super) fn replies(&self, prefetch: u16) -> Result<Consumer<ReplyDelivery>, BrokerError> {
        let mut state = self.open()?;
        let consumer = state.next_consumer();
        let deliveries = state.replies.0.join(consumer, prefetch);
        Ok(self.seat(Place::Replies, consumer, deliveries))
    }

    pub(super) fn control(&self, control: &Control) -> Result<(), BrokerError> {
        self.open()?
            .controls
            .retain(|listener| listener.send(control.clone()).is_ok());
        Ok(())
    }

    pub(super) fn controls(&self) -> Result<UnboundedReceiver<Control>, BrokerError> {
        let (listener, controls) = mpsc::unbounded_channel();
        self.open()?.controls.push(listener);
        Ok(controls)
    }

    pub(super) fn dead_letters(
        &self,
        prefetch: u16,
    ) -> Result<Consumer<DeadDelivery>, BrokerError> {
        let mut state = self.open()?;
        let consumer = state.next_consumer();
        let deliveries = state.dead.0.join(consumer, prefetch);
        Ok(self.seat(Place::Dead, consumer, deliveries))
    }

    pub(super) fn depth(&self, account: &AccountId) -> Result<Depth, BrokerError> {
        self.open()?
            .jobs
            .get(account)
            .map(Queue::depth)
            .ok_or_else(|| unroutable(account))
    }

    pub(super) fn reply_depth(&self) -> Result<Depth, BrokerError> {
        Ok(self.open()?.replies.0.depth())
    }

    pub(super) fn close(&self) {
        *self.lock() = State {
            closed: true,
            ..State::default()
        };
    }

    fn seat<T>(
        &self,
        place: Place,
        consumer: u64,
        deliveries: UnboundedReceiver<(Tag, T)>,
    ) -> Consumer<T> {
        let seat = Seat {
            broker: self.clone(),
            place,
            consumer,
        };
        Consumer::new(deliveries, Acker::InProcess(InProcessAcker(Arc::new(seat))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, BrokerError> {
        let state = self.lock();
        if state.closed {
            return Err(BrokerError::Unavailable("it was closed".into()));
        }
        Ok(state)
    }
}

impl State {
    fn next_consumer(&mut self) -> u64 {
        self.consumers += 1;
        self.consumers
    }

    fn jobs_of(&mut self, account: &AccountId) -> &mut Queue<Dispatch, Delivery> {
        self.jobs.entry(account.clone()).or_insert_with(|| {
            Queue::new(Some(DELIVERY_LIMIT), |tag, redelivered, dispatch| {
                Delivery {
                    tag,
                    redelivered,
                    dispatch: dispatch.clone(),
                }
            })
        })
    }

    fn desk(&mut self, place: &Place) -> Option<&mut dyn Desk> {
        match place {
            Place::Jobs(account) => self
                .jobs
                .get_mut(account)
                .map(|queue| queue as &mut dyn Desk),
            Place::Replies => Some(&mut self.replies.0),
            Place::Dead => Some(&mut self.dead.0),
        }
    }

    /// Moves what came back to `place` too often to the dead letters.
    fn bury(&mut self, place: &Place) {
        let Place::Jobs(account) = place else { return };
        let Some(queue) = self.jobs.get_mut(account) else {
            return;
        };
        for dispatch in queue.take_poison() {
            self.dead.0.push(DeadLetter {
                dispatch: Some(dispatch),
                reason: OVER_DELIVERY_LIMIT.into(),
                queue: jobs_queue(account),
            });
        }
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self(Queue::new(None, |tag, _, replies| ReplyDelivery {
            tag,
            replies: replies.clone(),
        }))
    }
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self(Queue::new(None, |tag, _, letter| DeadDelivery {
            tag,
            letter: letter.clone(),
        }))
    }
}

impl InProcessAcker {
    pub(super) fn ack(&self, tags: &[Tag]) {
        self.0.at_desk(|desk, consumer| desk.ack(consumer, tags));
    }

    pub(super) fn give_back(&self, tag: Tag) {
        self.0
            .at_desk(|desk, consumer| desk.give_back(consumer, &[tag]));
    }

    pub(super) fn retire(&self, unseen: &[Tag]) {
        self.0.at_desk(|desk, consumer| {
            desk.stop(consumer);
            desk.give_back(consumer, unseen);
        });
    }
}

impl Seat {
    fn at_desk(&self, act: impl FnOnce(&mut dyn Desk, u64)) {
        let mut state = self.broker.lock();
        if let Some(desk) = state.desk(&self.place) {
            act(desk, self.consumer);
            state.bury(&self.place);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.at_desk(|desk, consumer| desk.leave(consumer));
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").finish_non_exhaustive()
    }
}

fn unroutable(account: &AccountId) -> BrokerError {
    BrokerError::Unroutable(format!("account `{account}` has no queue"))
}
