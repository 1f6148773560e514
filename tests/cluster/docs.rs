//! The commands of `docs/api.md`, run as they stand there, and their answers against what the page shows.

use std::fs;
use std::process::Command;

use hafs_tests::binaries::checkout;
use hafs_tests::{Daemon, Mount, Scratch, requirement, run};
use serde_json::{Deserializer, Value};

/// A command of the page and the answer below it.
#[derive(Debug)]
struct Example {
    command: String,
    answer: String,
}

/// The page's `console` blocks: a line with `# ` begins a command, a backslash continues it.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let mut continues = false;
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("# ") {
                examples.push(Example {
                    command: command.to_owned(),
                    answer: String::new(),
                });
            } else if let Some(example) = examples.last_mut() {
                let to = if continues {
                    &mut example.command
                } else {
                    &mut example.answer
                };
                to.push_str(line);
                to.push('\n');
            }
            continues = line.ends_with('\\');
            if continues && let Some(example) = examples.last_mut() {
                example
                    .command
                    .truncate(example.command.trim_end().trim_end_matches('\\').len());
            }
        }
    }
    examples
}

/// JSON values one after the other; `...` stands for more fields.
fn values(text: &str) -> Vec<Value> {
    let text = text.replace(", ...", ", \"...\": 0");
    let parsed: Result<Vec<Value>, _> = Deserializer::from_str(&text).into_iter().collect();
    parsed.unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Fails unless both have the same fields of the same types. `null` stands for any type.
fn same_shape(shown: &Value, answered: &Value, at: &str) {
    match (shown, answered) {
        (Value::Object(shown), Value::Object(answered)) => {
            for (name, value) in shown.iter().filter(|(name, _)| *name != "...") {
                let field = answered
                    .get(name)
                    .unwrap_or_else(|| panic!("{at}: no field {name} in the answer"));
                same_shape(value, field, &format!("{at}.{name}"));
            }
            for name in answered.keys().filter(|_| !shown.contains_key("...")) {
                assert!(
                    shown.contains_key(name),
                    "{at}: the page does not show the field {name}"
                );
            }
        }
        (Value::Array(shown), Value::Array(answered)) => {
            if let (Some(shown), Some(answered)) = (shown.first(), answered.first()) {
                same_shape(shown, answered, &format!("{at}[0]"));
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        (shown, answered) => {
            let same = std::mem::discriminant(shown) == std::mem::discriminant(answered);
            assert!(
                same,
                "{at}: the page shows {shown}, the answer is {answered}"
            );
        }
    }
}

#[test]
fn the_api_page_shows_what_hafsd_answers() {
    if !requirement::mounts_work("the examples of docs/api.md") {
        return;
    }
    if !requirement::tool_is_there("the examples of docs/api.md", "curl") {
        return;
    }
    let page =
        fs::read_to_string(checkout().join("docs/api.md")).expect("the page is in the checkout");
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let dir = scratch.dir("mnt");
    let watch = Mount::watch(&dir);
    let examples = examples(&page);
    assert!(examples.len() > 6, "{examples:?}");
    for example in &examples {
        let (creates, deletes) = (
            example.command.contains("-d '{\"name\""),
            ["-X DELETE", "/repair "]
                .iter()
                .any(|alone| example.command.contains(alone)),
        );
        prepare(
            &daemon,
            &watch,
            !creates,
            !creates && (!deletes || example.answer.contains("volume_mounted")),
        );
        let command = example.command.replace(
            "/run/hafs/hafsd.sock",
            daemon.socket().to_str().expect("plain"),
        );
        let answer = run(Command::new("sh").args(["-c", &command])).ok().stdout;
        let (shown, answered) = (values(&example.answer), values(&answer));
        let (shown, answered) = (
            shown.last().expect("an answer"),
            answered.last().expect("an answer"),
        );
        same_shape(shown, answered, &example.command);
        assert_eq!(
            shown.get("code"),
            answered.get("code"),
            "{}: {answer}",
            example.command
        );
    }
    prepare(&daemon, &watch, false, false);
    daemon.stop();
}

/// Brings the volume that the page speaks of into this state.
fn prepare(daemon: &Daemon, dir: &Mount, exists: bool, mounted: bool) {
    let volumes = daemon.ctl(&["volume", "list", "-o", "json"]).ok().json();
    let volume = &volumes["volumes"][0];
    let is_mounted = volume["mounts"]
        .as_array()
        .is_some_and(|mounts| !mounts.is_empty());
    if is_mounted && !mounted {
        dir.umount().ok();
    }
    if volume.is_object() && !exists {
        daemon.ctl(&["volume", "delete", "pg-main", "--yes"]).ok();
    }
    if !volume.is_object() && exists {
        daemon.create_volume("pg-main");
    }
    if !is_mounted && mounted {
        daemon.mount_command("pg-main", dir.path(), "").ok();
    }
}
