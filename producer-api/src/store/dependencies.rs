//! Jobs that come after others: they wait with a time that never comes, and are let go, or ended,
//! when it is known what became of the others. A job that comes after none costs nothing here.
//!
//! Who comes after a job marks its row (`has_children`) while it is locked, and a settlement reads
//! that mark under the same lock; so either the settlement knows of the child, or the child's
//! insert sees the end.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, Statement};
use sluice_shared::domain::{
    BatchId, Completion, Event, JobId, Request, State, Time,
    after::{Next, OnParentFailure, Part, next, parts},
};
use uuid::Uuid;

use super::{
    NewRow, Store, StoreError,
    bulk::{Column, Rows},
    count,
    entity::{attempt, job_payload},
    for_update, parse_json, to_json, webhooks,
};

/// Jobs decided about in one transaction, at most.
const MOST: usize = 200;

/// What came of a look at waiting jobs.
#[derive(Debug, Default)]
pub struct Released {
    /// How many may run.
    pub released: usize,
    /// Those that have ended, with their states.
    pub ended: Vec<(JobId, State)>,
    /// Batches of those that have ended.
    pub batches: BTreeSet<BatchId>,
    /// Where to go on looking; none at the end.
    pub next: Option<JobId>,
}

/// A job that waits for others.
struct Child {
    id: Uuid,
    state: State,
    on_failure: OnParentFailure,
    run_at: i64,
    batch: Option<BatchId>,
    /// In the order in which they were given: id, state and last attempt.
    parents: Vec<(Uuid, State, u32)>,
}

/// Keeps what new jobs wait for.
pub(super) async fn insert<'a>(
    tx: &DatabaseTransaction,
    rows: impl Iterator<Item = &'a NewRow>,
) -> Result<(), StoreError> {
    let mut links: [Vec<Uuid>; 2] = Default::default();
    let mut places = Vec::new();
    let (mut ids, mut choices, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let Some(after) = &row.after else { continue };
        for (place, parent) in (0_i64..).zip(&after.parents) {
            links[0].push(row.id.0);
            links[1].push(parent.0);
            places.push(place);
        }
        ids.push(row.id.0);
        choices.push(to_json("on_parent_failure", &after.on_failure)?);
        times.push(after.run_at.as_millis());
    }
    if ids.is_empty() {
        return Ok(());
    }
    // Locked in the order of settlements.
    let parents: BTreeSet<Uuid> = links[1].iter().copied().collect();
    let parents: Vec<Uuid> = parents.into_iter().collect();
    let sql = format!(
        "SELECT jobs.id FROM v JOIN jobs ON jobs.id = v.id ORDER BY jobs.id {}",
        for_update(tx, "FOR UPDATE OF jobs")
    );
    let known = Rows::new(&["id"], vec![Column::Id(parents.clone())])
        .query(tx, &sql)
        .await?;
    if known.len() != parents.len() {
        return Err(StoreError::Internal("a job comes after none".into()));
    }
    Rows::new(&["id"], vec![Column::Id(parents)])
        .execute(
            tx,
            "UPDATE jobs SET has_children = TRUE FROM v WHERE jobs.id = v.id AND NOT has_children",
        )
        .await?;
    let [jobs, parents] = links.map(Column::Id);
    Rows::new(
        &["job", "parent", "place"],
        vec![jobs, parents, Column::Number(places)],
    )
    .execute(
        tx,
        "INSERT INTO job_parents (job, parent, place) SELECT job, parent, place FROM v",
    )
    .await?;
    Rows::new(
        &["job", "on_failure", "run_at"],
        vec![
            Column::Id(ids),
            Column::Text(choices),
            Column::Number(times),
        ],
    )
    .execute(
        tx,
        "INSERT INTO job_waits (job, on_failure, run_at) SELECT job, on_failure, run_at FROM v",
    )
    .await?;
    Ok(())
}

