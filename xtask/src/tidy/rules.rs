//! The rules for Rust files, each one function from a file to its findings. They work on tokens and
//! on the comments, never on raw text, so that a banned word in a string offends nobody.

use super::Finding;
use super::files::Files;
use super::functions::functions;
use super::packages::{may_name, package_name};
use super::scan::{Source, Token, is_word_byte};
use super::tests_in::{declared_tests, is_test_path, test_items};

const LINE_CHARACTERS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;

/// What `core` must not name: it is handed time, ids and seeds, and the model checker hashes it.
const IMPURE_WORDS: [&str; 7] =
    ["Instant", "SystemTime", "HashMap", "HashSet", "rand", "tokio", "async"];
const IMPURE_MODULES: [&str; 3] = ["fs", "net", "thread"];

/// A Rust file with everything that the rules ask about it.
struct Rust<'a> {
    path: &'a str,
    source: &'a Source<'a>,
    tokens: Vec<Token<'a>>,
    /// For each token, whether only tests see it.
    in_test: Vec<bool>,
    package: &'a str,
}

pub fn look(files: &Files) -> Vec<Finding> {
    let declared = declared_tests(files);
    let mut findings = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| is_ours(path)) {
        let source = Source::new(text);
        let tokens = source.tokens();
        let mut in_test = vec![is_test_path(path) || declared.contains(path); tokens.len()];
        for (first, last) in test_items(&tokens) {
            in_test[first..=last].fill(true);
        }
        let package = package_of(path, files);
        findings.extend(all(&Rust { path, source: &source, tokens, in_test, package }));
    }
    findings
}

fn is_ours(path: &str) -> bool {
    let folders = ["crates/", "examples/", "xtask/"];
    path.ends_with(".rs") && folders.iter().any(|folder| path.starts_with(folder))
}

/// The name of the package that a file belongs to: the nearest Cargo file above it says so.
fn package_of<'a>(path: &str, files: &'a Files) -> &'a str {
    let mut folder = path;
    while let Some((above, _)) = folder.rsplit_once('/') {
        if let Some(text) = files.get(&format!("{above}/Cargo.toml")) {
            return package_name(text).unwrap_or("");
        }
        folder = above;
    }
    ""
}

fn all(file: &Rust<'_>) -> Vec<Finding> {
    let rules = [
        head,
        line_length,
        file_length,
        function_length,
        purity,
        no_unsafe,
        unfinished,
        unfinished_comments,
        sleeps,
        ignored,
        dropped,
        named_packages,
    ];
    rules.iter().flat_map(|rule| rule(file)).collect()
}

impl Rust<'_> {
    fn at(&self, index: usize, rule: &'static str, advice: impl Into<String>) -> Finding {
        Finding::new(self.path, self.line(index), rule, advice)
    }

    fn line(&self, index: usize) -> usize {
        self.source.line(self.tokens[index].at)
    }

    fn word(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| token.text)
    }

    /// Whether the tokens from `index` on are these.
    fn follows(&self, index: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.word(index + offset) == *word)
    }

    /// The indexes of all tokens for which `wanted` holds.
    fn all(&self, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.tokens.len()).filter(|index| wanted(*index)).collect()
    }
}

fn head(file: &Rust<'_>) -> Vec<Finding> {
    let first = file.source.text.lines().next().unwrap_or("");
    if first.strip_prefix("//!").is_some_and(|words| !words.trim().is_empty()) {
        return Vec::new();
    }
    let advice = "open the file with a `//!` paragraph: what it decides, what it leaves to whom";
    vec![Finding::new(file.path, 1, "head", advice)]
}

fn line_length(file: &Rust<'_>) -> Vec<Finding> {
    let lines = file.source.text.lines().map(|line| line.chars().count()).enumerate();
    let long = lines.filter(|(_, characters)| *characters > LINE_CHARACTERS_MAX);
    let finding = |(index, characters)| {
        let advice = format!("{characters} characters, at most {LINE_CHARACTERS_MAX}: break it");
        Finding::new(file.path, index + 1, "line-length", advice)
    };
    long.map(finding).collect()
}

fn file_length(file: &Rust<'_>) -> Vec<Finding> {
    let most = file_lines_max(file.path);
    let lines = file.source.text.lines().count();
    if lines <= most {
        return Vec::new();
    }
    let advice = format!("{lines} lines, at most {most}: split the file by what is decided");
    vec![Finding::new(file.path, most + 1, "file-length", advice).weighing(lines - most)]
}

