//! The time that the core is told: the wall clock's at the start, and from then on what the
//! monotonic clock has counted, so that a step of the wall clock fires no timer. It never starts
//! before what is on record: with a wall clock that was set back meanwhile, a deadline would be
//! further away than its whole time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use unanimity_core::Millis;

/// A clock that never runs backwards and never jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_at_ms: Millis,
}

impl Clock {
    /// Starts at the wall clock's time, or at the latest moment on record if the wall clock was set
    /// back behind it meanwhile: what was to happen within a minute happens within a minute.
    pub(crate) fn start_no_earlier(latest: Millis) -> Self {
        let wall = Self::wall_ms();
        if wall < latest {
            let behind_ms = latest - wall;
            tracing::warn!(behind_ms, "the wall clock is behind the latest moment on record");
        }
        Self { started: Instant::now(), started_at_ms: wall.max(latest) }
    }

    /// What the wall clock says, in milliseconds since the Unix epoch: for people to read.
    pub(crate) fn wall_ms() -> Millis {
        whole_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }

    /// Milliseconds since the Unix epoch, at a moment of the monotonic clock.
    pub(crate) fn ms_at(&self, moment: Instant) -> Millis {
        let since = moment.saturating_duration_since(self.started);
        self.started_at_ms.saturating_add(whole_ms(since))
    }

    /// The moment of the monotonic clock at which it is so late; none where that is too far away.
    pub(crate) fn moment(&self, at_ms: Millis) -> Option<Instant> {
        let since = Duration::from_millis(at_ms.saturating_sub(self.started_at_ms));
        self.started.checked_add(since)
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
