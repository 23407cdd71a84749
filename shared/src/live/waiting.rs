//! Readers that wait for a job's next piece, and listeners to wake-ups.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{
    Notify,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use super::Wake;
use crate::domain::JobId;

/// The jobs whose streams are waited on.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    places: Mutex<HashMap<JobId, Place>>,
    /// A job is remembered until [`Waiting::forget_unread`], since it is usually soon read again.
    lingers: bool,
}

#[derive(Debug, Default)]
struct Place {
    pieces: Arc<Notify>,
    readers: usize,
}

/// One reader's wait; over when dropped.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    waiting: &'a Waiting,
    job: JobId,
    pub(super) pieces: Arc<Notify>,
}

impl Waiting {
    pub(super) fn lingering() -> Self {
        Self {
            lingers: true,
            ..Self::default()
        }
    }

    /// Waits on a job. The flag says whether nobody had asked for it yet.
    pub(super) fn read(&self, job: JobId) -> (Reader<'_>, bool) {
        let mut places = self.lock();
        let new = !places.contains_key(&job);
        let place = places.entry(job).or_default();
        place.readers += 1;
        (
            Reader {
                waiting: self,
                job,
                pieces: place.pieces.clone(),
            },
            new,
        )
    }

    /// There may be pieces.
    pub(super) fn notify(&self, job: JobId) {
        if let Some(place) = self.lock().get(&job) {
            place.pieces.notify_waiters();
        }
    }

    pub(super) fn notify_all(&self) {
        self.lock()
            .values()
            .for_each(|place| place.pieces.notify_waiters());
    }

    /// Every job that is or was waited on and not forgotten yet.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// Forgets the jobs that nobody waits on now, and says which.
    pub(super) fn forget_unread(&self) -> Vec<JobId> {
        self.lock()
            .extract_if(|_, place| place.readers == 0)
            .map(|(job, _)| job)
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut places = self.waiting.lock();
        let Some(place) = places.get_mut(&self.job) else {
            return;
        };
        place.readers -= 1;
        if place.readers == 0 && !self.waiting.lingers {
            places.remove(&self.job);
        }
    }
}

/// Who listens to wake-ups in this process.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<Vec<UnboundedSender<Wake>>>);

impl Listeners {
    pub(super) fn join(&self) -> UnboundedReceiver<Wake> {
        let (listener, wakes) = mpsc::unbounded_channel();
        self.lock().push(listener);
        wakes
    }

    pub(super) fn tell(&self, wake: &Wake) {
        self.lock()
            .retain(|listener| listener.send(wake.clone()).is_ok());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<UnboundedSender<Wake>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
