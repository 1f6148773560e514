//! A run's figures as a value: JSON through serde, or a markdown table that says of each row whether it reached its target.

use serde::Serialize;

use super::command::version;
use super::disk::Disk;
use super::subject::{Kind, Subject};
use super::workload::{self, Bench, Target, Unit};
use crate::hafsd;
use crate::machine::{Machine, Noise};
use crate::report::markdown;
use crate::sample::median;

/// All that a run measured.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    #[serde(rename = "apiVersion")]
    pub(crate) api_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) noise: Noise,
    pub(crate) rounds: u32,
    /// 1 for figures; more where only the bench was tried.
    pub(crate) divided_by: u64,
    pub(crate) versions: Versions,
    pub(crate) setups: Vec<Setup>,
    pub(crate) rows: Vec<Row>,
    /// Workloads that could not be done, and why.
    pub(crate) failures: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// How the disk and what lies on it was set up.
#[derive(Debug, Serialize)]
pub(crate) struct Setup {
    on: &'static str,
    options: String,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    /// Of the hafsd that was measured.
    hafs: Option<String>,
    fio: Option<String>,
    bindfs: Option<String>,
    glusterfs: Option<String>,
    sqlite: Option<String>,
    postgresql: Option<String>,
    redis: Option<String>,
    git: Option<String>,
    tar: Option<String>,
    grep: Option<String>,
}

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: &'static str,
    unit: &'static str,
    targets: Vec<Judged>,
    /// All of the targets that could be judged; nothing if there is none.
    reached: Option<bool>,
    cells: Vec<Cell>,
}

/// What hafs is to reach in a row, and whether it did; nothing where one of the two was not measured.
#[derive(Debug, Serialize)]
struct Judged {
    target: String,
    reached: Option<bool>,
}

/// One filesystem's figures.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    on: &'static str,
    median: f64,
    lowest: f64,
    highest: f64,
    /// How fast hafs is beside it, 1 is equal and more is faster; none for hafs itself, and where hafs has no figure.
    hafs_ratio: Option<f64>,
    #[serde(skip)]
    kind: Kind,
}

impl Versions {
    pub(crate) fn of(subjects: &[Subject]) -> Self {
        let has = |kind| subjects.iter().any(|subject| subject.kind() == kind);
        Self {
            hafs: has(Kind::Hafs).then(hafsd::version),
            fio: version("fio"),
            bindfs: has(Kind::Bindfs).then(|| version("bindfs")).flatten(),
            glusterfs: has(Kind::Gluster1).then(|| version("glusterfs")).flatten(),
            sqlite: version("sqlite3").map(|version| {
                // Version, then the day and a digest of the sources.
                let number = version.split(' ').next().unwrap_or_default();
                format!("SQLite {number}")
            }),
            postgresql: workload::postgres_version(),
            redis: version("redis-server").map(|version| {
                // What follows tells how it was built.
                version.split(" sha=").next().unwrap_or_default().to_owned()
            }),
            git: version("git"),
            tar: version("tar"),
            grep: version("grep"),
        }
    }

    fn line(&self) -> String {
        let Self {
            hafs,
            fio,
            bindfs,
            glusterfs,
            sqlite,
            postgresql,
            redis,
            git,
            tar,
            grep,
        } = self;
        let all = [
            hafs, fio, bindfs, glusterfs, sqlite, postgresql, redis, git, tar, grep,
        ];
        let all: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
        all.join(", ")
    }
}

impl Setup {
    pub(crate) fn of(bench: &Bench<'_>, disk: &Disk, subjects: &[Subject]) -> Vec<Self> {
        let mut setups = vec![Self {
            on: "disk",
            options: disk.options(),
        }];
        setups.extend(subjects.iter().map(|subject| Self {
            on: subject.kind().name(),
            options: subject.options().to_owned(),
        }));
        let programs = workload::options(bench).into_iter();
        setups.extend(programs.map(|(on, options)| Self { on, options }));
        setups
    }
}

impl Cell {
    /// Medians of a subject's rounds; nothing where it has no figure.
    pub(crate) fn of(kind: Kind, figures: Vec<f64>) -> Option<Self> {
        if figures.is_empty() || figures.iter().any(|figure| figure.is_nan()) {
            return None;
        }
        Some(Self {
            on: kind.name(),
            median: median(&figures),
            lowest: figures.iter().copied().fold(f64::INFINITY, f64::min),
            highest: figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            hafs_ratio: None, // its row knows hafs's figure
            kind,
        })
    }
}

