//! fio, the field's tool for reads and writes at random places: one job, its figures.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::workload::Bench;

/// Of every job. The fsync is in the time of writes; reads have none.
const OPTIONS: &[&str] = &[
    "--bs=4k",
    "--invalidate=0",
    "--fallocate=none",
    "--overwrite=1",
    "--randseed=7",
    "--allow_file_create=0",
    "--end_fsync=1",
];
const ENGINE: &str = "psync";
/// Where several operations are under way.
const ENGINE_DEEP: &str = "libaio";

/// What one job came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Operations a second.
    pub(crate) iops: f64,
    /// Read or written in all.
    pub(crate) bytes: u64,
}

/// One job on one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    /// As fio names it: `randread`, `randwrite`.
    pub(crate) rw: &'static str,
    pub(crate) file_bytes: u64,
    /// Bytes to be read or written in all, at most.
    pub(crate) io_bytes: u64,
    pub(crate) seconds_max: u32,
    pub(crate) direct: bool,
    pub(crate) depth: u32,
}

impl Job {
    /// All that fio is told but the file.
    fn options(&self) -> Vec<String> {
        let engine = if self.depth > 1 { ENGINE_DEEP } else { ENGINE };
        let mut all: Vec<String> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
        all.extend([
            format!("--rw={}", self.rw),
            format!("--size={}", self.file_bytes),
            format!("--io_size={}", self.io_bytes),
            format!("--runtime={}", self.seconds_max),
            format!("--direct={}", u8::from(self.direct)),
            format!("--ioengine={engine}"),
            format!("--iodepth={}", self.depth),
        ]);
        all
    }

    /// How it is run, for those who read the figures.
    pub(crate) fn line(&self) -> String {
        format!("fio {}", self.options().join(" "))
    }

    /// Runs it. Random places are the same in each run, and no place comes twice before all came once.
    pub(crate) fn run(&self, bench: &Bench<'_>, file: &Path) -> anyhow::Result<Figures> {
        let text = bench.output(
            Command::new("fio")
                .args(["--name=job", "--output-format=json"])
                .arg(format!("--filename={}", file.display()))
                .args(self.options()),
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
        let bytes = json["jobs"][0][side]["io_bytes"].as_u64();
        let bytes = bytes.context("fio does not say how much it did")?;
        Ok(Figures { iops, bytes })
    }
}
