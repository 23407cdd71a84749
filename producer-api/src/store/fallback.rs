//! Jobs with fallbacks: their ways are kept, and they go on to the next step when a time has come
//! or an attempt has failed. A job without fallbacks costs nothing here.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, Statement,
};
use sluice_shared::{
    domain::{Job, JobId, Outcome, Request, Settlement, Step, Time, fallback},
    message::Report,
};
use uuid::Uuid;

use super::{
    NewRow, Store, StoreError, Verdict,
    bulk::{Column, Rows},
    entity::{job_fallback, job_payload},
    for_update, parse_json, to_json,
};

/// Jobs that go on to their next step in one transaction, at most.
const MOST: usize = 500;

/// A job's way, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Every step; the first is the job as it was submitted.
    pub steps: Vec<Step>,
    /// The step that it is on.
    pub step: usize,
    /// When the next is taken, if it waits then.
    pub due: Option<Time>,
}

/// A job that goes on to a step.
pub(super) struct Move {
    job: Uuid,
    way: Way,
}

impl Way {
    fn of(row: &job_fallback::Model) -> Result<Self, StoreError> {
        Ok(Self {
            steps: parse_json("steps", &row.steps)?,
            step: usize::try_from(row.step).unwrap_or(usize::MAX),
            due: row.due.map(Time::from_millis),
        })
    }

    fn next(&self) -> Option<&Step> {
        self.steps.get(self.step.saturating_add(1))
    }

    /// The way with the next step taken at `now`.
    fn gone_on(mut self, now: Time) -> Self {
        self.step += 1;
        self.due = self.next().and_then(|next| next.due(now));
        self
    }

    fn current(&self) -> Option<&Step> {
        self.steps.get(self.step)
    }
}

/// Keeps the ways of new jobs.
pub(super) async fn insert<'a>(
    tx: &DatabaseTransaction,
    rows: impl Iterator<Item = &'a NewRow>,
    now: Time,
) -> Result<(), StoreError> {
    let (mut ids, mut ways, mut dues) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.filter(|row| !row.steps.is_empty()) {
        ids.push(row.id.0);
        ways.push(to_json("steps", &row.steps)?);
        let next = row.steps.get(1);
        let due = next.and_then(|next| next.due(row.run_at.max(now)));
        dues.push(due.map_or(0, Time::as_millis));
    }
    if ids.is_empty() {
        return Ok(());
    }
    Rows::new(
        &["job", "steps", "due"],
        vec![Column::Id(ids), Column::Text(ways), Column::Number(dues)],
    )
    .execute(
        tx,
        "INSERT INTO job_fallbacks (job, steps, step, due) \
         SELECT job, steps, 0, NULLIF(due, 0) FROM v",
    )
    .await?;
    Ok(())
}

/// The ways of those jobs whose attempts have failed or were rejected; mostly there is none.
pub(super) async fn ways(
    tx: &DatabaseTransaction,
    verdicts: &[Verdict],
) -> Result<HashMap<JobId, Way>, StoreError> {
    let failed: Vec<Uuid> = verdicts
        .iter()
        .filter_map(|verdict| match verdict {
            Verdict::Report(reply) => match &reply.report {
                Report::Finished {
                    outcome: Outcome::Failed { .. } | Outcome::Rejected { .. },
                    ..
                } => Some(reply.job.0),
                _ => None,
            },
            _ => None,
        })
        .collect();
    if failed.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = Rows::new(&["job"], vec![Column::Id(failed)])
        .query(
            tx,
            "SELECT f.* FROM v JOIN job_fallbacks f ON f.job = v.job",
        )
        .await?;
    let mut ways = HashMap::with_capacity(rows.len());
    for row in rows {
        let row = <job_fallback::Model as sea_orm::FromQueryResult>::from_query_result(&row, "")?;
        ways.insert(JobId(row.job), Way::of(&row)?);
    }
    Ok(ways)
}

/// The next step of a job whose attempt ended so, and what becomes of the job; none when it stays
/// where it is.
pub(super) fn on_failure(
    ways: &mut HashMap<JobId, Way>,
    id: JobId,
    job: &Job,
    verdict: &Verdict,
    settlement: &Settlement,
    now: Time,
) -> Option<(Settlement, Move, String)> {
    let Verdict::Report(reply) = verdict else {
        return None;
    };
    let Report::Finished { outcome, .. } = &reply.report else {
        return None;
    };
    let next = ways.get(&id)?.next()?;
    if !next.on_failure {
        return None;
    }
    let settlement = fallback::on_failure(job, outcome, settlement, now)?;
    let lane = next.lane.clone();
    let way = ways.remove(&id)?.gone_on(now);
    Some((settlement, Move { job: id.0, way }, lane))
}

