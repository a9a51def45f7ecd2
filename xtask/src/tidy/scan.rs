//! Tells code from comments and from text (strings, characters) in a Rust file, and cuts the code
//! into tokens. It knows just enough of Rust's lexis for that; what tokens mean is left to the
//! rules.

/// A file, taken apart. Both masks are as long as the text, with blanks for what they leave out, so
/// that an offset means the same place in all three.
pub struct Source<'a> {
    pub text: &'a str,
    pub code: Vec<u8>,
    pub comments: Vec<u8>,
    line_starts: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Code,
    Comment,
    Text,
}

impl<'a> Source<'a> {
    /// Takes the text of a file apart.
    pub fn new(text: &'a str) -> Source<'a> {
        let classes = classify(text.as_bytes());
        let mask = |class: Class| -> Vec<u8> {
            let pairs = text.bytes().zip(&classes);
            pairs.map(|(b, c)| if *c == class || b == b'\n' { b } else { b' ' }).collect()
        };
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Source { text, code: mask(Class::Code), comments: mask(Class::Comment), line_starts }
    }

    /// The line, from 1, that an offset is on.
    pub fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// A line's comments, with blanks for everything else.
    pub fn comments_on(&self, line: usize) -> &[u8] {
        self.on_line(&self.comments, line)
    }

    /// A line's code, with blanks for everything else.
    pub fn code_on(&self, line: usize) -> &[u8] {
        self.on_line(&self.code, line)
    }

    fn on_line<'b>(&self, mask: &'b [u8], line: usize) -> &'b [u8] {
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(mask.len());
        let end = self.line_starts.get(line).copied().unwrap_or(mask.len());
        &mask[start..end]
    }

    /// The code's tokens: words (`fn`, `r#type`, `7u8`) and single signs.
    pub fn tokens(&self) -> Vec<Token<'_>> {
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < self.code.len() {
            let end = token_end(&self.code, at);
            if !self.code[at].is_ascii_whitespace() {
                // Ends only at ASCII bytes, hence never inside a character.
                tokens.push(Token { at, text: self.text.get(at..end).unwrap_or("?") });
            }
            at = end;
        }
        tokens
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    pub at: usize,
    pub text: &'a str,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.bytes().next().is_some_and(is_word_byte)
    }
}

pub fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn token_end(code: &[u8], at: usize) -> usize {
    let words = |from: usize| from + code[from..].iter().take_while(|b| is_word_byte(**b)).count();
    if !is_word_byte(code[at]) {
        return at + 1;
    }
    let end = words(at);
    let raw = &code[at..end] == b"r" && code.get(end) == Some(&b'#');
    if raw && code.get(end + 1).is_some_and(|byte| is_word_byte(*byte)) {
        return words(end + 1);
    }
    end
}

/// For every bracket token the index of its partner; itself where there is none.
pub fn partners(tokens: &[Token<'_>]) -> Vec<usize> {
    let mut partners: Vec<usize> = (0..tokens.len()).collect();
    let mut open = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => open.push(index),
            ")" | "]" | "}" => {
                if let Some(start) = open.pop() {
                    partners[start] = index;
                    partners[index] = start;
                }
            }
            // Every other token is no bracket.
            _ => {}
        }
    }
    partners
}

fn classify(text: &[u8]) -> Vec<Class> {
    let mut classes = Vec::with_capacity(text.len());
    while classes.len() < text.len() {
        let at = classes.len();
        let (class, length) = next_piece(text, at);
        classes.resize((at + length.max(1)).min(text.len()), class);
    }
    classes
}

