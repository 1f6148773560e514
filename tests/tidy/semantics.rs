//! `docs/semantics.md` promises nothing that no test proves: each row of its tables names tests that are there.

use std::collections::BTreeSet;
use std::fs;

use hafs_tests::binaries::checkout;

use crate::{Source, assert_none, rust};

const PAGE: &str = "docs/semantics.md";

/// What every table of the page has as its head.
const HEAD: &str = "| call | flag | promise | test |";

/// The names of all tests of the workspace that every run runs: crate or suite, modules, function, as nextest has them.
fn tests() -> BTreeSet<String> {
    rust().iter().flat_map(tests_of).collect()
}

fn tests_of(source: &Source) -> Vec<String> {
    let Some(module) = module(&source.path) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    let (mut test, mut ignored, mut inside) = (false, false, "");
    for line in source.text.lines() {
        let words = line.trim();
        if words == "mod tests {" || words == "pub(crate) mod tests {" {
            inside = "tests::";
        }
        test |= words == "#[test]";
        // Before `#[test]` or behind it.
        ignored |= words.starts_with("#[ignore")
            || (words.starts_with("#[cfg_attr(") && words.contains("ignore"));
        let Some((_, rest)) = line.split_once("fn ") else {
            continue;
        };
        let is_run = test && !ignored;
        (test, ignored) = (false, false);
        if !is_run {
            continue;
        }
        let name = rest.split(['(', '<']).next().unwrap_or_default();
        if name.starts_with('$') {
            names.extend(numbered(&source.text).map(|name| format!("{module}::{name}")));
        } else {
            names.push(format!("{module}::{inside}{name}"));
        }
    }
    names
}

/// Tests that a macro makes of `name: number` pairs.
fn numbered(text: &str) -> impl Iterator<Item = &str> {
    let pairs = text.split([',', '{', '\n']).filter_map(|pair| {
        let (name, number) = pair.split_once(": ")?;
        number.trim().parse::<u32>().ok()?;
        Some(name.trim())
    });
    pairs.filter(|name| !name.contains(' '))
}

/// `fs/src/store/log.rs` is `hafs_fs::store::log`, `tests/posix/errno.rs` is `posix::errno`; `None` where no tests are.
fn module(path: &str) -> Option<String> {
    let path = path.strip_suffix(".rs")?;
    let (root, rest) = match path.split_once("/src/") {
        Some((folder, rest)) => {
            let name = folder.rsplit('/').next().unwrap_or(folder);
            (format!("hafs_{name}"), rest)
        }
        None => {
            let (suite, rest) = path.strip_prefix("tests/")?.split_once('/')?;
            (suite.to_owned(), rest)
        }
    };
    let parts = rest
        .split('/')
        .filter(|part| !["main", "lib"].contains(part));
    Some(parts.fold(root, |module, part| format!("{module}::{part}")))
}

/// What is wrong with a page: rows without a test, with one that is not in `tests`, or that are no rows.
fn wrong_rows(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut before = "";
    for (number, line) in page.lines().enumerate() {
        let mut complain = |what: &str| wrong.push(format!("{PAGE}:{}: {what}", number + 1));
        if line.starts_with('|') && !before.starts_with('|') && line != HEAD {
            complain("a table with another head");
        }
        before = line;
        if !line.starts_with('|') || line == HEAD || line.starts_with("|---") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [call, _, promise, proof] = cells[..] else {
            complain("not four cells");
            continue;
        };
        if call.is_empty() || promise.is_empty() {
            complain("no call or no promise");
        }
        let mut named = 0;
        for name in proof.split(',').map(|name| name.trim().trim_matches('`')) {
            named += usize::from(!name.is_empty());
            if !tests.contains(name) {
                complain(&format!("`{name}` is no test"));
            }
        }
        if named == 0 {
            complain("no test");
        }
    }
    wrong
}

#[test]
fn every_promise_names_the_tests_that_prove_it() {
    let page = fs::read_to_string(checkout().join(PAGE)).expect("the page about semantics");
    let rows = page.lines().filter(|line| line.starts_with("| ")).count();
    assert!(rows > 30, "only {rows} rows found");
    assert_none(&wrong_rows(&page, &tests()), "a promise without proof");
}

#[test]
fn the_tests_are_found_under_their_names() {
    let tests = tests();
    for known in [
        "tidy::semantics::the_tests_are_found_under_their_names",
        "cluster::kill::fifty_kills_lose_nothing",
        "posix::errno::names",
        "model::part_15",
        "hafs_fs::volume::tests::an_epoch_that_was_used_is_refused",
        "hafs_protocol::id::tests::positions_order_by_epoch_first",
        "hafs_meta::store::local::tests::a_file_is_no_directory",
    ] {
        assert!(tests.contains(known), "{known} is not found");
    }
    for none in [
        "posix::errno::errno",
        "hafs_fs::volume::tests::identity",
        "posix::stress::stress_ng",
    ] {
        assert!(!tests.contains(none), "{none} is no test that is run");
    }
}

#[test]
fn what_is_ignored_proves_nothing() {
    let text = "#[test]\n#[ignore = \"long\"]\nfn a() {}\n#[ignore]\n#[test]\nfn b() {}\n#[test]\nfn c() {}\n";
    let source = Source {
        path: "tests/posix/some.rs".to_owned(),
        text: text.to_owned(),
    };
    assert_eq!(tests_of(&source), ["posix::some::c"]);
}

#[test]
fn a_row_without_proof_is_seen() {
    let tests = BTreeSet::from(["posix::a".to_owned()]);
    let page = |row: &str| format!("{HEAD}\n|---|---|---|---|\n{row}\n");
    let wrong = |row: &str| !wrong_rows(&page(row), &tests).is_empty();
    assert!(!wrong("| `open` | | works | `posix::a` |"));
    assert!(wrong("| `open` | | works | |"));
    assert!(wrong("| `open` | | works | `posix::b` |"));
    assert!(wrong("| `open` | | works | `posix::a`, `posix::b` |"));
    assert!(wrong("| `open` | | works |"));
    assert!(wrong("| | | works | `posix::a` |"));
    assert!(!wrong_rows("| topic | hafs |\n|---|---|\n", &tests).is_empty());
}
