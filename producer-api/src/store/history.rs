//! An attempt's history: one row for each that has ended.

use sluice_shared::domain::{Outcome, Time, Usage};

use super::{
    StoreError,
    bulk::{Column, Rows, Write},
    settle::{JobRow, Verdict},
    to_json,
};

/// The columns of an attempt's history that its verdict decides.
pub(super) struct Ending<'a> {
    pub(super) name: &'static str,
    pub(super) error: Option<(&'a str, &'a str)>,
    pub(super) started_at: Option<Time>,
    pub(super) finished_at: Time,
    pub(super) outcome: Option<&'a Outcome>,
}

#[derive(Default)]
pub(super) struct History {
    jobs: Vec<uuid::Uuid>,
    texts: [Vec<String>; 6],
    numbers: [Vec<i64>; 7],
}

impl History {
    pub(super) fn push(
        &mut self,
        row: &JobRow,
        verdict: &Verdict,
        ending: &Ending<'_>,
    ) -> Result<(), StoreError> {
        let worker = match verdict {
            Verdict::Report(reply) => reply.worker.clone(),
            Verdict::Lost { .. } | Verdict::Unpublished { .. } => {
                row.worker.clone().unwrap_or_default()
            }
        };
        let (usage, answer) = match ending.outcome {
            Some(Outcome::Completed(completion)) => {
                (completion.usage, to_json("answer", completion)?)
            }
            _ => (Usage::default(), String::new()),
        };
        let (code, message) = ending.error.unwrap_or_default();
        self.jobs.push(row.id);
        let values = [
            row.account.clone().unwrap_or_default(),
            worker,
            ending.name.to_owned(),
            code.to_owned(),
            message.to_owned(),
            answer,
        ];
        for (column, value) in self.texts.iter_mut().zip(values) {
            column.push(value);
        }
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let values = [
            i64::from(verdict.attempt()),
            row.dispatched_at.unwrap_or(row.created_at),
            ending
                .started_at
                .map(Time::as_millis)
                .or(row.started_at)
                .unwrap_or(0),
            ending.finished_at.as_millis(),
            number(usage.input_tokens),
            number(usage.output_tokens),
            usage.cost_microusd.map_or(-1, number),
        ];
        for (column, value) in self.numbers.iter_mut().zip(values) {
            column.push(value);
        }
        Ok(())
    }

    pub(super) fn write(self) -> Write {
        let [account, worker, outcome, code, message, answer] = self.texts.map(Column::Text);
        let [number, dispatched, started, finished, input, output, cost] =
            self.numbers.map(Column::Number);
        Rows::new(
            &[
                "job",
                "account",
                "worker",
                "outcome",
                "error_code",
                "error_message",
                "answer",
                "number",
                "dispatched_at",
                "started_at",
                "finished_at",
                "input_tokens",
                "output_tokens",
                "cost_microusd",
            ],
            vec![
                Column::Id(self.jobs),
                account,
                worker,
                outcome,
                code,
                message,
                answer,
                number,
                dispatched,
                started,
                finished,
                input,
                output,
                cost,
            ],
        )
        .write(
            "INSERT INTO attempts (job, number, account, worker, outcome, error_code, \
             error_message, answer, dispatched_at, started_at, finished_at, input_tokens, \
             output_tokens, cost_microusd) \
             SELECT job, number, account, NULLIF(worker, ''), outcome, NULLIF(error_code, ''), \
             NULLIF(error_message, ''), NULLIF(answer, ''), dispatched_at, \
             NULLIF(started_at, 0), finished_at, input_tokens, output_tokens, \
             NULLIF(cost_microusd, -1) FROM v",
        )
    }
}
