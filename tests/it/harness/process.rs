//! One process of Sluice: it leads a group of its own, its output goes to a file, and no way out
//! of here leaves it running.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::wait::{eventually, eventually_within};

/// The binary under test: of the same build as the tests, or the one that `SLUICE_TEST_BINARY` names.
fn sluice() -> OsString {
    let other = std::env::var_os("SLUICE_TEST_BINARY");
    other.unwrap_or_else(|| env!("CARGO_BIN_EXE_sluice").into())
}

/// Lines of each log that a failed test shows.
const SHOWN: usize = 60;

/// How a process is started, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What the test calls it.
    pub(crate) name: String,
    /// The command line after `sluice`.
    pub(crate) arguments: Vec<String>,
    /// Its whole environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Where its log goes, and where it works.
    pub(crate) dir: PathBuf,
}

/// A process, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    recipe: Recipe,
    child: Option<Child>,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(recipe: Recipe) -> Self {
        let mut process = Self {
            recipe,
            child: None,
        };
        process.start_again();
        process
    }

    /// Starts it again after its end, as it was started before.
    pub(crate) fn start_again(&mut self) {
        let name = &self.recipe.name;
        assert!(self.child.is_none(), "{name} runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let child = hermetic(&self.recipe.environment)
            .args(&self.recipe.arguments)
            .current_dir(&self.recipe.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        self.child = Some(child);
    }

    /// Gives it this variable from its next start on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let environment = &mut self.recipe.environment;
        environment.retain(|(known, _)| known != name);
        environment.push((name.to_owned(), value.to_owned()));
    }

    /// Whether it runs; reaps it when it has ended by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Ends it as a crash does: the whole group, with SIGKILL.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Once it is reaped, its number may be a stranger's.
            if child.try_wait().unwrap().is_none() {
                killpg(pid(&child), Signal::SIGKILL).unwrap();
                child.wait().unwrap();
            }
        }
    }

    /// Waits for an end that must be a good one.
    pub(crate) async fn finish(mut self) {
        let what = format!("{} is done", self.recipe.name);
        let child = self.child.as_mut().expect("it was started");
        let status = eventually(&what, async || child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}:\n{}", self.log_tail());
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(&mut self, within: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("a process that is stopped runs");
        kill(pid(&child), Signal::SIGTERM).unwrap();
        let what = format!("{} ends when it is asked to", self.recipe.name);
        eventually_within(within, &what, async || child.try_wait().unwrap()).await
    }

    /// Where its output goes.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.recipe.dir.join(format!("{}.log", self.recipe.name))
    }

    /// All that it has printed.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// The end of what it has printed, for a test that fails.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let first = lines.len().saturating_sub(SHOWN);
        format!(
            "--- {} ({} lines)\n{}\n",
            self.recipe.name,
            lines.len(),
            lines[first..].join("\n")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// The `sluice` program with this environment and nothing of ours. It dies with the test, even
/// with one that is killed.
pub(crate) fn hermetic(environment: &[(String, String)]) -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    let mut command = if Path::new(SETPRIV).exists() {
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL"]).arg(sluice());
        command
    } else {
        Command::new(sluice())
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let base = [("LANG", "C.UTF-8"), ("RUST_BACKTRACE", "1")];
    command.env_clear().env("PATH", path).envs(base);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

/// Every process that works in `dir` or has it in its environment, by its command line. Children
/// of a worker are in groups of their own, but they are in its directory for temporary files.
pub(crate) fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let works_there = fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|cwd| cwd.as_os_str().as_encoded_bytes().starts_with(needle));
        let has_it = fs::read(entry.path().join("environ"))
            .is_ok_and(|environ| environ.windows(needle.len()).any(|part| part == needle));
        if works_there || has_it {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((
                pid,
                String::from_utf8_lossy(&line)
                    .replace('\0', " ")
                    .trim()
                    .to_owned(),
            ));
        }
    }
    found
}

/// Sends a signal to all of these processes.
pub(crate) fn signal_all(processes: &[(i32, String)], signal: Signal) {
    for (pid, _) in processes {
        // One that has ended meanwhile is fine.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}
