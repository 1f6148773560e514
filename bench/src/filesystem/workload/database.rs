//! What databases make of a filesystem: SQLite, PostgreSQL, Redis, as Debian packages them.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::{AHEAD_OF_BINDFS, Bench, Row, Target, Unit, Workload, where_bytes_are_kept};
use crate::filesystem::command::version;
use crate::filesystem::process::{Process, wait_for};
use crate::filesystem::subject::Subject;

const SQLITE_COMMITS: u64 = 2_000;
const REDIS_COMMANDS: u64 = 20_000;
const PGBENCH_SECONDS: u64 = 15;
const PGBENCH_SCALE: u64 = 10;
const CHECKSUMS: &str = "--data-checksums";
/// Of the server; whatever else is PostgreSQL's default, fsync for one.
const POSTGRES_OPTIONS: &[&str] = &[
    "-c",
    "listen_addresses=",
    "-c",
    "checkpoint_timeout=30min",
    "-c",
    "max_wal_size=4GB",
    "-c",
    "shared_buffers=256MB",
];
const REDIS_OPTIONS: &[&str] = &[
    "--port",
    "0",
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
];
const START_LIMIT: Duration = Duration::from_secs(30);

const fn rate(name: &'static str, targets: &'static [Target]) -> Row {
    Row {
        name,
        unit: Unit::PerSecond,
        targets,
    }
}

pub(super) const SQLITE: Workload = Workload {
    name: "sqlite",
    rows: &[
        rate("SQLite commits, WAL, synchronous=FULL", &[AHEAD_OF_BINDFS]),
        rate(
            "SQLite commits, DELETE, synchronous=FULL",
            &[AHEAD_OF_BINDFS],
        ),
    ],
    on: where_bytes_are_kept,
    run: sqlite,
};

pub(super) const POSTGRES: Workload = Workload {
    name: "postgres",
    rows: &[
        rate("pgbench, 1 client, transactions", &[]),
        rate("pgbench, 8 clients, transactions", &[]),
    ],
    on: where_bytes_are_kept,
    run: postgres,
};

pub(super) const REDIS: Workload = Workload {
    name: "redis",
    rows: &[
        rate("Redis SET, appendfsync always, 1 client", &[]),
        rate("Redis SET, appendfsync always, 16 clients", &[]),
    ],
    on: where_bytes_are_kept,
    run: redis,
};

fn sqlite(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("sqlite")?;
    let commits = bench.scaled(SQLITE_COMMITS);
    ["WAL", "DELETE"]
        .iter()
        .map(|journal| {
            let file = dir.join(journal);
            let mut script =
                format!("PRAGMA journal_mode={journal};\nPRAGMA synchronous=FULL;\nCREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);\n");
            for n in 0..commits {
                script += &format!("INSERT INTO t VALUES({n}, hex(randomblob(100)));\n");
            }
            let script_file = bench.aside.join("sqlite.sql");
            fs::write(&script_file, script)?;
            let begin = Instant::now();
            bench.output(Command::new("sqlite3")
                .arg(&file)
                .arg(format!(".read {}", script_file.display())))?;
            Ok(commits as f64 / begin.elapsed().as_secs_f64())
        })
        .collect()
}

