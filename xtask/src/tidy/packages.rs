//! Rules for the Cargo files: which package of ours may depend on which (the arrows of the ground
//! plan), what `core` may depend on (nothing), and which foreign packages stay out. It reads just
//! enough TOML for files that people write; what a dependency is used for is left to the rules.

use super::Finding;
use super::files::Files;

/// Our packages and those of ours that each may name.
///
/// `server` reaches everything that its two arrows (manager, sdk) lead to, and the bank, which its
/// demo runs. `bank` is an example of what a user writes: it sees the sdk alone. `sdk` and
/// `bank` start databases in their tests only.
const ARROWS: [(&str, &[&str]); 13] = [
    ("unanimity-core", &[]),
    ("unanimity-journal", &[]),
    ("unanimity", &["unanimity-core", "unanimity-journal"]),
    ("unanimity-sdk", &["unanimity-core", "unanimity-databases"]),
    (
        "unanimity-server",
        &[
            "unanimity",
            "unanimity-core",
            "unanimity-journal",
            "unanimity-judge",
            "unanimity-sdk",
            "unanimity-bank",
            "unanimity-databases",
        ],
    ),
    ("unanimity-judge", &["unanimity-core"]),
    ("unanimity-check", &["unanimity-core", "unanimity-journal", "unanimity-judge"]),
    ("unanimity-bank", &["unanimity-sdk", "unanimity-databases"]),
    ("unanimity-databases", &[]),
    // Whatever reads bytes from outside.
    (
        "unanimity-inputs",
        &[
            "unanimity",
            "unanimity-core",
            "unanimity-journal",
            "unanimity-judge",
            "unanimity-sdk",
            "unanimity-server",
        ],
    ),
    ("unanimity-fuzz", &["unanimity-inputs"]),
    ("xtask", &[]),
    ("xtask-proto", &[]),
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub fn look(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files {
        if path.ends_with("/Cargo.toml") {
            findings.extend(arrows(path, text));
        }
    }
    let banned = banned(files.get("deny.toml").map_or("", String::as_str));
    findings.extend(files.get("Cargo.lock").into_iter().flat_map(|text| locked(text, &banned)));
    findings
}

/// The packages of ours that `package` may name; none if it is not in the table.
pub fn may_name(package: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(name, _)| *name == package).map(|(_, named)| *named)
}

/// The name that a Cargo file gives its package.
pub fn package_name(text: &str) -> Option<&str> {
    let mut entries = entries(text);
    entries.find(|entry| (entry.section, entry.key) == ("package", "name")).map(|entry| entry.value)
}

struct Entry<'a> {
    line: usize,
    section: &'a str,
    key: &'a str,
    value: &'a str,
}

/// `key = value` lines with the section that they are in, quotes taken off.
fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line_text = line.trim();
        if let Some(header) = line_text.strip_prefix('[').filter(|_| line_text.ends_with(']')) {
            section = header.trim_matches(['[', ']']);
            // `[dependencies.name]` is an entry as well.
            return header.contains("dependencies.").then_some(Entry {
                line: index + 1,
                section: header.rsplit_once('.')?.0,
                key: header.rsplit_once('.')?.1.trim_end_matches(']'),
                value: "",
            });
        }
        let (key, value) = line_text.split_once('=')?;
        let (key, value) = (key.trim().trim_matches('"'), value.trim().trim_matches('"'));
        Some(Entry { line: index + 1, section, key, value })
    })
}

