//! Mending places in fair queueing: what events one by one cannot keep right.
//!
//! Jobs that are cancelled leave a gap before their client's others, reservations that go unused
//! leave one behind them, and a client whose own quota held its jobs finds them far behind virtual
//! time when it may go again. Nothing depends on the mending but fairness.

use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement};
use sluice_shared::domain::{Time, fair::UNIT};

use super::{Store, StoreError, clients};

/// How many jobs of weight 1 a client may stand off its place before its jobs are moved.
const SLACK: i64 = 100;

/// A client's place in a lane and priority that is off.
struct Off {
    lane: String,
    priority: i64,
    client: String,
    /// How far its waiting jobs are to move.
    by: i64,
}

impl Store {
    /// Brings places back to what waits, and forgets those that say nothing any more, so that the
    /// tables stay as small as the backlog has clients.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn mend_fair_tags(&self, now: Time) -> Result<(), StoreError> {
        for off in self.places_off().await? {
            if off.by > 0 && self.is_held(&off.client, now).await? {
                continue;
            }
            let tx = self.begin().await?;
            shift(&tx, &off).await?;
            tx.commit().await?;
        }
        let last = "SELECT max(jobs.fair_tag) FROM jobs WHERE jobs.client = fair_tags.client \
                    AND jobs.lane = fair_tags.lane AND jobs.priority = fair_tags.priority \
                    AND jobs.state = 'queued' AND jobs.ready";
        let clock = "SELECT max(tag + 0) FROM fair_clocks AS c \
                     WHERE c.lane = fair_tags.lane AND c.priority = fair_tags.priority";
        let priority_clock = "SELECT max(tag) FROM fair_clocks AS c \
                              WHERE c.priority = fair_tags.priority";
        for sql in [
            format!(
                "UPDATE fair_tags SET next = COALESCE(({last}), ({clock}), virtual_time) + step \
                 WHERE next > COALESCE(({last}), ({clock}), virtual_time) + step"
            ),
            format!(
                "DELETE FROM fair_tags WHERE ({last}) IS NULL \
                 AND next <= COALESCE(({priority_clock}), 0)"
            ),
            // The highest clock of a priority stays: new lanes begin there.
            "DELETE FROM fair_clocks WHERE tag < (SELECT max(tag) FROM fair_clocks AS c \
             WHERE c.priority = fair_clocks.priority) \
             AND NOT EXISTS (SELECT 1 FROM fair_tags AS f \
             WHERE f.lane = fair_clocks.lane AND f.priority = fair_clocks.priority)"
                .into(),
        ] {
            self.write.execute_unprepared(&sql).await?;
        }
        Ok(())
    }

    /// Places whose first waiting job is far from virtual time. One that comes back after an
    /// attempt keeps its old place by right, and is not looked at.
    async fn places_off(&self) -> Result<Vec<Off>, StoreError> {
        let slack = SLACK * UNIT;
        let rows = self
            .read
            .query_all_raw(Statement::from_string(
                self.read.get_database_backend(),
                format!(
                    "SELECT lane, priority, client, step, first, now FROM (\
                       SELECT f.lane, f.priority, f.client, f.step, \
                       (SELECT min(j.fair_tag) FROM jobs AS j WHERE j.client = f.client \
                         AND j.lane = f.lane AND j.priority = f.priority \
                         AND j.state = 'queued' AND j.ready AND j.attempt = 0) AS first, \
                       (SELECT max(seen) FROM (\
                         SELECT max(v.virtual_time) AS seen FROM fair_tags AS v \
                         WHERE v.lane = f.lane AND v.priority = f.priority \
                         UNION ALL SELECT max(c.tag + 0) FROM fair_clocks AS c \
                         WHERE c.lane = f.lane AND c.priority = f.priority) AS clocks) AS now \
                       FROM fair_tags AS f) AS places \
                     WHERE first < now - {slack} OR first > now + step + {slack}"
                ),
            ))
            .await?;
        let mut off = Vec::with_capacity(rows.len());
        for row in rows {
            let (step, first): (i64, i64) = (row.try_get_by_index(3)?, row.try_get_by_index(4)?);
            let now: i64 = row.try_get_by_index(5)?;
            off.push(Off {
                lane: row.try_get_by_index(0)?,
                priority: row.try_get_by_index(1)?,
                client: row.try_get_by_index(2)?,
                by: if first < now {
                    now - first
                } else {
                    now + step - first
                },
            });
        }
        Ok(off)
    }

    /// Whether its own quota holds a client's jobs, so that they fall behind by right. With a
    /// limit on what runs it never has more than that limit ahead of others.
    async fn is_held(&self, name: &str, now: Time) -> Result<bool, StoreError> {
        let set = self.client(name).await?;
        if set.quota.max_running.is_some() {
            return Ok(true);
        }
        if !set.quota.has_budget() {
            return Ok(false);
        }
        let used = clients::ledger(&self.read, name, now).await?;
        Ok(set.quota.room(0, &used) == 0)
    }
}

async fn shift(tx: &DatabaseTransaction, off: &Off) -> Result<(), StoreError> {
    for sql in [
        "UPDATE jobs SET fair_tag = fair_tag + $1 WHERE client = $2 AND lane = $3 \
         AND priority = $4 AND state = 'queued' AND ready AND attempt = 0",
        "UPDATE fair_tags SET next = next + $1 WHERE client = $2 AND lane = $3 AND priority = $4",
    ] {
        tx.execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            sql,
            [
                off.by.into(),
                off.client.as_str().into(),
                off.lane.as_str().into(),
                off.priority.into(),
            ],
        ))
        .await?;
    }
    Ok(())
}
