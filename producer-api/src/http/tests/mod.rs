//! The edge as its clients see it, on the real embedded planes.

mod access;
mod account_changes;
mod connections;
mod dashboard;
mod document;
mod events;
mod forecast;
mod gateway;
mod jobs;
mod quotas;
mod refusals;
mod routing;
mod steering;
mod webhooks;
