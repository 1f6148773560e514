//! PostgreSQL with its cluster on a mount: data checksums, four clients, checkpoints and vacuums in between.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hafs_tests::namespace::private_mounts;
use hafs_tests::numbers::seed;
use hafs_tests::{Numbers, requirement, run};
use rustix::process::Signal;

use crate::ledger::{self, Clerk};
use crate::rounds::{BLOWS, Blow, SEED, Site, write_until};
use crate::server::{Server, USER, as_user};
use crate::session::Session;

const WRITERS: u64 = 4;

/// A blow comes before so many transfers of all writers.
const STEPS_MAX: u64 = 400;

/// What writers ask for besides, now and then: each makes files appear, go or shrink.
const CHORES: &[&str] = &[
    "CHECKPOINT;",
    "VACUUM journal;",
    "VACUUM FULL account;",
    "SELECT pg_switch_wal();",
    "REINDEX INDEX by_note;",
];

/// Small enough that everything is written back, checkpointed and recycled while the test runs.
const SETTINGS: [&str; 10] = [
    "listen_addresses=",
    "shared_buffers=4MB",
    "max_wal_size=32MB",
    "checkpoint_timeout=30s",
    "wal_recycle=on",
    "bgwriter_delay=20ms",
    "autovacuum_naptime=1s",
    "max_connections=20",
    // In the data directory, so that a kill leaves nothing in /dev/shm.
    "dynamic_shared_memory_type=mmap",
    "log_min_messages=warning",
];

/// The programs of Debian's newest PostgreSQL, if it is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let versions = versions.filter_map(|entry| {
        let bin = entry.ok()?.path().join("bin");
        let version: u32 = bin.parent()?.file_name()?.to_str()?.parse().ok()?;
        bin.join("postgres").is_file().then_some((version, bin))
    });
    versions.max().map(|(_, bin)| bin)
}

/// A command that runs as [`USER`] where that number has a name, which initdb asks for: the machine need not know it.
fn as_named_user(site: &Site, program: &Path) -> Command {
    let mut users = fs::read_to_string("/etc/passwd").expect("there are users");
    let number = USER.to_string();
    if !users
        .lines()
        .any(|line| line.split(':').nth(2) == Some(&number))
    {
        users += &format!("hafs:x:{USER}:{USER}::/nonexistent:/bin/sh\n");
    }
    let passwd = site.run_dir().with_file_name("passwd");
    fs::write(&passwd, users).expect("a file beside the sockets");
    let plain = as_user(program);
    let prepare = "chmod 644 \"$1\"; mount --bind \"$1\" /etc/passwd";
    let mut command = private_mounts(prepare, &[passwd.as_os_str()], plain.get_program());
    command.args(plain.get_args()).current_dir("/");
    command
}

/// One cluster and how it is reached.
#[derive(Debug)]
struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    run_dir: PathBuf,
}

impl Cluster {
    /// initdb, as the ordinary user.
    fn create(site: &Site, programs: PathBuf) -> Self {
        let cluster = Self {
            programs,
            data: site.dir().join("pg"),
            run_dir: site.run_dir(),
        };
        let mut command = as_named_user(site, &cluster.programs.join("initdb"));
        command.args(["--data-checksums", "--auth=trust", "--username=postgres"]);
        command.args(["--encoding=UTF8", "--no-locale", "--pgdata"]);
        run(command.arg(&cluster.data)).ok();
        cluster
    }

    fn start(&self) -> Server {
        let mut command = as_user(&self.programs.join("postgres"));
        command.arg("-D").arg(&self.data);
        command.arg("-k").arg(&self.run_dir);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        Server::start(&command, "database system is ready to accept connections")
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(&self.run_dir);
        command.args(["-U", "postgres", "-d", "postgres"]);
        command.env("PGOPTIONS", "-c client_min_messages=warning");
        command
    }

    fn session(&self) -> Session {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        Session::start(command)
    }

    /// Every row, every page and every index entry.
    fn verify(&self, clerks: &mut [Clerk]) {
        let mut session = self.session();
        ledger::verify(&mut session, clerks).unwrap_or_else(|lost| panic!("{lost}"));
        let checked = run(self.client("pg_amcheck").arg("--heapallindexed")).ok();
        assert_eq!((checked.stdout.as_str(), checked.stderr.as_str()), ("", ""));
        assert_eq!(
            session.number(
                "SELECT coalesce(sum(checksum_failures), 0)::bigint FROM pg_stat_database;"
            ),
            Ok(0)
        );
    }
}

/// `pg_checksums --check` of a cluster that was shut down.
fn check_pages(cluster: &Cluster) {
    let mut command = as_user(&cluster.programs.join("pg_checksums"));
    command.args(["--check", "--pgdata"]).arg(&cluster.data);
    let said = run(&mut command).ok().stdout;
    assert!(said.contains("Bad checksums:  0"), "{said}");
}

/// Lets the clerks write until `blow` has fallen and all that is left of the server is gone.
fn strike(site: &mut Site, server: Server, clerks: &mut [Clerk], blow: Blow, steps: u64) {
    let mut running = Some(server);
    write_until(clerks, steps, || {
        if blow != Blow::Server {
            site.kill_hafsd();
        }
        if blow != Blow::Hafsd
            && let Some(server) = running.take()
        {
            server.kill();
        }
    });
    if let Some(mut server) = running.take() {
        eprintln!(
            "PostgreSQL without its disk has ended by itself: {}",
            server.has_ended()
        );
        server.kill();
    }
    for clerk in &mut *clerks {
        clerk.session = None;
    }
    let acknowledged: u64 = clerks.iter().map(|clerk| clerk.acknowledged).sum();
    eprintln!("{blow:?} killed after {steps} transfers, {acknowledged} acknowledged in all");
}

#[test]
fn postgresql_keeps_every_commit() {
    let test = "PostgreSQL on a mount";
    if !requirement::mounts_work(test) {
        return;
    }
    let Some(programs) = programs() else {
        requirement::missing(test, "/usr/lib/postgresql/*/bin/postgres");
        return;
    };
    let seed = seed(SEED);
    let mut site = Site::new();
    let cluster = Cluster::create(&site, programs);
    let mut server = cluster.start();
    let mut session = cluster.session();
    session
        .ask("CREATE EXTENSION amcheck;")
        .expect("amcheck comes with the server");
    ledger::create(&mut session);
    drop(session);
    let mut clerks: Vec<_> = (0..WRITERS)
        .map(|number| Clerk::new(seed, number, "BEGIN", CHORES))
        .collect();
    let mut numbers = Numbers::of(seed, &[0xb10]);
    for blow in BLOWS {
        for clerk in &mut clerks {
            clerk.session = Some(cluster.session());
        }
        let steps = 1 + numbers.below(STEPS_MAX);
        strike(&mut site, server, &mut clerks, blow, steps);
        site.up();
        server = cluster.start();
        cluster.verify(&mut clerks);
        site.check();
    }
    ledger::verify_sees_damage(&mut cluster.session(), &mut clerks);
    run(cluster.client("pg_dump").args(["-f", "/dev/null"])).ok();
    server.stop(Signal::INT);
    check_pages(&cluster);
    site.end();
}
