//! `--watch`: the answer of a status command again and again, until ^C or until nobody reads any more.
//!
//! On a terminal the screen is painted over; elsewhere one answer follows the other, as JSON one document a line.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use hafs_tools::output::{self, Exit, Refusal};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Form, cannot_print};

/// The option of every command that can be watched.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Watch {
    /// Ask again every so many seconds, until ^C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
          default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
}

/// More often is only load.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);

fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a number of seconds from 0.1 to 86400");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    let interval = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        Ok(interval)
    } else {
        Err(wrong())
    }
}

/// An answer, ready to be shown.
#[derive(Debug)]
pub(crate) struct Screen {
    text: String,
    exit: Exit,
}

impl Screen {
    /// `answer` as JSON, or as `text` makes people's form of it.
    pub(crate) fn new(
        form: Form,
        watch: Watch,
        answer: &impl Serialize,
        text: impl FnOnce(bool) -> String,
        exit: Exit,
    ) -> Self {
        let encoded = || match watch.watch {
            Some(_) => serde_json::to_string(answer),
            None => serde_json::to_string_pretty(answer),
        };
        let text = match form {
            Form::Json => encoded().expect("the API's types are JSON"),
            Form::Table => text(false),
            Form::Wide => text(true),
        };
        Self { text, exit }
    }
}

/// Shows what `ask` answers, once or until it is enough. The first refusal ends it, later ones are told and waited out:
/// hafsd may be restarted while somebody watches.
pub(crate) async fn show(
    watch: Watch,
    form: Form,
    ask: impl AsyncFn() -> Result<Screen, Refusal>,
) -> Result<Exit, Refusal> {
    let first = ask().await?;
    let Some(interval) = watch.watch else {
        output::line(&first.text).map_err(cannot_print)?;
        return Ok(first.exit);
    };
    // From here on, and not only while something waits for it: a ^C in the middle of an answer counts too.
    let mut interrupt = signal(SignalKind::interrupt()).expect("a program may listen for SIGINT");
    let painted = form != Form::Json && std::io::stdout().is_terminal();
    let mut screen = Ok(first);
    loop {
        let shown = match &screen {
            Ok(screen) if painted => output::paint(&screen.text),
            Ok(screen) => output::line_to_reader(&screen.text),
            Err(refusal) if painted => output::paint(&output::refusal_text("hafsctl", refusal)),
            Err(refusal) => {
                output::refusal("hafsctl", refusal);
                Ok(true)
            }
        };
        if !shown.map_err(cannot_print)? {
            return Ok(Exit::Ok);
        }
        // Before the next question too: it may take as long as --timeout says.
        screen = tokio::select! {
            _ = interrupt.recv() => return Ok(Exit::Ok),
            screen = async {
                tokio::time::sleep(interval).await;
                ask().await
            } => screen,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds() {
        assert_eq!(interval("2"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "soon", "1e9", "NaN"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
