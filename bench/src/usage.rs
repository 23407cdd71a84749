//! What processes use, as the kernel tells it (Linux only).

use std::{fs, ops};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The kernel counts CPU in hundredths of a second.
const TICK_US: f64 = 10_000.0;

/// CPU time used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    ticks: u64,
}

impl Cpu {
    /// Of the whole machine.
    pub(crate) fn of_machine() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        // user, nice, system, then idle and iowait, then irq and softirq.
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map_while(|field| field.parse().ok())
            .collect();
        let busy = [0, 1, 2, 5, 6];
        Ok(Self {
            ticks: busy.iter().filter_map(|&n| fields.get(n)).sum(),
        })
    }

    /// Of one process.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th
        // fields behind it.
        let (_, fields) = stat
            .rsplit_once(") ")
            .context("/proc/PID/stat has no name")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        Ok(Self {
            ticks: ticks.sum::<Result<u64, _>>()?,
        })
    }

    /// Microseconds for each of `jobs`.
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    pub(crate) fn micros_each(self, jobs: usize) -> f64 {
        self.ticks as f64 * TICK_US / jobs as f64
    }
}

impl ops::Sub for Cpu {
    type Output = Cpu;
    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu {
            ticks: self.ticks.saturating_sub(earlier.ticks),
        }
    }
}

/// Memory of one process in MB, millions of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) rss_mb: f64,
    /// Resident at most, since it started.
    pub(crate) peak_mb: f64,
}

impl Memory {
    /// Of one process.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mb = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.split_whitespace().next());
            let kib: f64 = kib
                .with_context(|| format!("/proc/PID/status has no {key}"))?
                .parse()?;
            anyhow::Ok(kib * 1024.0 / 1e6)
        };
        Ok(Self {
            rss_mb: mb("VmRSS:")?,
            peak_mb: mb("VmHWM:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        let memory = Memory::of_process(pid).unwrap();
        assert!(memory.rss_mb > 0.0 && memory.peak_mb >= memory.rss_mb);
        assert!(Cpu::of_machine().unwrap().ticks >= Cpu::of_process(pid).unwrap().ticks);
    }
}
