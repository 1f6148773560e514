//! How the memory for state that is not flushed yet is shared by the volumes of a node.
//!
//! `volumes` asks when it opens a store. Each volume flushes by itself, so the budget is divided beforehand: by the volumes
//! that there are then. One that is made later gets the smaller share, the others keep theirs until hafsd starts again.

/// Records of all volumes that may wait for a flush before their flush begins, bytes. In memory they take up to six times
/// as much: rows are up to three times their records, and a volume may fill two buffers before its writers wait.
const STATE_BUFFERS_BYTES: u64 = 128 << 20;
/// What one volume is given at most: more makes its recovery longer and nothing faster.
const STATE_BUFFER_BYTES_MAX: u64 = 32 << 20;
/// And at least: with less, it would flush all the time.
const STATE_BUFFER_BYTES_MIN: u64 = 1 << 20;

/// The state buffer of one volume of so many.
pub(super) fn state_buffer_bytes(volumes: usize) -> u64 {
    let volumes = u64::try_from(volumes).unwrap_or(u64::MAX).max(1);
    (STATE_BUFFERS_BYTES / volumes).clamp(STATE_BUFFER_BYTES_MIN, STATE_BUFFER_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_volumes_together_stay_within_the_budget() {
        for volumes in 1..=128 {
            let all = state_buffer_bytes(volumes) * u64::try_from(volumes).unwrap();
            assert!(all <= STATE_BUFFERS_BYTES, "{volumes} volumes: {all}");
        }
        assert_eq!(state_buffer_bytes(0), STATE_BUFFER_BYTES_MAX);
        assert_eq!(state_buffer_bytes(4), STATE_BUFFER_BYTES_MAX);
        assert_eq!(state_buffer_bytes(100_000), STATE_BUFFER_BYTES_MIN);
    }
}
