//! Which CLI this is: one that is too old is refused before it sees a prompt.

use std::path::Path;

use semver::Version;
use sluice_shared::domain::Outcome;
use tokio::{process::Command, sync::Mutex};

use super::{
    super::{process, stop::Stop},
    Stamp,
};

/// The oldest CLI that is used. All options and variables that we need are in 2.1.136 and
/// after; but up to 2.1.207 the CLI exits before all of a long answer is in the pipe, so that
/// the result is lost (its change log, 2.1.208; seen with 2.1.197 from 64 KiB of output on).
pub(super) const OLDEST: Version = Version::new(2, 1, 208);

/// What the program at a path has said of its version, for as long as it is the same file.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<Option<(Stamp, Version)>>);

impl Versions {
    /// The version of `bin`, or what one that is too old comes to. Asked once a binary: it
    /// takes a tenth of a second, and with it all that wait for the answer.
    ///
    /// A CLI that is too old is the account's trouble, not the job's: as with a refused
    /// credential, the job goes back to the queue and the account is out until someone acts.
    pub(super) async fn require(
        &self,
        bin: &Path,
        command: impl FnOnce() -> Command,
        stop: Stop<'_>,
    ) -> Result<Version, Outcome> {
        let mut known = stop.race(self.0.lock()).await?;
        let stamp = Stamp::of(bin).map_err(|error| Outcome::Overloaded {
            until: None,
            detail: format!("{} cannot be found on this worker: {error}", bin.display()),
        })?;
        let version = match known.as_ref() {
            Some((of, version)) if *of == stamp => version.clone(),
            _ => {
                let version = ask(bin, command(), stop).await?;
                *known = Some((stamp, version.clone()));
                version
            }
        };
        if version < OLDEST {
            return Err(Outcome::AuthFailed {
                detail: format!(
                    "{} is claude {version}, and Sluice needs {OLDEST} or newer: older ones lose \
                     long answers. Update it (npm install -g @anthropic-ai/claude-code), then \
                     resume the account. The job was put back",
                    bin.display()
                ),
            });
        }
        Ok(version)
    }
}

async fn ask(bin: &Path, mut command: Command, stop: Stop<'_>) -> Result<Version, Outcome> {
    command.arg("--version");
    let mut output = Vec::new();
    let exit = process::run(command, Vec::new(), stop, |chunk| {
        output.extend_from_slice(chunk);
        Ok(())
    })
    .await?;
    let output = String::from_utf8_lossy(&output);
    parse(&output).ok_or_else(|| Outcome::AuthFailed {
        detail: format!(
            "{} does not look like the Claude Code CLI: `--version` ended with code {} and said \
             `{}`. Set accounts.<name>.bin, then resume the account. The job was put back",
            bin.display(),
            exit.code(),
            output.trim().chars().take(100).collect::<String>(),
        ),
    })
}

/// The version in `2.1.208 (Claude Code)`.
fn parse(output: &str) -> Option<Version> {
    output.split_whitespace().next()?.parse().ok()
}
