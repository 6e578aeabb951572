//! Text from ids that come one after another, cut only at whole characters.

use crate::Tokenizer;

/// Bytes that come piece by piece, given on as text as soon as characters are whole.
///
/// The pieces together are what `String::from_utf8_lossy` makes of all bytes together: U+FFFD stands only for bytes that no continuation could
/// make a character.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character that is not whole yet: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes bytes and gives the text that is whole now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut start = 0;
        loop {
            let rest = &self.pending[start..];
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    start = self.pending.len();
                    break;
                }
                Err(error) => error,
            };
            let valid = &rest[..error.valid_up_to()];
            text.push_str(std::str::from_utf8(valid).expect("the bytes up to there are valid"));
            start += valid.len();
            match error.error_len() {
                Some(bad) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    start += bad;
                }
                // The bytes break off within a character: the next ones may complete it.
                None => break,
            }
        }
        self.pending.drain(..start);
        text
    }

    /// Gives what is left at the end: U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Ids that come one after another, given on as text: [`Utf8Stream`] behind a tokenizer.
#[derive(Clone, Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    utf8: Utf8Stream,
    /// Reused from id to id.
    bytes: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, utf8: Utf8Stream::default(), bytes: Vec::new() }
    }

    /// Takes an id and gives the text that is whole now; often none.
    pub fn push(&mut self, id: u32) -> String {
        self.bytes.clear();
        self.tokenizer.append_bytes(id, &mut self.bytes);
        self.utf8.push(&self.bytes)
    }

    /// Gives what is left at the end.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}
