//! A volume whose log is damaged, as its operator meets it: a refusal that says what is lost, and the way on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hafs_tests::{Daemon, Launch, Scratch, requirement};

/// Writes and syncs a file.
fn put(path: &Path, bytes: &[u8]) {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written: io::Result<()> = write();
    written.expect("a volume that is well");
}

/// The newest file of the log of the only volume.
fn newest_log(data: &Path) -> PathBuf {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).expect("a directory of the store");
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("a directory of the store").path())
            .collect();
        paths.sort();
        paths
    };
    let store = list(&data.join("volumes")).remove(0);
    let mut files = list(&store.join("log"));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.pop().expect("a log has a file")
}

#[test]
fn a_damaged_log_is_refused_by_name_and_cut_by_who_accepts_the_loss() {
    if !requirement::mounts_work("hafsctl volume repair") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("pg");
    let dir = scratch.dir("mnt");
    let mount = daemon.mount("pg", &dir);
    put(&mount.join("kept"), b"what was there before");
    // Bytes to find the record by.
    let needle = b"the record that is hit";
    put(&mount.join("hit"), needle);
    put(&mount.join("behind"), b"what came after it");
    let log = newest_log(daemon.data_dir());
    daemon.kill();
    drop(mount);
    let bytes = fs::read(&log).unwrap();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .expect("small writes travel in the log");
    let file = OpenOptions::new().write(true).open(&log).unwrap();
    file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();

    let daemon = Launch::new(scratch.path())
        .expect("volume is not available")
        .expect("volume repaired")
        .start();
    let next = "hafsctl volume repair pg";
    daemon.mount_command("pg", &dir, "").refused(
        32,
        &[
            "the log ends at byte",
            "had been synced",
            "changes up to 20",
            next,
        ],
    );
    daemon
        .ctl(&["volume", "check", "pg"])
        .refused(1, &["the log ends at byte", next]);
    let text = |ran: hafs_tests::command::Ran| ran.stdout + &ran.stderr;
    let look = text(daemon.ctl(&["volume", "repair", "pg"]));
    let consent =
        "next: copy the store first if you can; then hafsctl volume repair pg --accept-loss --yes";
    for part in [
        "pg: nothing was changed",
        "would be given up",
        "not available",
        consent,
    ] {
        assert!(look.contains(part), "{part}: {look}");
    }
    let yes = text(daemon.ctl(&["volume", "repair", "pg", "--yes"]));
    assert!(yes.contains("pg: nothing was changed"), "{yes}");
    let done = daemon
        .ctl(&["volume", "repair", "pg", "--yes", "--accept-loss"])
        .ok();
    for part in ["pg: repaired", "kept in: ", "next: hafsctl volume check pg"] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    let mount = daemon.mount("pg", &dir);
    assert_eq!(
        fs::read(mount.join("kept")).unwrap(),
        b"what was there before"
    );
    assert!(!mount.join("behind").exists());
    // The name of the hit file came in a record before its bytes.
    assert_eq!(fs::read(mount.join("hit")).unwrap_or_default(), b"");
    daemon.check("pg");
    daemon
        .ctl(&["volume", "repair", "pg"])
        .refused(1, &["cannot repair volume `pg`", "it is mounted on"]);
    mount.unmount();
    let needless = daemon.ctl(&["volume", "repair", "pg"]).ok().stdout;
    assert!(needless.contains("pg: nothing to repair"), "{needless}");
    daemon.stop();
}
