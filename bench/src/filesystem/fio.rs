//! fio, the field's tool for reads and writes at random places: one job, its figures.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::command::output;

/// What one job came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Operations a second.
    pub(crate) iops: f64,
}

/// One job on one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// As fio names it: `randread`, `randwrite`.
    pub(crate) rw: &'a str,
    pub(crate) file: &'a Path,
    pub(crate) file_bytes: u64,
    /// Bytes to be read or written in all, at most.
    pub(crate) io_bytes: u64,
    pub(crate) seconds_max: u32,
    pub(crate) direct: bool,
    pub(crate) depth: u32,
}

impl Job<'_> {
    /// Runs it. Random places are the same in each run, and no place comes twice before all came once.
    pub(crate) fn run(&self) -> anyhow::Result<Figures> {
        let engine = if self.depth > 1 { "libaio" } else { "psync" };
        let text = output(
            Command::new("fio")
                .args([
                    "--name=job",
                    "--output-format=json",
                    "--bs=4k",
                    "--invalidate=0",
                ])
                .args([
                    "--fallocate=none",
                    "--overwrite=1",
                    "--randseed=7",
                    "--allow_file_create=0",
                ])
                .arg(format!("--rw={}", self.rw))
                .arg(format!("--filename={}", self.file.display()))
                .arg(format!("--size={}", self.file_bytes))
                .arg(format!("--io_size={}", self.io_bytes))
                .arg(format!("--runtime={}", self.seconds_max))
                .arg(format!("--direct={}", u8::from(self.direct)))
                .arg(format!("--ioengine={engine}"))
                .arg(format!("--iodepth={}", self.depth)),
        )?;
        // fio may warn before its JSON begins.
        let json = text.find('{').map_or("", |at| &text[at..]);
        let json: Value = serde_json::from_str(json).context("fio said no JSON")?;
        let side = if self.rw.contains("read") {
            "read"
        } else {
            "write"
        };
        let iops = json["jobs"][0][side]["iops"]
            .as_f64()
            .filter(|&iops| iops > 0.0)
            .with_context(|| format!("fio did nothing: {json}"))?;
        Ok(Figures { iops })
    }
}
