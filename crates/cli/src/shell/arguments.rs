//! The notation of arguments: `amount: 100, to: "O=PartyB, L=Osaka, C=JP", tags: [a, b]`.
//!
//! It is Corda's shell notation, which is YAML's flow style without the outer braces. JSON is a part
//! of it. Quotes are needed only where a text would read as something else: an unquoted value goes on
//! to the comma before the next `key:`, so that legal names can be typed as they are.

use std::fmt;

use serde_json::{Map, Number, Value};

/// Longest text that is read, in bytes.
const MAX_BYTES: usize = 1024 * 1024;
/// Deepest nesting of lists and objects.
const MAX_DEPTH: usize = 32;

/// The arguments cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParseError {
    /// Where, in bytes from the beginning of the arguments.
    pub(crate) at: usize,
    /// What is wrong there.
    pub(crate) message: String,
    /// The text around, and a mark below the place.
    picture: String,
}

impl ParseError {
    fn new(text: &str, at: usize, message: impl Into<String>) -> Self {
        /// Characters shown before and after the place.
        const AROUND: usize = 30;
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let before: Vec<char> = text[..at].chars().rev().take(AROUND).map(shown).collect();
        let after = text[at..].chars().take(AROUND).map(shown);
        let line: String = before.iter().rev().copied().chain(after).collect();
        let picture = format!("  {line}\n  {}^", " ".repeat(before.len()));
        Self {
            at,
            message: message.into(),
            picture,
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.message, self.picture)
    }
}

impl std::error::Error for ParseError {}