fn postgres(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let bin = postgres_bin()?;
    let dir = subject.fresh_dir("postgres")?;
    let (uid, gid) = postgres_user()?;
    chown(&dir, Some(uid), Some(gid))?;
    let socket = tempfile::Builder::new().prefix("pg").tempdir()?;
    chown(socket.path(), Some(uid), Some(gid))?;
    let data = dir.join("data");
    let plain = |program: &str| {
        let mut command = Command::new(bin.join(program));
        command.uid(uid).gid(gid).current_dir("/");
        command
    };
    bench.output(
        plain("initdb")
            .args([
                "--auth=trust",
                "--username=bench",
                CHECKSUMS,
                "--no-instructions",
                "-D",
            ])
            .arg(&data),
    )?;
    let answers = socket.path().join(".s.PGSQL.5432");
    let _server = Process::start(
        bench.interrupt,
        plain("postgres")
            .arg("-D")
            .arg(&data)
            .args(POSTGRES_OPTIONS)
            .arg("-k")
            .arg(socket.path()),
        &bench.aside.join("postgres.log"),
        Signal::INT, // PostgreSQL's fast shutdown
        |_| Ok(UnixStream::connect(&answers).is_ok()),
    )?;
    let client = |arguments: &[String]| {
        let mut command = Command::new(bin.join("pgbench"));
        command
            .arg("-h")
            .arg(socket.path())
            .args(["-U", "bench"])
            .args(arguments)
            .arg("postgres");
        bench.output(&mut command)
    };
    wait_for(bench.interrupt, START_LIMIT, || {
        Ok(Command::new(bin.join("pg_isready"))
            .arg("-h")
            .arg(socket.path())
            .stdout(Stdio::null())
            .status()?
            .success())
    })?;
    let scale = bench.scaled(PGBENCH_SCALE);
    client(&["-i".to_owned(), "-q".to_owned(), format!("-s{scale}")])?;
    let seconds = bench.scaled(PGBENCH_SECONDS);
    [1, 8]
        .iter()
        .map(|clients| {
            let text = client(&[
                format!("-c{clients}"),
                "-j2".to_owned(),
                format!("-T{seconds}"),
            ])?;
            text.lines()
                .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
                .with_context(|| format!("pgbench said no tps:\n{text}"))
        })
        .collect()
}

fn redis(bench: &Bench<'_>, subject: &Subject) -> anyhow::Result<Vec<f64>> {
    let dir = subject.fresh_dir("redis")?;
    let sockets = tempfile::Builder::new().prefix("redis").tempdir()?;
    let socket = sockets.path().join("s");
    let _server = Process::start(
        bench.interrupt,
        Command::new("redis-server")
            .args(REDIS_OPTIONS)
            .args(["--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(&dir),
        &bench.aside.join("redis.log"),
        Signal::TERM,
        |_| Ok(UnixStream::connect(&socket).is_ok()),
    )?;
    [1_u64, 16]
        .iter()
        .map(|clients| {
            let commands = bench.scaled(REDIS_COMMANDS * if *clients == 1 { 1 } else { 4 });
            let text = bench.output(
                Command::new("redis-benchmark")
                    .arg("-s")
                    .arg(&socket)
                    .args(["-t", "set", "-d", "128", "-r", "100000", "--csv"])
                    .arg("-c")
                    .arg(clients.to_string())
                    .arg("-n")
                    .arg(commands.to_string()),
            )?;
            // "SET","12345.67",...
            text.lines()
                .find_map(|line| {
                    let mut cells = line.split(',').map(|cell| cell.trim_matches('"'));
                    (cells.next() == Some("SET")).then(|| cells.next()?.parse().ok())?
                })
                .with_context(|| format!("redis-benchmark said no rate:\n{text}"))
        })
        .collect()
}

/// The user that Debian's package makes for its server, which refuses to run as root or without a name.
fn postgres_user() -> anyhow::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("no list of users")?;
    let line = users
        .lines()
        .find_map(|line| line.strip_prefix("postgres:"));
    let mut fields = line.context("no user postgres")?.split(':').skip(1);
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    number().zip(number()).context("user postgres: no numbers")
}

/// How the servers are run, for those who read the figures.
pub(super) fn options() -> [(&'static str, String); 2] {
    let scale = format!("pgbench: scale {PGBENCH_SCALE}, {PGBENCH_SECONDS} s, 2 threads");
    [
        (
            "PostgreSQL",
            format!("{CHECKSUMS} {}; {scale}", POSTGRES_OPTIONS.join(" ")),
        ),
        (
            "Redis",
            format!("{}; values of 128 bytes", REDIS_OPTIONS.join(" ")),
        ),
    ]
}

/// What the server says of its version.
pub(super) fn postgres_version() -> Option<String> {
    version(postgres_bin().ok()?.join("postgres").to_str()?)
}

/// Debian keeps the programs of each version apart.
fn postgres_bin() -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL (package postgresql-15)")?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().context("no PostgreSQL (package postgresql-15)")
}
