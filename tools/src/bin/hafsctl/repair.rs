//! `hafsctl volume repair`: says what is wrong with a volume that does not open, and mends it if told to.

use hafs_tools::control::api::{RepairVolume, RepairedVolume};
use hafs_tools::control::client::{Client, path_part};
use hafs_tools::output::{self, Exit, Refusal};

use super::{Form, cannot_print};

/// What was asked for on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Consent {
    pub(super) yes: bool,
    pub(super) accept_loss: bool,
}

pub(super) async fn run(
    client: &Client,
    form: Form,
    name: &str,
    consent: Consent,
) -> Result<Exit, Refusal> {
    let path = format!("/v1/volumes/{}/repair", path_part(name));
    let ask = RepairVolume {
        apply: consent.yes,
        accept_loss: consent.accept_loss,
    };
    let answer = client.post::<RepairedVolume>(&path, &ask).await?;
    let repair = &answer.value;
    match form {
        Form::Json => output::json(&answer),
        Form::Table | Form::Wide => output::line(lines(repair, consent)),
    }
    .map_err(cannot_print)?;
    Ok(exit(repair, consent))
}

/// Asked to repair, and not done: consent is missing, as for every verb that destroys something.
fn exit(repair: &RepairedVolume, consent: Consent) -> Exit {
    if consent.yes && !repair.applied && !repair.needless {
        Exit::Usage
    } else if repair.failure.is_some() {
        Exit::Error
    } else {
        Exit::Ok
    }
}

fn lines(repair: &RepairedVolume, consent: Consent) -> String {
    let name = &repair.volume;
    let mut lines = Vec::new();
    let (head, verb) = match (repair.applied, repair.needless) {
        (true, _) => ("repaired", ""),
        (false, true) => ("nothing to repair", ""),
        (false, false) => ("nothing was changed", "would be "),
    };
    lines.push(format!("{name}: {head}"));
    if let Some(log) = &repair.log {
        lines.push(format!("  log: {}", log.summary));
        lines.push(format!(
            "  {verb}given up: all records from {} on; what was cut off {}kept in the store's directory `lost`",
            log.from_lsn,
            if repair.applied { "is " } else { "would be " }
        ));
    }
    if let Some(mark) = &repair.mark {
        lines.push(format!("  durable mark: {mark}"));
        lines.push(format!(
            "  {verb}accepted: whatever the log may have lost behind its end"
        ));
    }
    for segment in &repair.segment_headers {
        lines.push(format!(
            "  segment {segment}: its header {verb}written anew; its bytes have checksums of their own"
        ));
    }
    if let Some(kept_in) = &repair.kept_in {
        lines.push(format!("  kept in: {kept_in}"));
    }
    if consent.yes && repair.loses && !repair.applied && !repair.needless {
        lines.push("  why: something would be lost, and --accept-loss was not given".to_owned());
    }
    if let Some(failure) = &repair.failure {
        // Mostly what the log lacks, which is said above.
        let said = repair.log.as_ref().map(|log| log.summary.as_str());
        let is_said = said.is_some_and(|said| failure.contains(said));
        lines.push(if is_said {
            "  not available until it is repaired".to_owned()
        } else {
            format!("  not available: {failure}")
        });
    }
    if let Some(next) = next(repair, consent) {
        lines.push(format!("next: {next}"));
    }
    lines.join("\n")
}

fn next(repair: &RepairedVolume, consent: Consent) -> Option<String> {
    let name = &repair.volume;
    if repair.applied {
        return Some(format!("hafsctl volume check {name}"));
    }
    if repair.needless {
        let next = "nothing that a repair could mend; restore the volume from a backup";
        return repair.failure.as_ref().map(|_| next.to_owned());
    }
    if repair.loses {
        let copy = "copy the store first if you can; then";
        return Some(format!(
            "{copy} hafsctl volume repair {name} --accept-loss --yes"
        ));
    }
    (!consent.yes).then(|| format!("hafsctl volume repair {name} --yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged() -> RepairedVolume {
        serde_json::from_str(
            r#"{"volume":"pg","applied":false,"needless":false,"loses":true,"log":{"from_lsn":7,"synced_lsn":9,
            "newest_lsn":12,"synced_records":3,"summary":"the log ends at byte 4096"},"mark":null,
            "segment_headers":[],"kept_in":null,"failure":"the log ends at byte 4096"}"#,
        )
        .unwrap()
    }

    const LOOK: Consent = Consent {
        yes: false,
        accept_loss: false,
    };

    #[test]
    fn what_would_be_lost_is_said_and_how_to_go_on() {
        let text = lines(&damaged(), LOOK);
        assert!(text.starts_with("pg: nothing was changed\n"), "{text}");
        assert!(
            text.contains("would be given up: all records from #7 on"),
            "{text}"
        );
        assert!(
            text.ends_with("hafsctl volume repair pg --accept-loss --yes"),
            "{text}"
        );
        assert_eq!(exit(&damaged(), LOOK), Exit::Error);
    }

    #[test]
    fn yes_alone_loses_nothing() {
        let yes = Consent { yes: true, ..LOOK };
        assert_eq!(exit(&damaged(), yes), Exit::Usage);
        let mended = RepairedVolume {
            applied: true,
            failure: None,
            ..damaged()
        };
        assert_eq!(exit(&mended, yes), Exit::Ok);
        assert!(lines(&mended, yes).ends_with("next: hafsctl volume check pg"));
    }
}