/// What begins at `at`, and how many bytes of it there are.
fn next_piece(text: &[u8], at: usize) -> (Class, usize) {
    let rest = &text[at..];
    match rest {
        [b'/', b'/', ..] => (Class::Comment, find(rest, b"\n").unwrap_or(rest.len())),
        [b'/', b'*', ..] => (Class::Comment, block_comment(rest)),
        [b'"', ..] => (Class::Text, quoted(rest, b'"')),
        [b'\'', ..] => character(rest).map_or((Class::Code, 1), |length| (Class::Text, length)),
        [first, ..] if is_word_byte(*first) => match raw_string(rest) {
            Some(length) => (Class::Text, length),
            // A whole word at once: only its start can be the prefix of a raw string.
            None => (Class::Code, rest.iter().take_while(|b| is_word_byte(**b)).count()),
        },
        // Any other sign is code, one byte of it.
        _ => (Class::Code, 1),
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn block_comment(text: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            // Any other byte is the comment's text.
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// From the opening quote through the closing one.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            // Any other byte is inside.
            _ => at += 1,
        }
    }
    text.len()
}

/// `'x'`, `'\n'`, `'é'`; a lifetime or a label is none.
fn character(text: &[u8]) -> Option<usize> {
    let first = *text.get(1)?;
    if first == b'\\' {
        return Some(quoted(text, b'\''));
    }
    let length = match first {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
    };
    (text.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

/// `r"…"`, `r#"…"#`, and the same after `b` or `c`.
fn raw_string(text: &[u8]) -> Option<usize> {
    let prefix = match text {
        [b'r', ..] => 1,
        [b'b' | b'c', b'r', ..] => 2,
        // No other word begins a raw string.
        _ => return None,
    };
    let hashes = text[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let body = prefix + hashes + 1;
    if text.get(body - 1) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    Some(find(&text[body..], &end).map_or(text.len(), |at| body + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::{Source, partners};

    /// The code of `text`, its runs of blanks made one.
    fn check(text: &str, expected: &str) {
        let code = String::from_utf8_lossy(&Source::new(text).code).into_owned();
        assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{text}");
    }

    #[test]
    fn comments_and_text_are_not_code() {
        check("a // b {\nc", "a c");
        check("a /* b /* c */ { */ d", "a d");
        check("a /* never closed {", "a");
        check(r#"f("{", "\"}", "\\") + g"#, "f( , , ) + g");
        check("a \"two\nlines // {\" b", "a b");
        check(r##"r"\" + r#"a "quoted" {"# + b"{" + br#"{"#"##, "+ + b +");
        check(r###"r##"a "# b"## end"###, "end");
        check("for\"text\"", "for");
        check("'{' + '\\'' + '\\u{7b}' + 'é' + b'{' + '\"'", "+ + + + b +");
    }

    #[test]
    fn lifetimes_labels_and_raw_words_are_code() {
        check(
            "fn f<'a, 'b>(x: &'a str) -> &'static str {",
            "fn f<'a, 'b>(x: &'a str) -> &'static str {",
        );
        check("'outer: loop { break 'outer; }", "'outer: loop { break 'outer; }");
        check("let r#type = r; br", "let r#type = r; br");
        check("a / b * c", "a / b * c");
    }

    #[test]
    fn tokens_are_words_and_signs() {
        let source = Source::new("let r#fn = é::x(7u8); // no");
        let tokens: Vec<&str> = source.tokens().iter().map(|token| token.text).collect();
        assert_eq!(tokens, ["let", "r#fn", "=", "é", ":", ":", "x", "(", "7u8", ")", ";"]);
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source::new("a\nb // why\n\nd");
        let lines: Vec<usize> = source.tokens().iter().map(|token| source.line(token.at)).collect();
        assert_eq!(lines, [1, 2, 4]);
        assert_eq!(source.comments_on(2).trim_ascii(), b"// why");
        assert_eq!(source.code_on(2).trim_ascii(), b"b");
        assert_eq!(source.code_on(9), b"");
    }

    #[test]
    fn brackets_find_their_partners() {
        let source = Source::new("f ( [ ] { } ) }");
        assert_eq!(partners(&source.tokens()), [0, 6, 3, 2, 5, 4, 1, 7]);
    }
}
