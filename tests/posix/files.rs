//! What applications do with files, beyond single calls: unlinked files, mappings, appends, locks, big directories.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use hafs_tests::{requirement, run};
use rustix::fs::FlockOperation;

use crate::Mounted;

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    if !requirement::mounts_work("unlinked files") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("gone");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(&[1; 300_000]).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(&[2; 100_000], 300_000).unwrap();
    file.sync_all().unwrap();
    let mut all = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 400_000);
    assert!(
        all[..300_000].iter().all(|&byte| byte == 1)
            && all[300_000..].iter().all(|&byte| byte == 2)
    );
    drop(file);
    mounted.end();
}

#[test]
fn a_replaced_file_is_the_old_or_the_new_one() {
    if !requirement::mounts_work("rename over an open file") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    fs::write(at("config"), "old").unwrap();
    let mut old = File::open(at("config")).unwrap();
    fs::write(at("config.new"), "new").unwrap();
    fs::rename(at("config.new"), at("config")).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(
        (
            text.as_str(),
            fs::read_to_string(at("config")).unwrap().as_str()
        ),
        ("old", "new")
    );
    drop(old);
    mounted.end();
}

#[test]
fn appends_from_several_processes_do_not_overwrite_each_other() {
    if !requirement::mounts_work("appends") {
        return;
    }
    let mounted = Mounted::new();
    let script =
        "for i in 1 2 3 4; do (for n in $(seq 500); do echo \"$i $n\" >> log; done) & done; wait";
    run(Command::new("sh")
        .args(["-c", script])
        .current_dir(mounted.mount.path()))
    .ok();
    let text = fs::read_to_string(mounted.mount.join("log")).unwrap();
    let lines: BTreeSet<&str> = text.lines().collect();
    assert_eq!((text.lines().count(), lines.len()), (2000, 2000));
    mounted.end();
}

#[test]
fn locks_exclude() {
    if !requirement::mounts_work("locks") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("lock");
    let (first, second) = (File::create(&path).unwrap(), File::open(&path).unwrap());
    rustix::fs::flock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    rustix::fs::flock(&first, FlockOperation::Unlock).unwrap();
    rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((first, second));
    mounted.end();
}

#[test]
fn a_directory_of_ten_thousand_files() {
    if !requirement::mounts_work("a big directory") {
        return;
    }
    let mounted = Mounted::new();
    let dir = mounted.mount.join("many");
    fs::create_dir(&dir).unwrap();
    for number in 0..10_000 {
        File::create_new(dir.join(format!("file-{number:05}"))).unwrap();
    }
    let list = || {
        fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let names: BTreeSet<_> = list().into_iter().collect();
    assert_eq!((list().len(), names.len()), (10_000, 10_000));
    // Entries are removed while the directory is being read, as rm -r does.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(list().len(), 0, "rm while reading left something");
    fs::remove_dir(&dir).unwrap();
    mounted.end();
}

#[test]
fn data_survives_unmount_and_restart() {
    if !requirement::mounts_work("unmount and restart") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let script = "mkdir -p a/b; cp -a /usr/bin/env a/b/; ln -s b/env a/link; ln a/b/env a/hard; \
                  truncate -s 1G sparse; echo end >> sparse; mkfifo pipe; chown 1000:50 a/b; chmod 2750 a/b; touch -d 2001-02-03T04:05:06 a/link";
    run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(mounted.mount.path()))
    .ok();
    let listing = |dir: &std::path::Path| {
        let script = "find . -printf '%p %y %m %U %G %n %s %l %T@\\n' | sort; cksum a/b/env; tail -c 4 sparse; du -k sparse";
        run(Command::new("sh").args(["-euc", script]).current_dir(dir))
            .ok()
            .stdout
    };
    let before = listing(mounted.mount.path());
    assert!(before.contains("./sparse f") && at("a/hard").exists());
    let Mounted {
        mount,
        daemon,
        scratch,
    } = mounted;
    mount.unmount();
    daemon.stop();
    let daemon = hafs_tests::Daemon::start(scratch.path());
    let mount = daemon.mount("v", &scratch.join("mnt"));
    assert_eq!(listing(mount.path()), before);
    Mounted {
        mount,
        daemon,
        scratch,
    }
    .end();
}

#[test]
fn a_mapping_reaches_the_file() {
    if !requirement::mounts_work("shared mappings") {
        return;
    }
    let mounted = Mounted::new();
    // sqlite3 maps its write-ahead log's index, and checks its own pages.
    if !requirement::tool_is_there("shared mappings", "sqlite3") {
        return;
    }
    let script = "pragma journal_mode=wal; pragma mmap_size=100000000; create table t(a integer primary key, b blob); \
                  with recursive n(i) as (select 1 union all select i+1 from n where i<5000) insert into t select i, randomblob(500) from n; \
                  update t set b=randomblob(700) where a%3=0; delete from t where a%5=0; pragma wal_checkpoint(truncate); pragma integrity_check; select count(*) from t;";
    let database = mounted.mount.join("database");
    let ran = run(Command::new("sqlite3").arg(&database).arg(script)).ok();
    assert!(ran.stdout.ends_with("ok\n4000\n"), "{ran}");
    mounted.end();
}
