//! Ends the programs of a worker that was killed and could not do so itself.
//!
//! A program whose parent is gone runs on: a CLI that waits for its model does so for minutes,
//! and its answer is billed and lost, while the job already runs elsewhere. The kernel could be
//! asked to end it with us, but only by code between `fork` and `exec`, which is `unsafe`, and
//! what it has started itself would stay. So one small process stands beside the worker and is
//! told which groups run; it does nothing until the pipe from us ends, however we died. It knows
//! groups and their marks, no command and nothing of a job's.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::unistd::Pid;

use super::process::MARK;

/// Reads `+ GROUP MARK` and `- GROUP`; at the end of its input it asks the groups that are left
/// to end, kills them a second later, and then whatever of them has left its group. Without
/// `/proc` the group has to be enough.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
while read -r word id mark; do
  rest=
  for group in $groups; do
    case $group in "$id":*) ;; *) rest="$rest $group" ;; esac
  done
  groups=$rest
  if [ "$word" = + ]; then groups="$groups $id:$mark"; fi
done
[ -n "$groups" ] || exit 0
for group in $groups; do kill -s TERM -- "-${group%%:*}"; done
sleep 1
for group in $groups; do
  kill -s KILL -- "-${group%%:*}"
  for file in $(grep -a -l "$NAME=${group#*:}" /proc/[0-9]*/environ); do
    file=${file#/proc/}
    kill -s KILL "${file%/environ}"
  done
done
"#;

/// One for the whole process, for that is whose end it waits for.
static GUARDIAN: Mutex<Guardian> = Mutex::new(Guardian {
    running: None,
    groups: BTreeMap::new(),
    given_up: false,
});

struct Guardian {
    running: Option<(Child, UnixStream)>,
    /// The groups that run now, with their marks.
    groups: BTreeMap<i32, String>,
    /// It cannot be started here, which has been said.
    given_up: bool,
}

/// A group that does not outlive this process, for as long as this lives.
#[derive(Debug)]
pub(super) struct Guarded(i32);

/// Watches over the group `id` whose processes carry `mark`.
pub(super) fn watch(id: Pid, mark: &str) -> Guarded {
    let mut guardian = guardian();
    guardian.groups.insert(id.as_raw(), mark.to_owned());
    guardian.tell(&format!("+ {id} {mark}\n"));
    Guarded(id.as_raw())
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut guardian = guardian();
        guardian.groups.remove(&self.0);
        guardian.tell(&format!("- {}\n", self.0));
    }
}

fn guardian() -> MutexGuard<'static, Guardian> {
    // Nothing in here can leave it half done.
    GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guardian {
    /// Tells it one line. One that does not listen any more is replaced, and the new one told all.
    fn tell(&mut self, line: &str) {
        if let Some((_, pipe)) = &mut self.running
            && pipe.write_all(line.as_bytes()).is_ok()
        {
            return;
        }
        if let Some((mut child, _pipe)) = self.running.take() {
            // Before its pipe ends, which would have it end what runs.
            child.kill().ok();
            child.wait().ok();
        }
        if self.given_up {
            return;
        }
        match self.start() {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                self.given_up = true;
                tracing::warn!(
                    %error,
                    "nothing ends this worker's programs if it is killed: sh cannot be started"
                );
            }
        }
    }

    fn start(&self) -> io::Result<(Child, UnixStream)> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sluice-guardian"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("NAME", MARK)
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What a terminal sends to the worker is not meant for it.
            .process_group(0)
            .spawn()?;
        // One that does not read (it was stopped, say) must not stop us: it is replaced.
        ours.set_nonblocking(true)?;
        for (id, mark) in &self.groups {
            writeln!(ours, "+ {id} {mark}")?;
        }
        Ok((child, ours))
    }
}
