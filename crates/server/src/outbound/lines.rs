//! Decides where in a body, of which more comes bit by bit, its lines are. No line may be longer
//! than a bound, so no more than that is ever kept.

use bytes::Bytes;

/// The lines of one body.
#[derive(Debug)]
pub(super) struct Lines {
    bytes_max: usize,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    data: Bytes,
}

/// A line is longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, begun: Vec::new(), data: Bytes::new() }
    }

    /// More has come. What came before must have been read.
    pub(super) fn feed(&mut self, data: Bytes) {
        self.data = data;
    }

    /// The next line that is complete, without its end; none until more comes.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        let end = self.data.iter().position(|byte| *byte == b'\n');
        if self.begun.len() + end.unwrap_or(self.data.len()) > self.bytes_max {
            return Err(TooLong);
        }
        let Some(end) = end else {
            self.begun.extend_from_slice(&self.data);
            self.data = Bytes::new();
            return Ok(None);
        };
        let line = self.data.split_to(end + 1).slice(..end);
        if self.begun.is_empty() {
            return Ok(Some(line));
        }
        self.begun.extend_from_slice(&line);
        Ok(Some(std::mem::take(&mut self.begun).into()))
    }

    /// What stands after the last end of a line, when the body has ended.
    pub(super) fn rest(self) -> Vec<u8> {
        self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(parts: &[&str], bytes_max: usize) -> (Vec<String>, Result<String, TooLong>) {
        let (mut lines, mut found) = (Lines::new(bytes_max), Vec::new());
        for part in parts {
            lines.feed(Bytes::copy_from_slice(part.as_bytes()));
            loop {
                match lines.next() {
                    Ok(Some(line)) => found.push(String::from_utf8(line.to_vec()).unwrap()),
                    Ok(None) => break,
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        (found, Ok(String::from_utf8(lines.rest()).unwrap()))
    }

    #[test]
    fn lines_are_the_same_however_the_body_comes() {
        let body = "one\ntwo\n\nthree\nrest";
        for cut in 0..body.len() {
            for other in cut..body.len() {
                let parts = [&body[..cut], &body[cut..other], &body[other..]];
                let (found, rest) = lines(&parts, 5);
                assert_eq!(found, ["one", "two", "", "three"], "{parts:?}");
                assert_eq!(rest, Ok("rest".to_owned()), "{parts:?}");
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_none_however_it_comes() {
        for parts in [&["ok\n123456\n"][..], &["ok\n123", "456"], &["ok\n12345", "6\n"]] {
            assert_eq!(lines(parts, 5), (vec!["ok".to_owned()], Err(TooLong)), "{parts:?}");
        }
        assert_eq!(lines(&["12345", "\n"], 5).0, ["12345"]);
    }
}
