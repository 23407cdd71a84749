//! Fair queueing in the truth plane: where tags come from, and what virtual time is.
//!
//! `fair_tags` holds each client's next tag in a lane and priority, `fair_clocks` the highest tag
//! dispatched there. Tags are reserved by one statement that locks only the clients it is for and
//! adds to what it finds, so any number of API processes never give one place twice. A
//! reservation that goes unused leaves a gap; [`Store::mend_fair_tags`] closes it.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use sluice_shared::domain::{
    Lane, Time,
    fair::{Tags, UNIT},
    route::{Binding, Head},
};
use uuid::Uuid;

use super::{
    LaneDemand, Store, StoreError, Submission,
    bulk::{Column, Rows, Write},
    for_update,
};

/// Rows that one clock is spread over, so that API processes do not wait for each other's.
const SLOTS: i64 = 16;

/// Jobs whose time has come that are let in with one transaction.
const DUE: usize = 1000;

/// A slot for the rows of this process.
pub(super) fn slot() -> i64 {
    i64::from(rand::random::<u32>()) % SLOTS
}

/// Who asks for tags: client, lane, priority.
type Place = (String, String, i64);

/// What was reserved for each place, and which of the clients have a quota on their jobs.
type Reserved = (BTreeMap<Place, Tags>, BTreeSet<String>);

/// Reserves tags for so many jobs of each place. With `relaxed`, Postgres does not wait for the
/// disk: losing a reservation in a crash costs a little fairness and no job.
async fn reserve(
    db: &impl ConnectionTrait,
    places: &BTreeMap<Place, u32>,
    relaxed: bool,
) -> Result<Reserved, DbErr> {
    let relax = if relaxed && db.get_database_backend() == DbBackend::Postgres {
        "CROSS JOIN (SELECT set_config('synchronous_commit', 'off', TRUE) AS value) AS relaxed \
         WHERE relaxed.value = 'off'"
    } else {
        "WHERE TRUE"
    };
    // A lane that has run empty takes up the virtual time of its priority, or who comes to it
    // next would go before everyone in lanes that were busy meanwhile. (`tag + 0` keeps Postgres
    // from walking down the index of all lanes to find the highest tag of one.)
    let sql = format!(
        ", places AS MATERIALIZED (\
           SELECT v.lane, v.priority, v.client, v.jobs, \
           {UNIT} / COALESCE((SELECT weight FROM clients WHERE name = v.client), 1) AS step, \
           COALESCE((SELECT max(seen) FROM (\
             SELECT max(virtual_time) AS seen FROM fair_tags AS f \
             WHERE f.lane = v.lane AND f.priority = v.priority \
             UNION ALL SELECT max(tag + 0) FROM fair_clocks AS c \
             WHERE c.lane = v.lane AND c.priority = v.priority \
             UNION ALL SELECT max(tag) FROM fair_clocks AS c WHERE c.priority = v.priority \
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.lane = v.lane \
             AND jobs.priority = v.priority AND jobs.state = 'queued' AND jobs.ready)\
           ) AS clocks), 0) AS now FROM v) \
         INSERT INTO fair_tags (lane, priority, client, step, virtual_time, next) \
         SELECT lane, priority, client, step, now, now + jobs * step FROM places {relax} \
         ON CONFLICT (lane, priority, client) DO UPDATE SET step = excluded.step, \
         next = excluded.next - excluded.virtual_time + CASE \
           WHEN fair_tags.next > excluded.virtual_time THEN fair_tags.next \
           ELSE excluded.virtual_time END, \
         virtual_time = CASE WHEN fair_tags.virtual_time > excluded.virtual_time \
           THEN fair_tags.virtual_time ELSE excluded.virtual_time END \
         RETURNING client, lane, priority, next, step, \
         (SELECT count(*) FROM clients WHERE clients.name = fair_tags.client AND COALESCE(\
         max_waiting, max_running, tokens_per_day, tokens_per_month, cost_per_day, \
         cost_per_month) IS NOT NULL)"
    );
    let mut reserved = BTreeMap::new();
    let mut limited = BTreeSet::new();
    for row in rows_of(places).query(db, &sql).await? {
        let place: Place = (
            row.try_get_by_index(0)?,
            row.try_get_by_index(1)?,
            row.try_get_by_index(2)?,
        );
        if row.try_get_by_index::<i64>(5)? > 0 {
            limited.insert(place.0.clone());
        }
        let jobs = places.get(&place).copied().unwrap_or_default();
        let tags = Tags::ending_before(row.try_get_by_index(3)?, row.try_get_by_index(4)?, jobs);
        reserved.insert(place, tags);
    }
    Ok((reserved, limited))
}