impl Row {
    pub(crate) fn new(row: &workload::Row, mut cells: Vec<Cell>) -> Self {
        let hafs = cells.iter().find(|cell| cell.kind == Kind::Hafs);
        if let Some(hafs) = hafs.map(|cell| cell.median) {
            for cell in cells.iter_mut().filter(|cell| cell.kind != Kind::Hafs) {
                cell.hafs_ratio = Some(row.unit.ratio(hafs, cell.median));
            }
        }
        let mut line = Self {
            name: row.name,
            unit: row.unit.text(),
            targets: Vec::new(),
            reached: None,
            cells,
        };
        let mut targets = row.targets.to_vec();
        // A plain file's bytes are written once: nobody is ahead of that.
        if row.unit != Unit::PerByte && line.figure(Kind::Gluster1).is_some() {
            targets.push(Target::AheadOf(Kind::Gluster1));
        }
        line.targets = targets
            .into_iter()
            .map(|target| Judged {
                target: target.text(),
                reached: line.reached(target),
            })
            .collect();
        let mut judged = line.targets.iter().filter_map(|target| target.reached);
        line.reached = judged
            .next()
            .map(|first| first && judged.all(|reached| reached));
        line
    }

    fn cell(&self, kind: Kind) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.kind == kind)
    }

    fn figure(&self, kind: Kind) -> Option<f64> {
        Some(self.cell(kind)?.median)
    }

    fn ratio(&self, other: Kind) -> Option<f64> {
        self.cell(other)?.hafs_ratio
    }

    fn reached(&self, target: Target) -> Option<bool> {
        match target {
            Target::OfExt4(least) => Some(self.ratio(Kind::Ext4)? >= least),
            Target::OfNull(least) => Some(self.ratio(Kind::Null)? >= least),
            Target::AtMost(most) => Some(self.figure(Kind::Hafs)? <= most),
            Target::AheadOf(other) => Some(self.ratio(other)? > 1.0),
        }
    }

    fn target_text(&self) -> String {
        let texts: Vec<String> = self.targets.iter().map(Judged::text).collect();
        texts.join("; ")
    }

    /// As a line of the table, with columns for `others`.
    fn line(&self, others: &[Kind]) -> Vec<String> {
        let missing = || "-".to_owned();
        let figure = |kind| self.figure(kind).map_or_else(missing, three_digits);
        let mut line = vec![
            self.name.to_owned(),
            self.unit.to_owned(),
            figure(Kind::Hafs),
        ];
        for &other in others {
            line.push(figure(other));
            let ratio = self.ratio(other);
            line.push(ratio.map_or_else(missing, |ratio| format!("{ratio:.2}")));
        }
        line.push(self.target_text());
        line
    }
}

impl Judged {
    fn text(&self) -> String {
        match self.reached {
            Some(true) => self.target.clone(),
            Some(false) => format!("{}: MISSED", self.target),
            None => format!("{}: not measured", self.target),
        }
    }
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::OfExt4(least) => format!(">= {least:.2} of ext4"),
            Self::OfNull(least) => format!(">= {least:.2} of null"),
            Self::AtMost(most) => format!("<= {most}"),
            Self::AheadOf(other) => format!("ahead of {}", other.name()),
        }
    }
}

impl Table {
    /// As markdown.
    pub(crate) fn markdown(&self) -> String {
        format!(
            "{}; medians of {} rounds. {}.\n\n{}\n{}",
            self.machine.line(),
            self.rounds,
            self.versions.line(),
            self.grid(),
            self.foot(),
        )
    }

    /// Rows and columns; a filesystem without a figure has no column.
    fn grid(&self) -> String {
        let mut others = vec![
            Kind::Ext4,
            Kind::Null,
            Kind::Bindfs,
            Kind::Gluster1,
            Kind::Gluster2,
        ];
        others.retain(|kind| self.rows.iter().any(|row| row.cell(*kind).is_some()));
        let mut header = vec!["row".to_owned(), "unit".to_owned(), "hafs".to_owned()];
        for other in &others {
            header.push(other.name().to_owned());
            header.push(format!("hafs / {}", other.name()));
        }
        header.push("target".to_owned());
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let lines = self.rows.iter().map(|row| row.line(&others));
        markdown(&header, &lines.collect::<Vec<_>>())
    }

    /// How to read it, and what it was measured on.
    fn foot(&self) -> String {
        let mut out = "A ratio above 1: hafs is faster, whatever the unit.\n".to_owned();
        if self.divided_by > 1 {
            out += &format!(
                "All work divided by {}: no figures to keep.\n",
                self.divided_by
            );
        }
        out += &format!("The run: {}.\n\n", self.noise.line());
        for failure in &self.failures {
            out += &format!("- FAILED: {failure}\n");
        }
        for Setup { on, options } in &self.setups {
            out += &format!("- {on}: {options}\n");
        }
        for note in &self.notes {
            out += &format!("- {note}\n");
        }
        out
    }

