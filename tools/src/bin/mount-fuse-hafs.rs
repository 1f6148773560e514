//! `/sbin/mount.fuse.hafs`: mount(8) calls it for `mount -t fuse.hafs VOLUME DIR`. As `/sbin/umount.fuse.hafs`, a link to the
//! same program, umount(8) calls it for `umount DIR`.
//!
//! Reads what mount(8) passes; [`hafs_tools::mounter`] does the rest. Exit codes are mount(8)'s.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use hafs_tools::command_line::{FromMount, MountFuseHafs, UmountFuseHafs};
use hafs_tools::config::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use hafs_tools::mounter::{self, MountCall, MountFailure, MountOptions, UnmountCall};
use hafs_tools::mountpoint;
use hafs_tools::output::{self, Refusal};

const MOUNT: &str = "mount.fuse.hafs";
const UMOUNT: &str = "umount.fuse.hafs";

fn main() -> ExitCode {
    let (program, result) = if is_umount() {
        (
            UMOUNT,
            UmountFuseHafs::try_parse().map(|line| umount(&line)),
        )
    } else {
        (MOUNT, MountFuseHafs::try_parse().map(|line| mount(&line)))
    };
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            output::refusal(program, failure.refusal());
            failure.exit_code().into()
        }
        Err(error) => usage(&error),
    }
}

/// By the name that the program is called by.
fn is_umount() -> bool {
    let called = std::env::args_os().next().map(PathBuf::from);
    let name = called.as_deref().and_then(Path::file_name);
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"umount"))
}

fn mount(line: &MountFuseHafs) -> Result<(), MountFailure> {
    let options = MountOptions::parse(&line.options, line.sloppy).map_err(|error| {
        let (why, next) = error.advice();
        MountFailure::Usage(Refusal::new(error.to_string()).why(why).next(next))
    })?;
    let socket = std::env::var_os(SOCKET_VARIABLE).unwrap_or_else(|| SOCKET_DEFAULT.into());
    let call = MountCall {
        volume: line.volume.clone(),
        directory: line.directory.clone(),
        options,
        socket: socket.into(),
        fake: line.fake,
    };
    enter_namespace(&line.common)?;
    mounter::mount(&call)?;
    if line.common.verbose {
        let directory = call.directory.display();
        output::remark(&format!(
            "{MOUNT}: volume `{}` mounted on {directory}",
            call.volume
        ));
    }
    Ok(())
}

fn umount(line: &UmountFuseHafs) -> Result<(), MountFailure> {
    let call = UnmountCall {
        directory: line.directory.clone(),
        lazy: line.lazy,
        force: line.force,
        read_only: line.read_only,
    };
    enter_namespace(&line.common)?;
    mounter::unmount(&call)?;
    if line.common.verbose {
        let directory = call.directory.display();
        output::remark(&format!("{UMOUNT}: {directory} unmounted"));
    }
    Ok(())
}

/// `mount --namespace`: libmount leaves the change to the helper.
fn enter_namespace(common: &FromMount) -> Result<(), MountFailure> {
    let Some(path) = &common.namespace else {
        return Ok(());
    };
    mountpoint::enter_namespace(path).map_err(|error| {
        MountFailure::System(
            Refusal::new(format!(
                "cannot enter the mount namespace {}",
                path.display()
            ))
            .why(error.to_string())
            .next("give the file of a mount namespace, such as /proc/PID/ns/mnt, as root"),
        )
    })
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
