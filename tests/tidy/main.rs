//! The house rules, as far as a program can check them: files, words, links, dependencies, fail points.
//!
//! Each test says what is wrong and where. What a rule has to let pass stands beside it, with the reason.

mod semantics;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use hafs_tests::binaries::checkout;
use hafs_tests::run;

/// A file past this is two.
const LINES_MAX: usize = 1000;

/// Words that the project has another word for, and where they are the kernel's own.
const WORDS: [&str; 5] = ["master", "slave", "leader", "follower", "shard"];
const WORDS_OF_OTHERS: [(&str, &str); 2] = [
    // The kernel's names for how mounts propagate.
    ("fs/src/mountinfo.rs", "master"),
    ("tests/harness/namespace.rs", "slave"),
];

/// This file names what it looks for.
const SELF: &str = "tests/tidy/main.rs";

/// A text file of the checkout.
struct Source {
    /// Relative to the checkout.
    path: String,
    text: String,
}

/// All text files that are, or are about to be, under version control.
fn sources() -> Vec<Source> {
    let mut git = std::process::Command::new("git");
    git.args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let list = run(git.current_dir(checkout())).ok().stdout;
    let read = |path: &str| {
        let text = fs::read_to_string(checkout().join(path)).ok()?; // deleted, or no text
        Some(Source {
            path: path.to_owned(),
            text,
        })
    };
    let sources: Vec<_> = list
        .lines()
        .filter(|path| *path != SELF)
        .filter_map(read)
        .collect();
    assert!(sources.len() > 20, "only {} files found", sources.len());
    sources
}

fn rust() -> Vec<Source> {
    let mut sources = sources();
    sources.retain(|source| source.path.ends_with(".rs"));
    sources
}

/// Fails with all findings at once.
#[track_caller]
fn assert_none(findings: &[String], rule: &str) {
    let list = findings.iter().fold(String::new(), |mut list, finding| {
        let _ = write!(list, "\n  {finding}");
        list
    });
    assert!(findings.is_empty(), "{rule}:{list}");
}

/// Lines of all sources that `bad` finds something in.
fn lines(sources: &[Source], bad: impl Fn(&Source, &str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            if bad(source, line) {
                findings.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    findings
}

/// The words of a line, as people and compilers cut them.
fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split(|c: char| !c.is_alphabetic())
        .map(str::to_lowercase)
}

#[test]
fn files_say_what_they_are_for() {
    let silent: Vec<_> = rust()
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    assert_none(&silent, "a file opens with //!");
}

#[test]
fn files_are_not_too_long() {
    let long: Vec<_> = rust()
        .into_iter()
        .filter(|source| source.text.lines().count() > LINES_MAX)
        .map(|source| source.path)
        .collect();
    assert_none(&long, "a file past 1000 lines is two");
}

#[test]
fn modules_are_named_after_themselves() {
    let found: Vec<_> = rust()
        .into_iter()
        .filter(|source| source.path.ends_with("/mod.rs"))
        .map(|source| source.path)
        .collect();
    assert_none(&found, "a module is name.rs, its parts name/part.rs");
}

#[test]
fn one_word_per_thing() {
    let wrong = lines(&sources(), |source, line| {
        let allowed = |word: &str| WORDS_OF_OTHERS.contains(&(source.path.as_str(), word));
        source.path != "Cargo.lock"
            && words(line).any(|word| WORDS.contains(&word.as_str()) && !allowed(&word))
    });
    assert_none(&wrong, "the project has another word for it");
}

#[test]
fn names_say_what_a_thing_is() {
    let vague = lines(&rust(), |_, line| {
        let mut tokens = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let declares = |token: &str| ["struct", "enum", "trait", "mod"].contains(&token);
        let mut before = "";
        tokens.any(|token| {
            let type_name = declares(before)
                && [
                    "Manager", "Helper", "Util", "Utils", "manager", "helper", "util", "utils",
                ]
                .iter()
                .any(|vague| token.ends_with(vague));
            let getter = before == "fn" && token.starts_with("get_");
            if !token.is_empty() {
                before = token;
            }
            type_name || getter
        })
    });
    assert_none(&vague, "no get_, Manager, Helper, Util");
}

#[test]
fn nothing_is_left_undone() {
    let left = lines(&rust(), |_, line| {
        ["todo!(", "unimplemented!(", "FIXME", "XXX", "TODO"]
            .iter()
            .any(|mark| line.contains(mark))
    });
    assert_none(&left, "finish it, or file an issue");
}

#[test]
fn no_path_of_somebodys_machine() {
    let marks = ["/home/", "/Users/", "/root/", "/work/", "C:\\"];
    // Below something else, such as `$dir/root/`, it is another path.
    let begins = |line: &str, at: usize| {
        let before = line[..at].trim_end_matches(['"', '\'', '`', '(']);
        before.len() < at || before.is_empty() || before.ends_with([' ', '=', ':', ','])
    };
    let below =
        |line: &str, at: usize| line[..at].ends_with(['"', '}']) && line[..at].contains('$');
    let found = lines(&sources(), |_, line| {
        let mut places = marks.iter().flat_map(|mark| line.match_indices(mark));
        places.any(|(at, _)| begins(line, at) && !below(line, at))
    });
    assert_none(&found, "a path of one machine");
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.path.ends_with(".md"))
    {
        let dir = Path::new(&source.path)
            .parent()
            .expect("a file lies in a directory")
            .to_owned();
        for link in links(&source.text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                PathBuf::from(&source.path)
            } else {
                dir.join(path)
            };
            let file = checkout().join(&target);
            if !file.exists() {
                broken.push(format!("{}: {link}", source.path));
            } else if !anchor.is_empty() && file.extension().is_some_and(|kind| kind == "md") {
                let text = fs::read_to_string(&file).expect("a page");
                if !headings(&text).contains(anchor) {
                    broken.push(format!("{}: {link}: no such heading", source.path));
                }
            }
        }
    }
    assert_none(&broken, "a link that leads nowhere");
}

