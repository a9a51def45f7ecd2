//! Decides what a participant must stand: the rules, each as a script. How a step is carried out
//! is `stage`'s part.

use unanimity_core::Operation;
use unanimity_core::Operation::{Commit, Compensate, Execute, Prepare, Rollback};

use self::Expected::{Acknowledged, AsBefore, No, Refused, Yes};
use self::Step::{Ask, AtOnce, Learn, Lost, Mark, Restart, Same, Usual};

/// What must hold, and what shows whether it does.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) says: &'static str,
    pub(super) steps: &'static [Step],
}

/// One step of a script.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Asks once.
    Ask(Operation, Expected),
    /// Asks many times at once; all must be answered alike.
    AtOnce(Operation, Expected),
    /// Asks, and goes away before the answer.
    Lost(Operation),
    /// Stops the service and starts it again.
    Restart,
    /// Remembers what is observed now.
    Mark,
    /// Nothing that is observed may have changed since the mark, for this reason.
    Same(&'static str),
    /// What has changed since the mark is the usual effect.
    Learn,
    /// What has changed since the mark must be the usual effect, and once.
    Usual,
}

/// What an answer must mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Yes, or read-only.
    Yes,
    /// What the same operation was answered before in this rule.
    AsBefore,
    No,
    Acknowledged,
    /// Anything that is neither a yes nor an acknowledgement. A branch that voted read-only has
    /// nothing that could be contradicted, and may acknowledge.
    Refused,
}

const UNDONE: &str = "a rollback must leave everything as it was";
const COMPENSATED: &str = "one compensate must undo all of it";
const AGAIN: &str = "a repeated operation must change nothing";
const REFUSED: &str = "a refused operation must change nothing";
const NOTHING: &str = "there is nothing to undo";

/// The rules for two-phase branches.
pub(super) const TWO_PHASE_RULES: [Rule; 15] = [
    Rule {
        says: "a prepare votes yes, and a rollback is acknowledged",
        steps: &[Mark, Ask(Prepare, Yes), Ask(Rollback, Acknowledged), Same(UNDONE)],
    },
    Rule {
        says: "a repeated prepare votes as the first did, and prepares once",
        steps: &[
            Mark,
            Ask(Prepare, Yes),
            Ask(Prepare, AsBefore),
            Ask(Prepare, AsBefore),
            Ask(Rollback, Acknowledged),
            Same(UNDONE),
        ],
    },
    Rule {
        says: "a repeated commit is acknowledged and has no second effect",
        steps: &[
            Mark,
            Ask(Prepare, Yes),
            Ask(Commit, Acknowledged),
            Learn,
            Mark,
            Ask(Commit, Acknowledged),
            Ask(Commit, Acknowledged),
            Same(AGAIN),
        ],
    },
    Rule {
        says: "a repeated rollback is acknowledged and leaves nothing behind",
        steps: &[
            Mark,
            Ask(Prepare, Yes),
            Ask(Rollback, Acknowledged),
            Ask(Rollback, Acknowledged),
            Ask(Rollback, Acknowledged),
            Same(UNDONE),
        ],
    },
    Rule {
        says: "a rollback before any prepare is acknowledged",
        steps: &[Mark, Ask(Rollback, Acknowledged), Same(NOTHING)],
    },
    Rule {
        says: "a prepare after the rollback is refused",
        steps: &[Mark, Ask(Rollback, Acknowledged), Ask(Prepare, No), Same(REFUSED)],
    },
    Rule {
        says: "a commit without a prepare is not acknowledged",
        steps: &[Mark, Ask(Commit, Refused), Same(REFUSED)],
    },
    Rule {
        says: "a commit after the rollback is not acknowledged",
        steps: &[
            Mark,
            Ask(Prepare, Yes),
            Ask(Rollback, Acknowledged),
            Ask(Commit, Refused),
            Same(UNDONE),
        ],
    },
    Rule {
        says: "a rollback after the commit is not acknowledged",
        steps: &[
            Ask(Prepare, Yes),
            Ask(Commit, Acknowledged),
            Mark,
            Ask(Rollback, Refused),
            Same(REFUSED),
        ],
    },
    Rule {
        says: "prepares that arrive at once all vote alike, and prepare once",
        steps: &[Mark, AtOnce(Prepare, Yes), Ask(Rollback, Acknowledged), Same(UNDONE)],
    },
    Rule {
        says: "commits that arrive at once are all acknowledged, and commit once",
        steps: &[Mark, Ask(Prepare, Yes), AtOnce(Commit, Acknowledged), Usual],
    },
    Rule {
        says: "an answer that is lost is given again",
        steps: &[
            Mark,
            Lost(Prepare),
            Lost(Prepare),
            Ask(Prepare, Yes),
            Lost(Commit),
            Lost(Commit),
            Ask(Commit, Acknowledged),
            Usual,
        ],
    },
    Rule {
        says: "a rollback whose answer is lost is acknowledged again and undoes everything",
        steps: &[
            Mark,
            Lost(Prepare),
            Ask(Prepare, Yes),
            Lost(Rollback),
            Ask(Rollback, Acknowledged),
            Same(UNDONE),
        ],
    },
    Rule {
        says: "a restart between prepare and commit: the commit is acknowledged, and commits once",
        steps: &[
            Mark,
            Ask(Prepare, Yes),
            Restart,
            Ask(Commit, Acknowledged),
            Usual,
            Restart,
            Ask(Commit, Acknowledged),
            Usual,
        ],
    },
    Rule {
        says: "a restart between prepare and rollback: the rollback is acknowledged, and undoes it",
        steps: &[Mark, Ask(Prepare, Yes), Restart, Ask(Rollback, Acknowledged), Same(UNDONE)],
    },
];

