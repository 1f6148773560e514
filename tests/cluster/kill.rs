//! hafsd is killed under four writers, again and again: nothing that was acknowledged may be missing.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hafs_tests::{Daemon, Launch, Mount, Progress, Scratch, requirement};

use crate::bulk::Bulk;
use crate::writer::{Direct, Lost, Names, Numbers, Stopped, Synced, Writer};

const KILLS: usize = 50;

/// Steps of all writers in a round, at most; the kill comes somewhere before.
const STEPS_MAX: u64 = 400;

/// Writes until hafsd is gone; `ends` is set before it is killed: a writer that meets a dead mount before has found a fault.
fn write_until_gone(
    writer: &mut dyn Writer,
    dir: &Path,
    progress: &Progress,
    ends: &AtomicBool,
) -> Result<(), String> {
    loop {
        let wrong = match writer.step(dir) {
            Ok(()) => {
                progress.step();
                continue;
            }
            Err(Stopped::Gone) if ends.load(Ordering::SeqCst) => {
                writer.release();
                return Ok(());
            }
            Err(Stopped::Gone) => "the mount died under it".to_owned(),
            Err(Stopped::Wrong(what)) => what,
        };
        progress.give_up();
        return Err(wrong);
    }
}

/// One round: mount, verify, check, write, kill. What `verify` misses is the result.
fn round(
    launch: &Launch,
    mount_dir: &Path,
    writers: &mut [Box<dyn Writer>],
    kill_at: u64,
) -> Result<(), Lost> {
    let start = std::time::Instant::now();
    let daemon = launch.clone().start();
    let mount = mount(&daemon, mount_dir)?;
    let ready = start.elapsed();
    verify(&daemon, mount_dir, writers)?;
    eprintln!(
        "ready after {ready:?}, verified after {:?}, kill at step {kill_at}",
        start.elapsed()
    );
    let (progress, ends) = (Progress::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let running: Vec<_> = writers
            .iter_mut()
            .enumerate()
            .map(|(number, writer)| {
                let (dir, progress, ends) = (mount_dir.join(number.to_string()), &progress, &ends);
                scope.spawn(move || write_until_gone(writer.as_mut(), &dir, progress, ends))
            })
            .collect();
        let reached = progress.wait_for(kill_at);
        // Also if it was not reached: a scope ends only with its threads.
        ends.store(true, Ordering::SeqCst);
        daemon.kill();
        for (number, writer) in running.into_iter().enumerate() {
            let end = writer.join().expect("writers do not panic");
            assert_eq!(
                end,
                Ok(()),
                "writer {number} met another error than a dead mount"
            );
        }
        assert_eq!(reached, Ok(()), "hafsd did not serve the writers");
    });
    // The dead mount stays: clearing it away is the next hafsd's part. Only the end of the test takes it off.
    std::mem::forget(mount);
    Ok(())
}

/// Mounts the volume; a hafsd that refuses it has lost something, and has seen it.
fn mount(daemon: &Daemon, mount_dir: &Path) -> Result<Mount, Lost> {
    let ran = daemon.mount_command("v", mount_dir, "");
    if ran.code == 0 {
        Ok(Mount::watch(mount_dir))
    } else {
        Err(ran.to_string())
    }
}

fn verify(daemon: &Daemon, mount_dir: &Path, writers: &mut [Box<dyn Writer>]) -> Result<(), Lost> {
    for (number, writer) in writers.iter_mut().enumerate() {
        let dir = mount_dir.join(number.to_string());
        fs::create_dir_all(&dir)
            .map_err(|error| format!("the directory of writer {number}: {error}"))?;
        writer
            .verify(&dir)
            .map_err(|lost| format!("writer {number}: {lost}"))?;
    }
    let check = daemon.ctl(&["volume", "check", "v"]);
    if check.code == 0 {
        Ok(())
    } else {
        Err(check.to_string())
    }
}

fn four_writers(seed: u64) -> Vec<Box<dyn Writer>> {
    vec![
        Box::new(Direct::new(seed + 1)),
        Box::new(Synced::new(seed + 2)),
        Box::new(Names::new(seed + 3)),
        Box::new(Bulk::new(seed + 4)),
    ]
}

