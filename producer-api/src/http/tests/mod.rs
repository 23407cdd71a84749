//! The edge as its clients see it, on the real embedded planes.

mod access;
mod account_changes;
mod batches;
mod connections;
mod dashboard;
mod dependencies;
mod document;
mod events;
mod forecast;
mod gateway;
mod jobs;
mod messages;
mod quotas;
mod refusals;
mod responses;
mod routing;
mod schedules;
mod steering;
mod webhooks;
