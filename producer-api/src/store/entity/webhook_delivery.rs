//! One notification.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhook_deliveries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub event: Uuid,
    #[sea_orm(column_type = "Text")]
    pub event_type: String,
    pub event_at: i64,
    pub job: Option<Uuid>,
    #[sea_orm(column_type = "Text")]
    pub data: Option<String>,
    pub endpoint: Option<Uuid>,
    #[sea_orm(column_type = "Text")]
    pub client: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub url: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub target: String,
    #[sea_orm(column_type = "Text")]
    pub state: String,
    pub claim: i64,
    pub step: i64,
    pub tries: i64,
    pub due_at: i64,
    pub ended_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
