//! Whether this machine can serve volumes well: looked at before hafsd ever runs, or beside it.
//!
//! `hafsctl doctor` calls [`examine`] and prints what it finds. Everything is tried, not inferred, where that is possible
//! without leaving a trace: a FUSE superblock is made, files are locked, preallocated and synced in the data directory's
//! filesystem. Whatever was made is gone afterwards.

mod disk;
mod machine;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::api::{Status, Versioned};
use crate::control::client::Client;
use crate::output::Refusal;

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// Why that is not good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with a drawback.
    Warn,
    /// Volumes cannot be served so.
    Fail,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// In the order in which they matter: what is first may be why others are so.
    pub findings: Vec<Finding>,
    /// How many are `fail`.
    pub failed: u64,
    /// How many are `warn`.
    pub warned: u64,
}

impl Finding {
    fn new(name: &str, verdict: Verdict, seen: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            seen: seen.into(),
            why: None,
            next: None,
        }
    }

    fn ok(name: &str, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, seen)
    }

    fn warn(name: &str, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, seen)
    }

    fn fail(name: &str, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, seen)
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// A refusal, as a finding.
    fn refused(name: &str, refusal: Refusal) -> Self {
        Self {
            why: refusal.why,
            next: refusal.next,
            ..Self::fail(name, refusal.error)
        }
    }
}

/// Looks at everything. `data_dir` need not exist; nothing is made in its place. Takes a few seconds, most of them for syncs.
pub async fn examine(data_dir: &Path, client: &Client) -> Examination {
    let mut findings = machine::findings();
    findings.extend(disk::findings(data_dir));
    findings.extend(daemon(data_dir, client).await);
    let count = |verdict| findings.iter().filter(|is| is.verdict == verdict).count() as u64;
    Examination {
        failed: count(Verdict::Fail),
        warned: count(Verdict::Warn),
        findings,
    }
}

/// hafsd, if it runs.
async fn daemon(data_dir: &Path, client: &Client) -> Vec<Finding> {
    const NAME: &str = "hafsd";
    let status: Versioned<Status> = match client.get("/v1/status").await {
        Ok(status) => status,
        Err(refusal) => {
            return vec![Finding {
                verdict: Verdict::Warn,
                ..Finding::refused(NAME, refusal)
            }];
        }
    };
    let status = status.value;
    let (theirs, ours) = (status.version.as_str(), env!("CARGO_PKG_VERSION"));
    let seen = format!(
        "pid {}, version {theirs}, serves {}",
        status.pid, status.data_dir
    );
    let mut findings = vec![if !status.ready {
        Finding::warn(NAME, seen)
            .why("it is still opening its volumes")
            .next("hafsctl status --watch shows how far it is")
    } else if theirs != ours {
        Finding::warn(NAME, seen)
            .why(format!("this hafsctl is of version {ours}"))
            .next("restart hafsd, or install the programs of one release")
    } else {
        Finding::ok(NAME, seen)
    }];
    if Path::new(&status.data_dir) != data_dir {
        findings.push(
            Finding::warn("hafsd's data", format!("it serves {}", status.data_dir))
                .why(format!("{} was looked at", data_dir.display()))
                .next(format!("hafsctl doctor --data-dir {}", status.data_dir)),
        );
    }
    findings
}
