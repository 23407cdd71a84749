//! Fair shares between clients: weighted start-time fair queueing.
//!
//! Every job gets a tag when it is accepted, and the lower tag goes first. A client's tags stand
//! one [`step`] apart, the smaller the greater its weight, so that of two clients with jobs
//! waiting each gets capacity in the ratio of their weights, however long their backlogs. Virtual
//! time is the highest tag that was dispatched: it moves only by work that is done, so a client
//! that comes after a long rest starts where the others are, with no credit and no debt.
//!
//! Pure: what a client's next tag is, and what virtual time is, come from the truth plane.

/// How far apart the tags of a client with weight 1 stand.
pub const UNIT: i64 = 1_000_000;

/// The greatest weight of a client.
pub const MAX_WEIGHT: u32 = 1_000;

/// How far apart the tags of a client of this weight stand; a weight of 0 is taken for 1.
#[must_use]
pub fn step(weight: u32) -> i64 {
    UNIT / i64::from(weight.clamp(1, MAX_WEIGHT))
}

/// Tags for some jobs of one client, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    next: i64,
    step: i64,
    left: u32,
}

impl Tags {
    /// Tags for `jobs` jobs of a client whose next tag was `next`, at `virtual_time`.
    #[must_use]
    pub fn reserve(next: Option<i64>, virtual_time: i64, step: i64, jobs: u32) -> Self {
        let next = next.map_or(virtual_time, |next| next.max(virtual_time));
        Self {
            next,
            step,
            left: jobs,
        }
    }

    /// The same tags, from what the client's next tag is after them.
    #[must_use]
    pub fn ending_before(after: i64, step: i64, jobs: u32) -> Self {
        Self {
            next: after - step * i64::from(jobs),
            step,
            left: jobs,
        }
    }

    /// The client's next tag when all of these are used.
    #[must_use]
    pub fn after(&self) -> i64 {
        self.next + self.step * i64::from(self.left)
    }
}

impl Iterator for Tags {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        self.left = self.left.checked_sub(1)?;
        let tag = self.next;
        self.next += self.step;
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A lane of one server, as the truth plane keeps it.
    #[derive(Default)]
    struct Lane {
        weights: Vec<u32>,
        next: Vec<Option<i64>>,
        clock: i64,
        /// Tag, age, client.
        waiting: BTreeSet<(i64, u64, usize)>,
        jobs: u64,
        served: Vec<u64>,
    }

    impl Lane {
        fn new(weights: &[u32]) -> Self {
            Self {
                weights: weights.to_vec(),
                next: vec![None; weights.len()],
                served: vec![0; weights.len()],
                ..Self::default()
            }
        }

        fn submit(&mut self, client: usize, jobs: u32) {
            let step = step(self.weights[client]);
            let tags = Tags::reserve(self.next[client], self.clock, step, jobs);
            assert_eq!(tags, Tags::ending_before(tags.after(), step, jobs));
            self.next[client] = Some(tags.after());
            for tag in tags {
                self.waiting.insert((tag, self.jobs, client));
                self.jobs += 1;
            }
        }

        fn serve(&mut self) -> Option<usize> {
            let (tag, _, client) = self.waiting.pop_first()?;
            self.clock = self.clock.max(tag);
            self.served[client] += 1;
            Some(client)
        }

        fn serve_many(&mut self, jobs: usize) {
            for _ in 0..jobs {
                self.serve();
            }
        }

        fn waits(&self, client: usize) -> bool {
            self.waiting.iter().any(|(_, _, owner)| *owner == client)
        }
    }

    #[test]
    fn a_small_batch_beside_a_huge_one_gets_its_half() {
        let mut lane = Lane::new(&[1, 1]);
        lane.submit(0, 50_000);
        lane.serve_many(1_000);
        lane.submit(1, 100);
        let mut slots = 0;
        while lane.served[1] < 100 {
            lane.serve();
            slots += 1;
        }
        assert!((199..=201).contains(&slots), "{slots}");
    }

    #[test]
    fn a_rest_earns_no_credit_and_work_leaves_no_debt() {
        let mut lane = Lane::new(&[1, 1, 1]);
        // The first works alone for long, the second has done nothing since its first job.
        lane.submit(1, 1);
        lane.serve();
        for _ in 0..500 {
            lane.submit(0, 20);
            lane.serve_many(20);
        }
        lane.submit(1, 1_000);
        lane.submit(0, 1_000);
        lane.submit(2, 1_000);
        lane.served.fill(0);
        lane.serve_many(300);
        assert!(
            lane.served.iter().all(|jobs| (99..=101).contains(jobs)),
            "{:?}",
            lane.served
        );
    }

    proptest! {
        /// While two clients both wait, what they get in proportion to their weights never
        /// differs by more than a job of each; that is the bound of start-time fair queueing.
        #[test]
        fn two_clients_with_jobs_waiting_get_capacity_in_the_ratio_of_their_weights(
            weights in proptest::collection::vec(1u32..20, 2..5),
            before in proptest::collection::vec((0usize..5, 1u32..60, 0usize..60), 0..20),
            backlogs in proptest::collection::vec(200u32..2_000, 5),
        ) {
            let mut lane = Lane::new(&weights);
            for (client, jobs, served) in before {
                lane.submit(client % weights.len(), jobs);
                lane.serve_many(served);
            }
            for (client, jobs) in backlogs.into_iter().take(weights.len()).enumerate() {
                lane.submit(client, jobs);
            }
            lane.served.fill(0);
            while (0..weights.len()).all(|client| lane.waits(client)) {
                lane.serve();
                for one in 0..weights.len() {
                    for other in 0..one {
                        let share = |client: usize| lane.served[client] as f64 / f64::from(weights[client]);
                        let bound = 1.0 / f64::from(weights[one]) + 1.0 / f64::from(weights[other]);
                        prop_assert!(
                            (share(one) - share(other)).abs() <= bound * 2.0 + 1e-3,
                            "{:?} of {weights:?}", lane.served
                        );
                    }
                }
            }
        }

        /// Whoever comes into a busy lane is served within as many jobs as others have weight
        /// for one of its own, at once.
        #[test]
        fn a_newcomer_is_served_at_once(
            weights in proptest::collection::vec(1u32..20, 2..5),
            served in 0usize..300,
        ) {
            let mut lane = Lane::new(&weights);
            for client in 1..weights.len() {
                lane.submit(client, 5_000);
            }
            lane.serve_many(served);
            lane.submit(0, 1);
            let others: u32 = weights[1..].iter().sum();
            let mut waited = 0;
            while lane.serve() != Some(0) {
                waited += 1;
                prop_assert!(waited <= others + 1, "{waited}");
            }
        }

        #[test]
        fn tags_of_a_client_only_grow(
            calls in proptest::collection::vec((0i64..1_000_000_000, 1u32..50), 1..50),
            weight in 1u32..=MAX_WEIGHT,
        ) {
            let (mut next, mut last) = (None, i64::MIN);
            for (virtual_time, jobs) in calls {
                let tags = Tags::reserve(next, virtual_time, step(weight), jobs);
                next = Some(tags.after());
                for tag in tags {
                    prop_assert!(tag > last && tag >= virtual_time);
                    last = tag;
                }
            }
        }
    }
}