    /// How many targets were missed, of how many that were measured.
    pub(crate) fn missed(&self) -> (usize, usize) {
        let targets = self.rows.iter().flat_map(|row| &row.targets);
        let judged: Vec<bool> = targets.filter_map(|target| target.reached).collect();
        let missed = judged.iter().filter(|reached| !**reached).count();
        (missed, judged.len())
    }
}

/// Enough for a table: 1.23, 12.3, 123, 1234.
fn three_digits(figure: f64) -> String {
    match figure {
        ..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, targets: &'static [Target], figures: &[(Kind, f64)]) -> Row {
        let row = workload::Row::new("row", unit, targets);
        let cells = figures
            .iter()
            .filter_map(|&(kind, figure)| Cell::of(kind, vec![figure, figure, figure]))
            .collect();
        Row::new(&row, cells)
    }

    #[test]
    fn faster_is_above_one_whatever_the_unit() {
        let figures = [(Kind::Hafs, 50.0), (Kind::Ext4, 100.0)];
        let rate = row(Unit::PerSecond, &[Target::OfExt4(0.5)], &figures);
        assert_eq!(
            (rate.ratio(Kind::Ext4), rate.reached),
            (Some(0.5), Some(true))
        );
        let time = row(Unit::Micros, &[Target::OfExt4(2.5)], &figures);
        assert_eq!(
            (time.ratio(Kind::Ext4), time.reached),
            (Some(2.0), Some(false))
        );
        let nothing = row(Unit::Micros, &[Target::OfNull(0.85)], &figures);
        assert_eq!((nothing.ratio(Kind::Null), nothing.reached), (None, None));
        let most = row(Unit::PerByte, &[Target::AtMost(50.0)], &figures);
        assert_eq!(most.reached, Some(true));
    }

    #[test]
    fn the_ratio_is_in_the_json_beside_each_that_hafs_is_compared_with() {
        let figures = [(Kind::Hafs, 50.0), (Kind::Ext4, 100.0)];
        let both = serde_json::to_value(row(Unit::PerSecond, &[], &figures)).unwrap();
        assert_eq!(both["cells"][0]["hafs_ratio"], serde_json::Value::Null);
        assert_eq!(both["cells"][1]["hafs_ratio"], 0.5);
        let alone = serde_json::to_value(row(Unit::PerSecond, &[], &figures[1..])).unwrap();
        assert_eq!(alone["cells"][0]["hafs_ratio"], serde_json::Value::Null);
    }

    #[test]
    fn each_target_of_a_row_is_judged_and_said() {
        const TARGETS: &[Target] = &[
            Target::OfExt4(0.5),
            Target::OfNull(0.5),
            Target::AheadOf(Kind::Bindfs),
        ];
        let figures = [
            (Kind::Hafs, 50.0),
            (Kind::Ext4, 100.0),
            (Kind::Bindfs, 50.0),
        ];
        let equal = row(Unit::PerSecond, TARGETS, &figures);
        assert_eq!(
            equal.target_text(),
            ">= 0.50 of ext4; >= 0.50 of null: not measured; ahead of bindfs: MISSED"
        );
        assert_eq!(equal.reached, Some(false));
        let figures = [(Kind::Hafs, 50.0), (Kind::Bindfs, 49.0)];
        let ahead = row(Unit::PerSecond, TARGETS, &figures);
        assert_eq!(ahead.reached, Some(true));
        // With GlusterFS in the run, being ahead of its one copy comes on top; not where bytes are counted.
        let figures = [(Kind::Hafs, 50.0), (Kind::Gluster1, 60.0)];
        let behind = row(Unit::PerSecond, &[], &figures);
        assert_eq!(behind.target_text(), "ahead of gluster-1: MISSED");
        assert_eq!(row(Unit::Micros, &[], &figures).reached, Some(true));
        assert_eq!(row(Unit::PerByte, &[], &figures).reached, None);
        let table = Table {
            api_version: "",
            machine: Machine::of(std::path::Path::new("/")).unwrap(),
            noise: crate::machine::Moment::now().noise_since(1),
            rounds: 1,
            divided_by: 1,
            versions: Versions::of(&[]),
            setups: Vec::new(),
            rows: vec![equal, ahead],
            failures: vec!["one on another: why".to_owned()],
            notes: Vec::new(),
        };
        assert_eq!(table.missed(), (1, 3));
        let text = table.markdown();
        assert!(text.contains("- FAILED: one on another: why"), "{text}");
    }

    #[test]
    fn rounds_without_a_figure_leave_the_cell_empty() {
        assert!(Cell::of(Kind::Null, vec![f64::NAN]).is_none());
        assert!(Cell::of(Kind::Null, Vec::new()).is_none());
    }
}