fn file_lines_max(path: &str) -> usize {
    let strict = path.starts_with("crates/core/") || path.starts_with("crates/journal/");
    match path.contains("/tests/") {
        true => 800,
        false if strict => 400,
        false => 600,
    }
}

fn function_length(file: &Rust<'_>) -> Vec<Finding> {
    let functions = functions(file.source, &file.tokens);
    let long = functions.iter().filter(|function| function.lines > FUNCTION_LINES_MAX);
    let finding = |function: &super::functions::Function<'_>| {
        let super::functions::Function { name, line, lines } = *function;
        let advice = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: split it");
        Finding::new(file.path, line, "function-length", advice)
            .weighing(lines - FUNCTION_LINES_MAX)
    };
    long.map(finding).collect()
}

/// The one place in `core` where something is found by a hash: its hasher has no random state, and
/// nobody outside sees an order that follows from it.
const HASHING: &str = "crates/core/src/by_id.rs";

fn purity(file: &Rust<'_>) -> Vec<Finding> {
    if !file.path.starts_with("crates/core/src/") {
        return Vec::new();
    }
    let mut found = file.all(|index| IMPURE_WORDS.contains(&file.word(index)));
    found.extend(impure_modules(file));
    found.retain(|index| !file.in_test[*index]);
    found.retain(|index| file.path != HASHING || file.word(*index) != "HashMap");
    found.sort_unstable();
    let advice = |index: &usize| {
        let word = file.word(*index);
        file.at(
            *index,
            "purity",
            format!("`{word}` in `core`: take it in as an argument, or use an ordered map"),
        )
    };
    found.iter().map(advice).collect()
}

/// `std::fs` and its like, written out or inside `std::{...}`.
fn impure_modules(file: &Rust<'_>) -> Vec<usize> {
    let mut found = Vec::new();
    for start in file.all(|index| file.follows(index, &["std", ":", ":"])) {
        let first = start + 3;
        let last = match file.word(first) {
            "{" => (first..file.tokens.len()).find(|i| file.word(*i) == ";").unwrap_or(first),
            // Any other word is the only module named here.
            _ => first,
        };
        found.extend((first..=last).filter(|index| IMPURE_MODULES.contains(&file.word(*index))));
    }
    found
}

fn no_unsafe(file: &Rust<'_>) -> Vec<Finding> {
    let found = file.all(|index| file.word(index) == "unsafe");
    let advice = "find a safe way, or a library that has one";
    found.into_iter().map(|index| file.at(index, "unsafe", advice)).collect()
}

fn unfinished(file: &Rust<'_>) -> Vec<Finding> {
    let found = file.all(|index| {
        file.follows(index, &["todo", "!"]) || file.follows(index, &["unimplemented", "!"])
    });
    let advice = "finish it, or refuse with a clear error";
    found.into_iter().map(|index| file.at(index, "unfinished", advice)).collect()
}

fn unfinished_comments(file: &Rust<'_>) -> Vec<Finding> {
    let lines = 1..=file.source.text.lines().count();
    let marked = lines.filter(|line| {
        let words = file.source.comments_on(*line).split(|byte| !is_word_byte(*byte));
        words.into_iter().any(|word| word == b"FIXME" || word == b"XXX")
    });
    let advice = "put it right, or open an issue and say in the comment what holds now";
    marked.map(|line| Finding::new(file.path, line, "unfinished", advice)).collect()
}

fn sleeps(file: &Rust<'_>) -> Vec<Finding> {
    let called = |index: usize| {
        let declared = index > 0 && matches!(file.word(index - 1), "." | "fn");
        let name = matches!(file.word(index), "sleep" | "sleep_until" | "sleep_ms");
        file.in_test[index] && name && !declared && file.word(index + 1) == "("
    };
    let advice = "no sleeping in tests: wait for the condition, with a limit";
    file.all(called).into_iter().map(|index| file.at(index, "sleep", advice)).collect()
}

fn ignored(file: &Rust<'_>) -> Vec<Finding> {
    let attributes = file.all(|index| file.follows(index, &["#", "[", "ignore"]));
    let advice = "make the test run, or remove it";
    let mut findings: Vec<Finding> =
        attributes.into_iter().map(|index| file.at(index, "ignored-test", advice)).collect();
    for line in 1..=file.source.text.lines().count() {
        let comment = String::from_utf8_lossy(file.source.comments_on(line));
        let fence = comment.split_once("```").map_or("", |(_, language)| language);
        if fence.split(',').any(|word| word.trim() == "ignore") {
            findings.push(Finding::new(file.path, line, "ignored-test", advice));
        }
    }
    findings
}

