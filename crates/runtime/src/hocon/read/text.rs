//! Strings, quoted and not, and what an unquoted one means.

use super::{Error, Kind, Origin, RESERVED, Reader, is_space};

impl Reader<'_> {
    pub(super) fn unquoted(&mut self) -> String {
        let mut text = String::new();
        while let Some(character) = self.peek() {
            let exponent_sign = character == '+'
                && text.ends_with(['e', 'E'])
                && text.starts_with(|first: char| first.is_ascii_digit() || first == '-')
                && self.peek_at(1).is_some_and(|next| next.is_ascii_digit());
            let ends = RESERVED.contains(character)
                || is_space(character)
                || character == '\n'
                || self.at_comment();
            if ends && !exponent_sign {
                break;
            }
            text.push(character);
            self.bump();
        }
        text
    }

    /// A quoted or triple-quoted string. In values, environment variables inside a quoted one are expanded.
    pub(super) fn quoted(&mut self, expand: bool) -> Result<String, Error> {
        let opened = self.here();
        if self.peek_at(1) == Some('"') && self.peek_at(2) == Some('"') {
            return self.triple_quoted(&opened);
        }
        self.bump();
        let mut text = String::new();
        loop {
            let at = self.here();
            let Some(character) = self.peek() else {
                return Err(Error::new(
                    &opened,
                    "the file ends inside this string; add the closing quote",
                ));
            };
            match character {
                '"' => {
                    self.bump();
                    return Ok(text);
                }
                '\n' => {
                    return Err(Error::new(
                        &opened,
                        "this string is not closed on its line; add the closing quote, or use triple quotes for text \
                         of several lines",
                    ));
                }
                '\\' => {
                    self.bump();
                    text.push(self.escape(&at)?);
                }
                '$' if expand && self.peek_at(1) == Some('{') => self.variable(&at, &mut text)?,
                _ => {
                    self.bump();
                    text.push(character);
                }
            }
        }
    }

    fn triple_quoted(&mut self, opened: &Origin) -> Result<String, Error> {
        for _ in 0..3 {
            self.bump();
        }
        let mut text = String::new();
        let mut quotes = 0;
        loop {
            match self.peek() {
                Some('"') => {
                    self.bump();
                    quotes += 1;
                    text.push('"');
                }
                // The string ends with the last three of a run of quotes; those before belong to it.
                _ if quotes >= 3 => {
                    text.truncate(text.len() - 3);
                    return Ok(text);
                }
                Some(character) => {
                    self.bump();
                    quotes = 0;
                    text.push(character);
                }
                None => {
                    return Err(Error::new(
                        opened,
                        "the file ends inside this text; add the closing triple quotes",
                    ));
                }
            }
        }
    }

    fn escape(&mut self, at: &Origin) -> Result<char, Error> {
        let character = self.peek();
        if character.is_some() {
            self.bump();
        }
        Ok(match character {
            Some('"') => '"',
            Some('\\') => '\\',
            Some('/') => '/',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let bad = || {
                    Error::new(
                        at,
                        "`\\u` must be followed by four hexadecimal digits of a character",
                    )
                };
                let first = self.hex4().ok_or_else(bad)?;
                let code = if (0xD800..0xDC00).contains(&first) {
                    // A character beyond the first 65,536 is written as a pair.
                    if self.peek() != Some('\\') || self.peek_at(1) != Some('u') {
                        return Err(bad());
                    }
                    self.bump();
                    self.bump();
                    let second = self
                        .hex4()
                        .filter(|second| (0xDC00..0xE000).contains(second))
                        .ok_or_else(bad)?;
                    0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
                } else {
                    first
                };
                char::from_u32(code).ok_or_else(bad)?
            }
            _ => {
                return Err(Error::new(
                    at,
                    "an unknown escape in a string; write `\\\\` for a backslash, or one of \\\" \\/ \\b \\f \\n \\r \
                     \\t \\uXXXX",
                ));
            }
        })
    }

    fn hex4(&mut self) -> Option<u32> {
        let mut code = 0;
        for _ in 0..4 {
            code = code * 16 + self.peek()?.to_digit(16)?;
            self.bump();
        }
        Some(code)
    }

    /// `${NAME}` inside quotes. What does not look like a variable is left as it is.
    fn variable(&mut self, at: &Origin, text: &mut String) -> Result<(), Error> {
        let mut ahead = 2;
        let optional = self.peek_at(ahead) == Some('?');
        if optional {
            ahead += 1;
        }
        let mut name = String::new();
        while let Some(character) = self.peek_at(ahead)
            && (character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-'))
        {
            name.push(character);
            ahead += 1;
        }
        if name.is_empty() || self.peek_at(ahead) != Some('}') {
            self.bump();
            text.push('$');
            return Ok(());
        }
        for _ in 0..=ahead {
            self.bump();
        }
        match self.environment.get(&name) {
            Some(value) => text.push_str(value),
            None if optional => {}
            None => {
                return Err(Error::new(
                    at,
                    format!(
                        "the environment variable `{name}` is not set; set it, write `${{?{name}}}` if it may be \
                         missing, or `\\u0024{{{name}}}` if these characters are meant"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What an unquoted text that stands alone means.
pub(super) fn classified(text: String) -> Kind {
    match text.as_str() {
        "true" => Kind::Boolean(true),
        "false" => Kind::Boolean(false),
        "null" => Kind::Null,
        _ if is_number(&text) => Kind::Number(text),
        _ => Kind::String(text),
    }
}

/// JSON's grammar of numbers. `007` is a string: a text of digits keeps its zeros.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent
            .is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}
