//! `cargo xtask tidy`: the house style, as a test. This file decides which files are looked at and
//! what is printed; what is wrong in a file is decided by `rules` (Rust), `pages` (Markdown and all
//! text) and `packages` (Cargo files), and what is let pass for now by `ratchet`.

mod files;
mod functions;
mod packages;
mod pages;
mod ratchet;
mod rules;
mod scan;
mod tests_in;

use crate::Failure;
use crate::process::root;
use ratchet::Ratchet;

/// Where a rule is broken, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub rule: &'static str,
    pub advice: String,
    /// What the ratchet counts: 1, or by how many lines a limit is exceeded.
    pub weight: u32,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, advice: impl Into<String>) -> Finding {
        Finding { path: path.into(), line, rule, advice: advice.into(), weight: 1 }
    }

    fn weighing(self, weight: usize) -> Finding {
        Finding { weight: u32::try_from(weight).unwrap_or(u32::MAX), ..self }
    }
}

const RATCHET: &str = "xtask/tidy-ratchet.txt";

/// Looks at every file; `update` first lowers the ratchet to what is still there.
pub fn run(update: bool) -> Result<(), Failure> {
    let root = root();
    let files = files::read(&root)?;
    let findings = look(&files);
    let text = files.get(RATCHET).map_or("", String::as_str);
    let mut ratchet = Ratchet::parse(text).map_err(|error| format!("{RATCHET}:{error}"))?;
    if update && ratchet.lower(&findings) {
        std::fs::write(root.join(RATCHET), ratchet.render())
            .map_err(|error| format!("cannot write {RATCHET}: {error}"))?;
        println!("{RATCHET}: lowered");
    }
    report(files.len(), &ratchet.judge(&findings))
}

fn look(files: &files::Files) -> Vec<Finding> {
    let mut findings = rules::look(files);
    findings.extend(pages::look(files));
    findings.extend(packages::look(files));
    findings.sort_by(|a, b| (&a.path, a.line, a.rule).cmp(&(&b.path, b.line, b.rule)));
    findings
}

fn report(files: usize, findings: &[Finding]) -> Result<(), Failure> {
    for Finding { path, line, rule, advice, .. } in findings {
        println!("{path}:{line}: {rule}: {advice}");
    }
    if findings.is_empty() {
        println!("tidy: {files} files, nothing to do");
        return Ok(());
    }
    Err(format!("{} findings in the house style", findings.len()))
}
