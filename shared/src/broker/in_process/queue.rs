//! One queue: what waits, and what each consumer holds unacked.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::{Depth, Tag};

/// A queue of messages `M` that are handed out as deliveries `T`.
pub(super) struct Queue<M, T> {
    ready: VecDeque<Message<M>>,
    consumers: Vec<Holder<M, T>>,
    /// Whose turn it is.
    turn: usize,
    /// How often a message may come back.
    limit: Option<u32>,
    poison: Vec<M>,
    hand_out: HandOut<M, T>,
}

/// Makes a delivery of a message; the flag says whether it was handed out before.
type HandOut<M, T> = fn(Tag, bool, &M) -> T;

struct Message<M> {
    body: M,
    returns: u32,
}

struct Holder<M, T> {
    consumer: u64,
    prefetch: usize,
    handed_out: u64,
    unacked: BTreeMap<u64, Message<M>>,
    /// `None` once it wants no more.
    deliveries: Option<UnboundedSender<(Tag, T)>>,
}

/// What a consumer can ask of its queue, whatever is in it.
pub(super) trait Desk {
    /// Forgets these deliveries; unknown ones are ignored.
    fn ack(&mut self, consumer: u64, tags: &[Tag]);
    /// Puts these deliveries back; unknown ones are ignored.
    fn give_back(&mut self, consumer: u64, tags: &[Tag]);
    /// Hands it nothing more.
    fn stop(&mut self, consumer: u64);
    /// It is gone: puts back what it holds.
    fn leave(&mut self, consumer: u64);
}

impl<M, T> Queue<M, T> {
    pub(super) fn new(limit: Option<u32>, hand_out: HandOut<M, T>) -> Self {
        Self {
            ready: VecDeque::new(),
            consumers: Vec::new(),
            turn: 0,
            limit,
            poison: Vec::new(),
            hand_out,
        }
    }

    pub(super) fn push(&mut self, body: M) {
        self.ready.push_back(Message { body, returns: 0 });
        self.hand_out();
    }

    pub(super) fn join(&mut self, consumer: u64, prefetch: u16) -> UnboundedReceiver<(Tag, T)> {
        let (sender, deliveries) = mpsc::unbounded_channel();
        self.consumers.push(Holder {
            consumer,
            prefetch: usize::from(prefetch.max(1)),
            handed_out: 0,
            unacked: BTreeMap::new(),
            deliveries: Some(sender),
        });
        self.hand_out();
        deliveries
    }

    pub(super) fn depth(&self) -> Depth {
        let consumers = self
            .consumers
            .iter()
            .filter(|holder| holder.deliveries.is_some())
            .count();
        Depth {
            ready: u64::try_from(self.ready.len()).unwrap_or(u64::MAX),
            consumers: u32::try_from(consumers).unwrap_or(u32::MAX),
        }
    }

    /// What came back more often than the limit allows.
    pub(super) fn take_poison(&mut self) -> Vec<M> {
        std::mem::take(&mut self.poison)
    }

    /// Hands out what waits, in turn, to whoever has room.
    fn hand_out(&mut self) {
        let count = self.consumers.len();
        while let Some(index) = (0..count)
            .map(|step| (self.turn + step) % count)
            .find(|index| self.consumers[*index].has_room())
        {
            let Some(message) = self.ready.pop_front() else {
                return;
            };
            self.turn = (index + 1) % count;
            if let Err(message) = self.consumers[index].take(message, self.hand_out) {
                self.ready.push_front(message);
            }
        }
    }

    /// Puts messages back where they came from: at the front, in their order.
    fn put_back(&mut self, messages: impl DoubleEndedIterator<Item = Message<M>>) {
        for mut message in messages.rev() {
            message.returns += 1;
            if self.limit.is_some_and(|limit| message.returns > limit) {
                self.poison.push(message.body);
            } else {
                self.ready.push_front(message);
            }
        }
    }

    fn holder(&mut self, consumer: u64) -> Option<&mut Holder<M, T>> {
        self.consumers
            .iter_mut()
            .find(|holder| holder.consumer == consumer)
    }
}

impl<M, T> Holder<M, T> {
    fn has_room(&self) -> bool {
        self.deliveries.is_some() && self.unacked.len() < self.prefetch
    }

    /// Takes a message, or gives it back when the consumer has gone meanwhile.
    fn take(&mut self, message: Message<M>, hand_out: HandOut<M, T>) -> Result<(), Message<M>> {
        let Some(deliveries) = &self.deliveries else {
            return Err(message);
        };
        let number = self.handed_out + 1;
        let tag = Tag { epoch: 0, number };
        if deliveries
            .send((tag, hand_out(tag, message.returns > 0, &message.body)))
            .is_err()
        {
            self.deliveries = None;
            return Err(message);
        }
        self.handed_out = number;
        self.unacked.insert(number, message);
        Ok(())
    }
}

impl<M, T> Desk for Queue<M, T> {
    fn ack(&mut self, consumer: u64, tags: &[Tag]) {
        let Some(holder) = self.holder(consumer) else {
            return;
        };
        for tag in tags {
            holder.unacked.remove(&tag.number);
        }
        self.hand_out();
    }

    fn give_back(&mut self, consumer: u64, tags: &[Tag]) {
        let Some(holder) = self.holder(consumer) else {
            return;
        };
        let messages: Vec<_> = tags
            .iter()
            .filter_map(|tag| holder.unacked.remove(&tag.number))
            .collect();
        self.put_back(messages.into_iter());
        self.hand_out();
    }

    fn stop(&mut self, consumer: u64) {
        if let Some(holder) = self.holder(consumer) {
            holder.deliveries = None;
        }
    }

    fn leave(&mut self, consumer: u64) {
        let Some(index) = self
            .consumers
            .iter()
            .position(|holder| holder.consumer == consumer)
        else {
            return;
        };
        let holder = self.consumers.remove(index);
        self.turn = 0;
        self.put_back(holder.unacked.into_values());
        self.hand_out();
    }
}
