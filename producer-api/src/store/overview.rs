//! How many jobs are where, cheaply: only what an index counts.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QuerySelect};
use sluice_shared::domain::State;

use super::{Store, StoreError, entity::job};

/// The jobs that have not ended.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Waiting jobs whose time has come, by the key of their lane.
    pub backlog: BTreeMap<String, u64>,
    /// Waiting jobs whose time has not come.
    pub scheduled: u64,
    /// Jobs bound to an account, not begun.
    pub dispatched: u64,
    /// Jobs that run.
    pub running: u64,
}

impl Store {
    /// Counts the jobs that have not ended. Finished ones cost it nothing.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn unfinished(&self) -> Result<Standing, StoreError> {
        let queued = job::Column::State.eq(State::Queued.as_str());
        let lanes: Vec<(String, i64)> = job::Entity::find()
            .select_only()
            .column(job::Column::Lane)
            .column_as(job::Column::Id.count(), "jobs")
            .filter(queued.clone())
            .filter(job::Column::Ready.eq(true))
            .group_by(job::Column::Lane)
            .into_tuple()
            .all(&self.read)
            .await?;
        let scheduled = job::Entity::find()
            .filter(queued)
            .filter(job::Column::Ready.eq(false))
            .count(&self.read)
            .await?;
        let in_flight = [State::Dispatched.as_str(), State::Running.as_str()];
        let states: Vec<(String, i64)> = job::Entity::find()
            .select_only()
            .column(job::Column::State)
            .column_as(job::Column::Id.count(), "jobs")
            .filter(job::Column::State.is_in(in_flight))
            .group_by(job::Column::State)
            .into_tuple()
            .all(&self.read)
            .await?;
        let number = |count: i64| u64::try_from(count).unwrap_or(0);
        let of = |state: State| {
            let found = states.iter().find(|(name, _)| name == state.as_str());
            found.map_or(0, |(_, count)| number(*count))
        };
        Ok(Standing {
            backlog: lanes
                .into_iter()
                .map(|(lane, count)| (lane, number(count)))
                .collect(),
            scheduled,
            dispatched: of(State::Dispatched),
            running: of(State::Running),
        })
    }
}
