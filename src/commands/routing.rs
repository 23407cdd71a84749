//! `sluice routing`: how accounts are chosen.

use clap::{Subcommand, builder::PossibleValuesParser};
use comfy_table::Table;
use sluice_shared::{
    api::{NewRouting, RoutingSource, RoutingView},
    domain::route::Strategy,
};

use super::Server;
use crate::{
    Exit, Failure,
    home::Home,
    output::{self, one_line},
};

/// Show and choose how accounts are chosen
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sluice routing
  sluice routing set headroom                   # for all lanes without a strategy of their own
  sluice routing set weighted --lane tag=fast   # a lane's key is what jobs show as their lane
  sluice routing reset --lane tag=fast
  sluice routing reset                          # back to the configuration, lanes and all"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is in force (what `sluice routing` does by itself)
    Show,
    /// Choose a strategy; every API process follows within 2 s
    Set {
        /// The strategy
        #[arg(value_name = "STRATEGY", value_parser = names())]
        strategy: String,
        /// Only for this lane
        #[arg(long, value_name = "KEY")]
        lane: Option<String>,
    },
    /// Forget what was chosen
    Reset {
        /// Only for this lane
        #[arg(long, value_name = "KEY")]
        lane: Option<String>,
    },
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(Strategy::ALL.map(Strategy::as_str))
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let before = client.routing().await?;
    let after = match &args.action {
        None | Some(Action::Show) => before,
        Some(action) => client.set_routing(&change(before, action)).await?,
    };
    if args.json {
        output::json(&after)?;
    } else {
        output::table(&table(&after))?;
    }
    Ok(Exit::Done)
}

fn change(before: RoutingView, action: &Action) -> NewRouting {
    let mut chosen = NewRouting {
        strategy: (before.source == RoutingSource::Api).then_some(before.strategy),
        lanes: before.lanes,
    };
    match action {
        Action::Show => {}
        Action::Set { strategy, lane } => match (Strategy::from_name(strategy), lane) {
            (Some(strategy), Some(lane)) => {
                chosen.lanes.insert(lane.clone(), strategy);
            }
            (strategy, None) => chosen.strategy = strategy,
            (None, Some(_)) => {}
        },
        Action::Reset { lane: Some(lane) } => {
            chosen.lanes.remove(lane);
        }
        Action::Reset { lane: None } => chosen = NewRouting::default(),
    }
    chosen
}

fn table(routing: &RoutingView) -> Table {
    let mut table = output::columns(["LANE", "STRATEGY", ""]);
    let source = match routing.source {
        RoutingSource::Api => "chosen at run time",
        RoutingSource::Configuration => "from the configuration",
    };
    table.add_row(["(all others)", routing.strategy.as_str(), source]);
    for (lane, strategy) in &routing.lanes {
        table.add_row([
            one_line(lane, 60).as_str(),
            strategy.as_str(),
            "chosen at run time",
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> RoutingView {
        RoutingView {
            strategy: Strategy::RoundRobin,
            source: RoutingSource::Configuration,
            lanes: [("any".to_owned(), Strategy::Weighted)].into(),
        }
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_was() {
        let set = |lane: Option<&str>| Action::Set {
            strategy: "headroom".into(),
            lane: lane.map(str::to_owned),
        };
        let chosen = change(view(), &set(None));
        assert_eq!(chosen.strategy, Some(Strategy::Headroom));
        assert_eq!(chosen.lanes, view().lanes);
        let chosen = change(view(), &set(Some("tag=x")));
        assert_eq!((chosen.strategy, chosen.lanes.len()), (None, 2));
        let lane = Some("any".into());
        assert_eq!(
            change(view(), &Action::Reset { lane }),
            NewRouting::default()
        );
    }

    #[test]
    fn the_table_says_where_a_strategy_comes_from() {
        let text = table(&view()).to_string();
        for part in ["round-robin", "from the configuration", "any", "weighted"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
