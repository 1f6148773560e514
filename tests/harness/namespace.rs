//! A command in a mount namespace of its own, so that a test changes nothing of the machine.

use std::ffi::OsStr;
use std::process::Command;

/// A shell that runs `prepare` (mounts, mostly) in a mount namespace of its own, then becomes `program` with what is added
/// to the command as arguments. In `prepare`, `$1` and on are `values`.
pub fn private_mounts(prepare: &str, values: &[&OsStr], program: &OsStr) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-euc"]);
    let shift = values.len();
    command
        .arg(format!("{prepare}\nshift {shift}\nexec \"$@\""))
        .arg("sh");
    command.args(values).arg(program);
    command
}