/// Writes the new lanes and models of jobs whose rows are locked.
pub(super) async fn write(tx: &DatabaseTransaction, moves: Vec<Move>) -> Result<(), StoreError> {
    let mut ids = Vec::with_capacity(moves.len());
    let mut texts: [Vec<String>; 2] = Default::default();
    let mut numbers: [Vec<i64>; 2] = Default::default();
    for Move { job, way } in &moves {
        let Some(step) = way.current() else { continue };
        ids.push(*job);
        texts[0].push(step.lane.clone());
        texts[1].push(step.model.clone().unwrap_or_default());
        numbers[0].push(i64::try_from(way.step).unwrap_or(i64::MAX));
        numbers[1].push(way.due.map_or(0, Time::as_millis));
    }
    if ids.is_empty() {
        return Ok(());
    }
    let [lanes, models] = texts.map(Column::Text);
    let [steps, dues] = numbers.map(Column::Number);
    Rows::new(
        &["id", "lane", "model"],
        vec![Column::Id(ids.clone()), lanes, models],
    )
    .execute(
        tx,
        "UPDATE jobs SET lane = v.lane, model = NULLIF(v.model, '') FROM v WHERE jobs.id = v.id",
    )
    .await?;
    Rows::new(&["job", "step", "due"], vec![Column::Id(ids), steps, dues])
        .execute(
            tx,
            "UPDATE job_fallbacks SET step = v.step, due = NULLIF(v.due, 0) \
         FROM v WHERE job_fallbacks.job = v.job",
        )
        .await?;
    rewrite_models(tx, &moves).await
}

/// A step with another model than the one before asks the provider for that one.
async fn rewrite_models(tx: &DatabaseTransaction, moves: &[Move]) -> Result<(), StoreError> {
    let changed = moves.iter().filter_map(|Move { job, way }| {
        let model = &way.current()?.model;
        let before = &way.steps.get(way.step.checked_sub(1)?)?.model;
        (model != before).then_some((*job, model))
    });
    let changed: HashMap<Uuid, &Option<String>> = changed.collect();
    if changed.is_empty() {
        return Ok(());
    }
    let payloads = job_payload::Entity::find()
        .filter(job_payload::Column::Job.is_in(changed.keys().copied()))
        .all(tx)
        .await?;
    let (mut ids, mut requests) = (Vec::new(), Vec::new());
    for payload in payloads {
        let mut request: Request = parse_json("request", &payload.request)?;
        request.model = changed.get(&payload.job).and_then(|model| (*model).clone());
        ids.push(payload.job);
        requests.push(to_json("request", &request)?);
    }
    Rows::new(
        &["job", "request"],
        vec![Column::Id(ids), Column::Text(requests)],
    )
    .execute(
        tx,
        "UPDATE job_payloads SET request = v.request FROM v WHERE job_payloads.job = v.job",
    )
    .await?;
    Ok(())
}

impl Store {
    /// Lets jobs go on whose next step's time has come while they wait. Gives the lanes that they
    /// now wait in.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn fall_back(&self, now: Time) -> Result<Vec<String>, StoreError> {
        let mut lanes = Vec::new();
        loop {
            let moved = self.fall_back_some(now, &mut lanes).await?;
            if moved < MOST {
                break;
            }
        }
        lanes.sort_unstable();
        lanes.dedup();
        // What has ended waits for nothing; its way stays, for those who ask or retry it.
        let statement = Statement::from_sql_and_values(
            self.write.get_database_backend(),
            "UPDATE job_fallbacks SET due = NULL WHERE due <= $1 AND job IN (\
               SELECT jobs.id FROM job_fallbacks f JOIN jobs ON jobs.id = f.job \
               WHERE f.due <= $1 AND jobs.finished_at IS NOT NULL)",
            [now.as_millis().into()],
        );
        self.write.execute_raw(statement).await?;
        Ok(lanes)
    }

    async fn fall_back_some(
        &self,
        now: Time,
        lanes: &mut Vec<String>,
    ) -> Result<usize, StoreError> {
        let find = |lock: &str| {
            Statement::from_sql_and_values(
                self.write.get_database_backend(),
                format!(
                    "SELECT f.* FROM job_fallbacks f JOIN jobs ON jobs.id = f.job \
                     WHERE f.due <= $1 AND jobs.state = 'queued' AND jobs.ready \
                     ORDER BY f.due LIMIT {MOST} {lock}"
                ),
                [now.as_millis().into()],
            )
        };
        // Mostly there is none, and then nothing is locked.
        if self.read.query_one_raw(find("")).await?.is_none() {
            return Ok(0);
        }
        let tx = self.begin().await?;
        let lock = for_update(&tx, "FOR UPDATE SKIP LOCKED");
        let rows = tx.query_all_raw(find(lock)).await?;
        let mut moves = Vec::with_capacity(rows.len());
        for row in &rows {
            let row =
                <job_fallback::Model as sea_orm::FromQueryResult>::from_query_result(row, "")?;
            let way = Way::of(&row)?.gone_on(now);
            lanes.extend(way.current().map(|step| step.lane.clone()));
            moves.push(Move { job: row.job, way });
        }
        write(&tx, moves).await?;
        tx.commit().await?;
        Ok(rows.len())
    }

    /// A job's way; none when it has no fallbacks.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn way(&self, id: JobId) -> Result<Option<Way>, StoreError> {
        let row = job_fallback::Entity::find_by_id(id.0)
            .one(&self.read)
            .await?;
        row.as_ref().map(Way::of).transpose()
    }
}
