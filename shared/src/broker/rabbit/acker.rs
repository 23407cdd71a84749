//! What a consumer holds unacked, and the acks of it.
//!
//! An ack names a delivery by its number on its channel, and a channel takes a number that it does
//! not know for a fault that closes it. So acks are worked out and handed to the connection under
//! one lock per channel: what is acked, and in which order it is said, is then the same thing.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::FutureExt;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicRejectOptions},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Rabbit, Tag};

/// Acks deliveries of one consumer of a [`Rabbit`] broker.
#[derive(Clone, Debug)]
pub struct RabbitAcker(Arc<Held>);

/// Kept by every acker of a consumer; dropping the last lets the consumer's channels go.
#[derive(Debug)]
struct Held {
    channels: Arc<Channels>,
    _released: DropGuard,
    /// A consumer keeps its broker's connection up.
    _broker: Rabbit,
}

/// The channels of one consumer: more than one when it may hold more than one is allowed.
#[derive(Default)]
pub(super) struct Channels {
    epochs: AtomicU32,
    open: Mutex<HashMap<u32, Arc<OpenChannel>>>,
    /// Deliveries that came for a consumer that was already gone.
    unseen: Mutex<Vec<Tag>>,
    /// The consumer is gone: no more deliveries.
    pub(super) retired: CancellationToken,
    /// Its ackers are gone too: what is unacked now stays unacked.
    pub(super) released: CancellationToken,
}

/// A channel that is consumed, and what was delivered on it and not yet acked.
pub(super) struct OpenChannel {
    epoch: u32,
    channel: Channel,
    unacked: Mutex<Unacked>,
}

/// The numbers of the deliveries that are not yet acked.
#[derive(Debug, Default)]
struct Unacked(BTreeSet<u64>);

/// The fewest acks that ack what is to be acked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Acks {
    /// This number and all before it.
    up_to: Option<u64>,
    single: Vec<u64>,
}

impl RabbitAcker {
    pub(super) fn new(channels: Arc<Channels>, broker: Rabbit) -> Self {
        let released = channels.released.clone().drop_guard();
        Self(Arc::new(Held {
            channels,
            _released: released,
            _broker: broker,
        }))
    }

    pub(in crate::broker) fn ack(&self, tags: &[Tag]) {
        let mut tags = tags.to_vec();
        tags.sort_unstable();
        for of_channel in tags.chunk_by(|one, other| one.epoch == other.epoch) {
            if let Some(channel) = self.0.channels.get(of_channel[0].epoch) {
                channel.ack(of_channel);
            }
        }
    }

    pub(in crate::broker) fn give_back(&self, tag: Tag) {
        if let Some(channel) = self.0.channels.get(tag.epoch) {
            channel.give_back(tag.number);
        }
    }

    pub(in crate::broker) fn is_current(&self, tag: Tag) -> bool {
        let channel = self.0.channels.get(tag.epoch);
        channel.is_some_and(|channel| channel.channel.status().connected())
    }

    pub(in crate::broker) fn retire(&self, unseen: Vec<Tag>) {
        self.0.channels.leave_unseen(unseen);
        self.0.channels.retired.cancel();
    }
}

impl Channels {
    /// A new channel of the consumer. Its deliveries can be told from those of all before it.
    pub(super) fn open(&self, channel: Channel) -> Arc<OpenChannel> {
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(OpenChannel {
            epoch,
            channel,
            unacked: Mutex::default(),
        });
        self.lock().insert(epoch, open.clone());
        open
    }

    /// The channel is lost, and with it whatever was unacked on it.
    pub(super) fn lose(&self, channel: &OpenChannel) {
        self.lock().remove(&channel.epoch);
        // An ack that has found the channel before now must not reach one that is opened in its
        // place under the same number.
        channel.unacked().0.clear();
    }

    pub(super) fn leave_unseen(&self, tags: impl IntoIterator<Item = Tag>) {
        self.unseen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(tags);
    }

    /// Gives back what came on this channel and was never looked at. To be called when nothing
    /// more can come, or it would come again to the same place.
    pub(super) fn give_unseen_back(&self, channel: &OpenChannel) {
        let unseen: Vec<Tag> = self
            .unseen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extract_if(.., |tag| tag.epoch == channel.epoch)
            .collect();
        for tag in unseen {
            channel.give_back(tag.number);
        }
    }

