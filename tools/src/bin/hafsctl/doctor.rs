//! `hafsctl doctor`: whether this machine can serve volumes well, a line for each thing looked at.

use std::path::PathBuf;

use clap::Args;
use hafs_tools::config::{self, Config};
use hafs_tools::control::api::Versioned;
use hafs_tools::control::client::Client;
use hafs_tools::doctor::{self, Examination, Finding};
use hafs_tools::output::{self, Exit, Refusal};

use crate::{Form, cannot_print};

pub(super) const HELP: &str = "\
Looks at rights, kernel, FUSE, the mount helper, limits, the clock, the data directory and its
filesystem, how fast that syncs, and hafsd if it runs. Makes nothing that stays. hafsd need not
run. Exit code 1 if something fails, 0 if there are only warnings.

Examples:
  hafsctl doctor
  hafsctl doctor --data-dir /srv/hafs -o json";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory of the node's data [default: the configuration file's, or /var/lib/hafs]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// hafsd's configuration file [default: /etc/hafs/hafsd.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(
    client: &Client,
    form: Form,
    arguments: Arguments,
) -> Result<Exit, Refusal> {
    let config = Config::resolve(config::Arguments {
        data_dir: arguments.data_dir,
        config: arguments.config,
        ..config::Arguments::default()
    })?;
    let examination = doctor::examine(&config.data_dir, client).await;
    let exit = if examination.failed == 0 {
        Exit::Ok
    } else {
        Exit::Error
    };
    match form {
        Form::Json => output::json(&Versioned::new(examination)),
        Form::Table | Form::Wide => output::line(text(&examination)),
    }
    .map_err(cannot_print)?;
    Ok(exit)
}

fn text(examination: &Examination) -> String {
    let width = examination
        .findings
        .iter()
        .map(|finding| finding.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text: String = examination
        .findings
        .iter()
        .map(|finding| lines(finding, width))
        .collect();
    text.push_str(&match (examination.failed, examination.warned) {
        (0, 0) => "all is well".to_owned(),
        (0, warned) => format!("nothing fails; warnings: {warned}"),
        (failed, warned) => format!("failures: {failed}; warnings: {warned}"),
    });
    text
}

fn lines(finding: &Finding, width: usize) -> String {
    let Finding {
        name,
        verdict,
        seen,
        why,
        next,
    } = finding;
    let mut text = format!("{verdict:<4}  {name:<width$}  {seen}\n");
    for (label, part) in [("why", why), ("next", next)] {
        if let Some(part) = part {
            text.push_str(&format!("      {label}: {part}\n"));
        }
    }
    text
}
