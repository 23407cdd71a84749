//! The figures of all rounds as one table, each beside the limit and its bar.

use std::thread;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::{limit::LimitFigures, measure::ModeFigures, run::Round, stats::Spread};

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
enum Need {
    AtLeast(f64),
    Below(f64),
    AtLeastOfLimit(f64),
    BelowOfLimit(f64),
}

/// A figure: how it is read from a round, and what it must be.
struct Figure {
    name: &'static str,
    decimals: usize,
    limit: Option<fn(&LimitFigures) -> f64>,
    mode: fn(&ModeFigures) -> Option<f64>,
    embedded: Option<Need>,
    distributed: Option<Need>,
}

const FIGURES: [Figure; 12] = [
    Figure {
        name: "accepted, single submits, 64 connections, jobs/s",
        embedded: Some(Need::AtLeast(6_000.0)),
        distributed: Some(Need::AtLeast(6_000.0)),
        ..figure(|mode| Some(mode.accepted.single))
    },
    Figure {
        name: "accepted, arrays of 100, jobs/s",
        ..figure(|mode| Some(mode.accepted.array))
    },
    Figure {
        name: "end to end, jobs/s",
        limit: Some(|limit| limit.end_to_end),
        embedded: Some(Need::AtLeastOfLimit(1.2)),
        distributed: Some(Need::AtLeastOfLimit(0.5)),
        ..figure(|mode| Some(mode.end_to_end))
    },
    Figure {
        name: "idle latency p50, ms",
        decimals: 2,
        limit: Some(|limit| limit.idle.p50_ms),
        embedded: Some(Need::Below(2.0)),
        distributed: Some(Need::BelowOfLimit(3.0)),
        ..figure(|mode| Some(mode.idle.p50_ms))
    },
    Figure {
        name: "idle latency p99, ms",
        decimals: 2,
        limit: Some(|limit| limit.idle.p99_ms),
        ..figure(|mode| Some(mode.idle.p99_ms))
    },
    Figure {
        name: "memory of the server, MB",
        ..figure(|mode| Some(mode.cost.server.memory.rss_mb))
    },
    Figure {
        name: "memory of the worker, MB",
        ..figure(|mode| mode.cost.worker.map(|worker| worker.memory.rss_mb))
    },
    Figure {
        name: "CPU a job, server, µs",
        ..figure(|mode| Some(mode.cost.server.cpu_us))
    },
    Figure {
        name: "CPU a job, worker, µs",
        ..figure(|mode| mode.cost.worker.map(|worker| worker.cpu_us))
    },
    Figure {
        name: "CPU a job, load generator, µs",
        ..figure(|mode| Some(mode.cost.load_cpu_us))
    },
    Figure {
        name: "CPU a job, limit program, µs",
        limit: Some(|limit| limit.client_cpu_us),
        ..figure(|_| None)
    },
    Figure {
        name: "CPU a job, whole machine, µs",
        limit: Some(|limit| limit.machine_cpu_us),
        ..figure(|mode| Some(mode.cost.machine_cpu_us))
    },
];

/// A mode, and where its figures and bars are.
struct Column {
    name: &'static str,
    of: fn(&Round) -> Option<&ModeFigures>,
    need: fn(&Figure) -> Option<Need>,
}

const COLUMNS: [Column; 2] = [
    Column {
        name: "embedded",
        of: |round| round.embedded.as_ref(),
        need: |figure| figure.embedded,
    },
    Column {
        name: "distributed",
        of: |round| round.distributed.as_ref(),
        need: |figure| figure.distributed,
    },
];

const fn figure(mode: fn(&ModeFigures) -> Option<f64>) -> Figure {
    Figure {
        name: "",
        decimals: 0,
        limit: None,
        mode,
        embedded: None,
        distributed: None,
    }
}

/// What a figure is held to, and whether it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bar {
    /// Which figure of which mode.
    pub(crate) figure: String,
    /// What it must be.
    bar: String,
    /// What it is: the median over the rounds, of the ratio where the bar is a ratio.
    pub(crate) value: f64,
    /// Whether it holds.
    pass: bool,
}

impl Bar {
    pub(crate) fn at_least(figure: &str, bar: f64, value: f64) -> Self {
        Self::new(
            figure,
            format!("≥ {}", thousands(bar, 0)),
            value,
            value >= bar,
        )
    }

    pub(crate) fn below(figure: &str, bar: f64, value: f64) -> Self {
        Self::new(
            figure,
            format!("< {}", thousands(bar, 0)),
            value,
            value < bar,
        )
    }

    /// A share of something else, such as 0.8.
    pub(crate) fn share(figure: &str, bar: f64, value: f64) -> Self {
        Self::new(figure, format!("≥ {bar}"), value, value >= bar)
    }

    fn new(figure: &str, bar: String, value: f64, pass: bool) -> Self {
        Self {
            figure: figure.into(),
            bar,
            value,
            pass,
        }
    }

    fn of(need: Need, figure: &str, value: f64, ratio: Option<f64>) -> Option<Self> {
        Some(match need {
            Need::AtLeast(bar) => Self::at_least(figure, bar, value),
            Need::Below(bar) => Self::below(figure, bar, value),
            Need::AtLeastOfLimit(bar) => {
                Self::new(figure, format!("≥ {bar} × limit"), ratio?, ratio? >= bar)
            }
            Need::BelowOfLimit(bar) => {
                Self::new(figure, format!("< {bar} × limit"), ratio?, ratio? < bar)
            }
        })
    }

    /// For a cell of a table.
    pub(crate) fn verdict(&self) -> String {
        format!("{}: {}", self.bar, if self.pass { "pass" } else { "MISS" })
    }
}

