//! A run's results as a value: JSON through serde, or a markdown table with the machine on top.
//!
//! Filled by [`store_format`](crate::store_format). A figure and its unit stay together: names end in the unit.

use serde::Serialize;

use crate::machine::{Machine, Noise};
use crate::sample::Latency;

/// Of the JSON; fields are only ever added to a version.
pub(crate) const API_VERSION: &str = "hafs-bench/v1";

/// All that one run of `store-format` measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(rename = "apiVersion")]
    pub(crate) api_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) noise: Noise,
    pub(crate) rounds: usize,
    pub(crate) sync: Vec<Row>,
    pub(crate) pair: Vec<Row>,
    pub(crate) bulk_bytes: u64,
    pub(crate) bulk: Vec<Bulk>,
    pub(crate) apply: Vec<Row>,
    pub(crate) hash: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

/// One way of doing one thing with data of one size.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) how: String,
    pub(crate) size_bytes: usize,
    pub(crate) latency: Latency,
}

/// One way of storing bulk data.
#[derive(Debug, Serialize)]
pub(crate) struct Bulk {
    pub(crate) how: String,
    pub(crate) rounds: usize,
    /// MB (10^6 bytes) a second until all was durable; median, lowest and highest round.
    pub(crate) durable_mb_per_s: f64,
    pub(crate) durable_mb_per_s_min: f64,
    pub(crate) durable_mb_per_s_max: f64,
    /// The same until nothing was left to flush or compact; median.
    pub(crate) settled_mb_per_s: f64,
    /// Bytes written by this process per byte stored, flushes and compactions included.
    pub(crate) process_bytes_per_byte: f64,
    /// Bytes written by the whole device per byte stored: with the journal, and with everybody else's.
    pub(crate) device_bytes_per_byte: Option<f64>,
    /// CPU seconds of this process per GB (10^9 bytes) stored.
    pub(crate) cpu_s_per_gb: f64,
}

impl Report {
    /// As markdown, with lines that also read well in a terminal.
    pub(crate) fn table(&self) -> String {
        let mut out = self.head();
        out += "\n**Write + fdatasync, one thread** (us: p50, lowest and highest round's p50, p99)\n\n";
        out += &by_size(&self.sync);
        out += "\n**fdatasync of 4 KiB in the log and 128 KiB of new data in a segment** (us, the syncs alone)\n\n";
        out += &latencies(&self.pair);
        out += &format!(
            "\n**Bulk: {} MiB of 128 KiB chunks** (MB = 10^6 bytes; medians; durable: lowest and highest round)\n\n",
            self.bulk_bytes >> 20
        );
        out += &self.bulk_table();
        out +=
            "\n**A record's change of state: 6 small keys in one WriteBatch** (us, one thread)\n\n";
        out += &latencies(&self.apply);
        out += "\n**Hashes** (one thread)\n\n";
        out += &self.hash_table();
        if !self.notes.is_empty() {
            out += "\nNotes\n";
        }
        for note in &self.notes {
            out += &format!("- {note}\n");
        }
        out
    }

    fn head(&self) -> String {
        format!(
            "Machine: {}.\nRun: {} rounds, {}.\n",
            self.machine.line(),
            self.rounds,
            self.noise.line(),
        )
    }

    fn bulk_table(&self) -> String {
        let header = [
            "how",
            "rounds",
            "MB/s until durable",
            "until settled",
            "written per byte",
            "by the device",
            "CPU s per GB",
        ];
        let rows = self.bulk.iter().map(|bulk| {
            vec![
                bulk.how.clone(),
                bulk.rounds.to_string(),
                format!(
                    "{:.0} ({:.0}-{:.0})",
                    bulk.durable_mb_per_s, bulk.durable_mb_per_s_min, bulk.durable_mb_per_s_max
                ),
                format!("{:.0}", bulk.settled_mb_per_s),
                format!("{:.2}", bulk.process_bytes_per_byte),
                bulk.device_bytes_per_byte
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
                format!("{:.2}", bulk.cpu_s_per_gb),
            ]
        });
        markdown(&header, &rows.collect::<Vec<_>>())
    }

