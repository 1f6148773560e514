//! The machine: rights, FUSE, kernel, mount helper, limits, clock.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use hafs_fs::mount::kernel_offer;
use jiff::Timestamp;
use rustix::fs::{major, minor};
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::Finding;
use crate::output::chain;

/// As include/linux/miscdevice.h fixes it.
const DEVICE_NUMBER: (u32, u32) = (10, 229);
/// Where mount(8) looks for `mount.TYPE`, as util-linux is built.
const HELPER_DIRS: [&str; 3] = ["/sbin", "/sbin/fs.d", "/sbin/fs"];
const HELPER: &str = "mount.fuse.hafs";
/// `statx` tells the number of a mount since then, which tells a mount from one that lies on it.
const KERNEL_MIN: (u32, u32) = (5, 8);
/// The last of the capabilities that volumes are much slower without came with it (`FUSE_HANDLE_KILLPRIV_V2`).
const KERNEL_GOOD: (u32, u32) = (5, 11);
/// A volume holds some hundred files open: its log, its segments, its state's tables.
const OPEN_FILES_MIN: u64 = 1024;
const OPEN_FILES_GOOD: u64 = 65_536;
/// When this was written. A clock before that is not set.
const CLOCK_MIN: &str = "2026-01-01T00:00:00Z";

pub(super) fn findings() -> Vec<Finding> {
    vec![
        rights(),
        kernel(),
        device(),
        protocol(),
        helper(),
        open_files(),
        clock(),
    ]
}

fn rights() -> Finding {
    const NAME: &str = "rights";
    if !geteuid().is_root() {
        let uid = geteuid().as_raw();
        return Finding::fail(NAME, format!("uid {uid}, not root"))
            .why("mounting needs root, and so does much of what is looked at here")
            .next("run hafsctl doctor, and hafsd, as root");
    }
    match capabilities(None) {
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_ADMIN) => {
            Finding::ok(NAME, "root, and may mount")
        }
        Ok(_) => Finding::fail(NAME, "root without CAP_SYS_ADMIN")
            .why("mount(2) asks for it; a container has it only if it was given")
            .next("run it on the host, or give the container CAP_SYS_ADMIN and /dev/fuse"),
        Err(error) => Finding::warn(NAME, "root; capabilities cannot be read")
            .why(error.to_string())
            .next("see below whether a FUSE superblock can be made"),
    }
}

fn kernel() -> Finding {
    const NAME: &str = "kernel";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let Some(version) = parse_release(&release) else {
        return Finding::warn(NAME, format!("Linux {release}"))
            .why("that is no version as kernels have it")
            .next("see below what it offers to FUSE");
    };
    let needs = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    if version < KERNEL_MIN {
        Finding::fail(NAME, format!("Linux {release}"))
            .why(format!("hafs needs {}", needs(KERNEL_MIN)))
            .next("update the kernel")
    } else if version < KERNEL_GOOD {
        Finding::warn(NAME, format!("Linux {release}"))
            .why(format!(
                "before {} each write costs a second request",
                needs(KERNEL_GOOD)
            ))
            .next("update the kernel")
    } else {
        Finding::ok(NAME, format!("Linux {release}"))
    }
}

/// `6.18.5-foo` as (6, 18).
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn device() -> Finding {
    const NAME: &str = "/dev/fuse";
    let opened = fs::OpenOptions::new().read(true).write(true).open(NAME);
    let number = opened.and_then(|file| {
        let number = file.metadata()?.rdev();
        Ok((major(number), minor(number)))
    });
    match number {
        Ok(DEVICE_NUMBER) => Finding::ok(NAME, "opens"),
        Ok((major, minor)) => Finding::fail(NAME, format!("is the device {major}:{minor}"))
            .why("FUSE is the device 10:229")
            .next("rm /dev/fuse && modprobe fuse; in a container: --device /dev/fuse"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::fail(NAME, "is missing")
                .why("the kernel's module is not loaded, or a container was not given the device")
                .next("modprobe fuse; in a container: --device /dev/fuse")
        }
        Err(error) => Finding::fail(NAME, "does not open")
            .why(error.to_string())
            .next("run as root; in a container: --device /dev/fuse"),
    }
}

fn protocol() -> Finding {
    const NAME: &str = "FUSE";
    let offer = match kernel_offer() {
        Ok(offer) => offer,
        Err(error) => {
            return Finding::fail(NAME, "no superblock can be made")
                .why(chain(&error))
                .next("see /dev/fuse and rights above");
        }
    };
    let seen = format!("protocol {}.{}", offer.major, offer.minor);
    if offer.missing.is_empty() {
        return Finding::ok(NAME, format!("{seen}, all that hafs uses is offered"));
    }
    Finding::warn(NAME, seen)
        .why(format!(
            "not offered: {}; volumes work, slower",
            offer.missing.join(", ")
        ))
        .next("update the kernel")
}

fn helper() -> Finding {
    const NAME: &str = "mount helper";
    let found = HELPER_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(HELPER))
        .find(|path| path.exists());
    let Some(path) = found else {
        return Finding::fail(NAME, format!("no {HELPER}"))
            .why(format!(
                "mount(8) looks for it in {}",
                HELPER_DIRS.join(", ")
            ))
            .next(format!(
                "install mount-fuse-hafs as {}/{HELPER}",
                HELPER_DIRS[0]
            ));
    };
    let path = path.display().to_string();
    let executable = fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0);
    if !executable {
        return Finding::fail(NAME, path.clone())
            .why("it is not executable")
            .next(format!("chmod 755 {path}"));
    }
    let said = Command::new(&path).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let version = said
        .as_deref()
        .ok()
        .and_then(|said| said.rsplit(' ').next());
    let ours = env!("CARGO_PKG_VERSION");
    if version == Some(ours) {
        return Finding::ok(NAME, format!("{path}, version {ours}"));
    }
    Finding::warn(NAME, path)
        .why(match said {
            Ok(said) => format!("it is `{said}`, this hafsctl of version {ours}"),
            Err(error) => format!("it does not run: {error}"),
        })
        .next("install the programs of one release")
}

fn open_files() -> Finding {
    const NAME: &str = "open files";
    // hafsd raises the soft limit to the hard one.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let seen = match most {
        u64::MAX => "no limit".to_owned(),
        most => format!("at most {most}"),
    };
    let low = |finding: Finding| {
        finding
            .why("each open volume holds some hundred files open")
            .next("raise the hard limit: LimitNOFILE= in hafsd's unit, or ulimit -Hn")
    };
    if most < OPEN_FILES_MIN {
        low(Finding::fail(NAME, seen))
    } else if most < OPEN_FILES_GOOD {
        low(Finding::warn(NAME, seen))
    } else {
        Finding::ok(NAME, seen)
    }
}

fn clock() -> Finding {
    const NAME: &str = "clock";
    let now = Timestamp::now();
    let sane: Timestamp = CLOCK_MIN.parse().expect("a time");
    let seen = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
    if now < sane {
        return Finding::warn(NAME, seen)
            .why("files would be stamped with it; it was surely not set")
            .next("set it, best by NTP");
    }
    Finding::ok(NAME, seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_two_numbers_with_something_behind() {
        assert_eq!(parse_release("6.18.5"), Some((6, 18)));
        assert_eq!(parse_release("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(parse_release("6.1-rc3"), Some((6, 1)));
        assert_eq!(parse_release("next"), None);
        assert!((5, 8) < KERNEL_GOOD && (6, 0) > KERNEL_GOOD);
    }
}
