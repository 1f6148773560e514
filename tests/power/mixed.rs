//! The third writer: one strict sequence of all kinds of changes on a small tree, each a call of its own on the mount.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hafs_tests::numbers::Numbers;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::history::{Clock, Held, History, Lost};
use crate::tree::{Node, Op, Tree, held};
use crate::writer::{Aligned, BLOCK, End, Pace, Stopped, Writer, blocks, numbers_of, sync};

const XATTR: &str = "user.number";
const SYNC_ONCE_IN: u64 = 14;

/// Reads what is there.
fn read(dir: &Path) -> Result<Tree, Lost> {
    let mut tree = Tree::default();
    let mut todo = vec![String::new()];
    while let Some(at) = todo.pop() {
        let list = fs::read_dir(dir.join(&at)).map_err(|error| format!("{at}: {error}"))?;
        for entry in list {
            let entry = entry.map_err(|error| format!("{at}: {error}"))?;
            let path = format!("{at}{}", entry.file_name().display());
            let metadata = entry
                .metadata()
                .map_err(|error| format!("{path}: {error}"))?;
            let node = if metadata.is_dir() {
                todo.push(format!("{path}/"));
                Node::Directory
            } else {
                read_file(&entry.path(), metadata.mode() & 0o7777)
                    .map_err(|lost| format!("{path}: {lost}"))?
            };
            tree.nodes.insert(metadata.ino(), node);
            tree.names.insert(path, metadata.ino());
        }
    }
    Ok(tree)
}

fn read_file(path: &Path, mode: u32) -> Result<Node, Lost> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let blocks = numbers_of(&bytes)?;
    let mut value = [0; 8];
    let xattr = match getxattr(path, XATTR, &mut value) {
        Ok(8) => u64::from_le_bytes(value),
        Err(Errno::NODATA) => 0,
        other => return Err(format!("attribute: {other:?}")),
    };
    Ok(Node::File {
        blocks,
        mode,
        xattr,
    })
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Mixed {
    numbers: Numbers,
    /// As it was when the power last came back.
    base: Tree,
    /// As it is after all steps.
    now: Tree,
    ops: Vec<(u64, Op)>,
    next: u64,
    history: History,
    held: Held,
}

impl Mixed {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            base: Tree::default(),
            now: Tree::default(),
            ops: Vec::new(),
            next: 1,
            history: History::default(),
            held: Held { least: 0, most: 0 },
        }
    }
}

fn perform(dir: &Path, op: &Op, number: u64) -> io::Result<()> {
    let at = |path: &String| dir.join(path);
    let direct = || {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT).mode(0o640);
        options
    };
    match op {
        Op::Create(path) => direct().create_new(true).open(at(path)).map(drop),
        Op::Write(path, from, count) => {
            let bytes = Aligned::new(&blocks(number, *from, *count));
            let file = direct().open(at(path))?;
            file.write_all_at(bytes.bytes(), from * BLOCK as u64)
        }
        Op::Truncate(path, len) => direct().open(at(path))?.set_len(len * BLOCK as u64),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Unlink(path) => fs::remove_file(at(path)),
        Op::Mkdir(path) => fs::create_dir(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::SetXattr(path) => {
            let value = number.to_le_bytes();
            Ok(setxattr(at(path), XATTR, &value, XattrFlags::empty())?)
        }
        Op::Chmod(path, mode) => fs::set_permissions(at(path), Permissions::from_mode(*mode)),
    }
}

impl Writer for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    fn step(&mut self, dir: &Path, clock: &Clock, pace: Pace) -> Result<(), Stopped> {
        let number = self.next;
        let Some(op) = self.now.draw(&mut self.numbers, number) else {
            return Ok(());
        };
        self.next += 1;
        self.ops.push((number, op.clone()));
        self.history.begin(clock);
        perform(dir, &op, number).map_err(Stopped::from("a change of the tree"))?;
        self.history.end(clock);
        self.now.apply(&op, number);
        if self.numbers.once_in(pace.once_in(SYNC_ONCE_IN)) {
            let dir = fs::File::open(dir).map_err(Stopped::from("open a directory"))?;
            sync(&dir, &mut self.history, clock)?;
        }
        Ok(())
    }

    fn release(&mut self) {}

    fn examine(&mut self, dir: &Path) -> Result<Held, Lost> {
        let found = read(dir)?.seen();
        self.held = held(&self.base, &self.ops, &found)?;
        Ok(self.held)
    }

    fn go_on(&mut self, end: End, clock: &Clock) {
        self.ops.truncate(self.held.most);
        self.now = self.base.clone();
        for (number, op) in &self.ops {
            self.now.apply(op, *number);
        }
        match end {
            End::Process => self.history.truncate(self.held.most, clock),
            End::Power => {
                self.base = self.now.clone();
                self.ops.clear();
                self.history.clear();
            }
        }
    }

    fn history(&self) -> &History {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sees_how_far_a_state_goes_and_that_a_mix_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Mixed::new(5);
        let clock = Clock::default();
        for _ in 0..300 {
            writer.step(dir.path(), &clock, Pace::Often).unwrap();
        }
        let all = writer.examine(dir.path()).unwrap();
        assert_eq!(all.most, writer.ops.len());
        // One change that was never made, on top.
        let file = writer.now.some_file(&mut writer.numbers).unwrap();
        let number = writer.next;
        writer.ops.push((number, Op::SetXattr(file.clone())));
        assert_eq!(writer.examine(dir.path()).unwrap().most, all.most);
        // And an old one, undone.
        setxattr(
            dir.path().join(&file),
            XATTR,
            &7_u64.to_le_bytes(),
            XattrFlags::empty(),
        )
        .unwrap();
        let lost = writer.examine(dir.path()).unwrap_err();
        assert!(lost.contains("no prefix"), "{lost}");
    }
}