fn arrows(path: &str, text: &str) -> Vec<Finding> {
    let name = package_name(text).unwrap_or("");
    let Some(allowed) = may_name(name) else {
        let advice = format!("package `{name}` is not in the table ARROWS of xtask/src/tidy");
        return vec![Finding::new(path, 1, "arrows", advice)];
    };
    let mut findings = Vec::new();
    for entry in entries(text).filter(|entry| entry.section.contains("dependencies")) {
        let dependency = dependency(&entry);
        let ours = dependency.starts_with("unanimity");
        let development = entry.section.ends_with("dev-dependencies");
        let advice = if ours && dependency != name && !allowed.contains(&dependency) {
            format!("no arrow leads from `{name}` to `{dependency}`: turn the dependency round")
        } else if name == "unanimity-core" && !development {
            format!("`core` depends on nothing: do without `{dependency}`")
        } else {
            continue;
        };
        findings.push(Finding::new(path, entry.line, "arrows", advice));
    }
    findings
}

/// The package behind an entry: its key, or what `package = "..."` says.
fn dependency<'a>(entry: &Entry<'a>) -> &'a str {
    let renamed = entry.value.split_once("package = \"").and_then(|(_, rest)| rest.split_once('"'));
    let in_table = entry.key == "package";
    match renamed {
        Some((package, _)) => package,
        None if in_table => entry.value,
        None => entry.key.split('.').next().unwrap_or(entry.key),
    }
}

/// The names in the list of bans of deny.toml.
fn banned(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    let entries = lines.filter_map(|line| line.strip_prefix("{ crate = \""));
    entries.filter_map(|rest| rest.split('"').next()).collect()
}

fn locked(text: &str, banned: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in entries(text).filter(|entry| entry.section == "package") {
        let advice = match entry.key {
            "name" if banned.contains(&entry.value) => {
                format!("`{}` is banned by deny.toml, which says why", entry.value)
            }
            "source" if entry.value != REGISTRY => {
                format!("packages come from crates.io only, not from {}", entry.value)
            }
            // No other key says which package it is or where it comes from.
            _ => continue,
        };
        findings.push(Finding::new("Cargo.lock", entry.line, "banned-package", advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{REGISTRY, arrows, banned, locked};

    fn check(name: &str, dependencies: &str, expected: &[usize]) {
        let text = format!("[package]\nname = \"{name}\"\n{dependencies}\n");
        let lines: Vec<usize> = arrows("x/Cargo.toml", &text).iter().map(|f| f.line).collect();
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn dependencies_follow_the_arrows() {
        check("unanimity", "[dependencies]\nunanimity-core.workspace = true\ntokio = \"1\"", &[]);
        check("unanimity-sdk", "[dependencies]\nunanimity-core = { path = \"../core\" }", &[]);
        check("unanimity-sdk", "[dependencies]\na = \"1\"\nunanimity.workspace = true", &[5]);
        check("unanimity-journal", "[dev-dependencies]\nunanimity-core.workspace = true", &[4]);
        check("unanimity-sdk", "[dependencies.unanimity-journal]\nworkspace = true", &[3]);
        check("unanimity-sdk", "[target.'cfg(unix)'.dependencies]\nunanimity = \"1\"", &[4]);
        check("unanimity-sdk", "[dependencies]\na = { package = \"unanimity\" }", &[4]);
        check("unanimity-sdk", "[features]\nunanimity = []", &[]);
        check("unanimity-new", "", &[1]);
    }

    #[test]
    fn core_depends_on_nothing() {
        check("unanimity-core", "[dependencies]\nserde.workspace = true", &[4]);
        check("unanimity-core", "[dev-dependencies]\nproptest.workspace = true", &[]);
    }

    #[test]
    fn what_is_banned_or_comes_from_elsewhere_is_found_in_the_lock_file() {
        let banned = banned("deny = [\n    # why\n    { crate = \"sled\" },\n]");
        assert_eq!(banned, ["sled"]);
        let lock = format!(
            "[[package]]\nname = \"sled\"\nsource = \"{REGISTRY}\"\n\
             [[package]]\nname = \"ours\"\n\
             [[package]]\nname = \"a\"\nsource = \"git+https://x\"",
        );
        let lines: Vec<usize> = locked(&lock, &banned).iter().map(|found| found.line).collect();
        assert_eq!(lines, [2, 8]);
    }
}