/// The rules for compensable branches.
pub(super) const COMPENSABLE_RULES: [Rule; 9] = [
    Rule {
        says: "an execute succeeds, and a compensate is acknowledged",
        steps: &[
            Mark,
            Ask(Execute, Yes),
            Learn,
            Ask(Compensate, Acknowledged),
            Same("a compensate must undo the execute"),
        ],
    },
    Rule {
        says: "a repeated execute answers as the first did and has no second effect",
        steps: &[
            Ask(Execute, Yes),
            Mark,
            Ask(Execute, AsBefore),
            Same(AGAIN),
            Ask(Compensate, Acknowledged),
        ],
    },
    Rule {
        says: "a repeated compensate is acknowledged and has no second effect",
        steps: &[
            Mark,
            Ask(Execute, Yes),
            Ask(Compensate, Acknowledged),
            Ask(Compensate, Acknowledged),
            Ask(Compensate, Acknowledged),
            Same(AGAIN),
        ],
    },
    Rule {
        says: "a compensate before any execute is acknowledged",
        steps: &[Mark, Ask(Compensate, Acknowledged), Same(NOTHING)],
    },
    Rule {
        says: "an execute after the compensate is refused",
        steps: &[Mark, Ask(Compensate, Acknowledged), Ask(Execute, No), Same(REFUSED)],
    },
    Rule {
        says: "executes that arrive at once all answer alike, and execute once",
        steps: &[Mark, AtOnce(Execute, Yes), Ask(Compensate, Acknowledged), Same(COMPENSATED)],
    },
    Rule {
        says: "compensates that arrive at once are all acknowledged, and compensate once",
        steps: &[Mark, Ask(Execute, Yes), AtOnce(Compensate, Acknowledged), Same(COMPENSATED)],
    },
    Rule {
        says: "an answer that is lost is given again",
        steps: &[
            Mark,
            Lost(Execute),
            Lost(Execute),
            Ask(Execute, Yes),
            Usual,
            Lost(Compensate),
            Ask(Compensate, Acknowledged),
            Same(COMPENSATED),
        ],
    },
    Rule {
        says: "a restart between execute and compensate: the compensate is acknowledged, and \
               compensates once",
        steps: &[
            Mark,
            Ask(Execute, Yes),
            Restart,
            Ask(Compensate, Acknowledged),
            Same(COMPENSATED),
            Restart,
            Ask(Compensate, Acknowledged),
            Same(COMPENSATED),
        ],
    },
];
