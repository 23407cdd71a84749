//! A process that is measured. It leads a group of its own, and no way out of here leaves it
//! running.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    say,
    usage::{Cpu, Memory},
};

const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const LOG_TAIL_LINES: usize = 20;

/// A running process. Dropping it kills its whole group.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it prints goes to a file in `dir`. It gets these environment
    /// variables and no other setting of Sluice's.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, &OsStr)],
        dir: &Path,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os() {
            if key.as_encoded_bytes().starts_with(b"SLUICE_") {
                command.env_remove(key);
            }
        }
        let child = command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let pid = child.id().context("a process without an id")?;
        Ok(Self {
            name,
            child,
            pid,
            log,
        })
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether it runs, and the last lines of what it printed.
    pub(crate) fn tell(&mut self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        match self.child.try_wait() {
            Ok(Some(status)) => format!("{} has ended ({status}):\n{tail}", self.name),
            _ => format!("{} still runs:\n{tail}", self.name),
        }
    }

    /// Waits for an end that is expected, and expected to be good.
    pub(crate) async fn finish(mut self, within: Duration) -> Result<()> {
        match timeout(within, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => bail!("{}", self.tell()),
        }
    }

    /// Asks it to end, and makes it when it does not.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            say(&format!(
                "{} did not stop within {STOP_TIMEOUT:?}, so it is killed",
                self.name
            ));
        }
    }

    /// The CPU it has used.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::of_process(self.pid)
    }

    /// The memory it uses.
    pub(crate) fn memory(&self) -> Result<Memory> {
        Memory::of_process(self.pid)
    }

    fn signal(&self, signal: Signal) {
        // It is reaped by `wait` only, so while the child has an id the group is ours.
        if self.child.id().is_some()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            // A group that is gone needs no signal.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        // Its data is removed next, so it must not write any more.
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