    fn hash_table(&self) -> String {
        let rows = self.hash.iter().map(|row| {
            // Bytes per nanosecond are GB per second.
            let gb_per_s = row.size_bytes as f64 / row.latency.p50_ns.max(1) as f64;
            vec![
                row.how.clone(),
                size(row.size_bytes),
                spread(&row.latency),
                micros(row.latency.p99_ns),
                format!("{gb_per_s:.1}"),
            ]
        });
        markdown(
            &["what", "of", "p50 us", "p99 us", "GB/s"],
            &rows.collect::<Vec<_>>(),
        )
    }
}

/// One line a way, one column a size, in the order of first appearance.
fn by_size(rows: &[Row]) -> String {
    let mut sizes: Vec<usize> = Vec::new();
    let mut ways: Vec<&str> = Vec::new();
    for row in rows {
        if !sizes.contains(&row.size_bytes) {
            sizes.push(row.size_bytes);
        }
        if !ways.contains(&row.how.as_str()) {
            ways.push(&row.how);
        }
    }
    let header: Vec<String> = std::iter::once("how".to_owned())
        .chain(sizes.iter().map(|&bytes| size(bytes)))
        .collect();
    let lines = ways.iter().map(|&how| {
        let cells = sizes.iter().map(|&bytes| {
            let found = rows
                .iter()
                .find(|row| row.how == how && row.size_bytes == bytes);
            found.map_or_else(String::new, |row| {
                format!("{}, {}", spread(&row.latency), micros(row.latency.p99_ns))
            })
        });
        std::iter::once(how.to_owned()).chain(cells).collect()
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    markdown(&header, &lines.collect::<Vec<_>>())
}

fn latencies(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let latency = &row.latency;
        let ops = latency.ops.to_string();
        vec![
            row.how.clone(),
            spread(latency),
            micros(latency.p99_ns),
            ops,
        ]
    });
    markdown(&["how", "p50", "p99", "ops"], &lines.collect::<Vec<_>>())
}

/// The median, and between which medians the rounds lay.
fn spread(latency: &Latency) -> String {
    format!(
        "{} ({}-{})",
        micros(latency.p50_ns),
        micros(latency.p50_round_min_ns),
        micros(latency.p50_round_max_ns)
    )
}

/// Three significant digits or so.
fn micros(nanos: u64) -> String {
    let micros = nanos as f64 / 1000.0;
    match nanos {
        0..1_000 => format!("{micros:.3}"),
        1_000..10_000 => format!("{micros:.2}"),
        10_000..100_000 => format!("{micros:.1}"),
        100_000.. => format!("{micros:.0}"),
    }
}

fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(1024) {
        format!("{} KiB", bytes / 1024)
    } else {
        format!("{bytes} B")
    }
}

/// Rows under a header, columns as wide as they must be.
pub(crate) fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells
                .chain([header[column].chars().count()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |cells: &[&str]| {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let mut out = line(header);
    out += &line(&rule.iter().map(String::as_str).collect::<Vec<_>>());
    for row in rows {
        out += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(how: &str, size_bytes: usize, p50_ns: u64) -> Row {
        let latency = Latency {
            ops: 1,
            p50_ns,
            p99_ns: 2 * p50_ns,
            p50_round_min_ns: p50_ns,
            p50_round_max_ns: p50_ns,
        };
        Row {
            how: how.to_owned(),
            size_bytes,
            latency,
        }
    }

    #[test]
    fn ways_down_sizes_across() {
        let rows = [
            row("slow", 512, 1500),
            row("slow", 4096, 150_000),
            row("a fast way", 4096, 12_340),
        ];
        let expected = "\
| how        | 512 B                  | 4 KiB                   |
| ---------- | ---------------------- | ----------------------- |
| slow       | 1.50 (1.50-1.50), 3.00 | 150 (150-150), 300      |
| a fast way |                        | 12.3 (12.3-12.3), 24.7 |
";
        let lines = |text: &str| text.lines().map(str::trim_end).count();
        let table = by_size(&rows);
        assert_eq!(lines(&table), lines(expected), "{table}");
        assert!(
            table.contains("| slow       | 1.50 (1.50-1.50), 3.00 | 150 (150-150), 300"),
            "{table}"
        );
        assert!(table.contains("| a fast way |                        | 12.3 (12.3-12.3), 24.7"));
    }
}