/// Reads arguments: a list of `key: value`, or one JSON object.
pub(crate) fn parse(text: &str) -> Result<Map<String, Value>, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::new(
            text,
            0,
            format!("more than {MAX_BYTES} bytes of arguments"),
        ));
    }
    let mut reader = Reader { text, at: 0 };
    reader.skip_space();
    let fields = if reader.peek() == Some('{') {
        let start = reader.at;
        reader.at += 1;
        reader.fields(Some((start, '}')), MAX_DEPTH)?
    } else {
        reader.fields(None, MAX_DEPTH)?
    };
    reader.skip_space();
    match reader.peek() {
        None => Ok(fields),
        Some(c) => Err(reader.error(format!("'{c}' after the end of the arguments"))),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// The bracket that is open, and the one that closes it.
type Open = Option<(usize, char)>;

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.text, self.at, message)
    }

    fn error_at(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError::new(self.text, at, message)
    }

    /// Fields up to the closing bracket, which is consumed, or to the end of the text.
    fn fields(&mut self, open: Open, depth: usize) -> Result<Map<String, Value>, ParseError> {
        let mut fields = Map::new();
        if self.closed(open)? {
            return Ok(fields);
        }
        loop {
            self.skip_space();
            let start = self.at;
            let key = self.key()?;
            self.skip_space();
            if self.peek() != Some(':') {
                return Err(self.error(format!("expected ':' after the name '{key}'")));
            }
            self.at += 1;
            let value = self.value(open, true, depth)?;
            if fields.contains_key(&key) {
                return Err(self.error_at(start, format!("'{key}' is given twice")));
            }
            fields.insert(key, value);
            if self.ended(open)? {
                return Ok(fields);
            }
        }
    }

    fn items(&mut self, open: Open, depth: usize) -> Result<Vec<Value>, ParseError> {
        let mut items = Vec::new();
        if self.closed(open)? {
            return Ok(items);
        }
        loop {
            items.push(self.value(open, false, depth)?);
            if self.ended(open)? {
                return Ok(items);
            }
        }
    }

    /// Whether what is open ends here already, with nothing in it.
    fn closed(&mut self, open: Open) -> Result<bool, ParseError> {
        self.skip_space();
        match (open, self.peek()) {
            (None, None) => Ok(true),
            (Some((start, close)), None) => Err(self.unclosed(start, close)),
            (Some((_, close)), Some(c)) if c == close => {
                self.at += 1;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// After an item: whether that was the last one.
    fn ended(&mut self, open: Open) -> Result<bool, ParseError> {
        self.skip_space();
        match (open, self.peek()) {
            (None, None) => Ok(true),
            (Some((_, close)), Some(c)) if c == close => {
                self.at += 1;
                Ok(true)
            }
            (_, Some(',')) => {
                self.at += 1;
                // A comma at the end is forgiven.
                self.closed(open)
            }
            (Some((start, close)), None) => Err(self.unclosed(start, close)),
            (_, Some(c)) => Err(self.error(format!("expected ',' before '{c}'"))),
        }
    }

    fn unclosed(&self, start: usize, close: char) -> ParseError {
        self.error_at(
            start,
            format!("there is no '{close}' to what is opened here"),
        )
    }

    fn key(&mut self) -> Result<String, ParseError> {
        if let Some(quote @ ('"' | '\'')) = self.peek() {
            return self.quoted(quote);
        }
        let length = name_length(self.rest());
        if length == 0 {
            return Err(match self.peek() {
                None => self.error("expected a name and ':'"),
                Some(c) => self.error(format!("expected a name and ':', found '{c}'")),
            });
        }
        let key = self.rest()[..length].to_owned();
        self.at += length;
        Ok(key)
    }

    fn value(&mut self, open: Open, named: bool, depth: usize) -> Result<Value, ParseError> {
        self.skip_space();
        let start = self.at;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(self.error(format!("nested more than {MAX_DEPTH} deep")));
        };
        match self.peek() {
            Some('{') => {
                self.at += 1;
                Ok(Value::Object(self.fields(Some((start, '}')), depth)?))
            }
            Some('[') => {
                self.at += 1;
                Ok(Value::Array(self.items(Some((start, ']')), depth)?))
            }
            Some(quote @ ('"' | '\'')) => Ok(Value::String(self.quoted(quote)?)),
            _ => self.unquoted(open, named),
        }
    }

    /// A text in quotes; escapes are JSON's in double quotes, and a doubled quote in single ones.
    fn quoted(&mut self, quote: char) -> Result<String, ParseError> {
        let start = self.at;
        let body = start + 1;
        let bytes = self.text.as_bytes();
        let mut at = body;
        loop {
            match bytes.get(at) {
                None => return Err(self.error_at(start, "there is no quote to end this text")),
                Some(b'\\') if quote == '"' => at += 2,
                Some(&byte) if char::from(byte) == quote => {
                    if quote == '\'' && bytes.get(at + 1) == Some(&b'\'') {
                        at += 2;
                        continue;
                    }
                    break;
                }
                Some(_) => at += 1,
            }
        }
        self.at = at + 1;
        if quote == '\'' {
            return Ok(self.text[body..at].replace("''", "'"));
        }
        // Control characters typed as they are, which JSON does not allow, are allowed.
        let mut json = String::with_capacity(at + 2 - start);
        for c in self.text[start..=at].chars() {
            match c {
                '\n' => json.push_str("\\n"),
                c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => json.push(c),
            }
        }
        serde_json::from_str(&json)
            .map_err(|_| self.error_at(start, "this text has an escape that JSON does not know"))
    }

    /// A value as typed: a number, true, false, null, or else a text.
    fn unquoted(&mut self, open: Open, named: bool) -> Result<Value, ParseError> {
        let start = self.at;
        let close = open.map(|(_, close)| close);
        let mut end = self.text.len();
        for (offset, c) in self.rest().char_indices() {
            let at = start + offset;
            let ends = match c {
                ',' => !named || self.begins_field(at + 1),
                c => Some(c) == close,
            };
            if ends {
                end = at;
                break;
            }
            match c {
                '{' | '[' | '"' => {
                    return Err(self.error_at(
                        at,
                        format!("'{c}' inside of a text: put quotes around the whole text"),
                    ));
                }
                ':' if named && self.text[at + 1..].starts_with([' ', '\t', '\n']) => {
                    return Err(self.error_at(
                        at,
                        "':' inside of a value: put ',' before the next name, or quotes around the text",
                    ));
                }
                _ => {}
            }
        }
        let text = self.text[start..end].trim_end();
        if text.is_empty() {
            return Err(self.error("expected a value"));
        }
        self.at = start + text.len();
        match text {
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            "null" => return Ok(Value::Null),
            _ => {}
        }
        if !looks_like_a_number(text) {
            return Ok(Value::String(text.to_owned()));
        }
        match serde_json::from_str::<Number>(text) {
            // A large integer would silently lose digits.
            Ok(number) if number.is_f64() && !text.contains(['.', 'e', 'E']) => Err(self.error_at(
                start,
                "this number is too large; put it in quotes if the flow takes a text",
            )),
            Ok(number) => Ok(Value::Number(number)),
            Err(_) => Ok(Value::String(text.to_owned())),
        }
    }

    /// Whether `key:` or the end comes next: only then is a comma the end of an unquoted value.
    fn begins_field(&self, at: usize) -> bool {
        let rest = self.text[at..].trim_start();
        if rest.is_empty() || rest.starts_with(['"', '\'', '}', ',']) {
            return true;
        }
        let length = name_length(rest);
        length > 0 && rest[length..].trim_start().starts_with(':')
    }
}

fn looks_like_a_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit())
}

