//! Tells which parts of a file are tests: whole files by their place, and items under
//! `#[cfg(test)]` or `#[test]`. What may or may not stand in a test is left to the rules.

use super::files::Files;
use super::scan::{Source, Token, partners};

/// Token ranges (first, last) of the items that only tests see.
pub fn test_items(tokens: &[Token<'_>]) -> Vec<(usize, usize)> {
    let partners = partners(tokens);
    let mut items = Vec::new();
    for index in 0..tokens.len() {
        let Some((open, inner)) = attribute(tokens, index) else { continue };
        let close = partners[open];
        if close <= open || !is_test(&tokens[open + 1..close]) {
            continue;
        }
        let whole_file = (0, tokens.len() - 1);
        items.push(if inner { whole_file } else { (index, item_end(tokens, &partners, close)) });
    }
    items
}

/// Whether a file is a test by its place: in a folder `tests` or `benches`, or named `tests.rs`.
pub fn is_test_path(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or(path);
    name == "tests.rs" || parts.any(|folder| folder == "tests" || folder == "benches")
}

/// The files that `#[cfg(test)] mod name;` in another file makes tests.
pub fn declared_tests(files: &Files) -> Vec<String> {
    let mut declared = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let source = Source::new(text);
        let tokens = source.tokens();
        for (_, end) in test_items(&tokens) {
            let [.., word, name, sign] = &tokens[..=end] else { continue };
            if word.text == "mod" && sign.text == ";" {
                declared.push(format!("{}/{}", module_folder(path), name.text));
            }
        }
    }
    let of = |path: &String, module: &String| {
        path.strip_prefix(module.as_str())
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    files.keys().filter(|path| declared.iter().any(|module| of(path, module))).cloned().collect()
}

/// Where the modules that a file declares are found.
fn module_folder(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder,
        // Any other file has a folder of its own name.
        _ => path.strip_suffix(".rs").unwrap_or(path),
    }
}

/// The `[` of `#[...]` or `#![...]` at `index`, and whether it is the second.
fn attribute(tokens: &[Token<'_>], index: usize) -> Option<(usize, bool)> {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text);
    match (text(index), text(index + 1), text(index + 2)) {
        ("#", "[", _) => Some((index + 1, false)),
        ("#", "!", "[") => Some((index + 2, true)),
        // No attribute begins here.
        _ => None,
    }
}

/// `cfg(test)` in any combination without `not`, or a path that ends in `test`.
fn is_test(inside: &[Token<'_>]) -> bool {
    let has = |word: &str| inside.iter().any(|token| token.text == word);
    if inside.first().is_some_and(|token| token.text == "cfg") {
        return has("test") && !has("not");
    }
    let path: Vec<_> = inside.iter().take_while(|token| token.text != "(").collect();
    path.last().is_some_and(|token| token.text == "test")
}

/// The last token of the item, field or statement that follows an attribute's `]`.
fn item_end(tokens: &[Token<'_>], partners: &[usize], close: usize) -> usize {
    let mut index = close + 1;
    let mut angles = 0_i32;
    while index < tokens.len() {
        match tokens[index].text {
            ";" => return index,
            "{" => return partners[index].max(index),
            "," if angles <= 0 => return index,
            "}" | ")" | "]" => return index - 1,
            "<" => angles += 1,
            ">" if !matches!(tokens[index - 1].text, "-" | "=") => angles -= 1,
            // Any other token is part of the item; brackets are passed over whole.
            _ => index = partners[index].max(index),
        }
        index += 1;
    }
    tokens.len() - 1
}

#[cfg(test)]
mod tests {
    use super::{declared_tests, is_test_path, test_items};
    use crate::tidy::scan::Source;

    fn check(text: &str, expected: &[&str]) {
        let source = Source::new(text);
        let tokens = source.tokens();
        let found: Vec<&str> = test_items(&tokens)
            .into_iter()
            .map(|(first, last)| &text[tokens[first].at..tokens[last].at + tokens[last].text.len()])
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn an_item_under_a_test_attribute_is_a_test() {
        check("a; #[cfg(test)] mod tests { b } c", &["#[cfg(test)] mod tests { b }"]);
        check("#[cfg(test)]\n#[allow(x)]\nuse a; b", &["#[cfg(test)]\n#[allow(x)]\nuse a;"]);
        check("#[test] fn a() { x } fn b() {}", &["#[test] fn a() { x }"]);
        check(
            "#[tokio::test(a = 1)] async fn a() {} b",
            &["#[tokio::test(a = 1)] async fn a() {}"],
        );
        check(
            "#[cfg(any(test, x))] impl A<B, C> for D { } e",
            &["#[cfg(any(test, x))] impl A<B, C> for D { }"],
        );
        check("struct S { #[cfg(test)] a: M<u8, u8>, b: u8 }", &["#[cfg(test)] a: M<u8, u8>,"]);
        check("#![cfg(test)]\nfn a() {}", &["#![cfg(test)]\nfn a() {}"]);
    }

    #[test]
    fn other_attributes_make_no_tests() {
        check("#[cfg(not(test))] fn a() {}", &[]);
        check("#[cfg(feature = \"test\")] fn a() {}", &[]);
        check("#[derive(Debug)] struct Test; #[must_use] fn test() {}", &[]);
    }

    #[test]
    fn a_file_is_a_test_by_its_place_or_by_its_parent() {
        for path in ["crates/a/tests/api.rs", "crates/a/src/b/tests.rs", "crates/a/benches/x.rs"] {
            assert!(is_test_path(path), "{path}");
        }
        assert!(!is_test_path("crates/a/src/tests_in.rs"));
        let files = [
            ("a/src/lib.rs", "#[cfg(test)] mod support; mod b;"),
            ("a/src/b.rs", "#[cfg(test)] pub(crate) mod c;"),
            ("a/src/support.rs", ""),
            ("a/src/support/more.rs", ""),
            ("a/src/b/c.rs", ""),
            ("a/src/c.rs", ""),
        ];
        let files = files.map(|(path, text)| (path.to_string(), text.to_string())).into();
        let expected = ["a/src/b/c.rs", "a/src/support.rs", "a/src/support/more.rs"];
        assert_eq!(declared_tests(&files), expected);
    }
}
