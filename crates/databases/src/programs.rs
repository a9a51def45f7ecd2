//! Decides which of the server programs on this machine is used: the first on PATH, else the newest
//! in the places where distributions put them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::DatabaseError;

/// A program that is looked for.
pub(crate) struct Wanted {
    pub(crate) program: &'static str,
    /// Debian's package, to be named where the program is missing.
    pub(crate) package: &'static str,
    /// Folders besides PATH; a `*` stands for one folder's name.
    pub(crate) folders: &'static [&'static str],
}

/// The program's path, links followed: its companions lie beside it.
pub(crate) fn find(wanted: &Wanted) -> Result<PathBuf, DatabaseError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    let others = wanted.folders.iter().flat_map(|folder| expand(folder));
    let mut candidates =
        on_path.into_iter().chain(others).map(|folder| folder.join(wanted.program));
    let found = candidates.find(|file| file.is_file()).and_then(|file| file.canonicalize().ok());
    found.ok_or_else(|| DatabaseError::ServerMissing {
        program: wanted.program,
        looked_in: wanted.folders.join(", "),
        package: wanted.package,
    })
}

/// What `program --version` says, on one line; empty if it says nothing.
pub(crate) fn version(program: &Path) -> String {
    let answer = Command::new(program).arg("--version").output();
    let text = answer.map(|answer| answer.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// The folders that a pattern stands for, those with the greatest number first.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let entries = std::fs::read_dir(before).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort_by_key(|name| std::cmp::Reverse(number(name)));
    names.iter().map(|name| PathBuf::from(format!("{before}{name}{after}"))).collect()
}

fn number(name: &str) -> u64 {
    let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Wanted, expand, find};

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let wanted = Wanted {
            program: "no-such-server",
            package: "a-package",
            folders: &["/nowhere/*/bin"],
        };
        let error = find(&wanted).unwrap_err();
        assert_eq!(error.code(), "database_server_missing");
        let text = error.to_string();
        assert!(text.contains("no-such-server") && text.contains("apt-get install a-package"));
    }

    #[test]
    fn a_star_stands_for_folders_and_the_newest_comes_first() {
        let base = std::env::temp_dir().join(format!("unanimity-expand-{}", std::process::id()));
        for version in ["9", "15", "13"] {
            std::fs::create_dir_all(base.join(version).join("bin")).unwrap();
        }
        let found = expand(&format!("{}/*/bin", base.display()));
        let versions: Vec<_> = found.iter().map(|folder| folder.parent().unwrap()).collect();
        assert_eq!(versions, [base.join("15"), base.join("13"), base.join("9")]);
        std::fs::remove_dir_all(base).unwrap();
    }
}
