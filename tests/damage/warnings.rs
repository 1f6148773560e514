//! What hafs says in its log, WARN and ERROR, while a test does something: the only trace of damage that costs nothing.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;

/// Collects what is written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `run` answers, and the lines that this thread logged meanwhile.
pub(crate) fn warnings_of<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let answer = tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (answer, text.lines().map(str::to_owned).collect())
}

#[test]
fn warnings_are_seen_and_nothing_less() {
    let (answer, lines) = warnings_of(|| {
        tracing::info!("all is well");
        tracing::warn!(path = "/a", "something is not");
        tracing::error!("something else neither");
        7
    });
    assert_eq!((answer, lines.len()), (7, 2), "{lines:?}");
    assert!(
        lines[0].contains("something is not path=\"/a\""),
        "{lines:?}"
    );
    assert!(lines[1].contains("ERROR"), "{lines:?}");
}
