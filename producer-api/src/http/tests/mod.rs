//! The edge as its clients see it, on the real embedded planes.

mod access;
mod connections;
mod dashboard;
mod document;
mod events;
mod jobs;
mod refusals;
mod steering;
