//! Many at once on one mount: renames, creations, removals and listings against each other, appends of several processes.
//!
//! Each test says beforehand what must hold whatever the order was, and at the end the volume is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hafs_tests::command::wait_within;
use hafs_tests::numbers::Numbers;
use hafs_tests::requirement;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::Mounted;

/// What each thread does before it ends.
const ROUNDS: u64 = 3000;

fn names_in(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).expect("the directory stays");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names.collect()
}

/// The errno, if an operation failed with one that `allowed` does not hold.
fn unexpected(result: Result<(), std::io::Error>, allowed: &[Errno]) -> Option<std::io::Error> {
    let error = result.err()?;
    let errno = Errno::from_io_error(&error);
    (!errno.is_some_and(|errno| allowed.contains(&errno))).then_some(error)
}

#[test]
fn renames_lose_and_double_nothing() {
    if !requirement::mounts_work("renames of several at once") {
        return;
    }
    const FILES: u64 = 60;
    let mounted = Mounted::new();
    let dirs = ["a", "b", "c"].map(|name| mounted.mount.join(name));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    for number in 0..FILES {
        fs::write(dirs[0].join(number.to_string()), number.to_string()).unwrap();
    }
    // No name is taken twice, so nothing is replaced: each file is somewhere, once.
    let place = |numbers: &mut Numbers| {
        let dir = usize::try_from(numbers.below(3)).unwrap();
        dirs[dir].join(numbers.below(FILES).to_string())
    };
    let (done, exchanged) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 0..4 {
            let (place, done, exchanged) = (&place, &done, &exchanged);
            scope.spawn(move || {
                let mut numbers = Numbers::new(seed);
                for _ in 0..ROUNDS {
                    let (from, to) = (place(&mut numbers), place(&mut numbers));
                    let exchange = numbers.below(3) == 0;
                    let (flags, allowed, count) = if exchange {
                        (RenameFlags::EXCHANGE, &[Errno::NOENT][..], exchanged)
                    } else {
                        (
                            RenameFlags::NOREPLACE,
                            &[Errno::NOENT, Errno::EXIST][..],
                            done,
                        )
                    };
                    let renamed = renameat_with(CWD, &from, CWD, &to, flags);
                    count.fetch_add(u64::from(renamed.is_ok()), Ordering::Relaxed);
                    let wrong = unexpected(renamed.map_err(Into::into), allowed);
                    assert!(wrong.is_none(), "{from:?} to {to:?}: {wrong:?}");
                }
            });
        }
    });
    assert!(done.into_inner() > 500 && exchanged.into_inner() > 100);
    let found = |mounted: &Mounted| {
        let mut found = BTreeSet::new();
        for dir in ["a", "b", "c"] {
            for name in names_in(&mounted.mount.join(dir)) {
                let path = mounted.mount.join(dir).join(name);
                let content = fs::read_to_string(path).unwrap();
                assert!(
                    found.insert(content.parse::<u64>().unwrap()),
                    "{content} twice"
                );
            }
        }
        found
    };
    let all: BTreeSet<u64> = (0..FILES).collect();
    assert_eq!(found(&mounted), all);
    let mounted = mounted.remounted();
    assert_eq!(found(&mounted), all);
    mounted.end();
}

#[test]
fn directories_that_move_into_each_other_stay_a_tree() {
    if !requirement::mounts_work("renames of directories at once") {
        return;
    }
    const DIRS: u64 = 24;
    let mounted = Mounted::new();
    let root = mounted.mount.path();
    for number in 0..DIRS {
        fs::create_dir(root.join(number.to_string())).unwrap();
    }
    // Where a directory is, as far as a walk tells that others move under.
    let walk = || {
        let mut found = BTreeMap::new();
        let mut todo = vec![root.to_owned()];
        while let Some(dir) = todo.pop() {
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                found.insert(path.file_name().unwrap().to_owned(), path.clone());
                todo.push(path);
            }
        }
        found
    };
    let moved = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (walk, moved) = (&walk, &moved);
            scope.spawn(move || {
                let mut numbers = Numbers::new(seed);
                for _ in 0..ROUNDS / 30 {
                    let places: Vec<PathBuf> = walk().into_values().collect();
                    for _ in 0..10 {
                        let mut pick = || {
                            let at = numbers.below(places.len() as u64);
                            places[usize::try_from(at).unwrap()].clone()
                        };
                        let (from, into) = (pick(), pick());
                        let to = match numbers.below(4) {
                            0 => root.join(from.file_name().unwrap()),
                            _ => into.join(from.file_name().unwrap()),
                        };
                        let allowed = [Errno::NOENT, Errno::INVAL, Errno::NOTEMPTY, Errno::EXIST];
                        let renamed = fs::rename(&from, &to);
                        moved.fetch_add(u64::from(renamed.is_ok()), Ordering::Relaxed);
                        let wrong = unexpected(renamed, &allowed);
                        assert!(wrong.is_none(), "{from:?} to {to:?}: {wrong:?}");
                    }
                }
            });
        }
    });
    assert!(moved.into_inner() > 100);
    assert_eq!(walk().len() as u64, DIRS, "a directory is lost");
    let links = |path: &Path| std::os::unix::fs::MetadataExt::nlink(&path.metadata().unwrap());
    for path in walk().values() {
        assert_eq!(links(path), 2 + names_in(path).len() as u64, "{path:?}");
    }
    mounted.end();
}