/// Kills hafsd so many times; stops at the first loss.
fn kills(launch: &Launch, mount_dir: &Path, count: usize, seed: u64) -> Result<(), Lost> {
    let mut writers = four_writers(seed);
    let mut numbers = Numbers::new(seed);
    for kill in 1..=count {
        let kill_at = 1 + numbers.below(STEPS_MAX);
        round(launch, mount_dir, &mut writers, kill_at)
            .map_err(|lost| format!("after kill {}: {lost}", kill - 1))?;
    }
    let daemon = launch.clone().start();
    let mount = mount(&daemon, mount_dir)?;
    verify(&daemon, mount_dir, &mut writers)
        .map_err(|lost| format!("after kill {count}: {lost}"))?;
    mount.unmount();
    daemon.stop();
    Ok(())
}

/// A volume `v` in `scratch`, without a daemon.
fn volume(scratch: &Scratch) -> Launch {
    // What a dead mount of a killed hafsd makes the next one say.
    let launch = Launch::new(scratch.path()).expect("dead mount");
    let daemon = launch.clone().start();
    daemon.create_volume("v");
    daemon.stop();
    launch
}

fn seed() -> u64 {
    let given = std::env::var("HAFS_KILL_SEED").ok();
    let seed = given.map_or(1, |seed| seed.parse().expect("HAFS_KILL_SEED is a number"));
    eprintln!("seed {seed}; HAFS_KILL_SEED changes it");
    seed
}

#[test]
fn fifty_kills_lose_nothing() {
    if !requirement::mounts_work("kill -9 of hafsd under four writers") {
        return;
    }
    let scratch = Scratch::new();
    let mount_dir = scratch.dir("mnt");
    let _mounts = Mount::watch(&mount_dir);
    let launch = volume(&scratch);
    if let Err(lost) = kills(&launch, &mount_dir, KILLS, seed()) {
        panic!("{lost}");
    }
}

#[test]
fn without_the_log_the_same_test_fails() {
    if !requirement::mounts_work("kill -9 of a hafsd that writes no log") {
        return;
    }
    let scratch = Scratch::new();
    let mount_dir = scratch.dir("mnt");
    let _mounts = Mount::watch(&mount_dir);
    let launch = volume(&scratch)
        .variable("FAILPOINTS", "log-append=return")
        .expect("volume is not available");
    let lost = kills(&launch, &mount_dir, 5, seed())
        .expect_err("a hafsd without a log loses data: the test must see it");
    eprintln!("seen: {lost}");
}

/// Each verifier against the damage that it is there to see.
#[test]
fn the_verifiers_see_damage() {
    if !requirement::mounts_work("verifiers of the kill test") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let mount_dir = scratch.dir("mnt");
    let mount = daemon.mount("v", &mount_dir);
    let damages: [fn(&Path); 4] = [
        |dir| damage(&dir.join("direct"), |bytes| bytes[1000] ^= 1),
        |dir| {
            damage(&dir.join("journal"), |bytes| {
                bytes.truncate(bytes.len() - 1)
            })
        },
        |dir| {
            let name = fs::read_dir(dir)
                .unwrap()
                .next()
                .expect("names were made")
                .unwrap()
                .path();
            fs::rename(&name, name.with_extension("x")).unwrap();
        },
        |dir| {
            for file in fs::read_dir(dir).unwrap() {
                damage(&file.unwrap().path(), |bytes| {
                    *bytes.last_mut().expect("written") ^= 128
                });
            }
        },
    ];
    for (writer, damage) in four_writers(seed()).iter_mut().zip(damages) {
        let dir = scratch.dir("mnt/writer");
        for _ in 0..40 {
            writer.step(&dir).expect("hafsd runs");
        }
        writer.release();
        assert_eq!(writer.verify(&dir), Ok(()));
        damage(&dir);
        let lost = writer.verify(&dir).expect_err("damage was done");
        eprintln!("seen: {lost}");
        fs::remove_dir_all(&dir).unwrap();
    }
    mount.unmount();
    daemon.stop();
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("the writer made it");
    change(&mut bytes);
    fs::write(path, bytes).expect("room for as much as before");
}
