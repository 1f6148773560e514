//! A remark in mount(8)'s own table (`/run/mount/utab`), so that umount(8) asks us.
//!
//! Given an absolute path, umount(8) looks at statfs(2) first, sees `fuse`, and calls no `umount.fuse.hafs`. It looks further
//! where its table has an entry. The table is libmount's, its form is nobody's business, so mount(8) itself writes the
//! entry: a fake mount does just that. Without the entry hafsd lifts the guard, a moment later.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hafs_fs::mount::FILESYSTEM_TYPE;

/// The remark, as `findmnt` and `mount` then show it among the options.
const REMARK: &str = "x-hafs.guard";

/// Enters a mount with its other remarks, if mount(8) has called us: it writes no entry where there is one. Best effort.
pub(super) fn enter(volume: &str, directory: &Path, remarks: &[String]) {
    let Some(mut mount) = caller("mount") else {
        return;
    };
    mount.args(["--internal-only", "--fake", "--types", FILESYSTEM_TYPE]);
    let mut options = REMARK.to_owned();
    for remark in remarks {
        options.push(',');
        options.push_str(remark);
    }
    mount
        .args(["--options", &options, "--", volume])
        .arg(directory);
    run(&mut mount);
}

/// Takes the entry out, if umount(8) has called us. It takes out one, too: its own, where fstab has remarks.
pub(super) fn remove(directory: &Path) {
    if let Some(mut umount) = caller("umount") {
        umount
            .args(["--internal-only", "--fake", "--"])
            .arg(directory);
        run(&mut umount);
    }
}

/// The program that has called us, if it has this name.
fn caller(name: &str) -> Option<Command> {
    let parent = rustix::process::getppid()?.as_raw_nonzero();
    let program: PathBuf = fs::read_link(format!("/proc/{parent}/exe")).ok()?;
    (program.file_name()?.to_str()? == name).then(|| Command::new(program))
}

fn run(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A table that cannot be written (none in a container, say) has no entry that could be missed.
    let _ = command.status();
}
