//! Which files the style holds for: all text that is committed or could be. What must be true of
//! them is left to the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::Failure;

/// Text by path from the root, with `/` in between.
pub type Files = BTreeMap<String, String>;

/// Git's own, and what is built or found by tools.
const NOT_OURS: [&str; 5] = [".git", "target", "fuzz/target", "fuzz/artifacts", "fuzz/coverage"];
/// What the name of a file ends in that a generator has written: its style is not ours.
const GENERATED: &str = "/generated.rs";

/// Reads every tracked or untracked and not ignored file; what is not UTF-8 is not text.
pub fn read(root: &Path) -> Result<Files, Failure> {
    let mut files = Files::new();
    let paths = listed(root).map_or_else(|| walked(root), Ok)?;
    for path in paths.into_iter().filter(|path| !path.ends_with(GENERATED)) {
        // Listed and gone: deleted in the working tree, or by somebody at this moment.
        let Ok(bytes) = std::fs::read(root.join(&path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            files.insert(path, text);
        }
    }
    Ok(files)
}

/// What git says; nothing where there is no git, no repository, or one that git does not trust
/// (another owner's, as in many containers).
fn listed(root: &Path) -> Option<BTreeSet<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let answer = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    let paths = text.split('\0').filter(|path| !path.is_empty()).map(String::from).collect();
    answer.status.success().then_some(paths)
}

/// All files but git's own and what is built.
fn walked(root: &Path) -> Result<BTreeSet<String>, Failure> {
    let mut found = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(root.join(&folder))
            .map_err(|error| format!("cannot list ./{folder}: {error}"))?;
        for entry in entries.flatten() {
            let path = format!("{folder}{}", entry.file_name().to_string_lossy());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !NOT_OURS.contains(&&*path) => {
                    folders.push(format!("{path}/"));
                }
                Ok(kind) if kind.is_file() => {
                    found.insert(path);
                }
                // A link, a folder left out above, or an entry that has gone since.
                _ => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{listed, walked};
    use crate::process::root;

    #[test]
    fn a_walk_finds_what_git_lists() {
        let root = root();
        // First what git lists: a file that somebody adds in between is then only walked.
        let listed = listed(&root).unwrap_or_default();
        let walked = walked(&root).unwrap();
        assert!(walked.contains("Cargo.toml") && walked.contains("xtask/src/tidy.rs"));
        for path in listed {
            assert!(walked.contains(&path) || !root.join(&path).exists(), "{path}");
        }
    }
}
