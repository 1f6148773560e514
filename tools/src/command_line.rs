//! What hafsd and the mount helper take on their command lines.
//!
//! The programs parse with them, and `hafsctl generate` makes manual pages and completions of them. hafsctl's own stands in
//! its program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser};

use crate::telemetry::LogFormat;

/// The daemon of a hafs node: keeps volumes in a directory, serves their mounts, and answers hafsctl.
#[derive(Debug, Parser)]
#[command(
    name = "hafsd",
    version,
    after_help = "\
Settings come from the command line, then from the configuration file, then from the defaults.
SIGTERM or SIGINT ends hafsd: volumes are synced and unmounted (lazily where they are in use).

Keys of the configuration file (TOML): data_dir, socket, metrics (\"127.0.0.1:PORT\"),
cache_size (\"128MiB\", for the state of all volumes), log_format (\"text\" or \"json\"),
log_filter (such as \"info,hafs_fs=debug\"). An unknown key is refused.

Examples:
  hafsd
  hafsd --data-dir /srv/hafs --socket /run/hafs/second.sock --log-format json"
)]
pub struct Hafsd {
    /// Directory of this node's data [default: /var/lib/hafs]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Control socket; the mount helper's is beside it [default: /run/hafs/hafsd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Serve metrics for Prometheus on this port of the loopback too, such as 127.0.0.1:9464; they
    /// are always served on the control socket
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Configuration file [default: /etc/hafs/hafsd.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Mounts a hafs volume. Called by mount(8): mount -t fuse.hafs VOLUME DIR [-o OPTIONS]
#[derive(Debug, Parser)]
#[command(
    name = "mount.fuse.hafs",
    version,
    after_help = "\
Options for -o: ro, rw, noatime, relatime, strictatime, nodiratime, noexec, nosuid, nodev, their
opposites, remount, context= and its kind where SELinux is on, and socket=PATH (the control
socket of the hafsd to ask). What is mount(8)'s own or systemd's is passed over: _netdev, nofail,
noauto, x-systemd.*, comment= and the like.

An empty, read-only tmpfs (`hafs-guard`) lies between DIR and the volume: when the mount is gone
without an umount, writes to DIR fail (EROFS) instead of going to the disk beneath.

Exit codes are mount(8)'s: 0 mounted, 1 called wrongly or not root, 2 the system lacks something,
32 not mounted.

Examples:
  mount -t fuse.hafs pg-main /srv/pg
  mount -t fuse.hafs pg-main /srv/pg-copy -o ro,noexec
  mount -o remount,ro /srv/pg
In /etc/fstab:
  pg-main /srv/pg fuse.hafs _netdev,nofail,x-systemd.requires=hafsd.service 0 0"
)]
pub struct MountFuseHafs {
    /// Name of the volume
    pub volume: String,
    /// Where to mount it
    pub directory: PathBuf,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Pass over options that are not known
    #[arg(short)]
    pub sloppy: bool,
    /// Do everything but mount
    #[arg(short)]
    pub fake: bool,
    /// What mount(8) passes on
    #[command(flatten)]
    pub common: FromMount,
}

/// Unmounts a hafs volume. Called by umount(8): umount DIR
#[derive(Debug, Parser)]
#[command(
    name = "umount.fuse.hafs",
    version,
    after_help = "\
Takes the volume off DIR, and the guard beneath it. With -l the guard stays while the volume is in
use; another umount takes it away.

Exit codes are umount(8)'s: 0 unmounted, 1 called wrongly or not root, 2 the system lacks
something, 32 not unmounted.

Example:
  umount /srv/pg"
)]
pub struct UmountFuseHafs {
    /// Where the volume is mounted
    pub directory: PathBuf,
    /// Unmount now, clean up when nobody uses it any more
    #[arg(short)]
    pub lazy: bool,
    /// Whoever still uses it gets errors, in every container too
    #[arg(short)]
    pub force: bool,
    /// If it is in use, make it read-only
    #[arg(short)]
    pub read_only: bool,
    /// What umount(8) passes on
    #[command(flatten)]
    pub common: FromMount,
}

/// What mount(8) and umount(8) pass to every helper.
#[derive(Debug, Args)]
pub struct FromMount {
    /// Accepted: there is no /etc/mtab to write
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    pub verbose: bool,
    /// Accepted: the type is fuse.hafs
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
    /// Mount namespace to work in, such as /proc/PID/ns/mnt
    #[arg(short = 'N', value_name = "FILE")]
    pub namespace: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        Hafsd::command().debug_assert();
        MountFuseHafs::command().debug_assert();
        UmountFuseHafs::command().debug_assert();
    }

    #[test]
    fn what_libmount_passes_is_understood() {
        let line = "mount.fuse.hafs pg /srv/pg -sfnv -o rw,noatime -t fuse.hafs -N /proc/1/ns/mnt";
        let mount = MountFuseHafs::try_parse_from(line.split(' ')).unwrap();
        assert!(mount.sloppy && mount.fake && mount.common.verbose);
        let line = "umount.fuse.hafs /srv/pg -n -l -f -v -r -N /proc/1/ns/mnt";
        let umount = UmountFuseHafs::try_parse_from(line.split(' ')).unwrap();
        assert!(umount.lazy && umount.force && umount.read_only);
    }
}
