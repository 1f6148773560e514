//! What hafsd tells while it runs: `tracing` events on stderr, as text or JSON, and how it ends on a panic.
//!
//! `hafsd` calls [`init`] once, before any thread. `hafsctl` and the mount helper log nothing; they speak through
//! [`output`](crate::output).

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr and makes every panic of our own end the process.
///
/// `filter` is a `tracing` filter such as `info` or `info,hafs_fs=debug`. Fails if it is not.
pub fn init(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter)?
        // The FUSE crate calls it an ERROR when the application that waited for a reply was killed: an everyday event.
        .add_directive(
            "fuser::reply=off"
                .parse()
                .context("a directive of our own")?,
        );
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    abort_on_panic();
    Ok(())
}

/// `EnvFilter` takes a word that is no level for the name of a module, which then is the only one to log anything.
fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    let wrong = filter
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', ':', '[']) && part.parse::<LevelFilter>().is_err());
    if let Some(wrong) = wrong {
        bail!(
            "`{filter}` is not a log filter: `{wrong}` is no level (off, error, warn, info, debug, trace)"
        );
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| anyhow!("`{filter}` is not a log filter: {error}"))
}

/// Replaces the panic hook by one that logs and aborts.
///
/// Never unwind: a dropped FUSE reply answers EIO to an application whose operation may have happened, and a lock left
/// behind by a dead thread would stop a volume without a word. A dead hafsd, on the other hand, loses no byte, and its
/// successor finds a clean state. A panic of the FUSE crate over a request that it cannot read is no invariant of ours, and
/// an application can cause it: that session is replaced.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        if hafs_fs::mount::panic_is_fusers() {
            return;
        }
        let thread = std::thread::current();
        let message = info.payload_as_str().unwrap_or("(no message)");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(
            thread = thread.name().unwrap_or("?"),
            location,
            %backtrace,
            "broken invariant, hafsd ends: {message}"
        );
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "HAFS_TEST_PANIC";

    /// Runs itself again: the process that panics must end, not only its thread.
    #[test]
    fn a_panic_in_any_thread_is_logged_and_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            init(LogFormat::Json, "info").unwrap();
            let _ = std::thread::spawn(|| panic!("books do not balance")).join();
            return;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "telemetry::tests::a_panic_in_any_thread_is_logged_and_ends_the_process",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(
            output.status.signal(),
            Some(6),
            "SIGABRT, not {:?}",
            output.status
        );
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains("\"level\":\"ERROR\""), "{log}");
        assert!(
            log.contains("broken invariant, hafsd ends: books do not balance"),
            "{log}"
        );
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        for wrong in ["info,hafs_fs=loud", "loud", "wran,hafs_fs=debug"] {
            let error = init(LogFormat::Text, wrong).unwrap_err();
            assert!(error.to_string().contains("is not a log filter"), "{error}");
        }
        for right in [
            "info",
            "warn,hafs_fs=debug",
            "OFF",
            "info,hafs_fs::volume",
            "[fuse_op]=trace",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
    }
}
