//! What hafsd has answered outlives a cut: a node that just began, volumes that were created and deleted.
//!
//! The disk is empty at first. hafsd starts on it and is asked for volumes one after the other; at some request to the disk it is
//! killed and the power goes. On what is left the next hafsd must start, and what was answered must be so. Then it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hafs_tests::binaries::program;
use hafs_tests::lossy::{Cut, Lossy, Mode};
use hafs_tests::numbers::Numbers;
use hafs_tests::{Launch, Ran, Scratch, requirement, run};
use rustix::process::Signal;

/// Requests to the disk until the cut: a start takes some hundred, a new volume a thousand.
const REQUESTS_MAX: u64 = 5000;
/// No round takes longer, even on a machine that does a lot besides.
const LIMIT: Duration = Duration::from_secs(120);
/// How long to wait before hafsd is asked again, where it is not ready.
const PAUSE: Duration = Duration::from_millis(5);

/// A volume as far as its user knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Asked for, or its deletion asked for: either way is right.
    Asked,
    Created,
    Deleted,
}

fn ctl(socket: &Path, arguments: &[&str]) -> Ran {
    let mut command = std::process::Command::new(program("hafsctl"));
    run(command.arg("--socket").arg(socket).args(arguments))
}

/// Creates and deletes volumes until hafsd is gone; how many of these were answered.
fn ask(
    socket: &Path,
    ends: &AtomicBool,
    next: &mut u64,
    known: &mut BTreeMap<String, Known>,
) -> u64 {
    let mut answered = 0;
    while !ends.load(Ordering::SeqCst) {
        let oldest = known.iter().find(|(_, is)| **is == Known::Created);
        let oldest = oldest.map(|(name, _)| name.clone());
        let (name, ran, then) = match oldest {
            Some(name) if next.is_multiple_of(3) => {
                known.insert(name.clone(), Known::Asked);
                let ran = ctl(socket, &["volume", "delete", &name, "--yes"]);
                (name, ran, Known::Deleted)
            }
            _ => {
                let name = format!("power-{}-{next:04}", std::process::id());
                known.insert(name.clone(), Known::Asked);
                let ran = ctl(socket, &["volume", "create", &name, "--size", "1GiB"]);
                (name, ran, Known::Created)
            }
        };
        *next += 1;
        // Refused: hafsd is not ready yet, or gone.
        if ran.code == 0 {
            known.insert(name, then);
            answered += 1;
        } else {
            thread::park_timeout(PAUSE);
        }
    }
    answered
}

/// What is there now, each checked.
fn verify(launch: &Launch, known: &mut BTreeMap<String, Known>) {
    let daemon = launch.clone().start();
    let list = daemon.ctl(&["volume", "list", "-o", "json"]).ok().json();
    let volumes = list["volumes"].as_array().expect("a list");
    let there: BTreeSet<&str> = volumes
        .iter()
        .map(|volume| volume["name"].as_str().expect("a name"))
        .collect();
    for (name, is) in known.iter() {
        let found = there.contains(name.as_str());
        assert!(
            *is == Known::Asked || found == (*is == Known::Created),
            "{name}: the answer was {is:?}, it is there: {found}"
        );
    }
    for name in &there {
        assert!(known.contains_key(*name), "{name}: nobody asked for it");
        daemon.check(name);
    }
    *known = there
        .into_iter()
        .map(|name| (name.to_owned(), Known::Created))
        .collect();
    daemon.stop();
}

#[test]
fn what_was_answered_outlives_a_cut() {
    if !requirement::mounts_work("power cuts of a node that begins") {
        return;
    }
    let seed = crate::cuts::seed();
    let mut numbers = Numbers::new(seed);
    let mut answered = 0;
    for trial in 0..crate::cuts::variable_cuts(1).div_ceil(4) {
        let scratch = Scratch::new();
        let (disk, data) = (scratch.dir("disk"), scratch.dir("data"));
        let launch = Launch::new(scratch.path()).data_dir(&data);
        let (mut next, mut known) = (0, BTreeMap::new());
        for mode in Mode::ALL {
            let lossy = Lossy::mount(&disk, &data, numbers.below(u64::MAX));
            lossy.set_sync_takes(Duration::from_millis(numbers.below(3)));
            let requests = numbers.below(REQUESTS_MAX);
            let seed = numbers.below(u64::MAX);
            let socket = launch.socket_path().to_owned();
            let _ = fs::remove_file(&socket);
            let daemon = launch.clone().start_only();
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                let asking = scope.spawn(|| ask(&socket, &ends, &mut next, &mut known));
                let reached = lossy.wait_for_requests(requests, LIMIT);
                ends.store(true, Ordering::SeqCst);
                daemon.signal(Signal::KILL);
                lossy.cut(Cut { mode, seed });
                daemon.kill();
                answered += asking.join().expect("asking does not panic");
                assert!(reached, "hafsd asks nothing of its disk");
            });
            drop(lossy);
            eprintln!("trial {trial}, {mode:?} after {requests} requests: {known:?}");
            let lossy = Lossy::mount(&disk, &data, seed);
            verify(&launch, &mut known);
            drop(lossy);
        }
    }
    assert!(answered > 0, "no cut came after an answer");
}