/// How many bytes of a name the text begins with.
fn name_length(text: &str) -> usize {
    let first = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    if !first {
        return 0;
    }
    text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$')))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Value {
        Value::Object(parse(text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    #[test]
    fn what_people_type() {
        for (text, expected) in [
            ("", json!({})),
            ("   ", json!({})),
            ("amount: 100", json!({ "amount": 100 })),
            (
                "a: 1, b: two words, c: true,",
                json!({ "a": 1, "b": "two words", "c": true }),
            ),
            (
                "to: O=PartyB, L=Osaka, C=JP, amount: 5",
                json!({ "to": "O=PartyB, L=Osaka, C=JP", "amount": 5 }),
            ),
            (
                "to: \"O=PartyB, L=Osaka, C=JP\"",
                json!({ "to": "O=PartyB, L=Osaka, C=JP" }),
            ),
            ("say: 'it''s, {so}'", json!({ "say": "it's, {so}" })),
            (
                "at: 2026-01-31T09:30:00Z, url: http://host:1/x",
                json!({ "at": "2026-01-31T09:30:00Z", "url": "http://host:1/x" }),
            ),
            (
                "a: [1, two, {b: c, d: e, f}, []]",
                json!({ "a": [1, "two", { "b": "c", "d": "e, f" }, []] }),
            ),
            (
                "{\"a\": {\"b\": [null, -1.5e3]}}",
                json!({ "a": { "b": [null, -1500.0] } }),
            ),
            (
                "amount: $100.00, id: 007, n: 18446744073709551615",
                json!({ "amount": "$100.00", "id": "007", "n": u64::MAX }),
            ),
            ("a.b-c$D: x", json!({ "a.b-c$D": "x" })),
            (
                "name: Übermaß, 'odd key': \"tab\\tnew\nline\"",
                json!({ "name": "Übermaß", "odd key": "tab\tnew\nline" }),
            ),
            ("to: O=Bank, Inc, L=X", json!({ "to": "O=Bank, Inc, L=X" })),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, at, message) in [
            ("amount", 6, "expected ':'"),
            ("amount: ", 8, "expected a value"),
            ("amount: 5 to: x", 12, "put ','"),
            ("a: 1, a: 2", 6, "given twice"),
            ("a: {b: 1", 3, "no '}'"),
            ("a: [1, 2", 3, "no ']'"),
            ("a: [1 2}", 3, "no ']'"),
            ("a: \"x", 3, "no quote"),
            ("a: \"\\q\"", 3, "escape"),
            ("a: x\"y\"", 4, "inside of a text"),
            ("a: 99999999999999999999", 3, "too large"),
            (": 1", 0, "expected a name"),
            ("a: 1, ,", 6, "expected a name"),
            ("{a: 1} b", 7, "after the end"),
            ("a: {b: 1} c: 2", 10, "expected ','"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(message), "{text}: {error}");
            assert_eq!(error.at, at, "{text}: {error}");
        }
        let error = parse(&format!("ä: {}", "[".repeat(100))).unwrap_err();
        assert!(error.message.contains("deep"));
        assert_eq!(
            parse("a: [1], b 2").unwrap_err().to_string(),
            "expected ':' after the name 'b'\n  a: [1], b 2\n            ^"
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_json(value in any_json()) {
            prop_assert_eq!(&read(&format!("a: {value}"))["a"], &value);
            let pretty = serde_json::to_string_pretty(&json!({ "a": value })).unwrap();
            prop_assert_eq!(&read(&pretty)["a"], &value);
        }

        #[test]
        fn no_text_is_a_panic_and_places_are_places(text in "[a-z:,'\"{}\\[\\] \\\\0-9ü\n-]{0,40}|.*") {
            if let Err(error) = parse(&text) {
                prop_assert!(text.is_char_boundary(error.at));
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn plain_words_need_no_quotes(words in prop::collection::vec("[A-Z][a-z]{0,5}(=[A-Z][a-z]{0,5})?", 1..6), n in any::<i32>()) {
            let text = words.join(", ");
            let read = read(&format!("to: {text}, n: {n}"));
            prop_assert_eq!(read, json!({ "to": text, "n": n }));
        }
    }
}
