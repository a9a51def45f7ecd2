//! The error reference: a page for every stable code, made from the tables in the code, so that no
//! page can be missing or stale. `docs/errors/` holds them; `unanimity error-pages DIR` writes
//! them.

use std::fmt::Write;

use crate::problem::{CODES, CodeDoc};

/// Codes that do not come over HTTP: the program prints them when it cannot start, or participants
/// answer with them.
const OTHER_CODES: &[(&str, &[Row])] = &[
    ("When the coordinator starts or stops", START_CODES),
    ("What the SDK's participant answers", PARTICIPANT_CODES),
    ("When the SDK's participant opens its database", DATABASE_CODES),
    ("When a database server is started for a demo or a test", SERVER_CODES),
    ("When a history is judged", TRACE_CODES),
];

/// Code, title, meaning, remedy.
type Row = (&'static str, &'static str, &'static str, &'static str);

const START_CODES: &[Row] = &[
    (
        "configuration",
        "A setting cannot be used",
        "A value in the configuration has no sense here.",
        "Correct the setting that the message names; `unanimity serve --help` lists them all.",
    ),
    (
        "data_folder",
        "The data folder cannot be used",
        "The folder could not be made, opened or locked. Nothing in it was changed.",
        "Choose a folder that this user may write to (`data.folder`).",
    ),
    (
        "data_in_use",
        "Another coordinator uses the data folder",
        "A data folder belongs to one coordinator at a time. Nothing in it was changed.",
        "Stop the other one, or choose another folder.",
    ),
    (
        "database_refused",
        "A configured database cannot be used",
        "A database refuses the coordinator, or is set up so that it cannot prepare transactions. \
         The coordinator has not started. A database that only does not answer is no reason for \
         this.",
        "Do what the message says: correct the URL or the password, switch prepared transactions \
         on, use a newer server, or have the table made.",
    ),
    (
        "history",
        "The history cannot be used",
        "The file of ended transactions cannot be opened, or was written by a newer version.",
        "Look at the message for the cause; a newer file needs a newer program.",
    ),
    (
        "shards_changed",
        "The number of shards is fixed",
        "The data folder was made with another number of shards, and an id names its shard.",
        "Set `journal.shards` back to the number that the message names.",
    ),
    (
        "panicked",
        "The coordinator broke on a transaction",
        "While it read its journal back, an invariant of the coordinator's own did not hold. It is \
         on record for which transaction. Nothing was lost.",
        "Start it again: after `limits.panics_per_transaction_max` attempts that transaction is \
         set aside, and the others go on. Report what the log says.",
    ),
    (
        "journal_missing",
        "The journal is gone",
        "The data folder was used before, and a journal in it is missing or empty. Nothing in it \
         was changed. Beginning anew would forget transactions that were committed.",
        "Restore the journal from a copy, or use a new data folder.",
    ),
    (
        "journal_behind",
        "The journal is older than the history",
        "The history holds transactions that ended at a position which the journal does not have: \
         the journal is an older copy, or belongs to another folder. Nothing in it was changed. \
         Going on would take transactions that were committed for unknown.",
        "Put the latest journal back beside this history. If it is lost, read \"To restore an \
         older copy is dangerous\" in the operating guide before anything else.",
    ),
    (
        "journal_in_use",
        "Another process has the journal open",
        "A journal belongs to one process at a time. Nothing in it was changed.",
        "Stop the other process.",
    ),
    (
        "journal_conflict",
        "Somebody else has written to the journal",
        "The position that this coordinator wanted to write is taken: it was replaced. It has \
         stopped.",
        "Find the other coordinator; only one may own a shard.",
    ),
    (
        "journal_gap",
        "A batch is missing from the journal",
        "The journal's batches are numbered, and one is not there. Nothing was skipped.",
        "Restore the journal from a copy; do not start on what is left.",
    ),
    (
        "journal_corrupt",
        "The journal is damaged",
        "A checksum does not match, or a record cannot be what a coordinator wrote. Nothing was \
         skipped.",
        "Restore the journal from a copy, and have the disk checked.",
    ),
    (
        "journal_newer_version",
        "The journal was written by a newer version",
        "This program does not know the journal's format. Nothing in it was changed.",
        "Start the newer version.",
    ),
    (
        "journal_foreign_file",
        "The file is no journal",
        "The file at the journal's place belongs to something else. It was not changed.",
        "Choose another data folder.",
    ),
    (
        "journal_disk_full",
        "The disk is full",
        "The journal could not be made durable. The coordinator has stopped; what it had \
         acknowledged is safe.",
        "Make room and start it again: it recovers by itself.",
    ),
    (
        "journal_read_only",
        "The journal cannot be written",
        "The file or its folder is read-only for this user.",
        "Give the user the right to write, or choose another data folder.",
    ),
    (
        "journal_io",
        "The disk failed",
        "Reading or writing the journal failed. The coordinator has stopped; what it had \
         acknowledged is safe.",
        "Look at the message and at the system's log; then start it again: it recovers by itself.",
    ),
    (
        "journal_too_large",
        "A batch is too large for the journal",
        "One batch of records is larger than the journal takes. Nothing of it was written.",
        "Report it: limits on requests should have kept this from happening.",
    ),
    (
        "journal_poisoned",
        "The journal failed before",
        "After a failed write nothing more is written: whether that write is durable is not known.",
        "Start the coordinator again: it recovers by itself.",
    ),
];