/// Targets of `[text](target)` within the checkout.
fn links(text: &str) -> Vec<&str> {
    let mut code = false;
    let prose = text.lines().filter(move |line| {
        code ^= line.trim_start().starts_with("```");
        !code
    });
    let targets = prose.flat_map(|line| line.split("](").skip(1));
    targets
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// Anchors of a page's headings, as forges make them.
fn headings(text: &str) -> BTreeSet<String> {
    let anchor = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn pages_that_sources_name_are_there() {
    let named = lines(&sources(), |_, line| {
        line.split(|c: char| c.is_whitespace() || "`()[]\"',;:".contains(c))
            .any(|word| {
                let word = word.trim_end_matches('.');
                let page = word.starts_with("docs/") && word.ends_with(".md");
                page && !checkout().join(word).exists()
            })
    });
    assert_none(&named, "a page that is not there");
}

#[test]
fn crates_share_lints_and_point_one_way() {
    // Who may use whom; a new arrow is a design change. Tests and benches may use any.
    let allowed: [(&str, &[&str]); 4] = [
        ("replication/protocol", &[]),
        ("fs", &["hafs-protocol"]),
        ("meta", &["hafs-protocol"]),
        ("tools", &["hafs-fs", "hafs-meta", "hafs-protocol"]),
    ];
    let mut wrong = Vec::new();
    for manifest in sources()
        .iter()
        .filter(|source| source.path.ends_with("/Cargo.toml"))
    {
        if !manifest.text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{}: no `[lints] workspace = true`", manifest.path));
        }
        let folder = manifest.path.trim_end_matches("/Cargo.toml");
        let Some((_, may)) = allowed.iter().find(|(of, _)| *of == folder) else {
            continue;
        };
        let dependencies = manifest
            .text
            .split("[dependencies]")
            .nth(1)
            .unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies
            .lines()
            .filter(|line| line.starts_with("hafs-"))
        {
            let name = line.split([' ', '.', '=']).next().unwrap_or_default();
            if !may.contains(&name) {
                wrong.push(format!("{}: {folder} may not use {name}", manifest.path));
            }
        }
    }
    assert_none(&wrong, "the shape of the workspace");
}

#[test]
fn fail_points_and_suites_are_documented() {
    let page =
        fs::read_to_string(checkout().join("docs/testing.md")).expect("the page about tests");
    let mut wrong = Vec::new();
    for source in rust() {
        for call in source.text.split("fail_point!(\"").skip(1) {
            let name = call.split('"').next().unwrap_or_default();
            if !page.contains(&format!("`{name}`")) {
                wrong.push(format!("fail point {name} of {}", source.path));
            }
        }
    }
    for suite in fs::read_dir(checkout().join("tests")).expect("this crate") {
        let suite = suite.expect("an entry");
        let name = suite.file_name().to_string_lossy().into_owned();
        if suite.path().is_dir() && !page.contains(&format!("`tests/{name}/`")) {
            wrong.push(format!("suite tests/{name}/"));
        }
    }
    assert_none(&wrong, "not in docs/testing.md");
}

#[test]
fn scripts_stop_at_the_first_error() {
    let scripts = sources()
        .into_iter()
        .filter(|source| source.text.starts_with("#!/usr/bin/env bash"));
    let careless: Vec<_> = scripts
        .filter(|script| !script.text.contains("\nset -euo pipefail\n"))
        .map(|script| script.path)
        .collect();
    assert_none(&careless, "a script without `set -euo pipefail`");
}

/// Where stored bytes are decoded, by functions that are called so: `decode…`, `parse…`, `key_…`, `row_body`.
const DECODERS: [&str; 3] = ["fs/src/", "meta/src/", "tools/src/node/"];
/// The kernel's bytes, and whoever calls all of them.
const NO_DECODERS: [&str; 4] = ["/fuse/", "/fuzz", "/tests.rs", "/conformance/"];
/// Decoders without a target, and why they need none.
const NO_TARGET: [(&str, &str); 7] = [
    ("decode_extent", "Extent::decode_at, of a row"),
    ("decode_mutation", "a part of Record::decode"),
    ("decode_piece", "a part of Record::decode"),
    ("parse_id", "decode_id, of a row"),
    ("parse_line", "a part of mountinfo::parse"),
    ("probe::parse", "the kernel's bytes"),
    ("record::decode", "decode_bytes, of a row"),
];

/// The decoders in a source, with their types, or their modules where the name alone says little.
fn decoders(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut of_type = None;
    let lines = source.text.lines();
    for line in lines.take_while(|line| *line != "mod tests {") {
        if let Some(rest) = line.strip_prefix("impl") {
            let named = rest.rsplit(" for ").next().unwrap_or_default();
            let named = match named.strip_prefix('<') {
                Some(generic) => generic.split("> ").nth(1).unwrap_or_default(),
                None => named,
            };
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let name: String = named.trim().chars().take_while(|c| is_name(*c)).collect();
            of_type = Some(name);
        } else if line == "}" {
            of_type = None;
        }
        let Some((_, rest)) = line.split_once("fn ") else {
            continue;
        };
        let end = rest.find(['(', '<']).unwrap_or(rest.len());
        let (name, arguments) = rest.split_at(end);
        let is_decoder = ["decode", "parse", "row_body"].contains(&name)
            || name.starts_with("decode_")
            || name.starts_with("parse_")
            || (name.starts_with("key_") && arguments.contains("&[u8]"));
        if !is_decoder || arguments.contains("self") {
            continue;
        }
        let stem = Path::new(&source.path).file_stem();
        let stem = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
        found.push(match &of_type {
            Some(of_type) => format!("{of_type}::{name}"),
            None if ["decode", "parse"].contains(&name) => format!("{stem}::{name}"),
            None => name.to_owned(),
        });
    }
    found
}

#[test]
fn every_decoder_of_stored_bytes_has_a_fuzz_target() {
    let is_target = |source: &Source| source.path.ends_with("/src/fuzz.rs");
    let sources = rust();
    let targets = sources.iter().filter(|source| is_target(source));
    let targets: String = targets.map(|source| source.text.as_str()).collect();
    let stored = sources.iter().filter(|source| {
        DECODERS.iter().any(|dir| source.path.starts_with(dir))
            && !NO_DECODERS.iter().any(|part| source.path.contains(part))
    });
    let decoders: BTreeSet<String> = stored.flat_map(decoders).collect();
    assert!(decoders.len() > 30, "{decoders:?}");
    let exempt = |decoder: &str| NO_TARGET.iter().any(|(name, _)| *name == decoder);
    let mut wrong: Vec<_> = decoders
        .iter()
        .filter(|decoder| !targets.contains(decoder.as_str()) && !exempt(decoder))
        .cloned()
        .collect();
    let gone = NO_TARGET
        .iter()
        .filter(|(name, _)| !decoders.contains(*name));
    wrong.extend(gone.map(|(name, _)| format!("{name} is not there any more")));
    assert_none(&wrong, "a decoder of stored bytes is called in a fuzz.rs");
}