impl Store {
    /// The jobs that this one comes after, in their order.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn parents(&self, id: JobId) -> Result<Vec<JobId>, StoreError> {
        let sql = "SELECT parent FROM job_parents WHERE job = $1 ORDER BY place";
        let rows = self.read.query_all_raw(Statement::from_sql_and_values(
            self.read.get_database_backend(),
            sql,
            [id.0.into()],
        ));
        rows.await?
            .iter()
            .map(|row| Ok(JobId(row.try_get_by_index(0)?)))
            .collect()
    }

    /// Decides about the jobs that wait for these. Prompts may become `most` bytes long.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn release_after(
        &self,
        parents: &[JobId],
        most: usize,
        now: Time,
    ) -> Result<Released, StoreError> {
        let ids = parents.iter().map(|job| job.0).collect();
        let rows = Rows::new(&["id"], vec![Column::Id(ids)])
            .query(
                &self.read,
                "SELECT DISTINCT p.job FROM v JOIN job_parents p ON p.parent = v.id \
                 JOIN job_waits w ON w.job = p.job",
            )
            .await?;
        let mut children = Vec::with_capacity(rows.len());
        for row in rows {
            children.push(row.try_get_by_index::<Uuid>(0)?);
        }
        self.release(children, most, now).await
    }

    /// Decides about waiting jobs, whatever they wait for, from `from` on in the order of ids.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn release_any(
        &self,
        from: Option<JobId>,
        most: usize,
        now: Time,
    ) -> Result<Released, StoreError> {
        let sql = format!("SELECT job FROM job_waits WHERE job > $1 ORDER BY job LIMIT {MOST}");
        let from = from.map_or(Uuid::nil(), |job| job.0);
        let rows = self.read.query_all_raw(Statement::from_sql_and_values(
            self.read.get_database_backend(),
            sql,
            [from.into()],
        ));
        let mut children = Vec::new();
        for row in rows.await? {
            children.push(row.try_get_by_index::<Uuid>(0)?);
        }
        let last = children.last().copied().filter(|_| children.len() == MOST);
        let mut released = self.release(children, most, now).await?;
        released.next = last.map(JobId);
        Ok(released)
    }

    async fn release(
        &self,
        mut children: Vec<Uuid>,
        most: usize,
        now: Time,
    ) -> Result<Released, StoreError> {
        // One with several parents is found several times: SQLite takes the rows in parts.
        children.sort_unstable();
        children.dedup();
        let mut released = Released::default();
        for chunk in children.chunks(MOST) {
            self.release_some(chunk.to_vec(), most, now, &mut released)
                .await?;
        }
        Ok(released)
    }

    async fn release_some(
        &self,
        ids: Vec<Uuid>,
        most: usize,
        now: Time,
        released: &mut Released,
    ) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        let children = lock_children(&tx, ids).await?;
        let mut done = Vec::new();
        let (mut runs, mut times) = (Vec::new(), Vec::new());
        let mut ends: [Vec<String>; 3] = Default::default();
        let mut ended = Vec::new();
        for child in children {
            if child.state != State::Queued {
                // It was cancelled, or has expired.
                done.push(child.id);
                continue;
            }
            let states: Vec<State> = child.parents.iter().map(|(_, state, _)| *state).collect();
            let end = match next(&states, child.on_failure) {
                Next::Wait => continue,
                Next::End => Some(ends_without(&child)),
                Next::Run => fill(&tx, &child, most)
                    .await?
                    .map(|why| (Event::Fail, "template_failed", why)),
            };
            done.push(child.id);
            let Some((event, code, words)) = end else {
                runs.push(child.id);
                times.push(child.run_at);
                continue;
            };
            let state = child.state.on(event);
            let state = state.map_err(|refused| StoreError::Internal(refused.to_string()))?;
            ended.push(child.id);
            for (column, value) in ends.iter_mut().zip([state.as_str(), code, &words]) {
                column.push(value.to_owned());
            }
            released.ended.push((JobId(child.id), state));
            released.batches.extend(child.batch);
        }
        released.released += runs.len();
        Rows::new(
            &["id", "run_at"],
            vec![Column::Id(runs), Column::Number(times)],
        )
        .execute(
            &tx,
            "UPDATE jobs SET run_at = v.run_at FROM v \
                 WHERE jobs.id = v.id AND jobs.state = 'queued'",
        )
        .await?;
        let [states, codes, words] = ends.map(Column::Text);
        let told = ended.clone();
        let at = Column::Number(vec![now.as_millis(); ended.len()]);
        Rows::new(
            &["id", "state", "code", "words", "at"],
            vec![Column::Id(ended), states, codes, words, at],
        )
        .execute(
            &tx,
            "UPDATE jobs SET state = v.state, finished_at = v.at, error_code = v.code, \
             error_message = v.words FROM v WHERE jobs.id = v.id AND jobs.state = 'queued'",
        )
        .await?;
        webhooks::tell_of_ended(&tx, &told, now).await?;
        Rows::new(&["id"], vec![Column::Id(done)])
            .execute(&tx, "DELETE FROM job_waits WHERE job IN (SELECT id FROM v)")
            .await?;
        tx.commit().await?;
        Ok(())
    }
}

