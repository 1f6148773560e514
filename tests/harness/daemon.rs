//! hafsd in a scratch directory, as a child of the test.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::binaries::{program, tool};
use crate::command::{Ran, code, run, wait_within};
use crate::http;
use crate::mount::Mount;

/// From start to readiness, with a log to replay, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// From SIGTERM to the end: sync, unmount, flush. As long as systemd waits by default; hafsd's own bounds lie below that.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// After SIGKILL only the kernel is left to act.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How a hafsd is started.
#[derive(Debug, Clone)]
pub struct Launch {
    data_dir: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
    program: Option<PathBuf>,
    expected: Vec<String>,
    own_group: bool,
}

impl Launch {
    /// A hafsd whose data, socket and log lie in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            data_dir: dir.join("data"),
            socket: dir.join("s"),
            log: dir.join("hafsd.log"),
            variables: Vec::new(),
            arguments: Vec::new(),
            program: None,
            expected: Vec::new(),
            own_group: false,
        }
    }

    /// Another data directory.
    #[must_use]
    pub fn data_dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.data_dir);
        self
    }

    /// Another socket.
    #[must_use]
    pub fn socket(mut self, socket: &Path) -> Self {
        socket.clone_into(&mut self.socket);
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Another program in the place of hafsd, which becomes it.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// In a process group of its own: Ctrl-C on a terminal is not for it.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// Announces that WARN and ERROR lines with `words` in them are no failure.
    #[must_use]
    pub fn expect(mut self, words: &str) -> Self {
        self.expected.push(words.to_owned());
        self
    }

    /// Where its data is.
    pub fn data(&self) -> &Path {
        &self.data_dir
    }

    /// Where its control socket will be.
    pub fn socket_path(&self) -> &Path {
        &self.socket
    }

    fn command(&self, log_format: &str) -> Command {
        let hafsd = self.program.clone().unwrap_or_else(|| program("hafsd"));
        // setpriv: the daemon dies with the thread that started it, should the test be killed.
        let mut command = match tool("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&hafsd);
                command
            }
            None => Command::new(&hafsd),
        };
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--socket")
            .arg(&self.socket);
        command
            .args(["--log-format", log_format])
            .args(&self.arguments);
        // A daemon's environment is the test's only where a test says so.
        command
            .env_remove("FAILPOINTS")
            .env_remove("HAFS_SOCKET")
            .env_remove("NOTIFY_SOCKET");
        command.envs(self.variables.iter().cloned());
        if self.own_group {
            command.process_group(0);
        }
        command
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it ends before, or takes more than a minute.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let (mut daemon, told) = self.spawn();
        daemon.wait_ready(&told);
        daemon
    }

    /// Starts it and does not wait: for what is to end before it is ready.
    ///
    /// # Panics
    /// If there is no such program.
    #[track_caller]
    pub fn start_only(self) -> Daemon {
        self.spawn().0
    }

    fn spawn(self) -> (Daemon, UnixDatagram) {
        let notify = self.socket.with_extension("notify");
        let _ = fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).expect("a socket for readiness");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let mut command = self.command("json");
        command
            .env("NOTIFY_SOCKET", &notify)
            .stderr(log.try_clone().expect("dup"))
            .stdout(log);
        let child = command
            .stdin(std::process::Stdio::null())
            .spawn()
            .expect("hafsd starts");
        let daemon = Daemon {
            child,
            launch: self,
            ended: false,
        };
        (daemon, told)
    }

    /// Starts it where it has to refuse, and gives what it said before it ended.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn start_refused(&self) -> Ran {
        // People read refusals, so that is how they are tested.
        run(&mut self.command("text"))
    }
}

/// A running hafsd. Dropped, it is killed; a line in its log that was not announced then fails the test.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    launch: Launch,
    ended: bool,
}

