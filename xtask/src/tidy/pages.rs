//! Rules for pages and for all text: links that lead somewhere, a map that stays short, and no path
//! of the machine that somebody happened to work on. Whether a page is true is left to its readers.

use super::Finding;
use super::files::Files;
use super::scan::is_word_byte;

/// ARCHITECTURE.md is a map; beyond this it is a book.
const MAP_LINES_MAX: usize = 400;

/// Folders that exist on one machine only. In pieces, because this file is text as well.
const MACHINE_FOLDERS: [&str; 3] =
    [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "farm/")];

pub fn look(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in files {
        if path != "Cargo.lock" {
            findings.extend(machine_paths(path, text));
        }
        if path.ends_with(".md") {
            findings.extend(length(path, text));
            findings.extend(dead_links(path, text, files));
        }
    }
    findings
}

fn length(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let over = lines
        .checked_sub(MAP_LINES_MAX)
        .filter(|over| *over > 0 && path.ends_with("ARCHITECTURE.md"))?;
    let advice = format!("{lines} lines, at most {MAP_LINES_MAX}: move detail to where it applies");
    Some(Finding::new(path, MAP_LINES_MAX + 1, "page-length", advice).weighing(over))
}

fn machine_paths(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| names(line, folder)) else {
            continue;
        };
        let advice = format!("`{folder}` exists on one machine only: use a path from the root");
        findings.push(Finding::new(path, index + 1, "machine-path", advice));
    }
    findings
}

/// Whether `folder` stands in `line` as the beginning of a path.
fn names(line: &str, folder: &str) -> bool {
    let mut starts = line.match_indices(folder).map(|(at, _)| line.as_bytes()[..at].last());
    starts.any(|before| !before.is_some_and(|byte| is_word_byte(*byte) || b"./-~}$".contains(byte)))
}

fn dead_links(path: &str, text: &str, files: &Files) -> Vec<Finding> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~") {
            fenced = !fenced;
        }
        let targets = if fenced { Vec::new() } else { targets(line) };
        for target in targets.into_iter().filter(|target| !leads_somewhere(folder, target, files)) {
            let advice = format!("`{target}` is not in the project: correct or remove the link");
            findings.push(Finding::new(path, index + 1, "dead-link", advice));
        }
    }
    findings
}

/// What the links on a line point at: `](target "title")`, and `[name]: target`.
fn targets(line: &str) -> Vec<String> {
    let outside: String = line.split('`').step_by(2).collect();
    let inline = outside.split("](").skip(1).map(|rest| {
        let rest = rest.trim_start().trim_start_matches('<');
        rest.split([')', ' ', '>']).next().unwrap_or(rest).to_string()
    });
    let mut targets: Vec<String> = inline.collect();
    let named = outside.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
    if let Some((name, target)) = named.filter(|(name, _)| !name.contains(']')) {
        let note = name.starts_with('^');
        targets.extend(target.split_whitespace().next().filter(|_| !note).map(String::from));
    }
    targets
}

fn leads_somewhere(folder: &str, target: &str, files: &Files) -> bool {
    let scheme = target.split_once(':').is_some_and(|(scheme, _)| !scheme.contains(['/', '.']));
    let path = target.split(['#', '?']).next().unwrap_or(target);
    if scheme || path.is_empty() {
        return true;
    }
    let from = if path.starts_with('/') { "" } else { folder };
    let Some(wanted) = resolve(from, path) else { return false };
    let inside = format!("{wanted}/");
    wanted.is_empty() || files.keys().any(|path| *path == wanted || path.starts_with(&inside))
}

/// A path from the root; none if it leads out of the project.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let path = path.replace("%20", " ");
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{MACHINE_FOLDERS, look};

    fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
        let mut files: super::Files =
            [("README.md", ""), ("docs/a b.md", ""), ("docs/errors/x.md", "")]
                .map(|(path, text)| (path.to_string(), text.to_string()))
                .into();
        files.insert(path.into(), text.into());
        let found: Vec<_> = look(&files).iter().map(|found| (found.line, found.rule)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_link_must_lead_into_the_project() {
        let dead = &[(1, "dead-link")];
        check("docs/p.md", "[a](../README.md#top) [b](errors) [c](errors/x.md 'title')", &[]);
        check("docs/p.md", "[a](a%20b.md) [b](#here) [c](https://x.org/y) [d](mailto:a@b.c)", &[]);
        check("docs/p.md", "[a](/README.md) ![b](errors/x.md)", &[]);
        check("docs/p.md", "[a](README.md)", dead);
        check("docs/p.md", "[a](../../README.md)", dead);
        check("docs/p.md", "[a](https://x.org) [b](gone.md)", dead);
        check("p.md", "[a]: gone.md", dead);
        check("p.md", "[a]: README.md\n[^1]: a footnote", &[]);
    }

    #[test]
    fn what_looks_like_a_link_in_code_is_none() {
        check("p.md", "`[a](gone.md)`", &[]);
        check("p.md", "```\n[a](gone.md)\n```\n[b](gone.md)", &[(4, "dead-link")]);
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_text() {
        let path = |before: &str| format!("x\n{before}{}x", MACHINE_FOLDERS[0]);
        check("a.toml", &path(""), &[(2, "machine-path")]);
        check("a.toml", &path("see `"), &[(2, "machine-path")]);
        check("a.toml", &path("file = \""), &[(2, "machine-path")]);
        check("a.toml", &path("https://x.org"), &[]);
        check("a.toml", &path(".."), &[]);
        check("a.toml", &path("$HOME"), &[]);
    }

    #[test]
    fn the_map_stays_short() {
        check("ARCHITECTURE.md", &"x\n".repeat(400), &[]);
        check("ARCHITECTURE.md", &"x\n".repeat(401), &[(401, "page-length")]);
        check("PROTOCOL.md", &"x\n".repeat(401), &[]);
    }
}