/// In one order for all processes, so that none waits for another in a circle.
fn rows_of(places: &BTreeMap<Place, u32>) -> Rows {
    let mut texts: [Vec<String>; 2] = Default::default();
    let mut numbers: [Vec<i64>; 2] = Default::default();
    for ((client, lane, priority), jobs) in places {
        texts[0].push(client.clone());
        texts[1].push(lane.clone());
        numbers[0].push(*priority);
        numbers[1].push((*jobs).into());
    }
    let [clients, lanes] = texts.map(Column::Text);
    let [priorities, jobs] = numbers.map(Column::Number);
    Rows::new(
        &["client", "lane", "priority", "jobs"],
        vec![clients, lanes, priorities, jobs],
    )
}

/// What submissions are given before they are looked into.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// A tag for each of their jobs, in order; 0 for one whose time is to come, which gets its
    /// place then.
    pub(super) tags: Vec<Vec<i64>>,
    /// Those of their clients that have a quota on their jobs.
    pub(super) limited: BTreeSet<String>,
}

/// How many jobs of each place there are that may go at once.
fn count_places<'a>(
    submissions: impl Iterator<Item = &'a Submission>,
    now: Time,
) -> BTreeMap<(&'a str, &'a Lane, i16), u32> {
    let mut counts: BTreeMap<_, u32> = BTreeMap::new();
    for submission in submissions {
        for row in &submission.rows {
            *counts
                .entry((submission.client.as_str(), &row.lane, row.priority))
                .or_default() += u32::from(row.run_at <= now);
        }
    }
    counts
}

fn place((client, lane, priority): &(&str, &Lane, i16)) -> Place {
    ((*client).to_owned(), lane.key(), i64::from(*priority))
}

/// Places for the jobs of these submissions.
pub(super) async fn places(
    db: &impl ConnectionTrait,
    submissions: &[Submission],
    now: Time,
) -> Result<Places, DbErr> {
    let counts = count_places(submissions.iter(), now);
    let wanted = counts
        .iter()
        .map(|(key, jobs)| (place(key), *jobs))
        .collect();
    let (reserved, limited) = reserve(db, &wanted, true).await?;
    let mut tags: BTreeMap<_, Tags> = counts
        .keys()
        .filter_map(|key| Some((*key, *reserved.get(&place(key))?)))
        .collect();
    let mut all = Vec::with_capacity(submissions.len());
    for submission in submissions {
        let mut own = Vec::with_capacity(submission.rows.len());
        for row in &submission.rows {
            let tag = tags
                .get_mut(&(submission.client.as_str(), &row.lane, row.priority))
                .filter(|_| row.run_at <= now)
                .and_then(Iterator::next);
            own.push(tag.unwrap_or_default());
        }
        all.push(own);
    }
    Ok(Places { tags: all, limited })
}

/// Gives the places of submissions back that were not accepted, so that their clients' next jobs
/// do not stand behind a gap.
pub(super) async fn give_back<'a>(
    db: &impl ConnectionTrait,
    submissions: impl Iterator<Item = &'a Submission>,
    now: Time,
) -> Result<(), DbErr> {
    let unused = count_places(submissions, now)
        .iter()
        .filter(|(_, jobs)| **jobs > 0)
        .map(|(key, jobs)| (place(key), *jobs))
        .collect();
    rows_of(&unused)
        .execute(
            db,
            "UPDATE fair_tags SET next = next - v.jobs * step FROM v \
             WHERE fair_tags.lane = v.lane AND fair_tags.priority = v.priority \
             AND fair_tags.client = v.client",
        )
        .await?;
    Ok(())
}

