//! A file of prompts, run to the end however often the run is interrupted.
//!
//! The file is read twice and never held: once to check every line and to plan the chunks, once to
//! submit. Three files lie beside `FILE.jsonl`:
//!
//! - `FILE.sluice-state.jsonl`, the journal: which chunk was sent, and which ids came back;
//! - `FILE.results.jsonl.part`, each result as it comes;
//! - `FILE.results.jsonl`, at the end, whole, in input order.
//!
//! **The promise.** A chunk is written to the journal before it is sent, under an idempotency key
//! of the batch's id, its number and its content. So whatever breaks in between, running the same
//! file again sends the same chunk under the same key, and nothing is submitted twice.

mod collect;
mod input;
mod journal;
mod plan;
pub(crate) mod progress;
mod results;
mod run;
mod submit;

pub(crate) use results::with_suffix;
pub(crate) use run::{Options, run};
