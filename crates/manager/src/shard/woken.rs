//! Knows whether the shard has woken somebody since it last gave its thread away: whoever was woken
//! may have to run on the same thread, and should not wait for a sync there.

use std::future::{Future, poll_fn};
use std::task::Poll;

/// Who was woken, and has not run yet as far as is known.
#[derive(Debug, Default)]
pub(super) struct Woken {
    somebody: bool,
    /// Calls whose carriage was asked to carry them. One that is answered at once, within this
    /// process, wakes nobody.
    calls: usize,
}

impl Woken {
    /// Somebody who waited was answered.
    pub(super) const fn told(&mut self) {
        self.somebody = true;
    }

    /// A call was given to its carriage.
    pub(super) const fn called(&mut self) {
        self.calls += 1;
    }

    /// So many calls were answered. Where some of them are older ones, as many others are taken
    /// for answered: that is of no weight, because only a shard with hardly anything to do asks.
    pub(super) const fn answered(&mut self, count: usize) {
        self.calls = self.calls.saturating_sub(count);
    }

    /// Whether anybody was woken who may not have run.
    pub(super) const fn any(&self) -> bool {
        self.somebody || self.calls > 0
    }

    /// Never comes; to be waited for beside whatever does. Where it is looked at, the thread is
    /// about to be given away.
    pub(super) fn run_now(&mut self) -> impl Future<Output = ()> {
        poll_fn(|_| {
            *self = Self::default();
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn who_is_told_or_called_may_have_to_run_until_the_thread_is_given_away_or_all_have_answered() {
        let mut woken = Woken::default();
        assert!(!woken.any());
        woken.called();
        woken.called();
        woken.answered(1);
        assert!(woken.any(), "one is under way");
        woken.answered(2);
        assert!(!woken.any());
        for wakes in [Woken::told, Woken::called] {
            wakes(&mut woken);
            woken.answered(0);
            assert!(woken.any());
            let mut context = Context::from_waker(Waker::noop());
            assert!(pin!(woken.run_now()).poll(&mut context).is_pending());
            assert!(!woken.any());
        }
    }
}
