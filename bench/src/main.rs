//! `hafs-bench`: measures on this machine what hafs's decisions rest on.
//!
//! Run by people and by CI. Results go to stdout, progress to stderr. It promises to leave nothing behind, also when
//! it fails or is interrupted; what the figures decide is for `docs/rfcs/`.
//!
//! Exit codes: 0 measured (targets reached or not), 1 error, 2 usage, 128 + signal when interrupted.

mod filesystem;
mod hafsd;
mod interrupt;
mod machine;
mod report;
mod sample;
mod scale;
mod scratch;
mod store_format;
mod usage;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::interrupt::{Interrupt, Interrupted};

#[derive(Debug, Parser)]
#[command(
    name = "hafs-bench",
    version,
    about = "Measure what hafs's decisions rest on"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the parts of an on-disk format cost: syncs, bulk writes, batches, hashes
    StoreFormat(StoreFormat),
    /// A hafs mount beside ext4, bare FUSE, bindfs and GlusterFS on one disk: rates, latencies, ratios
    Filesystem(FilesystemArgs),
    /// Ten million files, a directory of a million, a sparse TiB, 100 volumes: rates, memory, times to open
    Scale(ScaleArgs),
    /// Serve the null filesystem on a directory until it is unmounted; `filesystem` starts this
    #[command(hide = true)]
    Null { dir: PathBuf },
}

#[derive(Debug, clap::Args)]
struct StoreFormat {
    #[command(flatten)]
    settings: store_format::Settings,
    /// Table to paste into markdown, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct FilesystemArgs {
    #[command(flatten)]
    settings: filesystem::Settings,
    /// Table to paste into markdown, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct ScaleArgs {
    #[command(flatten)]
    settings: scale::Settings,
    /// Table to paste into markdown, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Err(error) = run(&cli) else {
        return ExitCode::SUCCESS;
    };
    scratch::say(&format!("error: {error:#}"));
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => ExitCode::from(interrupted.exit_code()),
        None => ExitCode::FAILURE,
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    measure(cli, &interrupt).or_else(|error| {
        interrupt.check()?; // a signal makes work fail, too
        Err(error)
    })
}

fn measure(cli: &Cli, interrupt: &Interrupt) -> anyhow::Result<()> {
    match &cli.command {
        Command::StoreFormat(args) => {
            let report = store_format::run(&args.settings, interrupt)?;
            let text = match args.output {
                Output::Table => report.table(),
                Output::Json => serde_json::to_string_pretty(&report)? + "\n",
            };
            std::io::stdout().write_all(text.as_bytes())?;
        }
        Command::Filesystem(args) => {
            let table = filesystem::run(&args.settings, interrupt)?;
            let text = match args.output {
                Output::Table => table.markdown(),
                Output::Json => serde_json::to_string_pretty(&table)? + "\n",
            };
            std::io::stdout().write_all(text.as_bytes())?;
            say_missed(table.missed());
            if !table.failures.is_empty() {
                anyhow::bail!(
                    "{} workloads failed; the table names them",
                    table.failures.len()
                );
            }
        }
        Command::Scale(args) => {
            let figures = scale::run(&args.settings, interrupt)?;
            let text = match args.output {
                Output::Table => figures.markdown(),
                Output::Json => serde_json::to_string_pretty(&figures)? + "\n",
            };
            std::io::stdout().write_all(text.as_bytes())?;
            say_missed(figures.missed());
        }
        Command::Null { dir } => filesystem::serve_null(dir)?,
    }
    Ok(())
}

/// How many targets were missed, of how many that were measured.
fn say_missed((missed, judged): (usize, usize)) {
    scratch::say(&format!("{missed} of {judged} targets missed"));
}
