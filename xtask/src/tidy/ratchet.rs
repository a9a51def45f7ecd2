//! Exceptions that may only become fewer. The ratchet decides which findings are let pass for now;
//! a number in its file goes up only by hand, in a change that somebody reads.

use std::collections::BTreeMap;

use super::{Finding, RATCHET};

const HEAD: &str = "\
# What `cargo xtask tidy` lets pass for now: file, rule, count. A count may only become smaller:
# `cargo xtask tidy --update` lowers it to what is still there. For a limit in lines the count is
# the number of lines above the limit.
";

/// The exceptions: by file and rule, how many, and the line that says so.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ratchet {
    allowed: BTreeMap<(String, String), (u32, usize)>,
}

impl Ratchet {
    /// Reads the file; an error begins with the line's number.
    pub fn parse(text: &str) -> Result<Ratchet, String> {
        let mut ratchet = Ratchet::default();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [path, rule, count] = words[..] else {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                return Err(format!("{}: ratchet: write `file rule count`", index + 1));
            };
            let count: u32 = count
                .parse()
                .map_err(|_| format!("{}: ratchet: `{count}` is not a count", index + 1))?;
            ratchet.allowed.insert((path.into(), rule.into()), (count, index + 1));
        }
        Ok(ratchet)
    }

    /// The file again, comments replaced by its head.
    pub fn render(&self) -> String {
        let lines = self.allowed.iter().map(|((p, r), (count, _))| format!("{p} {r} {count}\n"));
        HEAD.to_string() + &lines.collect::<String>()
    }

    /// Lowers every count to what is still there; whether anything changed.
    pub fn lower(&mut self, findings: &[Finding]) -> bool {
        let before: Vec<u32> = self.allowed.values().map(|(count, _)| *count).collect();
        for ((path, rule), (count, _)) in &mut self.allowed {
            *count = found(findings, path, rule).min(*count);
        }
        let after: Vec<u32> = self.allowed.values().map(|(count, _)| *count).collect();
        self.allowed.retain(|_, (count, _)| *count > 0);
        before != after
    }

    /// The findings that are not let pass, and the exceptions that are too generous.
    pub fn judge(&self, findings: &[Finding]) -> Vec<Finding> {
        let mut judged = Vec::new();
        for finding in findings {
            let Finding { path, rule, .. } = finding;
            let there = found(findings, path, rule);
            let allowed = self.allowed.get(&(path.clone(), (*rule).to_string())).map_or(0, |a| a.0);
            if there > allowed {
                let mut finding = finding.clone();
                if allowed > 0 {
                    finding.advice += &format!(" ({there} found, the ratchet allows {allowed})");
                }
                judged.push(finding);
            }
        }
        for ((path, rule), (count, line)) in &self.allowed {
            let there = found(findings, path, rule);
            if there < *count {
                let advice = format!(
                    "{path} {rule}: only {there} left of {count}: `cargo xtask tidy --update`"
                );
                judged.push(Finding::new(RATCHET, *line, "ratchet", advice));
            }
        }
        judged
    }
}

fn found(findings: &[Finding], path: &str, rule: &str) -> u32 {
    let here = findings.iter().filter(|finding| finding.path == path && finding.rule == rule);
    here.map(|finding| finding.weight).sum()
}

#[cfg(test)]
mod tests {
    use super::Ratchet;
    use crate::tidy::Finding;

    fn findings(weights: &[usize]) -> Vec<Finding> {
        let one = |weight: &usize| Finding::new("a.rs", 7, "rule", "do it").weighing(*weight);
        weights.iter().map(one).collect()
    }

    fn check(ratchet: &str, weights: &[usize], expected: &[&str]) {
        let judged = Ratchet::parse(ratchet).unwrap().judge(&findings(weights));
        let advice: Vec<&str> = judged.iter().map(|finding| finding.advice.as_str()).collect();
        assert_eq!(advice, expected);
    }

    #[test]
    fn what_is_allowed_passes() {
        check("", &[], &[]);
        check("# why\n\na.rs rule 2\n", &[1, 1], &[]);
        check("a.rs rule 9", &[9], &[]);
    }

    #[test]
    fn more_than_allowed_is_shown_whole() {
        check("", &[1], &["do it"]);
        let more = "do it (3 found, the ratchet allows 2)";
        check("a.rs rule 2", &[1, 2], &[more, more]);
        check(
            "b.rs rule 2\na.rs other 1",
            &[1],
            &[
                "do it",
                "a.rs other: only 0 left of 1: `cargo xtask tidy --update`",
                "b.rs rule: only 0 left of 2: `cargo xtask tidy --update`",
            ],
        );
    }

    #[test]
    fn an_update_lowers_and_never_raises() {
        let lowered = |text: &str, weights: &[usize]| {
            let mut ratchet = Ratchet::parse(text).unwrap();
            let changed = ratchet.lower(&findings(weights));
            let rendered = ratchet.render();
            (changed, rendered.lines().filter(|line| !line.starts_with('#')).collect::<String>())
        };
        assert_eq!(lowered("a.rs rule 5", &[3]), (true, "a.rs rule 3".into()));
        assert_eq!(lowered("a.rs rule 5", &[8]), (false, "a.rs rule 5".into()));
        assert_eq!(lowered("a.rs rule 5", &[]), (true, String::new()));
    }

    #[test]
    fn a_bad_line_is_named() {
        assert!(Ratchet::parse("# x\na.rs rule").unwrap_err().starts_with("2:"));
        assert!(Ratchet::parse("a.rs rule -1").unwrap_err().starts_with("1:"));
    }
}