async fn lock_children(tx: &DatabaseTransaction, ids: Vec<Uuid>) -> Result<Vec<Child>, StoreError> {
    let sql = format!(
        "SELECT jobs.id, jobs.state, w.on_failure, w.run_at, jobs.batch \
         FROM v JOIN job_waits w ON w.job = v.id JOIN jobs ON jobs.id = w.job ORDER BY jobs.id {}",
        for_update(tx, "FOR UPDATE OF jobs")
    );
    let rows = Rows::new(&["id"], vec![Column::Id(ids.clone())])
        .query(tx, &sql)
        .await?;
    let mut children = Vec::with_capacity(rows.len());
    let mut places = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: Uuid = row.try_get_by_index(0)?;
        let choice: String = row.try_get_by_index(2)?;
        places.insert(id, children.len());
        children.push(Child {
            id,
            state: state(&row.try_get_by_index::<String>(1)?)?,
            on_failure: parse_json("on_parent_failure", &choice)?,
            run_at: row.try_get_by_index(3)?,
            batch: row.try_get_by_index::<Option<Uuid>>(4)?.map(BatchId),
            parents: Vec::new(),
        });
    }
    let rows = Rows::new(&["id"], vec![Column::Id(ids)])
        .query(
            tx,
            "SELECT p.job, p.parent, jobs.state, jobs.attempt FROM v \
             JOIN job_parents p ON p.job = v.id JOIN jobs ON jobs.id = p.parent \
             ORDER BY p.job, p.place",
        )
        .await?;
    for row in rows {
        let job: Uuid = row.try_get_by_index(0)?;
        if let Some(place) = places.get(&job) {
            let state = state(&row.try_get_by_index::<String>(2)?)?;
            let attempt = count(row.try_get_by_index(3)?);
            children[*place]
                .parents
                .push((row.try_get_by_index(1)?, state, attempt));
        }
    }
    Ok(children)
}

fn state(name: &str) -> Result<State, StoreError> {
    State::from_name(name)
        .ok_or_else(|| StoreError::Internal(format!("state `{name}` is not known")))
}

/// How a job ends when one that it comes after did not succeed.
fn ends_without(child: &Child) -> (Event, &'static str, String) {
    let failed = child
        .parents
        .iter()
        .find(|(_, state, _)| state.is_terminal() && *state != State::Succeeded);
    let which = failed.map_or_else(String::new, |(id, state, _)| format!("{id} is {state}"));
    match child.on_failure {
        OnParentFailure::Skip => (
            Event::Cancel,
            "skipped",
            format!("it was to come after a job that did not succeed: {which}"),
        ),
        OnParentFailure::Fail | OnParentFailure::Run => (
            Event::Fail,
            "parent_failed",
            format!("a job that it comes after did not succeed: {which}"),
        ),
    }
}

/// Fills the results of the parents into a prompt. Gives why it cannot be done.
async fn fill(
    tx: &DatabaseTransaction,
    child: &Child,
    most: usize,
) -> Result<Option<String>, StoreError> {
    let payload = job_payload::Entity::find_by_id(child.id).one(tx).await?;
    let Some(payload) = payload.filter(|payload| payload.request.contains("{{")) else {
        return Ok(None);
    };
    let mut request: Request = parse_json("request", &payload.request)?;
    let ids: Vec<JobId> = child.parents.iter().map(|(id, _, _)| JobId(*id)).collect();
    let mut results: HashMap<usize, String> = HashMap::new();
    let mut length = 0;
    let texts = request
        .messages
        .iter_mut()
        .map(|message| &mut message.content);
    for text in texts.chain(&mut request.system) {
        let mut filled = String::new();
        // It was checked when the job was accepted.
        let parts = match parts(text, &ids) {
            Ok(parts) => parts,
            Err(why) => return Ok(Some(format!("the prompt {why}"))),
        };
        for part in parts {
            let piece = match part {
                Part::Text(text) => text,
                Part::Result(index) => match results.entry(index) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(result(tx, &child.parents[index]).await?),
                },
            };
            length += piece.len();
            if length > most {
                let why =
                    format!("with the results filled in, its texts are longer than {most} bytes");
                return Ok(Some(why));
            }
            filled.push_str(piece);
        }
        *text = filled;
    }
    Rows::new(
        &["job", "request"],
        vec![
            Column::Id(vec![child.id]),
            Column::Text(vec![to_json("request", &request)?]),
        ],
    )
    .execute(
        tx,
        "UPDATE job_payloads SET request = v.request FROM v WHERE job_payloads.job = v.job",
    )
    .await?;
    Ok(None)
}

/// The text of a job's result; empty when there is none.
async fn result(
    tx: &DatabaseTransaction,
    (id, state, attempt): &(Uuid, State, u32),
) -> Result<String, StoreError> {
    if *state != State::Succeeded {
        return Ok(String::new());
    }
    let key = (*id, i64::from(*attempt));
    let last: Result<Option<attempt::Model>, DbErr> =
        attempt::Entity::find_by_id(key).one(tx).await;
    match last?.and_then(|attempt| attempt.answer) {
        Some(answer) => Ok(parse_json::<Completion>("answer", &answer)?.text),
        None => Ok(String::new()),
    }
}
