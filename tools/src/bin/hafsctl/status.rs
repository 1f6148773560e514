//! `hafsctl status`: the node in a few lines.

use hafs_tools::control::api::Status;
use hafs_tools::control::client::Client;
use hafs_tools::output::{Exit, Refusal};
use hafs_tools::size;

use super::watch::{self, Screen, Watch};
use super::{Form, exit_of, health_line};

pub(super) async fn run(client: &Client, form: Form, watch: Watch) -> Result<Exit, Refusal> {
    watch::show(watch, form, async || {
        let answer = client.get::<Status>("/v1/status").await?;
        let status = &answer.value;
        // Volumes that are still being opened are not available.
        let exit = if status.ready {
            exit_of(&status.health)
        } else {
            Exit::AtRisk
        };
        Ok(Screen::new(
            form,
            watch,
            &answer,
            |wide| lines(status, wide),
            exit,
        ))
    })
    .await
}

fn lines(status: &Status, wide: bool) -> String {
    let volumes = &status.volumes;
    let mut states = Vec::new();
    for (count, state) in [
        (volumes.open, "open"),
        (volumes.opening, "opening"),
        (volumes.failed, "failed"),
        (volumes.deleting, "deleting"),
    ] {
        if count > 0 {
            states.push(format!("{count} {state}"));
        }
    }
    let states = if states.is_empty() {
        "none".to_owned()
    } else {
        states.join(", ")
    };
    let mut lines = vec![
        ("node", status.node.name.clone()),
        (
            "hafsd",
            format!(
                "{} pid {}, {} for {}",
                status.version,
                status.pid,
                if status.ready { "ready" } else { "not ready" },
                duration(status.uptime_ms)
            ),
        ),
        (
            "data",
            format!(
                "{}, {} free of {}",
                status.data_dir,
                size::display(status.disk.available_bytes),
                size::display(status.disk.size_bytes)
            ),
        ),
        ("volumes", states),
        ("mounts", status.mounts.to_string()),
    ];
    if wide {
        lines.insert(1, ("node id", status.node.id.to_string()));
        lines.push(("socket", status.socket.clone()));
        lines.push(("started", status.started.to_string()));
    }
    let mut text = String::new();
    for (name, value) in lines {
        text.push_str(&format!("{:<9}{value}\n", format!("{name}:")));
    }
    text + &health_line(&status.health)
}

/// The two largest units of a time that has passed.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_two_units() {
        assert_eq!(duration(999), "0s");
        assert_eq!(duration(61_000), "1m1s");
        assert_eq!(duration(3_600_000), "1h0m");
        assert_eq!(duration(90_000_000), "1d1h");
    }
}