const DATABASE_CODES: &[Row] = &[
    (
        "database_url",
        "The database's URL cannot be used",
        "It cannot be read, or asks for what there is not.",
        "Write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE or mysql://...",
    ),
    (
        "database_tls",
        "The database's URL asks for TLS",
        "The SDK speaks to databases without encryption.",
        "Use a Unix socket, the loopback interface or a tunnel, and leave the wish out of the URL.",
    ),
    (
        "database_unusable",
        "The database does not answer, or refuses",
        "The message has the database's own words: it is down, the password is wrong, there is no \
         such database.",
        "See to the cause, and start the service again.",
    ),
    (
        "database_not_durable",
        "The database does not make commits durable",
        "Its settings let it answer a commit before the disk has it. What it promises can be lost \
         with its power.",
        "Set what the message names; for a test, `without_durability` lets it pass.",
    ),
    (
        "database_cannot_prepare",
        "The database cannot prepare transactions",
        "PostgreSQL has no room for prepared transactions unless it is told to have.",
        "Set `max_prepared_transactions` as the message says, and start the server anew.",
    ),
    (
        "database_too_old",
        "The database forgets what is prepared",
        "This version rolls a prepared transaction back when its connection ends.",
        "Use the version that the message names, or a guard instead of XA.",
    ),
    (
        "database_migration",
        "The service's tables cannot be brought up to date",
        "The service's own function for it has failed; the message has its words.",
        "See to the cause, and start the service again.",
    ),
];

const SERVER_CODES: &[Row] = &[
    (
        "database_server_missing",
        "The server's program is not on this machine",
        "Neither PATH nor the usual folders have it.",
        "Install the package that the message names.",
    ),
    (
        "database_user_missing",
        "There is nobody to run the server as",
        "A database server does not run as root, and none of the users that the message names is \
         there.",
        "Install the server's package, which brings its user, or run as another user than root.",
    ),
    (
        "database_folder",
        "The server's folder cannot be used",
        "It could not be made, written, or given to the server's user.",
        "Set TMPDIR to a folder that has room and that every user may enter.",
    ),
    (
        "database_initialise",
        "The server's data folder cannot be initialised",
        "The program that prepares it has failed; the message has the end of its output.",
        "See to the cause that it names.",
    ),
    (
        "database_start",
        "The server does not start",
        "It has ended, or has not answered in time; the message has the end of its log.",
        "See to the cause that it names.",
    ),
    (
        "database_port",
        "No port is free for the server",
        "All ports that it may listen on are taken.",
        "End what listens there.",
    ),
];

