//! `hafsctl`: what people type. Asks hafsd over its control socket and prints the answer; one file a noun.

mod doctor;
mod generate;
mod repair;
mod replica;
mod status;
mod volume;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use hafs_tools::config::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use hafs_tools::control::api::{Health, HealthState};
use hafs_tools::control::client::Client;
use hafs_tools::output::{self, Exit, Refusal};

/// Command line of hafs: volumes, their copies, the node.
#[derive(Debug, Parser)]
#[command(
    name = "hafsctl",
    version,
    after_help = "\
Exit codes: 0 ok; 1 error, or a check or the doctor found problems; 2 usage, or --yes is missing; 3 degraded;
4 at risk; 5 time-out.

Examples:
  hafsctl volume create pg-main --size 50GiB --profile database
  mount -t fuse.hafs pg-main /srv/pg
  hafsctl replica status --watch
  hafsctl volume list -o json"
)]
struct CommandLine {
    /// Control socket of the hafsd to ask
    #[arg(long, global = true, env = SOCKET_VARIABLE, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// How long to wait for an answer, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    #[command(subcommand)]
    noun: Noun,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Columns for people
    Table,
    /// The same with more columns
    Wide,
    /// The API's objects
    Json,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Volumes: create, list, show, set, check, repair, delete
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Copies of volumes
    #[command(subcommand)]
    Replica(replica::Verb),
    /// The node: its disk, its volumes, its health
    Status(watch::Watch),
    /// Whether this machine can serve volumes well, also before hafsd runs
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::Arguments),
    /// Manual pages and completions, for `make install`
    #[command(hide = true)]
    Generate(generate::Generate),
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            output::refusal(
                "hafsctl",
                &Refusal::new("cannot start").why(error.to_string()),
            );
            return Exit::Error.into();
        }
    };
    let ended = runtime.block_on(run(line));
    // Not by dropping it: that would wait for a connection that nobody wants any more.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(refusal) => {
            output::refusal("hafsctl", &refusal);
            refusal.exit.into()
        }
    }
}

async fn run(line: CommandLine) -> Result<Exit, Refusal> {
    let client = Client::new(line.socket, Duration::from_secs(line.timeout));
    match line.noun {
        Noun::Volume(verb) => volume::run(verb, &client, line.output).await,
        Noun::Replica(verb) => replica::run(verb, &client, line.output).await,
        Noun::Status(watch) => status::run(&client, line.output, watch).await,
        Noun::Doctor(arguments) => doctor::run(&client, line.output, arguments).await,
        Noun::Generate(generate) => generate::run(&generate),
    }
}

/// Exit code of status commands.
fn exit_of(health: &Health) -> Exit {
    match health.state {
        HealthState::Ok => Exit::Ok,
        HealthState::Degraded => Exit::Degraded,
        HealthState::AtRisk => Exit::AtRisk,
    }
}

/// `health: AT RISK  wiki: one copy left`; further reasons under the first.
fn health_line(health: &Health) -> String {
    let head = format!("health: {}  ", health.state);
    let indent = format!("\n{}", " ".repeat(head.len()));
    let mut text = format!("{head}{}", health.reasons.join(&indent));
    for warning in &health.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

/// What went wrong with stdout.
fn cannot_print(error: std::io::Error) -> Refusal {
    Refusal::new("cannot print the answer").why(error.to_string())
}

/// A number that may be missing.
fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn health_is_one_line_for_each_reason() {
        let health = Health {
            state: HealthState::AtRisk,
            reasons: vec!["pg: not available".into(), "wiki: not available".into()],
            warnings: vec!["db: nearly full".into()],
        };
        assert_eq!(
            health_line(&health),
            "health: AT RISK  pg: not available\n                 wiki: not available\nwarning: db: nearly full"
        );
        assert_eq!(exit_of(&health), Exit::AtRisk);
    }
}
