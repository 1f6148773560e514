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
use tempfile::TempDir;

use super::{AHEAD_OF_BINDFS, Bench, Workload, rate, where_bytes_are_kept};
use crate::filesystem::command::version;
use crate::filesystem::process::{Process, wait_for};
use crate::filesystem::subject::Subject;

const SQLITE_COMMITS: u64 = 2_000;
/// Of one client; several do four times as much.
const REDIS_COMMANDS: u64 = 20_000;
const REDIS_CLIENTS: [u64; 2] = [1, 16];
const PGBENCH_SECONDS: u64 = 15;
const PGBENCH_SCALE: u64 = 10;
const PGBENCH_CLIENTS: [u64; 2] = [1, 8];
const PGBENCH_THREADS: &str = "-j2";
const INITDB_OPTIONS: &[&str] = &[
    "--auth=trust",
    "--username=bench",
    "--data-checksums",
    "--no-instructions",
];
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
const REDIS_BENCHMARK_OPTIONS: &[&str] = &["-t", "set", "-d", "128", "-r", "100000", "--csv"];
const START_LIMIT: Duration = Duration::from_secs(30);

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
    let server = Postgres::start(bench, subject)?;
    server.pgbench(&["-i", "-q", &format!("-s{}", pgbench_scale(bench))])?;
    let time = format!("-T{}", pgbench_seconds(bench));
    PGBENCH_CLIENTS
        .iter()
        .map(|clients| {
            let text = server.pgbench(&[&format!("-c{clients}"), PGBENCH_THREADS, &time])?;
            text.lines()
                .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
                .with_context(|| format!("pgbench said no tps:\n{text}"))
        })
        .collect()
}

fn pgbench_scale(bench: &Bench<'_>) -> u64 {
    bench.scaled(PGBENCH_SCALE)
}

fn pgbench_seconds(bench: &Bench<'_>) -> u64 {
    bench.scaled(PGBENCH_SECONDS)
}

/// A running PostgreSQL with an empty database.
struct Postgres<'a> {
    bench: &'a Bench<'a>,
    bin: PathBuf,
    /// Dropped before the directory of its socket.
    _server: Process,
    socket: TempDir,
}

impl<'a> Postgres<'a> {
    fn start(bench: &'a Bench<'_>, subject: &Subject) -> anyhow::Result<Self> {
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
        bench.output(plain("initdb").args(INITDB_OPTIONS).arg("-D").arg(&data))?;
        let answers = socket.path().join(".s.PGSQL.5432");
        let server = Process::start(
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
        let started = Self {
            bench,
            bin,
            _server: server,
            socket,
        };
        started.wait_ready()?;
        Ok(started)
    }

    /// Its socket answers before it takes commands.
    fn wait_ready(&self) -> anyhow::Result<()> {
        wait_for(self.bench.interrupt, START_LIMIT, || {
            let mut asked = Command::new(self.bin.join("pg_isready"));
            asked.arg("-h").arg(self.socket.path());
            Ok(asked.stdout(Stdio::null()).status()?.success())
        })
    }

    /// Runs pgbench to its end; what it says.
    fn pgbench(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.bench.output(
            Command::new(self.bin.join("pgbench"))
                .arg("-h")
                .arg(self.socket.path())
                .args(["-U", "bench"])
                .args(arguments)
                .arg("postgres"),
        )
    }
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
    REDIS_CLIENTS
        .iter()
        .map(|&clients| {
            let text = bench.output(
                Command::new("redis-benchmark")
                    .arg("-s")
                    .arg(&socket)
                    .args(REDIS_BENCHMARK_OPTIONS)
                    .arg("-c")
                    .arg(clients.to_string())
                    .arg("-n")
                    .arg(redis_commands(bench, clients).to_string()),
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

fn redis_commands(bench: &Bench<'_>, clients: u64) -> u64 {
    bench.scaled(REDIS_COMMANDS * if clients == 1 { 1 } else { 4 })
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

/// How the programs are run, for those who read the figures: with the amounts of this run.
pub(super) fn options(bench: &Bench<'_>) -> [(&'static str, String); 3] {
    let sqlite = format!(
        "one script of the shell sqlite3, {} inserts of 200 hex digits, each a transaction of its own (autocommit); a fresh \
         database for each journal mode",
        bench.scaled(SQLITE_COMMITS)
    );
    let [one, eight] = PGBENCH_CLIENTS;
    let postgres = format!(
        "initdb {}; postgres {}; pgbench -i -q -s{}, then -c{one} and -c{eight}, each {PGBENCH_THREADS} -T{}",
        INITDB_OPTIONS.join(" "),
        POSTGRES_OPTIONS.join(" "),
        pgbench_scale(bench),
        pgbench_seconds(bench),
    );
    let [few, many] = REDIS_CLIENTS;
    let redis = format!(
        "redis-server {}; redis-benchmark {}, -c {few} -n {}, then -c {many} -n {}",
        shown(REDIS_OPTIONS),
        REDIS_BENCHMARK_OPTIONS.join(" "),
        redis_commands(bench, few),
        redis_commands(bench, many),
    );
    [
        ("SQLite", sqlite),
        ("PostgreSQL", postgres),
        ("Redis", redis),
    ]
}

/// As one would type them.
fn shown(arguments: &[&str]) -> String {
    let quoted = arguments.iter().map(|argument| {
        if argument.is_empty() {
            "\"\""
        } else {
            argument
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
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
