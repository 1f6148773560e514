//! `/sbin/mount.fuse.hafs`: mount(8) calls it for `mount -t fuse.hafs VOLUME DIR`.
//!
//! Reads what mount(8) passes; [`hafs_tools::mounter`] does the rest. Exit codes are mount(8)'s.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use hafs_tools::config::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use hafs_tools::mounter::{self, MountCall, MountFailure, MountOptions};
use hafs_tools::output::{self, Refusal};

const PROGRAM: &str = "mount.fuse.hafs";

/// Mounts a hafs volume. Called by mount(8): mount -t fuse.hafs VOLUME DIR [-o OPTIONS]
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "\
Options for -o: ro, rw, noatime, relatime, strictatime, nodiratime, noexec, nosuid, nodev, their
opposites, remount, and socket=PATH (the control socket of the hafsd to ask). What mount(8) keeps
for itself is passed over.

Examples:
  mount -t fuse.hafs pg-main /srv/pg
  mount -t fuse.hafs pg-main /srv/pg-copy -o ro,noexec"
)]
struct Arguments {
    /// Name of the volume
    volume: String,
    /// Where to mount it
    directory: PathBuf,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Pass over options that are not known
    #[arg(short)]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short)]
    fake: bool,
    /// Accepted for mount(8): there is no /etc/mtab to write
    #[arg(short = 'n')]
    _no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Accepted for mount(8)
    #[arg(short = 't', value_name = "TYPE")]
    _fs_type: Option<String>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::refusal(PROGRAM, failure.refusal());
            failure.exit_code().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), MountFailure> {
    let options = MountOptions::parse(&arguments.options, arguments.sloppy).map_err(|error| {
        let (why, next) = error.advice();
        MountFailure::Usage(Refusal::new(error.to_string()).why(why).next(next))
    })?;
    let socket = std::env::var_os(SOCKET_VARIABLE).unwrap_or_else(|| SOCKET_DEFAULT.into());
    let call = MountCall {
        volume: arguments.volume.clone(),
        directory: arguments.directory.clone(),
        options,
        socket: socket.into(),
        fake: arguments.fake,
    };
    mounter::mount(&call)?;
    if arguments.verbose {
        let directory = call.directory.display();
        output::remark(&format!(
            "{PROGRAM}: volume `{}` mounted on {directory}",
            call.volume
        ));
    }
    Ok(())
}

/// mount(8) knows 1 as "incorrect invocation"; clap's own code would be 2.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell if the text cannot be printed.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}
