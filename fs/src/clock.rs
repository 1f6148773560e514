//! Wall time for inodes: the one place that reads the clock. Records carry the times, so `apply` never asks.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Time;

/// The time now, as inodes keep it. A clock before 1970 counts as 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that the lint points to"
)]
pub(crate) fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        secs: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    }
}