fn dropped(file: &Rust<'_>) -> Vec<Finding> {
    let shipped = file.path.starts_with("crates/") && file.path.contains("/src/");
    let starts = file.all(|index| {
        let here = file.word(index) == "let" && file.word(index + 1) == "_";
        shipped && here && !file.in_test[index] && matches!(file.word(index + 2), "=" | ":")
    });
    let silent = starts.into_iter().filter(|start| drops_in_silence(file, *start));
    let advice = "handle the result, or say why not: `// dropped: ...`";
    silent.map(|index| file.at(index, "dropped-result", advice)).collect()
}

/// Whether the `let _` statement at `start` calls something and no comment says why the result
/// goes.
fn drops_in_silence(file: &Rust<'_>, start: usize) -> bool {
    let end = (start..file.tokens.len()).find(|index| file.word(*index) == ";");
    let end = end.unwrap_or(file.tokens.len() - 1);
    let after = |index: usize| file.tokens[index - 1];
    let is_call = |index: usize| {
        file.word(index) == "("
            && (after(index).is_word() || matches!(after(index).text, "!" | ">"))
    };
    let calls = (start + 3..=end).any(is_call);
    let (first, last) = (file.line(start), file.line(end));
    // The reason may also stand on lines of its own just above.
    let alone = |line: &usize| {
        let blank = |mask: &[u8]| mask.trim_ascii().is_empty();
        blank(file.source.code_on(*line)) && !blank(file.source.comments_on(*line))
    };
    let above = (1..first).rev().take_while(alone);
    let reason = |line: usize| {
        String::from_utf8_lossy(file.source.comments_on(line)).contains("// dropped: ")
    };
    calls && !(first..=last).chain(above).any(reason)
}

