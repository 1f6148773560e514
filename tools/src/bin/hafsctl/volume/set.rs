//! `hafsctl volume set`: settings as `NAME=VALUE`, checked by hafsd, which tells what changes and from when on.

use clap::Args;
use hafs_meta::Profile;
use hafs_tools::control::api::{Change, ChangedVolume, SetVolume};
use hafs_tools::control::client::{Client, path_part};
use hafs_tools::output::{self, Exit, Refusal, Table};
use hafs_tools::size;

use crate::{Form, cannot_print};

pub(super) const HELP: &str = "\
Settings:
  size=SIZE           how much it may hold: grows and shrinks at once, never below what its files hold
  writeback=on|off    whether the kernel may gather writes; holds from the next mount
  profile=PROFILE     auto, database, sequential or small-files; holds for what is written from the
                      next mount on

Examples:
  hafsctl volume set pg-main size=80GiB
  hafsctl volume set pg-main size=20GiB writeback=off --dry-run";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Its name
    name: String,
    /// What to change
    #[arg(required = true, value_name = "SETTING=VALUE", value_parser = parse)]
    settings: Vec<Setting>,
    /// Check, and tell what would change, but change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    Size(u64),
    Writeback(bool),
    Profile(Profile),
}

fn parse(text: &str) -> Result<Setting, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not SETTING=VALUE"))?;
    match name {
        "size" => size::parse(value)
            .map(Setting::Size)
            .map_err(|error| error.to_string()),
        "writeback" => parse_switch(value).map(Setting::Writeback),
        "profile" => value
            .parse()
            .map(Setting::Profile)
            .map_err(|_| format!("`{value}` is no profile: {}", Profile::NAMES.join(", "))),
        _ => Err(format!(
            "there is no setting `{name}`: size, writeback, profile"
        )),
    }
}

pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

pub(super) async fn run(
    client: &Client,
    form: Form,
    arguments: Arguments,
) -> Result<Exit, Refusal> {
    let mut set = SetVolume {
        dry_run: arguments.dry_run,
        ..SetVolume::default()
    };
    for setting in &arguments.settings {
        let twice = match *setting {
            Setting::Size(size) => set.size_bytes.replace(size).is_some(),
            Setting::Writeback(writeback) => set.writeback.replace(writeback).is_some(),
            Setting::Profile(profile) => set.profile.replace(profile).is_some(),
        };
        if twice {
            let refusal = Refusal::new("a setting is given twice").next("give each once");
            return Err(refusal.exit(Exit::Usage));
        }
    }
    let path = format!("/v1/volumes/{}", path_part(&arguments.name));
    let answer = client.patch::<ChangedVolume>(&path, &set).await?;
    let changed = &answer.value;
    for warning in &changed.warnings {
        output::remark(&format!("hafsctl: warning: {warning}"));
    }
    match form {
        Form::Json => output::json(&answer),
        Form::Table | Form::Wide => output::line(text(changed)),
    }
    .map_err(cannot_print)?;
    Ok(Exit::Ok)
}

fn text(changed: &ChangedVolume) -> String {
    let name = &changed.volume.name;
    if changed.changes.is_empty() {
        return format!("volume `{name}` is so already");
    }
    let mut table = Table::new(&["SETTING", "FROM", "TO", "TAKES EFFECT"]);
    for change in &changed.changes {
        table.row(vec![
            change.setting.trim_end_matches("_bytes").to_owned(),
            shown(change, &change.from),
            shown(change, &change.to),
            change.takes_effect.to_string(),
        ]);
    }
    if changed.applied {
        table.to_string()
    } else {
        format!("{table}\ndry run: nothing was changed")
    }
}

/// A value as people write it.
fn shown(change: &Change, value: &serde_json::Value) -> String {
    if change.setting.ends_with("_bytes")
        && let Some(bytes) = value.as_u64()
    {
        return size::display(bytes);
    }
    if let Some(switch) = value.as_bool() {
        return if switch { "on" } else { "off" }.to_owned();
    }
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_name_and_value() {
        assert_eq!(parse("size=1GiB"), Ok(Setting::Size(1 << 30)));
        assert_eq!(parse("writeback=off"), Ok(Setting::Writeback(false)));
        assert_eq!(
            parse("profile=database"),
            Ok(Setting::Profile(Profile::Database))
        );
        for wrong in [
            "size",
            "size=",
            "size=lots",
            "writeback=maybe",
            "profile=fast",
            "colour=red",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
