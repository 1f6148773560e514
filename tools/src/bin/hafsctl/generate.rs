//! `hafsctl generate`: manual pages and completions of all programs, made of their command lines. Hidden; `make install` calls it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use hafs_tools::command_line::{Hafsd, MountFuseHafs, UmountFuseHafs};
use hafs_tools::output::{Exit, Refusal};

/// Shells that completions are made for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// What to make, and where.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What to make
    what: What,
    /// Directory for it, made if missing
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Manual pages
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

/// Writes the files; existing ones are replaced.
pub(crate) fn run(generate: &Generate) -> Result<Exit, Refusal> {
    let directory = &generate.directory;
    let made = fs::create_dir_all(directory).and_then(|()| match generate.what {
        What::Man => manual(directory),
        What::Completions => completions(directory),
    });
    made.map(|()| Exit::Ok).map_err(|error| {
        Refusal::new(format!("cannot write into {}", directory.display()))
            .why(error.to_string())
            .next("choose another directory")
    })
}

fn manual(directory: &Path) -> io::Result<()> {
    // One page a subcommand: hafsctl-volume-create(1) and so on.
    clap_mangen::generate_to(super::CommandLine::command(), directory)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        fs::write(&path, as_it_stands(&text))?;
    }
    for command in [
        Hafsd::command(),
        MountFuseHafs::command(),
        UmountFuseHafs::command(),
    ] {
        let page = Man::new(command.disable_help_subcommand(true)).section("8");
        let mut text = Vec::new();
        page.render(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        fs::write(directory.join(page.get_filename()), as_it_stands(&text))?;
    }
    Ok(())
}

/// What stands below the options in `--help` has lines of its own, examples above all; a page would run them together.
fn as_it_stands(page: &str) -> String {
    let Some((before, notes)) = page.split_once(".SH EXTRA\n") else {
        return page.to_owned();
    };
    match notes.split_once(".SH ") {
        Some((notes, after)) => format!("{before}.SH NOTES\n.nf\n{notes}.fi\n.SH {after}"),
        None => format!("{before}.SH NOTES\n.nf\n{notes}.fi\n"),
    }
}

fn completions(directory: &Path) -> io::Result<()> {
    let programs: [fn() -> Command; 2] = [super::CommandLine::command, Hafsd::command];
    for program in programs {
        for shell in SHELLS {
            let mut command = program();
            let name = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command, name, directory)?;
        }
    }
    Ok(())
}
