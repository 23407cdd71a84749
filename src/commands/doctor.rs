//! `sluice doctor`: what is wrong, and how to mend it.

mod checks;

use std::{fmt::Write, path::Path};

use serde::Serialize;
use sluice_shared::config::Config;

use self::checks::{Finding, Status};
use super::{Server, config_file};
use crate::{Exit, Failure, home::Home, offer, output};

/// What everyone should know before they add an account.
const TERMS: &str = "\
API keys and self-hosted endpoints are the default. A provider's terms decide which accounts may
be used with Sluice: a subscription login (such as Claude Pro or Max) is for its owner's own work
and not for a team or a product. Sluice keeps an account's limits; it does not evade them, and
using many accounts to get around a provider's limits is what most terms forbid.";

/// Check the configuration, the services and the accounts, and say how to mend them
///
/// It makes no call that costs anything. Exits with 1 when something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice doctor
  sluice doctor --config sluice.toml --json")]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Finding],
    terms: &'static str,
}

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let used = config_file(file, home);
    let (config, finding) = checks::configuration(used.as_deref());
    let mut findings = vec![finding];
    findings.extend(checks::data_folder(home));
    if let Some(config) = &config {
        findings.extend(Box::pin(checks::services(config)).await);
        findings.extend(Box::pin(checks::accounts(config, home)).await);
    }
    findings.extend(checks::server(&args.server.client(home)).await);
    let ok = findings
        .iter()
        .all(|finding| finding.status != Status::Wrong);
    if args.json {
        output::json(&Report {
            ok,
            checks: &findings,
            terms: TERMS,
        })?;
        return Ok(Exit::when(ok));
    }
    let mut text: String = findings.iter().map(describe).collect();
    if let Some(config) = &config {
        let target = used.unwrap_or_else(|| home.config_file());
        text += &offers(config, &target).await;
    }
    let _ = write!(text, "\n{TERMS}\n");
    output::print(&text)?;
    Ok(Exit::when(ok))
}

fn describe(finding: &Finding) -> String {
    let sign = match finding.status {
        Status::Good => '✓',
        Status::Notice => '!',
        Status::Wrong => '✗',
    };
    let mut text = format!(
        "{sign} {}: {}\n",
        finding.name,
        output::one_line(&finding.found, 400)
    );
    if let Some(mend) = &finding.mend {
        let _ = writeln!(text, "    → {}", output::inert(mend));
    }
    text
}

async fn offers(config: &Config, target: &Path) -> String {
    let mut text = String::new();
    for offer in offer::look(config).await {
        let _ = write!(
            text,
            "\nFound: {}. To use it as an account, add to {}:\n\n{}\n",
            offer.found,
            target.display(),
            offer.lines
        );
        if let Some(note) = offer.note {
            let _ = writeln!(text, "({note})");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_sign_a_fact_and_a_way_out() {
        let finding = Finding::wrong("account main", "no key\nfound", "set ANTHROPIC_API_KEY");
        assert_eq!(
            describe(&finding),
            "✗ account main: no key found\n    → set ANTHROPIC_API_KEY\n"
        );
        assert_eq!(
            describe(&Finding::good("data folder", "/data")),
            "✓ data folder: /data\n"
        );
    }
}
