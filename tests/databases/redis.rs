//! Redis with its append-only file on a mount, synced before each answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use hafs_tests::binaries::tool;
use hafs_tests::numbers::seed;
use hafs_tests::{Numbers, requirement, run};
use rustix::process::Signal;

use crate::lines::LIMIT;
use crate::rounds::{BLOWS, Blow, SEED, Site, Writer, write_until};
use crate::server::{Server, USER, as_user};

const WRITERS: u64 = 4;

/// A blow comes before so many acknowledged commands of all writers.
const STEPS_MAX: u64 = 600;

/// Keys of one writer, besides its counter and its list.
const KEYS: u64 = 20;

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Status(String),
    Number(i64),
    Bytes(Option<Vec<u8>>),
    List(Vec<Self>),
}

/// A connection: one command, one answer (RESP2).
#[derive(Debug)]
struct Connection(BufReader<UnixStream>);

impl Connection {
    fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("Redis listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
        Self(BufReader::new(stream))
    }

    fn call(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request)?;
        self.reply()
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let Some(rest) = line.trim_end().get(1..) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let number = || rest.parse::<i64>().map_err(io::Error::other);
        match line.as_bytes()[0] {
            b'+' => Ok(Reply::Status(rest.to_owned())),
            b':' => Ok(Reply::Number(number()?)),
            b'$' => Ok(Reply::Bytes(match usize::try_from(number()?) {
                Err(_) => None,
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.0.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Some(bytes)
                }
            })),
            b'*' => (0..number()?)
                .map(|_| self.reply())
                .collect::<io::Result<_>>()
                .map(Reply::List),
            _ => Err(io::Error::other(line.clone())),
        }
    }
}

/// What one writer's keys hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    /// Of each key, the step that set it.
    values: BTreeMap<u64, u64>,
    counter: i64,
    /// The step that pushed each entry.
    list: Vec<u64>,
}

/// One command.
#[derive(Debug, Clone, Copy)]
enum Change {
    Set(u64),
    Delete(u64),
    Increment,
    Push,
}

impl Content {
    fn apply(&mut self, change: Change, step: u64) {
        match change {
            Change::Set(key) => drop(self.values.insert(key, step)),
            Change::Delete(key) => drop(self.values.remove(&key)),
            Change::Increment => self.counter += 1,
            Change::Push => self.list.push(step),
        }
    }
}

/// A client that remembers.
#[derive(Debug)]
struct Client {
    seed: u64,
    number: u64,
    step: u64,
    acknowledged: Content,
    /// The command that got no answer.
    pending: Option<Change>,
    connection: Option<Connection>,
}

impl Client {
    fn new(seed: u64, number: u64) -> Self {
        Self {
            seed,
            number,
            step: 0,
            acknowledged: Content::default(),
            pending: None,
            connection: None,
        }
    }

    fn numbers(&self, step: u64) -> Numbers {
        Numbers::of(self.seed, &[self.number, step])
    }

    /// What the command of a step stores.
    fn value(&self, step: u64) -> Vec<u8> {
        let mut numbers = self.numbers(step);
        let len_max = [20, 200, 2000, 60_000][usize::try_from(numbers.below(4)).expect("4")];
        let len = usize::try_from(1 + numbers.below(len_max)).expect("small");
        numbers.text(len).into_bytes()
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}:{name}", self.number).into_bytes()
    }

    fn read(&self, connection: &mut Connection) -> io::Result<Content> {
        // Steps whose value a key may hold: what is found must be one of them, byte for byte.
        let step_of = |bytes: &[u8], known: Option<u64>| {
            let mut steps = known.into_iter().chain([self.step]);
            let found = steps.find(|step| self.value(*step) == bytes);
            found.ok_or_else(|| {
                io::Error::other(format!(
                    "writer {}: {} bytes that it never wrote",
                    self.number,
                    bytes.len()
                ))
            })
        };
        let mut content = Content::default();
        for key in 0..KEYS {
            let found = connection.call(&[b"GET", &self.key(&key.to_string())])?;
            let Reply::Bytes(found) = found else {
                return Err(io::Error::other(format!("{found:?}")));
            };
            if let Some(bytes) = found {
                let known = self.acknowledged.values.get(&key).copied();
                let step = step_of(&bytes, known)?;
                content.values.insert(key, step);
            }
        }
        if let Reply::Bytes(Some(bytes)) = connection.call(&[b"GET", &self.key("counter")])? {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            content.counter = text.parse().map_err(io::Error::other)?;
        }
        let list = connection.call(&[b"LRANGE", &self.key("list"), b"0", b"-1"])?;
        let Reply::List(list) = list else {
            return Err(io::Error::other(format!("{list:?}")));
        };
        for (at, entry) in list.iter().enumerate() {
            let Reply::Bytes(Some(bytes)) = entry else {
                return Err(io::Error::other(format!("{entry:?}")));
            };
            let known = self.acknowledged.list.get(at).copied();
            let step = step_of(bytes, known)?;
            content.list.push(step);
        }
        Ok(content)
    }

    /// Compares, and takes over what it finds where both are allowed.
    fn verify(&mut self, connection: &mut Connection) -> Result<(), String> {
        let found = self.read(connection).map_err(|error| error.to_string())?;
        let mut with_pending = self.acknowledged.clone();
        if let Some(change) = self.pending {
            with_pending.apply(change, self.step);
        }
        if found != self.acknowledged && found != with_pending {
            return Err(format!(
                "writer {}: {found:?}\nis neither {:?}\nnor with {:?}",
                self.number, self.acknowledged, self.pending
            ));
        }
        self.acknowledged = found;
        self.pending = None;
        Ok(())
    }
}

