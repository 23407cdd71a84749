//! How far a batch is: a bar on a terminal, a line now and then anywhere else.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How often a line is written where there is no terminal, and how often trouble is told there.
const EVERY: Duration = Duration::from_secs(10);

/// Shows how far a batch is, on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
    total: u64,
    before: u64,
    done: u64,
    failed: u64,
    submitted: u64,
    trouble: Option<String>,
    trouble_told: Option<Instant>,
}

impl Progress {
    /// Of `total` jobs, `done` were done in earlier runs, and `failed` of these did not succeed.
    pub(crate) fn begin(total: u64, submitted: u64, done: u64, failed: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(
                "{bar:30} {human_pos}/{human_len} {per_sec} ETA {eta} {wide_msg}",
            ) {
                bar.set_style(style);
            }
            bar.set_position(done);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let now = Instant::now();
        let progress = Self {
            bar,
            began: now,
            told: now,
            total,
            before: done,
            done,
            failed,
            submitted,
            trouble: None,
            trouble_told: None,
        };
        progress.show();
        progress
    }

    /// More jobs were accepted.
    pub(super) fn submitted(&mut self, jobs: u64) {
        self.submitted += jobs;
        self.trouble = None;
        self.moved();
    }

    /// One more job has ended.
    pub(super) fn ended(&mut self, succeeded: bool) {
        self.done += 1;
        self.failed += u64::from(!succeeded);
        self.trouble = None;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        self.moved();
    }

    /// So many have ended by now.
    pub(crate) fn stands_at(&mut self, done: u64, failed: u64) {
        self.done = done;
        self.failed = failed;
        self.trouble = None;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        self.moved();
    }

    /// Something is in the way, and is tried again.
    pub(crate) fn trouble(&mut self, what: String) {
        if self.trouble.as_deref() == Some(&what) {
            return;
        }
        let is_news = self.trouble_told.is_none_or(|told| told.elapsed() >= EVERY);
        if self.bar.is_none() && is_news {
            output::note(&format!("{what}; trying again"));
            self.trouble_told = Some(Instant::now());
        }
        self.trouble = Some(what);
        self.show();
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// How many jobs have ended, in this run and before.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    fn moved(&mut self) {
        self.show();
        if self.bar.is_none() && self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let rate = (self.done - self.before) as f64 / self.began.elapsed().as_secs_f64();
            output::note(&line(self.done, self.total, self.failed, rate));
        }
    }

    fn show(&self) {
        let Some(bar) = &self.bar else { return };
        bar.set_message(match &self.trouble {
            Some(what) => format!("{what}; trying again"),
            None if self.submitted < self.total => format!("{} submitted", self.submitted),
            None if self.failed > 0 => format!("{} did not succeed", self.failed),
            None => String::new(),
        });
    }
}

fn line(done: u64, total: u64, failed: u64, rate: f64) -> String {
    let mut line = format!("{done} of {total} done");
    if failed > 0 {
        line += &format!(", {failed} did not succeed");
    }
    if rate > 0.0 {
        let left = Duration::from_secs_f64(((total - done) as f64 / rate).min(1e9));
        line += &format!(", {rate:.1}/s, about {} left", output::rough(left));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        assert_eq!(line(0, 10, 0, 0.0), "0 of 10 done");
        assert_eq!(
            line(40, 100, 3, 2.0),
            "40 of 100 done, 3 did not succeed, 2.0/s, about 30s left"
        );
    }
}