#[test]
fn whoever_reads_a_replaced_file_finds_one_version() {
    if !requirement::mounts_work("replacing by rename") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let version = |number: u64| vec![u8::try_from(number % 251).unwrap(); 20_000];
    fs::write(at("current"), version(0)).unwrap();
    let ended = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            let (at, ended, reads) = (&at, &ended, &reads);
            scope.spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    let bytes = fs::read(at("current")).expect("the name is always there");
                    assert_eq!(bytes.len(), 20_000);
                    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "two versions");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 1..=1000 {
            fs::write(at("next"), version(number)).unwrap();
            fs::rename(at("next"), at("current")).unwrap();
            let bytes = fs::read(at("current")).unwrap();
            assert_eq!(bytes, version(number), "the rename was answered");
        }
        ended.store(true, Ordering::Release);
    });
    assert!(reads.into_inner() > 300);
    mounted.end();
}

#[test]
fn listings_show_what_stays_while_others_come_and_go() {
    if !requirement::mounts_work("readdir beside changes") {
        return;
    }
    const STAY: u64 = 700;
    let mounted = Mounted::new();
    let dir = mounted.mount.join("dir");
    fs::create_dir(&dir).unwrap();
    let stays = |number: u64| OsString::from(format!("stays-{number:04}-{}", "x".repeat(60)));
    for number in 0..STAY {
        File::create_new(dir.join(stays(number))).unwrap();
    }
    let ended = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 0..3 {
            let (dir, ended, changes) = (&dir, &ended, &changes);
            scope.spawn(move || {
                let mut numbers = Numbers::new(seed);
                while !ended.load(Ordering::Acquire) {
                    let name =
                        |numbers: &mut Numbers| dir.join(format!("goes-{}", numbers.below(200)));
                    let (one, other) = (name(&mut numbers), name(&mut numbers));
                    let result = match numbers.below(4) {
                        0 => File::create(&one).map(drop),
                        1 => fs::remove_file(&one),
                        2 => fs::rename(&one, &other),
                        _ => fs::hard_link(&one, &other),
                    };
                    changes.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                    let wrong = unexpected(result, &[Errno::NOENT, Errno::EXIST]);
                    assert!(wrong.is_none(), "{one:?}, {other:?}: {wrong:?}");
                }
            });
        }
        for _ in 0..150 {
            let names = names_in(&dir);
            let different: BTreeSet<_> = names.iter().collect();
            assert_eq!(different.len(), names.len(), "a name twice in one listing");
            let missing = (0..STAY).find(|&number| !different.contains(&stays(number)));
            assert_eq!(missing, None, "missing in a listing");
        }
        ended.store(true, Ordering::Release);
    });
    assert!(changes.into_inner() > 1000);
    mounted.end();
}

#[test]
fn creation_and_removal_of_one_name_have_one_winner() {
    if !requirement::mounts_work("creation and removal at once") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("contested");
    let (made, removed) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 0..4 {
            let (path, made, removed) = (&path, &made, &removed);
            scope.spawn(move || {
                let mut numbers = Numbers::new(seed);
                for _ in 0..ROUNDS {
                    let (result, count) = match numbers.below(4) {
                        0 => (File::create_new(path).map(drop), made),
                        1 => (fs::create_dir(path), made),
                        2 => (fs::remove_file(path), removed),
                        _ => (fs::remove_dir(path), removed),
                    };
                    count.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                    let allowed = [Errno::NOENT, Errno::EXIST, Errno::ISDIR, Errno::NOTDIR];
                    let wrong = unexpected(result, &allowed);
                    assert!(wrong.is_none(), "{wrong:?}");
                }
            });
        }
    });
    let left = u64::from(path.symlink_metadata().is_ok());
    assert_eq!(made.into_inner(), removed.into_inner() + left);
    mounted.end();
}

#[test]
fn appended_records_of_four_processes_stay_whole() {
    if !requirement::mounts_work("O_APPEND from several processes") {
        return;
    }
    let mounted = Mounted::new();
    for flags in ["append", "append,direct"] {
        let log = mounted.mount.join(flags);
        OpenOptions::new()
            .create_new(true)
            .append(true)
            .custom_flags(libc::O_DIRECT)
            .open(&log)
            .unwrap();
        // dd reads whole records of its own letter and size, and writes each with one call.
        let sizes = [
            (b'a', 1000_usize),
            (b'b', 4096),
            (b'c', 70_000),
            (b'd', 333),
        ];
        let records = 150;
        let mut writers: Vec<_> = sizes
            .iter()
            .map(|&(letter, size)| {
                let mut dd = Command::new("dd");
                dd.args(["conv=notrunc", "iflag=fullblock", "status=none"]);
                dd.arg(format!("oflag={flags}")).arg(format!("bs={size}"));
                dd.arg(format!("of={}", log.display()));
                let mut dd = dd.stdin(Stdio::piped()).spawn().unwrap();
                let mut input = dd.stdin.take().unwrap();
                let feeder = thread::spawn(move || {
                    let mut record = vec![letter; size];
                    *record.last_mut().unwrap() = b'\n';
                    (0..records).for_each(|_| input.write_all(&record).unwrap());
                });
                (dd, feeder)
            })
            .collect();
        for (dd, _) in &mut writers {
            let status = wait_within(dd, std::time::Duration::from_secs(60));
            assert!(status.expect("dd ends").success());
        }
        for (_, feeder) in writers {
            feeder.join().unwrap();
        }
        let bytes = fs::read(&log).unwrap();
        let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
        for record in bytes.split_inclusive(|&byte| byte == b'\n') {
            let letter = record[0];
            let (_, size) = sizes.iter().find(|(is, _)| *is == letter).unwrap();
            assert_eq!(record.len(), *size, "a record of {}", char::from(letter));
            assert!(record[..size - 1].iter().all(|&byte| byte == letter));
            *counts.entry(letter).or_default() += 1;
        }
        assert!(counts.len() == 4 && counts.values().all(|&count| count == records));
    }
    mounted.end();
}
