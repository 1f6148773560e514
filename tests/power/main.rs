//! Power cuts: hafsd on a disk that loses what was not synced.

mod lossy;