const PARTICIPANT_CODES: &[Row] = &[
    (
        "never_prepared",
        "A commit for a branch that was never prepared",
        "This participant has no memory of the branch: it was restored from an older state, or \
         the wrong one was called.",
        "Find out which. The coordinator goes on asking, and the branch is shown as parked.",
    ),
    (
        "already_rolled_back",
        "A commit for a branch that is rolled back",
        "Somebody has rolled the branch back here, and the coordinator's decision is to commit.",
        "Settle it by hand: the work must be done again, or undone elsewhere.",
    ),
    (
        "already_committed",
        "A rollback for a branch that is committed",
        "Somebody has committed the branch here, and the coordinator's decision is to roll back.",
        "Settle it by hand: the work must be undone here.",
    ),
    (
        "wrong_kind",
        "An operation of another kind of branch",
        "A two-phase operation came for a compensable or deferred branch, or the reverse.",
        "Correct the branch's kind in the request.",
    ),
    (
        "header_missing",
        "A header of the contract is missing",
        "A call must say its transaction, branch and attempt.",
        "Send the three headers Unanimity-Transaction, Unanimity-Branch and Unanimity-Attempt.",
    ),
    (
        "header_invalid",
        "A header of the contract cannot be read",
        "A transaction or branch has 1 to 128 of A-Z a-z 0-9 . _ : -, an attempt is a number from \
         1.",
        "Correct the header that the detail names.",
    ),
    (
        "service_failed",
        "The service failed",
        "The service's own code, or its database, could not do the work now. Nothing of it was \
         kept.",
        "Look at the service's log. The coordinator calls again.",
    ),
    (
        "service_busy",
        "The service is busy",
        "Another branch holds what this call needs. Nothing of it was kept.",
        "Nothing: the coordinator calls again. If it goes on, look for the branch in doubt.",
    ),
];

const TRACE_CODES: &[Row] = &[
    (
        "trace_invalid",
        "The file is no trace",
        "`unanimity verify` met a line that is no event of a trace, or a file that does not begin \
         with a line that says what its writer could see. Nothing behind that line was judged.",
        "Look at the line that the message names. `unanimity audit trace` writes traces; \
         `unanimity audit export` writes something else.",
    ),
    (
        "trace_newer_version",
        "The trace was written by a newer version",
        "The trace's format is newer than this program, which would not understand all of it.",
        "Verify it with the newer version.",
    ),
];

/// A page of the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The file's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Every page, and the list of them.
#[must_use]
pub fn pages() -> Vec<Page> {
    let mut list = String::from("# Error codes\n\nEvery error has a stable code. ");
    list.push_str("Over HTTP it comes in a problem document (RFC 9457), in the member `code`.\n");
    let mut pages = Vec::new();
    list.push_str("\n## What the coordinator answers over HTTP\n\n");
    for doc in CODES {
        let CodeDoc { code, status, title, meaning, remedy } = *doc;
        let status = format!("\nHTTP status: {status}\n");
        pages.push(page(&mut list, code, title, &status, meaning, remedy));
    }
    for (heading, codes) in OTHER_CODES {
        // Writing to a String cannot fail.
        writeln!(list, "\n## {heading}\n").unwrap_or(());
        for (code, title, meaning, remedy) in *codes {
            pages.push(page(&mut list, code, title, "", meaning, remedy));
        }
    }
    pages.push(Page { name: "README.md".to_owned(), text: list });
    pages
}

fn page(
    list: &mut String,
    code: &str,
    title: &str,
    status: &str,
    meaning: &str,
    remedy: &str,
) -> Page {
    writeln!(list, "- [{code}]({code}.md): {title}").unwrap_or(());
    let text = format!(
        "# {code}\n\n{title}.\n{status}\n## What has happened\n\n{meaning}\n\n## What to \
         do\n\n{remedy}\n"
    );
    Page { name: format!("{code}.md"), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_in_docs_are_those_of_the_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        for page in pages() {
            let found = std::fs::read_to_string(format!("{folder}/{}", page.name));
            let again = "write them anew with: unanimity error-pages docs/errors";
            assert_eq!(found.unwrap_or_default(), page.text, "{}: {again}", page.name);
        }
    }
}
