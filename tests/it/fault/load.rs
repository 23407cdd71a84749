//! Submits that go on until each has its receipt.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use sluice_shared::{
    api::{NewJob, Receipts},
    domain::{Delivery, JobId},
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::harness::{Client, prompt, rest};

/// Clients that submit at the same time.
const CLIENTS: usize = 8;

/// Chance that comes out the same for the same seed (SplitMix64).
pub(super) struct Chance(u64);

impl Chance {
    /// Seeded by `SLUICE_TEST_SEED`, to see a failure again; by a number of its own otherwise.
    pub(super) fn from_environment() -> Self {
        let given = std::env::var("SLUICE_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| crate::harness::random() % 1_000_000);
        eprintln!("SLUICE_TEST_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    pub(super) fn up_to(&mut self, millis: u64) -> Duration {
        Duration::from_millis(self.next() % (millis + 1))
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// All that is submitted, and what has its receipt.
pub(super) struct Load {
    batches: Vec<Vec<NewJob>>,
    next: AtomicUsize,
    room: Semaphore,
    receipts: Mutex<HashMap<JobId, NewJob>>,
}

impl Load {
    /// Jobs in batches of 1 to 20, of which `once` must not run twice.
    pub(super) fn plan(jobs: usize, once: usize, chance: &mut Chance) -> Self {
        let mut all: Vec<NewJob> = Vec::with_capacity(jobs + once);
        for number in 0..jobs + once {
            let delivery = (number >= jobs).then_some(Delivery::AtMostOnce);
            all.push(NewJob {
                delivery,
                ..prompt(format!("job {number}"))
            });
        }
        chance.shuffle(&mut all);
        let mut batches = Vec::new();
        while !all.is_empty() {
            let size = (1 + chance.below(20)).min(all.len());
            batches.push(all.split_off(all.len() - size));
        }
        Self {
            batches,
            next: AtomicUsize::new(0),
            room: Semaphore::new(0),
            receipts: Mutex::default(),
        }
    }

    /// How many jobs there are.
    pub(super) fn total(&self) -> usize {
        self.batches.iter().map(Vec::len).sum()
    }

    /// How many jobs have a receipt.
    pub(super) fn accepted(&self) -> usize {
        self.receipts.lock().unwrap().len()
    }

    /// The jobs that have a receipt.
    pub(super) fn receipts(&self) -> HashMap<JobId, NewJob> {
        self.receipts.lock().unwrap().clone()
    }

    /// Lets so many more jobs be submitted.
    pub(super) fn release(&self, jobs: usize) {
        self.room.add_permits(jobs);
    }

    /// Submits, as far as there is room, until there is nothing left.
    pub(super) fn begin(self: &Arc<Self>, apis: &[Client]) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (load, apis) = (self.clone(), apis.to_vec());
            clients.spawn(async move {
                loop {
                    let number = load.next.fetch_add(1, Ordering::Relaxed);
                    let Some(batch) = load.batches.get(number) else {
                        return;
                    };
                    let jobs = u32::try_from(batch.len()).unwrap();
                    load.room.acquire_many(jobs).await.unwrap().forget();
                    load.submit(number, batch, &apis, client).await;
                }
            });
        }
        clients
    }

    /// Submits one batch until there is a receipt for it, at one API after the other. Its key
    /// makes that safe.
    async fn submit(&self, number: usize, batch: &[NewJob], apis: &[Client], first: usize) {
        for api in apis.iter().cycle().skip(first % apis.len()) {
            let request = api.request(Method::POST, "/api/jobs").json(batch);
            let request = request
                .header("idempotency-key", format!("\"batch {number}\""))
                .timeout(Duration::from_secs(10));
            match api.try_send(request).await {
                Ok(answer) if answer.status == 202 => {
                    let jobs = answer.is::<Receipts>(202).jobs;
                    assert_eq!(jobs.len(), batch.len());
                    let ids = jobs.iter().map(|receipt| receipt.id);
                    self.receipts
                        .lock()
                        .unwrap()
                        .extend(ids.zip(batch.iter().cloned()));
                    return;
                }
                Ok(answer) => assert!(matches!(answer.status, 409 | 503), "{answer:?}"),
                // The API is down, or went down under it.
                Err(_) => {}
            }
            rest(Duration::from_millis(50)).await;
        }
    }
}
