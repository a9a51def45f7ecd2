//! Finds every function with a body, and how many lines it takes from its `fn` to its last brace.
//! How many are too many is left to the rules.

use super::scan::{Source, Token, partners};

/// A function's name, its first line, and how many lines it has.
#[derive(Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub name: &'a str,
    pub line: usize,
    pub lines: usize,
}

/// All functions with a body, those inside others too.
pub fn functions<'a>(source: &Source<'_>, tokens: &[Token<'a>]) -> Vec<Function<'a>> {
    let partners = partners(tokens);
    let starts = (0..tokens.len()).filter(|index| is_start(tokens, *index));
    let sized = starts.filter_map(|start| {
        let line = source.line(tokens[start].at);
        let end = source.line(tokens[body_end(tokens, &partners, start + 2)?].at);
        Some(Function { name: tokens[start + 1].text, line, lines: end - line + 1 })
    });
    sized.collect()
}

/// `fn name` (in a macro `fn $name`); `fn(u8)` is a type.
fn is_start(tokens: &[Token<'_>], index: usize) -> bool {
    let named = tokens.get(index + 1).is_some_and(|next| next.is_word() || next.text == "$");
    tokens[index].text == "fn" && named
}

/// The brace that ends the body; none for a function without one.
fn body_end(tokens: &[Token<'_>], partners: &[usize], from: usize) -> Option<usize> {
    let mut index = from;
    while index < tokens.len() {
        match tokens[index].text {
            ";" | "}" => return None,
            // `Foo<{ N + 1 }>` is part of the signature.
            "{" if tokens[index - 1].text != "<" => return Some(partners[index]),
            // Any other token is part of the signature, whole brackets at once.
            _ => index = partners[index].max(index) + 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::functions;
    use crate::tidy::scan::Source;

    fn check(text: &str, expected: &[(&str, usize, usize)]) {
        let source = Source::new(text);
        let found = functions(&source, &source.tokens());
        let found: Vec<_> = found.iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_function_goes_from_its_word_to_its_brace() {
        check("fn a() {}", &[("a", 1, 1)]);
        check("/// Doc.\n#[must_use]\npub fn a(\n) -> u8 {\n1\n}\n", &[("a", 3, 4)]);
        check("fn a() {\n  fn b() {\n  }\n}", &[("a", 1, 4), ("b", 2, 2)]);
    }

    #[test]
    fn braces_that_are_no_blocks_do_not_count() {
        check("fn a() {\n \"}\"; '}'; r#\"}\"#; /* } */ // }\n}", &[("a", 1, 3)]);
        check("fn a<'a>(x: &'a str) {\n f('{');\n}", &[("a", 1, 3)]);
        check("fn a() -> Foo<{ N + 1 }> {\n}", &[("a", 1, 2)]);
        check("fn a<T>(x: [u8; { N }])\nwhere\n T: B,\n{\n}", &[("a", 1, 5)]);
    }

    #[test]
    fn what_has_no_body_is_not_measured() {
        check("trait A { fn a(x: [u8; 4]);\n fn b() {\n} }", &[("b", 2, 2)]);
        check("type F = fn(u8) -> u8; struct S { f: fn() }", &[]);
        check("let text = \"fn a() {\"; // fn b() {", &[]);
    }
}
