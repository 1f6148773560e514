//! hafsd's settings: `hafsd.toml`, the command line above it, defaults below it.
//!
//! `hafsd` builds one [`Config`] at its start with [`Config::resolve`] and hands out values from then on; nothing else
//! reads files or arguments. The clients share only [`SOCKET_DEFAULT`].

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::output::Refusal;
use crate::size;
use crate::telemetry::LogFormat;

/// Where hafsd keeps its node's data.
pub const DATA_DIR_DEFAULT: &str = "/var/lib/hafs";
/// Where hafsd listens, and where its clients look.
pub const SOCKET_DEFAULT: &str = "/run/hafs/hafsd.sock";
/// Read if it is there; a path given with `--config` must be there.
pub const CONFIG_DEFAULT: &str = "/etc/hafs/hafsd.toml";
/// Memory for blocks of all volumes' state. File bytes are cached by the kernel, above FUSE and below the segments.
const CACHE_BYTES_DEFAULT: u64 = 128 << 20;
/// With less, rows that are in use push each other out, and each lookup reads from the disk.
const CACHE_BYTES_MIN: u64 = 8 << 20;
/// What is logged: states that change, and what went wrong.
const LOG_FILTER_DEFAULT: &str = "info";
/// Environment variable that picks the daemon for `hafsctl` and the mount helper.
pub const SOCKET_VARIABLE: &str = "HAFS_SOCKET";

/// What may stand in `hafsd.toml`. Every key is optional; an unknown one is refused with its line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Directory of this node's data.
    pub data_dir: Option<PathBuf>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// Where metrics are served besides the control socket: an address of the loopback and a port.
    pub metrics: Option<SocketAddr>,
    /// Memory for blocks of all volumes' state: a size such as `128MiB`.
    pub cache_size: Option<String>,
    /// How the log looks.
    pub log_format: Option<LogFormat>,
    /// What is logged: a `tracing` filter such as `info,hafs_fs=debug`.
    pub log_filter: Option<String>,
}

/// What was said on the command line; it wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
}

/// Settings that hold for this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of this node's data, absolute.
    pub data_dir: PathBuf,
    /// The control socket, absolute.
    pub socket: PathBuf,
    /// Where metrics are served besides the control socket; on the loopback.
    pub metrics: Option<SocketAddr>,
    /// Memory for blocks of all volumes' state, bytes.
    pub cache_bytes: usize,
    /// How the log looks.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
}

impl Config {
    /// Command line over file over defaults.
    pub fn resolve(arguments: Arguments) -> Result<Self, Refusal> {
        let file = match &arguments.config {
            Some(path) => read(path)?.ok_or_else(|| {
                Refusal::new(format!(
                    "the configuration file {} is not there",
                    path.display()
                ))
                .next("give another --config, or leave it out")
            })?,
            None => read(Path::new(CONFIG_DEFAULT))?.unwrap_or_default(),
        };
        let data_dir = arguments.data_dir.or(file.data_dir);
        let socket = arguments.socket.or(file.socket);
        let metrics = arguments.metrics.or(file.metrics);
        if let Some(address) = metrics {
            refuse_network(address)?;
        }
        let cache_bytes = match &file.cache_size {
            Some(size) => cache_bytes(size)?,
            None => CACHE_BYTES_DEFAULT,
        };
        Ok(Self {
            metrics,
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
            data_dir: absolute(data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into()))?,
            socket: absolute(socket.unwrap_or_else(|| SOCKET_DEFAULT.into()))?,
            log_format: arguments.log_format.or(file.log_format).unwrap_or_default(),
            log_filter: file
                .log_filter
                .unwrap_or_else(|| LOG_FILTER_DEFAULT.to_owned()),
        })
    }
}

/// What `cache_size` says. More than the machine's memory is refused, too: it would not bound anything.
fn cache_bytes(size: &str) -> Result<u64, Refusal> {
    let refused = || {
        Refusal::new(format!("cache_size = \"{size}\" cannot be"))
            .next("correct cache_size in the configuration file, or leave it out")
    };
    let bytes = size::parse(size).map_err(|error| refused().why(error.to_string()))?;
    let machine = rustix::system::sysinfo();
    let memory = machine.totalram.saturating_mul(machine.mem_unit.into());
    if bytes < CACHE_BYTES_MIN {
        return Err(refused().why(format!("it is at least {}", size::display(CACHE_BYTES_MIN))));
    }
    if bytes > memory {
        return Err(refused().why(format!(
            "this machine has {} of memory",
            size::display(memory)
        )));
    }
    Ok(bytes)
}