/// The arrows once more, in the code: a path of a file may name only what its package may.
fn named_packages(file: &Rust<'_>) -> Vec<Finding> {
    let allowed = may_name(file.package).unwrap_or(&[]);
    let mut findings = Vec::new();
    for index in file.all(|index| file.word(index).starts_with("unanimity")) {
        let named = file.word(index).replace('_', "-");
        let path =
            file.follows(index + 1, &[":", ":"]) && !file.follows(index.max(2) - 2, &[":", ":"]);
        if path
            && may_name(&named).is_some()
            && named != file.package
            && !allowed.contains(&&*named)
        {
            let advice = format!("no arrow leads from `{}` to `{named}`", file.package);
            findings.push(file.at(index, "arrows", advice));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{Finding, HASHING, look};

    fn found(path: &str, text: &str) -> Vec<Finding> {
        let cargo = |name: &str| format!("[package]\nname = \"{name}\"\n");
        let files = [
            (path.to_string(), text.to_string()),
            ("crates/core/Cargo.toml".into(), cargo("unanimity-core")),
            ("crates/sdk/Cargo.toml".into(), cargo("unanimity-sdk")),
        ];
        look(&files.into())
    }

    /// A file of `path` with a good head and then `body` from line 2 on.
    fn check(path: &str, body: &str, expected: &[(usize, &str)]) {
        let found = found(path, &format!("//! Head.\n{body}"));
        let found: Vec<_> = found.iter().map(|finding| (finding.line, finding.rule)).collect();
        assert_eq!(found, expected, "{path}: {body}");
    }

    const CORE: &str = "crates/core/src/a.rs";
    const SDK: &str = "crates/sdk/src/a.rs";
    const TEST: &str = "crates/sdk/tests/a.rs";

    #[test]
    fn a_file_opens_with_its_head() {
        let rules = |text| found(SDK, text).iter().map(|f| f.rule).collect::<Vec<_>>();
        assert_eq!(rules("//! What it decides.\n"), [""; 0]);
        for text in ["", "//!\n", "// Not it.\n", "\n//! Late.\n", "use a;\n//! Late.\n"] {
            assert_eq!(rules(text), ["head"], "{text}");
        }
    }

    #[test]
    fn lines_functions_and_files_have_limits() {
        check(SDK, &format!("// {}", "é".repeat(97)), &[]);
        check(SDK, &format!("// {}", "x".repeat(98)), &[(2, "line-length")]);
        check(SDK, &format!("fn a() {{{}}}", "\n".repeat(69)), &[]);
        check(SDK, &format!("\nfn a() {{{}}}", "\n".repeat(70)), &[(3, "function-length")]);
        check(SDK, &"\n".repeat(599), &[]);
        check(SDK, &"\n".repeat(600), &[(601, "file-length")]);
        check(CORE, &"\n".repeat(400), &[(401, "file-length")]);
        check(TEST, &"\n".repeat(799), &[]);
        check(TEST, &"\n".repeat(800), &[(801, "file-length")]);
    }

    #[test]
    fn a_limit_in_lines_weighs_what_is_over_it() {
        let text = format!("//! Head.\nfn a() {{{}}}", "\n".repeat(75));
        assert_eq!(found(SDK, &text).iter().map(|f| f.weight).collect::<Vec<_>>(), [6]);
        let text = format!("//! Head.{}", "\n".repeat(610));
        assert_eq!(found(SDK, &text).iter().map(|f| f.weight).collect::<Vec<_>>(), [10]);
    }

    #[test]
    fn core_is_pure_outside_its_tests() {
        check(CORE, "use std::time::Instant;", &[(2, "purity")]);
        check(CORE, "std::fs::read(x);", &[(2, "purity")]);
        check(
            CORE,
            "use std::{\ncollections::HashMap,\nthread,\n};",
            &[(3, "purity"), (4, "purity")],
        );
        check(CORE, "async fn a() {}", &[(2, "purity")]);
        check(CORE, "// no HashMap, no async\nlet fs = \"tokio\"; a.net()", &[]);
        check(CORE, "#[cfg(test)]\nmod tests { use std::collections::HashSet; }", &[]);
        check(SDK, "use std::time::Instant; async fn a() {}", &[]);
        check(HASHING, "use std::collections::{HashMap, HashSet};", &[(2, "purity")]);
    }

    #[test]
    fn what_is_banned_everywhere() {
        check(SDK, "unsafe { x }", &[(2, "unsafe")]);
        check(SDK, "#![forbid(unsafe_code)]", &[]);
        check(SDK, "todo!()", &[(2, "unfinished")]);
        check(SDK, "unimplemented!(\"x\")", &[(2, "unfinished")]);
        check(SDK, "\n// FIXME: later\nlet x = \"XXX\";", &[(3, "unfinished")]);
        check(SDK, "/* a\nXXX */ XXXL // XXXL", &[(3, "unfinished")]);
        check(TEST, "#[test]\n#[ignore]\nfn a() {}", &[(3, "ignored-test")]);
        check(SDK, "/// ```ignore\n/// ```no_run", &[(2, "ignored-test")]);
    }

    #[test]
    fn tests_do_not_sleep() {
        check(TEST, "std::thread::sleep(x);", &[(2, "sleep")]);
        check(TEST, "tokio::time::sleep(x).await;", &[(2, "sleep")]);
        check(SDK, "#[cfg(test)] mod tests {\nfn a() { sleep(x); } }", &[(3, "sleep")]);
        check(SDK, "std::thread::sleep(x);", &[]);
        check(TEST, "fn sleep() {} clock.sleep(x);", &[]);
    }

    #[test]
    fn a_result_is_not_dropped_in_silence() {
        let here = &[(2, "dropped-result")];
        check(SDK, "let _ = send(x);", here);
        check(SDK, "let _ = a.b::<C>(\nx,\n);", here);
        check(SDK, "let _ = write!(f, \"x\");", here);
        check(SDK, "let _: Result<()> = f();", here);
        check(SDK, "let _ = send(x); // because", here);
        check(SDK, "let _ = send(x); // dropped: nobody waits", &[]);
        check(SDK, "let _ = a\n.send(x); // dropped: nobody waits", &[]);
        check(SDK, "// dropped: nobody waits,\n// and that is well.\nlet _ = send(x);", &[]);
        check(SDK, "let _ = x; let _guard = f(); let _ = (a, b);", &[]);
        check(SDK, "#[cfg(test)] mod tests { fn a() { let _ = f(); } }", &[]);
        check("examples/bank/src/a.rs", "let _ = f();", &[]);
    }

    #[test]
    fn code_follows_the_arrows() {
        check(CORE, "use unanimity_journal::Journal;", &[(2, "arrows")]);
        check(SDK, "let a = unanimity::Manager::new();", &[(2, "arrows")]);
        check(SDK, "use unanimity_core::Event; use unanimity_sdk::Guard;", &[]);
        check(SDK, "use crate::unanimity::A; // unanimity_journal::B", &[]);
    }
}