/// All that was found.
#[derive(Serialize)]
pub(crate) struct Report<F> {
    /// How many CPUs there are for everything.
    cpus: usize,
    /// The figures as they were measured.
    figures: F,
    /// What they are held to.
    bars: Vec<Bar>,
    /// All of it for people.
    #[serde(skip)]
    pub(crate) table: Table,
}

impl<F> Report<F> {
    pub(crate) fn new(figures: F, bars: Vec<Bar>, table: Table) -> Self {
        let cpus = thread::available_parallelism().map_or(0, usize::from);
        Self {
            cpus,
            figures,
            bars,
            table,
        }
    }

    /// Whether every bar holds.
    pub(crate) fn passes(&self) -> bool {
        self.bars.iter().all(|bar| bar.pass)
    }
}

impl Report<Vec<Round>> {
    /// The report on these rounds. What was not measured has no column.
    pub(crate) fn of_rounds(rounds: Vec<Round>) -> Self {
        let modes: Vec<&Column> = COLUMNS
            .iter()
            .filter(|mode| rounds.iter().any(|round| (mode.of)(round).is_some()))
            .collect();
        let with_limit = rounds.iter().any(|round| round.limit.is_some());
        let mut header = vec![""];
        header.extend(with_limit.then_some("limit"));
        header.extend(modes.iter().flat_map(|mode| [mode.name, "bar"]));
        let mut table = new_table();
        table.set_header(header);
        let mut bars = Vec::new();
        for figure in &FIGURES {
            let limit = figure.limit.and_then(|limit| {
                Spread::of(
                    rounds
                        .iter()
                        .filter_map(|round| round.limit.as_ref().map(limit)),
                )
            });
            let mut row = Vec::new();
            row.extend(with_limit.then(|| cell(limit, None, figure.decimals)));
            for mode in &modes {
                let value = Spread::of(
                    rounds
                        .iter()
                        .filter_map(|round| (figure.mode)((mode.of)(round)?)),
                );
                // Round by round, since the machine may drift between two.
                let ratio = Spread::of(rounds.iter().filter_map(|round| {
                    Some((figure.mode)((mode.of)(round)?)? / figure.limit?(round.limit.as_ref()?))
                }))
                .map(|ratio| ratio.median);
                let bar = value.zip((mode.need)(figure)).and_then(|(value, need)| {
                    let name = format!("{}: {}", mode.name, figure.name);
                    Bar::of(need, &name, value.median, ratio)
                });
                row.push(cell(value, ratio, figure.decimals));
                row.push(bar.as_ref().map(Bar::verdict).unwrap_or_default());
                bars.extend(bar);
            }
            if row.iter().any(|cell| !cell.is_empty()) {
                let cells = row
                    .into_iter()
                    .map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
                table.add_row([Cell::new(figure.name)].into_iter().chain(cells));
            }
        }
        Self::new(rounds, bars, table)
    }
}

/// A table in the style of this program.
pub(crate) fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table
}

/// The median, the ratio to the limit, and below them what the rounds lie between.
fn cell(value: Option<Spread>, ratio: Option<f64>, decimals: usize) -> String {
    let Some(Spread { median, low, high }) = value else {
        return String::new();
    };
    let mut text = thousands(median, decimals);
    if let Some(ratio) = ratio {
        text += &format!(" ({ratio:.2} ×)");
    }
    if low < high {
        text += &format!(
            "\n{} to {}",
            thousands(low, decimals),
            thousands(high, decimals)
        );
    }
    text
}

/// A number for people.
pub(crate) fn thousands(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digits = whole.len();
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (digits - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        measure::{Accepted, Cost, ProcessCost},
        stats::Latency,
        usage::Memory,
    };

    fn limit(end_to_end: f64) -> LimitFigures {
        let idle = Latency {
            p50_ms: 2.0,
            p99_ms: 4.0,
        };
        LimitFigures {
            end_to_end,
            idle,
            machine_cpu_us: 200.0,
            client_cpu_us: 40.0,
        }
    }

    fn mode(end_to_end: f64) -> ModeFigures {
        let memory = Memory {
            rss_mb: 50.0,
            peak_mb: 60.0,
        };
        ModeFigures {
            accepted: Accepted {
                single: 7_000.0,
                array: 30_000.0,
            },
            end_to_end,
            idle: Latency {
                p50_ms: 6.5,
                p99_ms: 9.0,
            },
            cost: Cost {
                server: ProcessCost {
                    memory,
                    cpu_us: 90.0,
                },
                worker: None,
                load_cpu_us: 10.0,
                machine_cpu_us: 300.0,
            },
        }
    }

    /// The machine halves its speed between the two rounds, and the ratio stays.
    #[test]
    fn a_bar_on_a_ratio_is_judged_round_by_round() {
        let rounds = [8_000.0, 4_000.0].map(|speed| Round {
            limit: Some(limit(speed)),
            embedded: None,
            distributed: Some(mode(speed * 0.6)),
        });
        let report = Report::of_rounds(rounds.to_vec());
        let verdicts: Vec<String> = report.bars.iter().map(Bar::verdict).collect();
        assert_eq!(
            verdicts,
            ["≥ 6,000: pass", "≥ 0.5 × limit: pass", "< 3 × limit: MISS"]
        );
        assert!(!report.passes());
        let table = report.table.to_string();
        assert!(
            table.contains("distributed") && !table.contains("embedded"),
            "{table}"
        );
        assert!(table.contains("3,600 (0.60 ×)"), "{table}");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(1_234_567.0, 0), "1,234,567");
        assert_eq!(thousands(123.456, 2), "123.46");
        assert_eq!(thousands(0.0, 0), "0");
    }
}
