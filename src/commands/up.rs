//! `sluice up`: everything in one process.

use std::{fmt::Write, net::SocketAddr, path::Path};

use secrecy::{ExposeSecret, SecretString};
use sluice_shared::{config::Config, telemetry};
use tokio_util::sync::CancellationToken;

use super::{config_file, load_config};
use crate::{
    Exit, Failure,
    home::Home,
    offer::{self, Offer},
    output,
    roles::{self, Embedded},
    signals,
};

/// Run everything in one process, with the data in one folder
///
/// The API, the dispatcher and a worker, with the data in SLUICE_HOME. It is durable, and for one
/// machine. Without any configured account it starts with a simulated one, to try it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice up
  sluice up --listen 127.0.0.1:4000
  SLUICE_HOME=./data sluice up --config sluice.toml")]
pub(crate) struct Args {
    /// Where the API listens [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let mut config = load_config(file, home)?;
    if let Some(listen) = args.listen {
        config.api.listen = listen;
    }
    let guard = telemetry::start(&config.log, &config.telemetry, "up")?;
    let metrics = telemetry::metrics()?;
    home.create()?;
    let lock = home.lock()?;
    let listener = roles::listen(config.api.listen).await?;
    let address = listener.local_addr().map_err(Failure::io("the listener"))?;
    let mut embedded = Embedded::open(config, home).await?;
    let config = embedded.config().clone();
    let is_trial = embedded.is_trial();

    let used = config_file(file, home);
    let first_key = embedded.first_key.take();
    let link = embedded.link.take();
    output::print(&welcome(
        &config,
        address,
        home,
        used.as_deref(),
        first_key.as_ref(),
        link.as_deref(),
    ))?;
    let shutdown = CancellationToken::new();
    let work = async {
        let running = embedded.run(listener, metrics, shutdown.clone());
        let greeting = async {
            if is_trial {
                let target = used.unwrap_or_else(|| home.config_file());
                output::print(&trial(&target, &offer::look(&config).await))?;
            }
            Ok::<_, Failure>(())
        };
        // What is said about the trial may be lost with a closed output; the server goes on.
        let (ended, _) = tokio::join!(running, greeting);
        ended
    };
    let ended = signals::until_done(Box::pin(work), &shutdown).await?;
    drop(lock);
    guard.shutdown();
    ended?;
    Ok(Exit::Done)
}

fn welcome(
    config: &Config,
    address: SocketAddr,
    home: &Home,
    used: Option<&Path>,
    first_key: Option<&SecretString>,
    link: Option<&str>,
) -> String {
    let file = used.map_or_else(|| "none; every setting has a default".into(), show);
    let accounts: Vec<String> = config
        .accounts
        .iter()
        .map(|(id, account)| format!("{id} ({})", account.provider.name()))
        .collect();
    let mut text = format!(
        "Sluice {} is up at http://{address}\n\n\
         \x20 try the API   http://{address}/docs\n\
         \x20 data          {}\n\
         \x20 configuration {file}\n\
         \x20 admin key     {}\n\
         \x20 accounts      {}\n",
        env!("CARGO_PKG_VERSION"),
        show(home.path()),
        show(&home.admin_key_file()),
        accounts.join(", "),
    );
    if let Some(link) = link {
        let _ = write!(
            text,
            "\nThe dashboard, by a link that signs you in once, within an hour:\n\
             \x20 http://{address}/sign-in#{link}\n"
        );
    }
    if !address.ip().is_loopback() {
        text += "\nIt listens beyond this machine, without TLS: put a proxy with TLS before it.\n";
    }
    if let Some(key) = first_key {
        let _ = write!(
            text,
            "\nThe first admin key, shown this once. `sluice` on this machine reads it by itself:\n\
             \x20 {}\n",
            key.expose_secret()
        );
    }
    text += "\nIn another terminal:\n  ";
    if !home.is_default() {
        let _ = write!(text, "SLUICE_HOME={} ", show(home.path()));
    }
    if address.to_string() != "127.0.0.1:3000" {
        let _ = write!(text, "SLUICE_URL=http://{address} ");
    }
    text += "sluice submit --wait 'Say hello.'\n";
    text
}

fn trial(target: &Path, offers: &[Offer]) -> String {
    let mut text = format!(
        "\nThis is a trial: no account is configured, so there is one simulated account, `{}`.\n\
         It calls no model and makes its answers up.\n",
        roles::TRIAL_ACCOUNT
    );
    let target = show(target);
    if offers.is_empty() {
        let lines = "[accounts.anthropic]\nprovider = \"anthropic\"\n\
                     api_key_env = \"ANTHROPIC_API_KEY\"\ndefault_model = \"claude-sonnet-5\"";
        let _ = write!(
            text,
            "\nNext: put a real account into {target} and start again, for example\n\n{}",
            indent(lines)
        );
    }
    for offer in offers {
        let _ = write!(
            text,
            "\nNext: {}. To use it, add this to {target} and start again:\n\n{}",
            offer.found,
            indent(&offer.lines)
        );
        if let Some(note) = offer.note {
            let _ = writeln!(text, "\n  Note: {note}.");
        }
    }
    text += "\n`sluice doctor` checks accounts and says how to mend them.\n";
    text
}

fn indent(lines: &str) -> String {
    lines.lines().map(|line| format!("    {line}\n")).collect()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_welcome_says_where_everything_is() {
        let mut config = Config::from_toml("").unwrap();
        roles::add_trial_account(&mut config).unwrap();
        let home = Home::at("/data");
        let key = "sluice_abc".into();
        let text = welcome(
            &config,
            "127.0.0.1:4000".parse().unwrap(),
            &home,
            None,
            Some(&key),
            Some("token"),
        );
        for part in [
            "http://127.0.0.1:4000/docs",
            "/data/admin.key",
            "demo (simulated)",
            "sluice_abc",
            "http://127.0.0.1:4000/sign-in#token",
            "SLUICE_HOME=/data SLUICE_URL=http://127.0.0.1:4000 sluice submit",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("TLS"), "{text}");
        let address = "0.0.0.0:3000".parse().unwrap();
        let open = welcome(&config, address, &home, None, None, None);
        assert!(
            open.contains("TLS") && !open.contains("shown this once"),
            "{open}"
        );
    }

    #[test]
    fn the_trial_says_plainly_that_it_is_one() {
        let text = trial(Path::new("/data/sluice.toml"), &[]);
        assert!(
            text.contains("simulated") && text.contains("/data/sluice.toml"),
            "{text}"
        );
        let lines: String = text
            .lines()
            .filter(|line| line.starts_with("    "))
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            Config::from_toml(&lines)
                .unwrap()
                .accounts
                .contains_key("anthropic")
        );
    }
}