impl Writer for Client {
    fn step(&mut self) -> Result<(), String> {
        self.step += 1;
        let mut numbers = self.numbers(self.step + (1 << 32));
        let key = numbers.below(KEYS);
        let change = match numbers.below(10) {
            0..=4 => Change::Set(key),
            5 => Change::Delete(key),
            6 => Change::Increment,
            _ => Change::Push,
        };
        self.pending = Some(change);
        let (name, value) = (self.key(&key.to_string()), self.value(self.step));
        let (counter, list) = (self.key("counter"), self.key("list"));
        let command: Vec<&[u8]> = match change {
            Change::Set(_) => vec![b"SET", &name, &value],
            Change::Delete(_) => vec![b"DEL", &name],
            Change::Increment => vec![b"INCR", &counter],
            Change::Push => vec![b"RPUSH", &list, &value],
        };
        let connection = self
            .connection
            .as_mut()
            .expect("a connection for the round");
        connection
            .call(&command)
            .map_err(|error| error.to_string())?;
        self.acknowledged.apply(change, self.step);
        self.pending = None;
        Ok(())
    }
}

fn start(site: &Site) -> (Server, PathBuf) {
    let socket = site.run_dir().join("redis");
    let _ = std::fs::remove_file(&socket); // of one that was killed
    let mut command = as_user(&tool("redis-server").expect("looked for before"));
    command.args(["--port", "0", "--unixsocket"]).arg(&socket);
    command.arg("--dir").arg(site.dir().join("redis"));
    command.args([
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ]);
    // Not before `rewrite_often`: files that go while they are checked look lost.
    command.args(["--auto-aof-rewrite-percentage", "0"]);
    command.args(["--auto-aof-rewrite-min-size", "256kb"]);
    let server = Server::start(&command, "is now ready to accept connections");
    (server, socket)
}

/// From now on the files are rewritten and renamed all the time.
fn rewrite_often(socket: &Path) {
    let often: [&[u8]; 4] = [b"CONFIG", b"SET", b"auto-aof-rewrite-percentage", b"30"];
    let reply = Connection::open(socket).call(&often).expect("Redis runs");
    assert_eq!(reply, Reply::Status("OK".to_owned()));
}

/// `redis-check-aof` of all files that the manifest names.
fn check_files(site: &Site) {
    let manifest = site
        .dir()
        .join("redis/appendonlydir/appendonly.aof.manifest");
    let program = tool("redis-check-aof").expect("it comes with redis-server");
    let said = run(Command::new(program).arg(manifest)).ok().stdout;
    assert!(
        said.contains("All AOF files and manifest are valid"),
        "{said}"
    );
}

fn verify(clients: &mut [Client], socket: &Path) -> Result<(), String> {
    let mut connection = Connection::open(socket);
    clients
        .iter_mut()
        .try_for_each(|client| client.verify(&mut connection))
}

#[test]
fn redis_keeps_every_acknowledged_command() {
    let test = "Redis on a mount";
    if !requirement::mounts_work(test) || !requirement::tool_is_there(test, "redis-server") {
        return;
    }
    let seed = seed(SEED);
    let mut site = Site::new();
    let dir = site.dir().join("redis");
    std::fs::create_dir(&dir).expect("root may write");
    std::os::unix::fs::chown(&dir, Some(USER), Some(USER)).expect("root may chown");
    let mut clients: Vec<_> = (0..WRITERS)
        .map(|number| Client::new(seed, number))
        .collect();
    let mut numbers = Numbers::of(seed, &[0xb10]);
    let (mut server, mut socket) = start(&site);
    for blow in BLOWS {
        rewrite_often(&socket);
        for client in &mut clients {
            client.connection = Some(Connection::open(&socket));
        }
        let steps = 1 + numbers.below(STEPS_MAX);
        let mut running = Some(server);
        write_until(&mut clients, steps, || {
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
                "Redis without its disk has ended by itself: {}",
                server.has_ended()
            );
            server.kill();
        }
        for client in &mut clients {
            client.connection = None;
        }
        eprintln!("{blow:?} killed after {steps} commands");
        site.up();
        (server, socket) = start(&site);
        verify(&mut clients, &socket).unwrap_or_else(|lost| panic!("{lost}"));
        check_files(&site);
        site.check();
    }
    let mut connection = Connection::open(&socket);
    let damage: [&[u8]; 2] = [b"INCR", b"0:counter"];
    connection.call(&damage).expect("damage");
    let seen = verify(&mut clients, &socket).expect_err("damage was done");
    eprintln!("seen: {seen:.100}");
    drop(connection);
    server.stop(Signal::TERM);
    check_files(&site);
    site.end();
}
