//! One try of a notification.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhook_tries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub delivery: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    pub began_at: i64,
    pub took_ms: i64,
    pub status: Option<i64>,
    #[sea_orm(column_type = "Text")]
    pub error: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub response: Option<String>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
