//! The fourth writer: large files, overwritten block by block, so that segments fill, die and are collected.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::writer::{Lost, Numbers, Stopped, Writer, pattern, read};

const FILES: usize = 3;
const BLOCK_BYTES: usize = 1 << 20;
const BLOCKS: usize = 8;

/// Overwrites blocks of 1 MiB with O_DIRECT, each with the bytes of its own number.
#[derive(Debug)]
pub(crate) struct Bulk {
    numbers: Numbers,
    next: u64,
    files: [Option<File>; FILES],
    /// The seed of what each block holds; 0: never written.
    blocks: [[u64; BLOCKS]; FILES],
    /// File, block and seed of the write under way.
    pending: Option<(usize, usize, u64)>,
}

impl Bulk {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers::new(seed),
            next: seed << 32,
            files: [const { None }; FILES],
            blocks: [[0; BLOCKS]; FILES],
            pending: None,
        }
    }

    /// Bytes of a block, as written by the seed.
    fn block(seed: u64) -> Vec<u8> {
        if seed == 0 {
            vec![0; BLOCK_BYTES]
        } else {
            pattern(seed, BLOCK_BYTES)
        }
    }

    fn verify_file(&mut self, dir: &Path, file: usize) -> Result<(), Lost> {
        let written = |blocks: &[u64; BLOCKS]| {
            blocks
                .iter()
                .rposition(|&seed| seed != 0)
                .map_or(0, |last| last + 1)
        };
        let wanted = written(&self.blocks[file]);
        let pending = self.pending.filter(|pending| pending.0 == file);
        if wanted == 0 && pending.is_none() {
            return Ok(());
        }
        let mut found = if wanted == 0 {
            std::fs::read(dir.join(format!("bulk-{file}"))).unwrap_or_default()
        } else {
            read(&dir.join(format!("bulk-{file}")))?
        };
        if found.len() < wanted * BLOCK_BYTES {
            return Err(format!(
                "bulk-{file}: {} bytes instead of {wanted} MiB",
                found.len()
            ));
        }
        found.resize(BLOCKS * BLOCK_BYTES, 0);
        for (at, bytes) in found.chunks(BLOCK_BYTES).enumerate() {
            let old = Self::block(self.blocks[file][at]);
            if bytes == old {
                continue;
            }
            let new = pending
                .filter(|pending| pending.1 == at)
                .map(|pending| (pending.2, Self::block(pending.2)));
            match new {
                Some((seed, new)) if bytes == new => self.blocks[file][at] = seed,
                // The kernel may have cut the write in parts; each byte is still one of the two.
                Some((_, new))
                    if bytes
                        .iter()
                        .zip(old.iter().zip(&new))
                        .all(|(b, (o, n))| b == o || b == n) =>
                {
                    self.rewrite(dir, file, at)?;
                }
                _ => {
                    return Err(format!(
                        "bulk-{file}: block {at} differs from what was written"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Puts a block that was half written into a state that has a number again.
    fn rewrite(&mut self, dir: &Path, file: usize, block: usize) -> Result<(), Lost> {
        self.next += 1;
        let target = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(dir.join(format!("bulk-{file}")));
        let offset = (block * BLOCK_BYTES) as u64;
        let done = target.and_then(|target| target.write_all_at(&Self::block(self.next), offset));
        done.map_err(|error| format!("bulk-{file}: {error}"))?;
        self.blocks[file][block] = self.next;
        Ok(())
    }
}

impl Writer for Bulk {
    fn step(&mut self, dir: &Path) -> Result<(), Stopped> {
        let file = usize::try_from(self.numbers.below(FILES as u64)).expect("few");
        let block = usize::try_from(self.numbers.below(BLOCKS as u64)).expect("few");
        if self.files[file].is_none() {
            let mut options = OpenOptions::new();
            let options = options
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_DIRECT);
            self.files[file] = Some(
                options
                    .open(dir.join(format!("bulk-{file}")))
                    .map_err(Stopped::from("bulk write"))?,
            );
        }
        self.next += 1;
        self.pending = Some((file, block, self.next));
        let target = self.files[file].as_ref().expect("just opened");
        target
            .write_all_at(&Self::block(self.next), (block * BLOCK_BYTES) as u64)
            .map_err(Stopped::from("bulk write"))?;
        self.blocks[file][block] = self.next;
        self.pending = None;
        Ok(())
    }

    fn release(&mut self) {
        self.files = [const { None }; FILES];
    }

    fn verify(&mut self, dir: &Path) -> Result<(), Lost> {
        for file in 0..FILES {
            self.verify_file(dir, file)?;
        }
        self.pending = None;
        Ok(())
    }
}
