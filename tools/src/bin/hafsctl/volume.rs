//! `hafsctl volume`: create, list, show, set, check, delete; `repair` is in a file of its own.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use hafs_meta::Profile;
use hafs_tools::control::api::{
    CheckLine, CheckReport, CreateVolume, CreatedVolume, DeletedVolume, Space, Versioned, Volume,
    VolumeList,
};
use hafs_tools::control::client::{Client, path_part};
use hafs_tools::output::{self, Exit, Progress, Refusal, Table};
use hafs_tools::size;

use super::watch::{self, Screen, Watch};
use super::{Form, cannot_print, or_dash, repair};

mod set;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes a volume
    #[command(after_help = "\
The size is a limit, not a reservation: space is taken when it is written. Units: 10GiB and 10G
are binary, 10GB is decimal.

Examples:
  hafsctl volume create pg-main
  hafsctl volume create pg-main --size 50GiB --profile database")]
    Create {
        /// Its name: a-z, 0-9, and inside also `.` `-` `_`; at most 63, and no UUID
        name: String,
        /// How much it may hold
        #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = size::parse)]
        size: u64,
        /// What it is used for
        #[arg(long, value_name = "PROFILE", default_value = "auto",
              value_parser = PossibleValuesParser::new(Profile::NAMES))]
        profile: String,
        /// Whether the kernel may gather writes; off, a full volume is told by write(2) itself
        #[arg(long, value_name = "on|off", default_value = "on", value_parser = set::parse_switch,
              action = clap::ArgAction::Set)]
        writeback: bool,
    },
    /// Changes settings of a volume, also while it is in use
    #[command(after_help = set::HELP)]
    Set(set::Arguments),
    /// Lists volumes
    List(Watch),
    /// Shows all about a volume
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Deletes a volume with all its data
    #[command(after_help = "\
The volume must not be mounted. There is no way back.

Example:
  hafsctl volume delete pg-main --yes")]
    Delete {
        /// Its name
        name: String,
        /// Really
        #[arg(long)]
        yes: bool,
    },
    /// Proves a volume's invariants, also while it is in use
    #[command(after_help = "\
Reads all of the volume's state and chunks. Exit code 1 if there are problems.

Example:
  hafsctl volume check pg-main")]
    Check {
        /// Its name
        name: String,
    },
    /// Says what is wrong with a volume that does not open, and mends it
    #[command(after_help = "\
Without --yes nothing of it is changed; it is closed and opened again. A log that is damaged before its end is cut there: everything
after that is given up, so that needs --accept-loss too. What was cut off is kept in the store's
directory. The volume must not be mounted.

Examples:
  hafsctl volume repair pg-main
  hafsctl volume repair pg-main --accept-loss --yes")]
    Repair {
        /// Its name
        name: String,
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Also if records are given up by it
        #[arg(long)]
        accept_loss: bool,
    },
}

pub(super) async fn run(verb: Verb, client: &Client, form: Form) -> Result<Exit, Refusal> {
    match verb {
        Verb::Create {
            name,
            size,
            profile,
            writeback,
        } => {
            let create = CreateVolume {
                name,
                size_bytes: size,
                profile: profile.parse().expect("one of its names"),
                writeback,
            };
            self::create(client, form, &create).await
        }
        Verb::Set(arguments) => set::run(client, form, arguments).await,
        Verb::List(watch) => list(client, form, watch).await,
        Verb::Show { name, watch } => show(client, form, &name, watch).await,
        Verb::Delete { name, yes } => delete(client, form, &name, yes).await,
        Verb::Check { name } => check(client, form, &name).await,
        Verb::Repair {
            name,
            yes,
            accept_loss,
        } => {
            let consent = repair::Consent { yes, accept_loss };
            repair::run(client, form, &name, consent).await
        }
    }
}

async fn create(client: &Client, form: Form, create: &CreateVolume) -> Result<Exit, Refusal> {
    let answer = client.post::<CreatedVolume>("/v1/volumes", create).await?;
    let created = &answer.value;
    for warning in &created.warnings {
        output::remark(&format!("hafsctl: warning: {warning}"));
    }
    match form {
        Form::Json => output::json(&answer),
        Form::Table | Form::Wide => output::line(format!(
            "volume `{}` created: {}, profile {}\nmount it: mount -t fuse.hafs {} DIR",
            created.volume.name,
            size::display(created.volume.size_bytes),
            created.volume.profile,
            created.volume.name
        )),
    }
    .map_err(cannot_print)?;
    Ok(Exit::Ok)
}