    fn get(&self, epoch: u32) -> Option<Arc<OpenChannel>> {
        self.lock().get(&epoch).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<OpenChannel>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenChannel {
    /// The name of a delivery of this channel.
    pub(super) fn tag(&self, number: u64) -> Tag {
        Tag {
            epoch: self.epoch,
            number,
        }
    }

    /// Notes a delivery, before anybody can ack it.
    pub(super) fn delivered(&self, tag: Tag) {
        self.unacked().0.insert(tag.number);
    }

    /// Whether all that was delivered is acked.
    pub(super) fn is_settled(&self) -> bool {
        self.unacked().0.is_empty()
    }

    /// Refuses a delivery for good; it becomes a dead letter.
    pub(super) fn refuse(&self, number: u64) {
        self.reject(&self.unacked(), number, false);
    }

    fn ack(&self, tags: &[Tag]) {
        let mut unacked = self.unacked();
        let acks = unacked.ack(tags.iter().map(|tag| tag.number));
        let multiple = acks.up_to.into_iter().map(|number| (number, true));
        let single = acks.single.into_iter().map(|number| (number, false));
        for (number, multiple) in multiple.chain(single) {
            // The first poll hands the frame to the connection; the rest would wait until it is
            // written. An error says that the channel is lost, and that makes acks void anyway.
            let _ = self
                .channel
                .basic_ack(number, BasicAckOptions { multiple })
                .now_or_never();
        }
    }

    fn give_back(&self, number: u64) {
        let mut unacked = self.unacked();
        if unacked.0.remove(&number) {
            self.reject(&unacked, number, true);
        }
    }

    /// `nack` would do the same here, but a later RabbitMQ does not count it as a return, and a
    /// job that nobody takes would go round for ever.
    fn reject(&self, _in_order: &MutexGuard<'_, Unacked>, number: u64, requeue: bool) {
        let options = BasicRejectOptions { requeue };
        let _ = self.channel.basic_reject(number, options).now_or_never();
    }

    fn unacked(&self) -> MutexGuard<'_, Unacked> {
        self.unacked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unacked {
    /// Forgets `numbers`, which are in order, and says how to ack them. Unknown ones are left out.
    fn ack(&mut self, numbers: impl Iterator<Item = u64>) -> Acks {
        let mut acks = Acks::default();
        let mut prefix = 0;
        for number in numbers {
            if acks.single.is_empty() && self.0.first() == Some(&number) {
                self.0.pop_first();
                acks.up_to = Some(number);
                prefix += 1;
            } else if self.0.remove(&number) {
                acks.single.push(number);
            }
        }
        if prefix == 1 {
            acks.single.extend(acks.up_to.take());
        }
        acks
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn acks(unacked: &[u64], numbers: &[u64]) -> Acks {
        Unacked(unacked.iter().copied().collect()).ack(numbers.iter().copied())
    }

    #[test]
    fn a_prefix_is_acked_at_once() {
        let all = Acks {
            up_to: Some(3),
            single: vec![],
        };
        assert_eq!(acks(&[1, 2, 3, 4], &[1, 2, 3]), all);
        assert_eq!(acks(&[1, 2, 3], &[1, 2, 3]), all);
        assert_eq!(acks(&[1, 3, 4], &[1, 3]), all);
    }

    #[test]
    fn what_is_no_prefix_is_acked_one_by_one() {
        assert_eq!(
            acks(&[1, 2, 3], &[2, 3]),
            Acks {
                up_to: None,
                single: vec![2, 3]
            }
        );
        assert_eq!(
            acks(&[1, 2, 3, 4, 5], &[1, 2, 4]),
            Acks {
                up_to: Some(2),
                single: vec![4]
            }
        );
        assert_eq!(
            acks(&[1, 2], &[1]),
            Acks {
                up_to: None,
                single: vec![1]
            }
        );
    }

    #[test]
    fn what_is_unknown_is_not_acked() {
        assert_eq!(acks(&[4, 5], &[1, 2, 9]), Acks::default());
        assert_eq!(
            acks(&[4, 5], &[4, 4]),
            Acks {
                up_to: None,
                single: vec![4]
            }
        );
        assert_eq!(
            acks(&[4, 5], &[3, 4, 5]),
            Acks {
                up_to: Some(5),
                single: vec![]
            }
        );
    }

    proptest! {
        /// Whatever is acked in whatever steps, RabbitMQ forgets what we forget, and is never
        /// told a number that it does not know.
        #[test]
        fn both_sides_agree(steps in prop::collection::vec(prop::collection::vec(1u64..40, 0..20), 0..12)) {
            let mut broker: BTreeSet<u64> = (1..30).collect();
            let mut ours = Unacked(broker.clone());
            for mut numbers in steps {
                numbers.sort_unstable();
                let acks = ours.ack(numbers.into_iter());
                if let Some(up_to) = acks.up_to {
                    prop_assert!(broker.contains(&up_to));
                    broker.retain(|number| *number > up_to);
                }
                for single in acks.single {
                    prop_assert!(broker.remove(&single));
                }
                prop_assert_eq!(&ours.0, &broker);
            }
        }
    }
}
