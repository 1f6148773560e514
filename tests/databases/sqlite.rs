//! SQLite with its files on a mount: three processes that write, with a write-ahead log and with a rollback journal.

use std::path::Path;
use std::process::Command;

use hafs_tests::numbers::seed;
use hafs_tests::{Numbers, requirement};
use rustix::process::{Pid, Signal, kill_process};

use crate::ledger::{self, Clerk};
use crate::rounds::{BLOWS, Blow, SEED, Site, write_until};
use crate::server::as_user;
use crate::session::Session;

const WRITERS: u64 = 3;

/// How long a writer waits for the lock. SQLite has no queue: who asks at the wrong moments comes last, for as long as the
/// others write. Shorter than the test waits for an answer, so that SQLite itself says what it waited for.
const LOCK_WAIT_MS: u64 = 200_000;

/// A blow comes before so many transfers of all writers.
const STEPS_MAX: u64 = 150;

fn session(dir: &Path, mode: &str) -> Session {
    let mut command: Command = as_user(Path::new("sqlite3"));
    command.args(["-batch", "-bail", "-noheader"]);
    command.arg(dir.join("ledger.db"));
    let mut session = Session::start(command);
    let settings = format!(
        ".timeout {LOCK_WAIT_MS}\nPRAGMA journal_mode={mode};\nPRAGMA synchronous=FULL;\n\
         PRAGMA wal_autocheckpoint=100;\nPRAGMA cell_size_check=ON;"
    );
    session
        .ask(&settings)
        .unwrap_or_else(|said| panic!("sqlite3: {said}"));
    session
}

/// The ledger after recovery, which SQLite does as it opens.
fn verify(site: &Site, mode: &str, clerks: &mut [Clerk]) {
    let mut session = session(site.dir(), mode);
    ledger::verify(&mut session, clerks).unwrap_or_else(|lost| panic!("{lost}"));
    let found = session.ask("PRAGMA integrity_check;");
    assert_eq!(found, Ok(vec!["ok".to_owned()]));
    site.check();
}

fn survives(mode: &str) {
    if !requirement::mounts_work("SQLite on a mount")
        || !requirement::tool_is_there("SQLite on a mount", "sqlite3")
    {
        return;
    }
    let seed = seed(SEED);
    let mut site = Site::new();
    ledger::create(&mut session(site.dir(), mode));
    let mut clerks: Vec<_> = (0..WRITERS)
        .map(|number| Clerk::new(seed, number, "BEGIN IMMEDIATE", &[]))
        .collect();
    let mut numbers = Numbers::of(seed, &[0xb10]);
    for blow in BLOWS {
        for clerk in &mut clerks {
            clerk.session = Some(session(site.dir(), mode));
        }
        let steps = 1 + numbers.below(STEPS_MAX);
        let processes: Vec<Pid> = clerks
            .iter()
            .map(|clerk| clerk.session.as_ref().expect("just started").pid())
            .collect();
        write_until(&mut clerks, steps, || {
            if blow != Blow::Server {
                site.kill_hafsd();
            }
            if blow != Blow::Hafsd {
                for process in &processes {
                    // Until its session is dropped it stays a child, if a dead one.
                    kill_process(*process, Signal::KILL).expect("a child");
                }
            }
        });
        for clerk in &mut clerks {
            clerk.session.take().expect("of this round").kill();
        }
        let acknowledged: u64 = clerks.iter().map(|clerk| clerk.acknowledged).sum();
        eprintln!("{blow:?} killed after {steps} transfers, {acknowledged} acknowledged in all");
        site.up();
        verify(&site, mode, &mut clerks);
    }
    ledger::verify_sees_damage(&mut session(site.dir(), mode), &mut clerks);
    site.end();
}

#[test]
fn sqlite_with_a_write_ahead_log_keeps_every_commit() {
    survives("WAL");
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_every_commit() {
    survives("DELETE");
}