async fn list(client: &Client, form: Form, watch: Watch) -> Result<Exit, Refusal> {
    watch::show(watch, form, async || {
        let answer = client.get::<VolumeList>("/v1/volumes").await?;
        let text = |wide| table(&answer.value.volumes, wide).to_string();
        Ok(Screen::new(form, watch, &answer, text, Exit::Ok))
    })
    .await
}

fn table(volumes: &[Volume], wide: bool) -> Table {
    let mut headings = vec!["NAME", "SIZE", "USED", "PROFILE", "STATE", "MOUNTED ON"];
    if wide {
        headings.extend([
            "INODES", "ON DISK", "EPOCH", "HEAD", "CREATED", "ID", "FAILURE",
        ]);
    }
    let mut table = Table::new(&headings);
    for volume in volumes {
        let mut row = vec![
            volume.name.clone(),
            size::display(volume.size_bytes),
            or_dash(volume.used_bytes, size::display),
            volume.profile.to_string(),
            state(volume),
            mounted_on(volume),
        ];
        if wide {
            row.extend([
                or_dash(volume.inodes, |inodes| inodes.to_string()),
                on_disk(volume),
                volume.epoch.to_string(),
                or_dash(volume.head_lsn, |lsn| lsn.to_string()),
                volume.created.to_string(),
                volume.id.to_string(),
                volume.failure.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        table.row(row);
    }
    table
}

/// `open`, and what is wrong with its room.
fn state(volume: &Volume) -> String {
    match volume.space.and_then(Space::remark) {
        Some(remark) => format!("{}, {remark}", volume.state),
        None => volume.state.to_string(),
    }
}

fn mounted_on(volume: &Volume) -> String {
    let mounts: Vec<&str> = volume
        .mounts
        .iter()
        .map(|mount| mount.mountpoint.as_str())
        .collect();
    if mounts.is_empty() {
        "-".to_owned()
    } else {
        mounts.join(", ")
    }
}

fn on_disk(volume: &Volume) -> String {
    let bytes = volume.segment_bytes.zip(volume.log_bytes);
    or_dash(bytes, |(segments, log)| {
        size::display(segments.saturating_add(log))
    })
}

async fn show(client: &Client, form: Form, name: &str, watch: Watch) -> Result<Exit, Refusal> {
    let path = format!("/v1/volumes/{}", path_part(name));
    watch::show(watch, form, async || {
        let answer = client.get::<Volume>(&path).await?;
        Ok(Screen::new(
            form,
            watch,
            &answer,
            |_| lines(&answer.value),
            Exit::Ok,
        ))
    })
    .await
}

fn lines(volume: &Volume) -> String {
    let lsn = |lsn: Option<hafs_protocol::Lsn>| or_dash(lsn, |lsn| lsn.to_string());
    let mut lines = vec![("name", volume.name.clone()), ("state", state(volume))];
    if let Some(failure) = &volume.failure {
        lines.push(("failure", failure.clone()));
    }
    lines.extend([
        ("size", size::display(volume.size_bytes)),
        ("used", or_dash(volume.used_bytes, size::display)),
        ("available", or_dash(volume.available_bytes, size::display)),
        (
            "inodes",
            or_dash(volume.inodes, |inodes| inodes.to_string()),
        ),
        ("on disk", on_disk(volume)),
        ("profile", volume.profile.to_string()),
        (
            "writeback",
            if volume.writeback { "on" } else { "off" }.to_owned(),
        ),
        ("mounted on", mounted_on(volume)),
        ("created", volume.created.to_string()),
        ("id", volume.id.to_string()),
        ("store", or_dash(volume.store, |store| store.to_string())),
        ("lineage", volume.lineage.to_string()),
        ("epoch", volume.epoch.to_string()),
        ("head", lsn(volume.head_lsn)),
        ("durable", lsn(volume.durable_lsn)),
        (
            "digest",
            volume.digest.clone().unwrap_or_else(|| "-".to_owned()),
        ),
    ]);
    let lines = lines
        .into_iter()
        .map(|(name, value)| format!("{:<12}{value}", format!("{name}:")));
    lines.collect::<Vec<_>>().join("\n")
}

async fn delete(client: &Client, form: Form, name: &str, yes: bool) -> Result<Exit, Refusal> {
    let path = format!("/v1/volumes/{}", path_part(name));
    if !yes {
        // Asked first, so that a name that is not there is said to be so.
        let volume = client.get::<Volume>(&path).await?.value;
        return Err(Refusal::new("nothing was deleted: --yes is missing")
            .why(format!(
                "volume `{name}` would be deleted with all it holds: {} in {} inodes",
                or_dash(volume.used_bytes, size::display),
                or_dash(volume.inodes, |inodes| inodes.to_string())
            ))
            .next(format!("hafsctl volume delete {name} --yes"))
            .exit(Exit::Usage));
    }
    let answer = client.delete::<DeletedVolume>(&path).await?;
    match form {
        Form::Json => output::json(&answer),
        Form::Table | Form::Wide => output::line(format!("volume `{name}` deleted")),
    }
    .map_err(cannot_print)?;
    Ok(Exit::Ok)
}

async fn check(client: &Client, form: Form, name: &str) -> Result<Exit, Refusal> {
    let mut result = None;
    let progress = Progress::new(&format!("checking {name}"));
    let path = format!("/v1/volumes/{}/check", path_part(name));
    let lines = client.post_lines(&path, |line: CheckLine| match line {
        CheckLine::Progress {
            inodes_done,
            inodes_total,
            bytes_done,
            bytes_total,
        } => {
            let shown = format!(
                "{inodes_done} of {inodes_total} inodes, {} of {}",
                size::display(bytes_done),
                size::display(bytes_total)
            );
            // Small files take their time too.
            let worth = |inodes: u64, bytes: u64| (inodes << 12).saturating_add(bytes);
            progress.set(
                worth(inodes_done, bytes_done),
                worth(inodes_total, bytes_total),
                shown,
            );
        }
        CheckLine::Report(report) => result = Some(Ok(report)),
        CheckLine::Error(error) => result = Some(Err(error)),
    });
    let streamed = lines.await;
    drop(progress);
    streamed?;
    let report = result.ok_or_else(|| {
        Refusal::new(format!("the check of volume `{name}` was cut off"))
            .why("hafsd ended before it had a result")
            .next("check again when hafsd is ready")
    })??;
    let clean = report.clean;
    match form {
        Form::Json => output::json(&Versioned::new(report)),
        Form::Table | Form::Wide => output::line(report_lines(&report)),
    }
    .map_err(cannot_print)?;
    Ok(if clean { Exit::Ok } else { Exit::Error })
}

fn report_lines(report: &CheckReport) -> String {
    let counts = format!(
        "{} inodes, {} names, {} extents, {} pieces with {} at {}, {} ms",
        report.inodes,
        report.dentries,
        report.extents,
        report.pieces,
        size::display(report.bytes),
        report.lsn,
        report.duration_ms
    );
    if report.clean {
        return format!("{}: clean: {counts}", report.volume);
    }
    let mut text = format!(
        "{}: {} problems: {counts}",
        report.volume, report.problem_count
    );
    for problem in &report.problems {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    let listed = report.problems.len() as u64;
    if report.problem_count > listed {
        text.push_str(&format!("\n  and {} more", report.problem_count - listed));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        serde_json::from_str(
            r#"{"name":"pg","id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","state":"open","size_bytes":10737418240,
            "used_bytes":1536,"available_bytes":1,"inodes":7,"segment_bytes":4096,"log_bytes":4096,"profile":"small-files",
            "created":"2026-11-22T05:00:00Z","lineage":"6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "store":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","epoch":3,"head_lsn":9,"durable_lsn":9,
            "digest":"00","mounts":[{"volume":"pg","mountpoint":"/srv/pg","device":"0:57","namespace":1,
            "since":"2026-11-22T05:00:00Z"}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_list_is_plain() {
        let failed = Volume {
            state: hafs_tools::control::api::VolumeState::Failed,
            used_bytes: None,
            mounts: Vec::new(),
            name: "wiki".into(),
            ..volume()
        };
        assert_eq!(
            table(&[volume(), failed], false).to_string(),
            "\
NAME  SIZE    USED     PROFILE      STATE   MOUNTED ON
pg    10 GiB  1.5 KiB  small-files  open    /srv/pg
wiki  10 GiB  -        small-files  failed  -"
        );
        assert!(table(&[volume()], true).to_string().contains("8 KiB"));
    }

    #[test]
    fn a_report_names_its_problems() {
        let report = CheckReport {
            volume: "pg".into(),
            clean: false,
            lsn: hafs_protocol::Lsn(9),
            digest: String::new(),
            inodes: 1,
            dentries: 2,
            extents: 3,
            pieces: 4,
            bytes: 5,
            duration_ms: 6,
            problem_count: 1,
            problems: vec!["inode 2: 3 names, nlink says 2".into()],
        };
        let text = report_lines(&report);
        assert!(text.starts_with("pg: 1 problems: 1 inodes"), "{text}");
        assert!(
            text.ends_with("\n  inode 2: 3 names, nlink says 2"),
            "{text}"
        );
    }
}