/// Whoever can reach the port can read from it, so only this machine may.
fn refuse_network(address: SocketAddr) -> Result<(), Refusal> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(
        Refusal::new(format!("metrics cannot be served on {address}"))
            .why("that is an address of the network, and the port asks nobody who he is")
            .next(format!(
                "give 127.0.0.1:{} and let an agent of this machine, or a proxy that asks, pass it on",
                address.port()
            )),
    )
}

/// The parsed file; `None` if there is none.
fn read(path: &Path) -> Result<Option<ConfigFile>, Refusal> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Refusal::new(format!("cannot read {}", path.display()))
                .why(error.to_string())
                .next("give another --config, or repair its permissions"));
        }
    };
    parse(&text).map(Some).map_err(|problem| {
        Refusal::new(format!(
            "{} line {}: {}",
            path.display(),
            problem.line,
            problem.message
        ))
        .why("a setting that is not understood may be one that somebody relies on")
        .next("correct the line, or leave the setting out")
    })
}

/// What is wrong with a configuration file.
#[derive(Debug, PartialEq, Eq)]
struct ConfigProblem {
    line: usize,
    message: String,
}

fn parse(text: &str) -> Result<ConfigFile, ConfigProblem> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        ConfigProblem {
            line: text.as_bytes()[..start]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1,
            message: error.message().lines().collect::<Vec<_>>().join(", "),
        }
    })
}

/// Paths are kept absolute: they are shown to users and written into records.
fn absolute(path: PathBuf) -> Result<PathBuf, Refusal> {
    std::path::absolute(&path).map_err(|error| {
        Refusal::new(format!("cannot tell where `{}` is", path.display())).why(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let problem = parse("# hafsd\nsocket = \"/s\"\ndata-dir = \"/x\"\n").unwrap_err();
        assert_eq!(problem.line, 3);
        assert!(
            problem.message.contains("unknown field `data-dir`"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn a_wrong_type_and_broken_syntax_name_their_line() {
        assert_eq!(parse("\n\nsocket = 3\n").unwrap_err().line, 3);
        assert_eq!(
            parse("socket = \"/s\"\nlog_format = \"xml\"\n")
                .unwrap_err()
                .line,
            2
        );
        assert_eq!(
            parse("socket = \"/s\"\nwhat is this\n").unwrap_err().line,
            2
        );
    }

    #[test]
    fn argument_over_file_over_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hafsd.toml");
        fs::write(
            &path,
            "data_dir = \"/from-file\"\nsocket = \"/file.sock\"\nlog_format = \"json\"\n",
        )
        .unwrap();
        let config = Config::resolve(Arguments {
            data_dir: Some("/from-argument".into()),
            config: Some(path),
            ..Arguments::default()
        })
        .unwrap();
        assert_eq!(config.data_dir, Path::new("/from-argument"));
        assert_eq!(config.socket, Path::new("/file.sock"));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.log_filter, "info");
    }

    #[test]
    fn the_cache_has_a_size_that_this_machine_can_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hafsd.toml");
        let with = |line: &str| {
            fs::write(&path, line).unwrap();
            Config::resolve(Arguments {
                config: Some(path.clone()),
                ..Arguments::default()
            })
        };
        assert_eq!(with("").unwrap().cache_bytes, 128 << 20);
        assert_eq!(with("cache_size = \"8 MiB\"").unwrap().cache_bytes, 8 << 20);
        for (size, why) in [
            ("7.9MiB", "at least 8 MiB"),
            ("lots", "is not a size"),
            ("-1GiB", "is not a size"),
            ("15EiB", "of memory"),
        ] {
            let refusal = with(&format!("cache_size = \"{size}\"")).unwrap_err();
            assert!(refusal.error.contains(size), "{}", refusal.error);
            let said = refusal.why.unwrap();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn metrics_are_for_this_machine_only() {
        let with = |address: &str| {
            Config::resolve(Arguments {
                metrics: Some(address.parse().unwrap()),
                ..Arguments::default()
            })
        };
        for address in ["127.0.0.1:9100", "127.1.2.3:0", "[::1]:9100"] {
            assert_eq!(with(address).unwrap().metrics, address.parse().ok());
        }
        for address in [
            "0.0.0.0:9100",
            "[::]:9100",
            "10.0.0.1:9100",
            "[2001:db8::1]:1",
        ] {
            let refusal = with(address).unwrap_err();
            assert!(refusal.why.unwrap().contains("network"), "{address}");
        }
    }

    #[test]
    fn a_file_asked_for_must_be_there() {
        let refusal = Config::resolve(Arguments {
            config: Some("/nonexistent/hafsd.toml".into()),
            ..Arguments::default()
        })
        .unwrap_err();
        assert!(
            refusal
                .error
                .contains("/nonexistent/hafsd.toml is not there")
        );
    }
}
