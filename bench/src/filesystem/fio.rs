//! fio, the field's tool for reads and writes at random places: one job, its figures.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::workload::Bench;

/// Of every job. The fsync is in the time of writes; reads have none.
pub(crate) const OPTIONS: &[&str] = &[
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

/// How jobs are run, for those who read the figures.
pub(crate) fn options() -> String {
    format!(
        "{} --ioengine={ENGINE} (at QD16: {ENGINE_DEEP})",
        OPTIONS.join(" ")
    )
}

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
    pub(crate) fn run(&self, bench: &Bench<'_>) -> anyhow::Result<Figures> {
        let engine = if self.depth > 1 { ENGINE_DEEP } else { ENGINE };
        let text = bench.output(
            Command::new("fio")
                .args(["--name=job", "--output-format=json"])
                .args(OPTIONS)
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
        let bytes = json["jobs"][0][side]["io_bytes"].as_u64();
        let bytes = bytes.context("fio does not say how much it did")?;
        Ok(Figures { iops, bytes })
    }
}
