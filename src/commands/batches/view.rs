//! A batch as a person reads it.

use std::fmt::Write;

use comfy_table::Table;
use sluice_shared::{
    api::{BatchState, BatchView},
    domain::Time,
};

use crate::output::{self, inert, one_line, relative, rough};

/// Lines at fault that are named, at most.
const MOST_LINES: usize = 10;

/// How far a batch has come, a line a fact.
pub(super) fn facts(batch: &BatchView, now: Time) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{}", one_line(value, 300));
    };
    fact("id", &batch.id.to_string());
    if let Some(name) = &batch.name {
        fact("name", name);
    }
    fact("state", state(batch.state));
    fact("client", &batch.client);
    fact("jobs", &jobs(batch));
    fact(
        "submitted",
        &format!("{} ({})", relative(batch.created_at, now), batch.created_at),
    );
    if let Some(end) = batch.estimated_end_at {
        fact("done", &format!("{} or so ({end})", relative(end, now)));
    }
    if let Some(end) = batch.ended_at {
        fact("took", &rough(end.since(batch.created_at)));
    }
    if batch.rejected > 0 {
        let _ = writeln!(text, "{}", left_out(batch));
    }
    text
}

/// Which lines of its upload are no jobs.
pub(super) fn left_out(batch: &BatchView) -> String {
    let lines = if batch.rejected == 1 { "line" } else { "lines" };
    let mut text = format!("left out  {} {lines} of the upload", batch.rejected);
    for error in batch.errors.iter().take(MOST_LINES) {
        let _ = write!(
            text,
            "\n  line {}: {}: {}",
            error.line,
            inert(&error.code),
            one_line(&error.detail, 200)
        );
    }
    let shown = batch.errors.len().min(MOST_LINES) as u64;
    if shown > 0 && shown < batch.rejected {
        let _ = write!(text, "\n  ... `sluice batches results` names all of them");
    }
    text
}

pub(super) fn table(batches: &[BatchView], now: Time) -> Table {
    let mut table = output::columns([
        "ID",
        "NAME",
        "STATE",
        "ENDED",
        "SUCCEEDED",
        "CLIENT",
        "SUBMITTED",
    ]);
    for batch in batches {
        table.add_row([
            batch.id.to_string(),
            one_line(batch.name.as_deref().unwrap_or("-"), 30),
            state(batch.state).to_owned(),
            format!("{} of {}", batch.counts.ended(), batch.total),
            batch.counts.succeeded.to_string(),
            one_line(&batch.client, 20),
            relative(batch.created_at, now),
        ]);
    }
    table
}

fn state(state: BatchState) -> &'static str {
    match state {
        BatchState::Running => "running",
        BatchState::Cancelling => "cancelling",
        BatchState::Ended => "ended",
    }
}

fn jobs(batch: &BatchView) -> String {
    let counts = &batch.counts;
    let each = [
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
        (counts.expired, "expired"),
        (counts.running, "running"),
        (counts.dispatched, "dispatched"),
        (counts.queued, "queued"),
    ];
    let each = each.into_iter().filter(|(count, _)| *count > 0);
    let each: Vec<String> = each
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    let so_far = format!("{} of {} ended", counts.ended(), batch.total);
    if each.is_empty() {
        so_far
    } else {
        format!("{so_far}: {}", each.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_batch_shows_how_far_it_is_and_what_was_left_out() {
        let batch: BatchView = serde_json::from_value(json!({
            "id": "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42", "state": "running", "name": "night\nly",
            "client": "ci", "total": 10, "rejected": 2,
            "counts": {"succeeded": 5, "failed": 1, "queued": 4},
            "created_at": "2026-11-23T20:00:00.000Z",
            "estimated_end_at": "2026-11-23T20:10:00.000Z",
            "errors": [{"line": 3, "code": "bad_json", "detail": "is no \u{1b}[31mJSON"}],
            "url": "/u", "results_url": "/u/results",
        }))
        .unwrap();
        let now = "2026-11-23T20:05:00.000Z".parse().unwrap();
        assert_eq!(
            facts(&batch, now),
            "id        0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42\n\
             name      night ly\n\
             state     running\n\
             client    ci\n\
             jobs      6 of 10 ended: 5 succeeded, 1 failed, 4 queued\n\
             submitted 5m 0s ago (2026-11-23T20:00:00.000Z)\n\
             done      in 5m 0s or so (2026-11-23T20:10:00.000Z)\n\
             left out  2 lines of the upload\n\
             \x20 line 3: bad_json: is no \u{fffd}[31mJSON\n\
             \x20 ... `sluice batches results` names all of them\n"
        );
    }
}
