//! Which strategies were chosen at run time.

use sea_orm::{ActiveValue::Set, EntityTrait};
use sluice_shared::{api::NewRouting, domain::route::Strategy};

use super::{Store, StoreError, entity::routing};

/// The key of the deployment's own row; no lane has it.
const DEPLOYMENT: &str = "";

impl Store {
    /// What was chosen. A strategy that only a newer version knows is left out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn routing(&self) -> Result<NewRouting, StoreError> {
        let mut chosen = NewRouting::default();
        for row in routing::Entity::find().all(&self.read).await? {
            match Strategy::from_name(&row.strategy) {
                Some(strategy) if row.lane == DEPLOYMENT => chosen.strategy = Some(strategy),
                Some(strategy) => {
                    chosen.lanes.insert(row.lane, strategy);
                }
                None => tracing::debug!(row.strategy, row.lane, "a strategy is not known"),
            }
        }
        Ok(chosen)
    }

    /// Chooses: this is all that is chosen from now on.
    ///
    /// # Errors
    /// When the database cannot be reached; then nothing has changed.
    pub async fn set_routing(&self, chosen: &NewRouting) -> Result<(), StoreError> {
        let deployment = chosen.strategy.map(|strategy| (DEPLOYMENT, strategy));
        let lanes = chosen.lanes.iter();
        let rows: Vec<routing::ActiveModel> = lanes
            .map(|(lane, strategy)| (lane.as_str(), *strategy))
            .chain(deployment)
            .map(|(lane, strategy)| routing::ActiveModel {
                lane: Set(lane.into()),
                strategy: Set(strategy.as_str().into()),
            })
            .collect();
        let tx = self.begin().await?;
        routing::Entity::delete_many().exec(&tx).await?;
        if !rows.is_empty() {
            routing::Entity::insert_many(rows)
                .exec_without_returning(&tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}
