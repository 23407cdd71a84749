//! What both roles of Sluice share.
//!
//! [`domain`] is the pure core: it has no clock, no chance and no I/O of its own. [`broker`] and
//! [`live`] are two of the three ports, each an enum of its two adapters; the third, the truth
//! plane, belongs to the API alone and is not here, so that a worker cannot even name it.
//! [`message`] and [`roll`] are what travels between the roles, [`api`] what travels between a client and the
//! API.

pub mod api;
pub mod broker;
pub mod clock;
pub mod config;
pub mod domain;
pub mod live;
pub mod message;
pub mod roll;
pub mod seal;
pub mod telemetry;
