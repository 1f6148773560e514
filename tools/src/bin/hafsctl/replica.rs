//! `hafsctl replica status`: each volume's copies, and whether they are as many and as good as wanted.

use clap::Subcommand;
use hafs_tools::control::api::{
    CopyState, HealthState, ReplicaList, Role, VolumeCopy, VolumeReplicas,
};
use hafs_tools::control::client::{Client, path_part};
use hafs_tools::output::{Exit, Refusal, Table};
use hafs_tools::size;

use super::watch::{self, Screen, Watch};
use super::{Form, exit_of, health_line, or_dash};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Where each volume's copies are, and how well they follow
    #[command(after_help = "\
Columns: CONTRACT what an fsync means now; COPIES in sync of wanted; LAG how far the furthest copy
in sync is behind; VERIFIED the record up to which the copies were verified (with one copy: by
`hafsctl volume check` since hafsd started).

Exit codes: 0 all as wanted; 3 fewer copies than wanted, at least two; 4 at risk, or a volume is
not available.

Examples:
  hafsctl replica status
  hafsctl replica status pg-main -o json")]
    Status {
        /// Only this volume
        volume: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
}

pub(super) async fn run(verb: Verb, client: &Client, form: Form) -> Result<Exit, Refusal> {
    let Verb::Status { volume, watch } = verb;
    let path = match &volume {
        Some(name) => format!("/v1/replicas?volume={}", path_part(name)),
        None => "/v1/replicas".to_owned(),
    };
    watch::show(watch, form, async || {
        let answer = client.get::<ReplicaList>(&path).await?;
        let exit = exit_of(&answer.value.health);
        let text = |wide| screen(&answer.value, wide);
        Ok(Screen::new(form, watch, &answer, text, exit))
    })
    .await
}

fn screen(list: &ReplicaList, wide: bool) -> String {
    let mut headings = vec![
        "VOLUME",
        "CONTRACT",
        "COPIES",
        "NODES",
        "LAG",
        "VERIFIED",
        "LAST RESYNC",
    ];
    if wide {
        headings.push("STORES");
    }
    let mut table = Table::new(&headings);
    for replicas in &list.replicas {
        let mut row = row(replicas);
        if wide {
            let stores = replicas.copies.iter().map(|copy| copy.store.to_string());
            row.push(stores.collect::<Vec<_>>().join("  "));
        }
        table.row(row);
    }
    format!("{table}\n{}", health_line(&list.health))
}

fn row(replicas: &VolumeReplicas) -> Vec<String> {
    let mark = if replicas.health == HealthState::Ok {
        ""
    } else {
        " !"
    };
    let nodes: Vec<String> = replicas.copies.iter().map(node).collect();
    vec![
        replicas.volume.clone(),
        replicas.contract.clone(),
        format!(
            "{}/{}{mark}",
            replicas.copies_in_sync, replicas.copies_wanted
        ),
        nodes.join("  "),
        or_dash(replicas.lag_bytes, size::display),
        or_dash(replicas.verified_lsn, |lsn| lsn.to_string()),
        replicas
            .last_resync
            .map_or_else(|| "never needed".to_owned(), |time| time.to_string()),
    ]
}

/// `n1*primary` serves; what is wrong with it stands behind.
fn node(copy: &VolumeCopy) -> String {
    let role = match copy.role {
        Role::Primary => "*primary",
    };
    let state = match copy.state {
        CopyState::InSync => "",
        CopyState::Opening => " opening",
        CopyState::Failed => " failed",
        CopyState::Deleting => " deleting",
    };
    format!("{}{role}{state}", copy.node.name)
}

#[cfg(test)]
mod tests {
    use hafs_tools::control::api::Versioned;

    use super::*;

    fn list() -> ReplicaList {
        let json = r#"{"apiVersion":"v1","replicas":[
          {"volume":"pg-main","contract":"fsync on 1 of 1","copies_in_sync":1,"copies_wanted":1,"copies":[
            {"node":{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","name":"n1"},
             "store":"6ba7b811-9dad-11d1-80b4-00c04fd430c8","role":"primary","state":"in_sync"}],
           "lag_bytes":null,"verified_lsn":88412,"last_resync":null,"health":"ok"},
          {"volume":"wiki","contract":"fsync on 1 of 1","copies_in_sync":0,"copies_wanted":1,"copies":[
            {"node":{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","name":"n1"},
             "store":"6ba7b812-9dad-11d1-80b4-00c04fd430c8","role":"primary","state":"failed"}],
           "lag_bytes":null,"verified_lsn":null,"last_resync":null,"health":"at_risk"}],
          "health":{"state":"at_risk","reasons":["wiki: its store is missing"]}}"#;
        serde_json::from_str::<Versioned<ReplicaList>>(json)
            .unwrap()
            .value
    }

    #[test]
    fn the_screen_is_laid_out_as_designed() {
        assert_eq!(
            screen(&list(), false),
            "\
VOLUME   CONTRACT         COPIES  NODES              LAG  VERIFIED  LAST RESYNC
pg-main  fsync on 1 of 1  1/1     n1*primary         -    #88412    never needed
wiki     fsync on 1 of 1  0/1 !   n1*primary failed  -    -         never needed
health: AT RISK  wiki: its store is missing"
        );
    }

    #[test]
    fn wide_adds_the_stores() {
        let screen = screen(&list(), true);
        assert!(
            screen
                .lines()
                .next()
                .unwrap()
                .ends_with("LAST RESYNC   STORES")
        );
        assert!(screen.contains("6ba7b811-9dad-11d1-80b4-00c04fd430c8"));
    }
}