/// Lets virtual time go on to what was dispatched.
pub(super) fn advance(
    slot: i64,
    lanes: &[LaneDemand],
    heads: &[Head],
    bindings: &[Binding],
) -> Write {
    let mut clocks: BTreeMap<(&str, i16), i64> = BTreeMap::new();
    for binding in bindings {
        let head = &heads[binding.head];
        let clock = clocks
            .entry((&lanes[head.lane].key, head.priority))
            .or_insert(i64::MIN);
        *clock = (*clock).max(head.fair_tag);
    }
    let lanes = clocks.keys().map(|(lane, _)| (*lane).to_owned()).collect();
    let priorities = clocks
        .keys()
        .map(|(_, priority)| (*priority).into())
        .collect();
    let slots = vec![slot; clocks.len()];
    let tags = clocks.into_values().collect();
    Rows::new(
        &["lane", "priority", "slot", "tag"],
        vec![
            Column::Text(lanes),
            Column::Number(priorities),
            Column::Number(slots),
            Column::Number(tags),
        ],
    )
    .write(
        "INSERT INTO fair_clocks (lane, priority, slot, tag) \
         SELECT lane, priority, slot, tag FROM v WHERE TRUE \
         ON CONFLICT (lane, priority, slot) DO UPDATE SET tag = excluded.tag \
         WHERE fair_clocks.tag < excluded.tag",
    )
}

impl Store {
    /// Lets jobs in whose time has come. One that comes for the first time takes its place behind
    /// its client's others; one that comes back keeps the place it had. Gives their lanes.
    pub(super) async fn let_in(&self, now: Time) -> Result<Vec<String>, StoreError> {
        let mut lanes = Vec::new();
        loop {
            let tx = self.begin().await?;
            let due = tx
                .query_all_raw(Statement::from_sql_and_values(
                    tx.get_database_backend(),
                    format!(
                        "SELECT id, client, lane, priority, fair_tag, attempt FROM jobs \
                         WHERE state = 'queued' AND NOT ready AND run_at <= $1 \
                         ORDER BY run_at LIMIT {DUE} {}",
                        for_update(&tx, "FOR UPDATE SKIP LOCKED")
                    ),
                    [now.as_millis().into()],
                ))
                .await?;
            if due.is_empty() {
                tx.rollback().await?;
                return Ok(lanes);
            }
            let mut places: BTreeMap<Place, u32> = BTreeMap::new();
            let mut jobs: Vec<(Uuid, Place, Option<i64>)> = Vec::with_capacity(due.len());
            for row in &due {
                let place: Place = (
                    row.try_get_by_index(1)?,
                    row.try_get_by_index(2)?,
                    row.try_get_by_index(3)?,
                );
                let attempt: i64 = row.try_get_by_index(5)?;
                let kept = (attempt > 0).then_some(row.try_get_by_index(4)?);
                // A further attempt is work, too: it moves its client's later jobs back.
                *places.entry(place.clone()).or_default() += 1;
                jobs.push((row.try_get_by_index(0)?, place, kept));
            }
            let (mut reserved, _) = reserve(&tx, &places, false).await?;
            let (mut ids, mut tags) = (Vec::new(), Vec::new());
            for (id, place, kept) in jobs {
                let fresh = reserved.get_mut(&place).and_then(Iterator::next);
                ids.push(id);
                tags.push(kept.or(fresh).unwrap_or_default());
            }
            Rows::new(&["id", "tag"], vec![Column::Id(ids), Column::Number(tags)])
                .execute(
                    &tx,
                    "UPDATE jobs SET ready = TRUE, fair_tag = v.tag FROM v WHERE jobs.id = v.id",
                )
                .await?;
            tx.commit().await?;
            lanes.extend(places.into_keys().map(|(_, lane, _)| lane));
            if due.len() < DUE {
                return Ok(lanes);
            }
        }
    }
}