impl Daemon {
    /// Starts hafsd with everything in `dir`.
    ///
    /// # Panics
    /// If it does not become ready.
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        Launch::new(dir).start()
    }

    #[track_caller]
    fn wait_ready(&mut self, told: &UnixDatagram) {
        let deadline = Instant::now() + READY_LIMIT;
        // Short, so that a daemon that ended is noticed.
        told.set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        let mut message = [0; 4096];
        loop {
            match told.recv(&mut message) {
                Ok(len)
                    if message[..len]
                        .split(|&byte| byte == b'\n')
                        .any(|line| line == b"READY=1") =>
                {
                    return;
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("waiting for readiness: {error}"),
            }
            if let Some(status) = self.child.try_wait().expect("wait") {
                self.ended = true;
                panic!(
                    "hafsd ended with {} before it was ready:\n{}",
                    code(status),
                    self.log()
                );
            }
            assert!(
                Instant::now() < deadline,
                "hafsd is not ready after {READY_LIMIT:?}:\n{}",
                self.log()
            );
        }
    }

    /// Its process.
    ///
    /// # Panics
    /// Never: a child has a process number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.launch.socket
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.launch.data_dir
    }

    /// Runs `hafsctl --socket S ARGUMENTS`.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Ran {
        run(Command::new(program("hafsctl"))
            .arg("--socket")
            .arg(self.socket())
            .args(arguments))
    }

    /// Makes a volume.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn create_volume(&self, name: &str) {
        let _ = self
            .ctl(&["volume", "create", name, "--size", "10GiB"])
            .ok();
    }

    /// Runs the mount helper, as mount(8) would: `mount-fuse-hafs VOLUME DIR -o socket=S[,OPTIONS]`.
    #[track_caller]
    pub fn mount_command(&self, volume: &str, dir: &Path, options: &str) -> Ran {
        run(&mut mount_command(self.socket(), volume, dir, options))
    }

    /// Mounts a volume on `dir`.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn mount(&self, volume: &str, dir: &Path) -> Mount {
        self.mount_with(volume, dir, "")
    }

    /// The same with mount options.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn mount_with(&self, volume: &str, dir: &Path, options: &str) -> Mount {
        let mount = Mount::watch(dir);
        self.mount_command(volume, dir, options).ok();
        mount
    }

    /// `hafsctl volume check VOLUME`, which must find nothing.
    ///
    /// # Panics
    /// If it finds something.
    #[track_caller]
    pub fn check(&self, volume: &str) {
        self.ctl(&["volume", "check", volume]).ok();
    }

    /// What it answers to `GET /metrics`.
    ///
    /// # Panics
    /// If it does not.
    pub fn metrics(&self) -> String {
        let stream = UnixStream::connect(self.socket()).expect("hafsd listens");
        http::get(stream, "/metrics").1
    }

    /// How many requests `op` of the kernel for a volume it has answered and counted, as its metrics tell.
    ///
    /// # Panics
    /// If they do not.
    pub fn requests(&self, volume: &str, op: &str) -> u64 {
        let metrics = self.metrics();
        let labels = [format!("volume=\"{volume}\""), format!("op=\"{op}\"")];
        let line = metrics.lines().find(|line| {
            line.starts_with("hafs_volume_request_duration_seconds_count{")
                && labels.iter().all(|label| line.contains(label))
        });
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        count.unwrap_or_else(|| panic!("no count of {op}:\n{metrics}"))
    }

    /// SIGKILL, and waits until it is gone. The log was looked at as at any end.
    ///
    /// # Panics
    /// If its log has a line that was not announced.
    #[track_caller]
    pub fn kill(mut self) {
        self.end_by_force();
        self.judge_log();
    }

    /// SIGTERM, and waits until it has ended by itself.
    ///
    /// # Panics
    /// If it ends with another code than 0, or its log has a line that was not announced.
    #[track_caller]
    pub fn stop(mut self) {
        let status = self.terminate();
        assert!(
            status.success(),
            "after SIGTERM hafsd ended with {}:\n{}",
            code(status),
            self.log()
        );
        self.judge_log();
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("hafsd is there");
    }

    fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let status = wait_within(&mut self.child, STOP_LIMIT);
        self.ended = status.is_some();
        status.unwrap_or_else(|| {
            panic!(
                "hafsd still runs {STOP_LIMIT:?} after SIGTERM:\n{}",
                self.log()
            )
        })
    }

    fn end_by_force(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            self.ended = true;
            assert!(
                wait_within(&mut self.child, KILL_LIMIT).is_some(),
                "SIGKILL ends a process"
            );
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.launch.log).unwrap_or_default()
    }

    /// Fails if a WARN or ERROR line was not announced, or a line is no JSON, such as a panic's.
    #[track_caller]
    fn judge_log(&self) {
        let log = self.log();
        let bad: Vec<&str> = log.lines().filter(|line| !self.is_expected(line)).collect();
        assert!(
            bad.is_empty(),
            "hafsd's log has lines that no test announced:\n{}",
            bad.join("\n")
        );
    }

    fn is_expected(&self, line: &str) -> bool {
        let level = serde_json::from_str::<serde_json::Value>(line)
            .ok()
            .and_then(|event| event["level"].as_str().map(str::to_owned));
        let quiet = level.is_some_and(|level| level != "WARN" && level != "ERROR");
        quiet
            || self
                .launch
                .expected
                .iter()
                .any(|words| line.contains(words.as_str()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let running = !self.ended;
        self.end_by_force();
        if std::thread::panicking() {
            eprintln!("hafsd's log ends with:\n{}", tail(&self.log(), 40));
        } else if running {
            self.judge_log();
        }
    }
}

/// The command line of the mount helper.
pub fn mount_command(socket: &Path, volume: &str, dir: &Path, options: &str) -> Command {
    let mut all = format!("socket={}", socket.display());
    if !options.is_empty() {
        all = format!("{all},{options}");
    }
    let mut command = Command::new(program("mount-fuse-hafs"));
    command
        .arg(volume)
        .arg(dir)
        .args(["-o", &all])
        .env_remove("HAFS_SOCKET");
    command
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
