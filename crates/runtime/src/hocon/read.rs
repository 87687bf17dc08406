//! Reading: from characters to assignments that are not yet resolved.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::resolve::{Assignment, Expression, Piece, Slot, Substitution};
use super::{
    Environment, Error, Kind, MAX_DEPTH, MAX_INCLUDE_DEPTH, MAX_INCLUDES, Origin, Unreadable,
    Value, read_text,
};

/// Characters that end an unquoted string, besides whitespace and `//`.
const RESERVED: &str = "$\"{}[]:=,+#`^?!@*&\\";

/// Stands for "some element of an array" in paths, where no key can say it.
const ELEMENT: &str = "\0";

/// What the files of one configuration share.
struct Shared {
    /// Number of the next assignment. Order of numbers is order of reading, over all files.
    sequence: u64,
    includes: usize,
}

pub(super) struct Reader<'a> {
    characters: Vec<char>,
    position: usize,
    line: u32,
    column: u32,
    source: Arc<str>,
    directory: Option<PathBuf>,
    environment: &'a Environment,
    /// The path at which this file was included: its substitutions look there first.
    base: Rc<[String]>,
    /// The path of the value that is being read.
    path: Vec<String>,
    include_depth: usize,
    shared: Shared,
}

/// How an object literal ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Brace,
    EndOfFile,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        text: &str,
        source: Arc<str>,
        directory: Option<PathBuf>,
        environment: &'a Environment,
    ) -> Self {
        Self {
            characters: text
                .strip_prefix('\u{feff}')
                .unwrap_or(text)
                .chars()
                .collect(),
            position: 0,
            line: 1,
            column: 1,
            source,
            directory,
            environment,
            base: Rc::from([]),
            path: Vec::new(),
            include_depth: 0,
            shared: Shared {
                sequence: 0,
                includes: 0,
            },
        }
    }

    /// The whole text as one object.
    pub(super) fn root(mut self) -> Result<Slot, Error> {
        self.whole()
    }

    fn whole(&mut self) -> Result<Slot, Error> {
        self.skip_blank();
        match self.peek() {
            Some('{') => {
                let slot = self.object()?;
                self.skip_blank();
                match self.peek() {
                    None => Ok(slot),
                    Some(found) => Err(self.error(format!(
                        "{} after the closing `}}` of the whole; remove it, or an unbalanced `}}` above",
                        shown(found)
                    ))),
                }
            }
            Some('[') => {
                Err(self.error("a configuration is an object of keys and values, not a list"))
            }
            _ => self.members(End::EndOfFile, &self.here()),
        }
    }

    /// `{ … }`
    fn object(&mut self) -> Result<Slot, Error> {
        let opened = self.here();
        self.bump();
        self.members(End::Brace, &opened)
    }

    fn members(&mut self, end: End, opened: &Origin) -> Result<Slot, Error> {
        self.check_depth(opened)?;
        let mut slot = Slot::new(Rc::from(self.path.as_slice()), opened.clone());
        slot.mark(self.next_sequence());
        let mut comma_allowed = false;
        loop {
            self.skip_blank();
            match self.peek() {
                None if end == End::EndOfFile => return Ok(slot),
                None => {
                    return Err(self.error(format!(
                        "the file ends inside the object that was opened with `{{` in line {}; add the missing `}}`, \
                         or restore the rest of the file",
                        opened.line
                    )));
                }
                Some('}') if end == End::Brace => {
                    self.bump();
                    return Ok(slot);
                }
                Some('}') => return Err(self.error("a `}` without its `{`")),
                Some(',') if comma_allowed => {
                    self.bump();
                    comma_allowed = false;
                    continue;
                }
                Some(',') => return Err(self.error("a comma without a value before it")),
                Some(_) => {}
            }
            if self.include(&mut slot)? {
                self.end_of_member(false)?;
            } else {
                let ended_with_brace = self.member(&mut slot)?;
                self.end_of_member(ended_with_brace)?;
            }
            comma_allowed = true;
        }
    }

    /// After a member: a comma, a new line or the end. After a `}` the next key may follow at once.
    fn end_of_member(&mut self, ended_with_brace: bool) -> Result<(), Error> {
        self.skip_space();
        match self.peek() {
            None | Some(',' | '\n' | '}' | '#') => Ok(()),
            Some('/') if self.peek_at(1) == Some('/') => Ok(()),
            Some(_) if ended_with_brace => Ok(()),
            Some(found) => Err(self.error(format!(
                "{} cannot follow here; put the value in double quotes, or start a new line",
                shown(found)
            ))),
        }
    }

    /// `key = value` and its variants. Answers whether the value ended with `}`.
    fn member(&mut self, slot: &mut Slot) -> Result<bool, Error> {
        let origin = self.here();
        let keys = self.key()?;
        let named = || format!("`{}`", keys.join(".").escape_debug());
        let mut append = false;
        match self.peek() {
            Some(':' | '=') => self.bump(),
            Some('+') if self.peek_at(1) == Some('=') => {
                append = true;
                self.bump();
                self.bump();
            }
            Some('{') => {}
            None => {
                return Err(Error::new(
                    &origin,
                    format!(
                        "the file ends after the key {}; restore the rest of the file",
                        named()
                    ),
                ));
            }
            Some(found) => {
                let found = if found == '\n' {
                    "the end of the line".to_owned()
                } else {
                    shown(found)
                };
                return Err(Error::new(
                    &origin,
                    format!(
                        "the key {} is followed by {found} instead of `=` and a value",
                        named()
                    ),
                ));
            }
        }
        self.skip_blank();
        let before = self.path.len();
        self.path.extend(keys.iter().cloned());
        self.check_depth(&origin)?;
        let value = self.value()?;
        self.path.truncate(before);
        let Some((value, ended_with_brace)) = value else {
            return Err(Error::new(
                &origin,
                format!("the key {} has no value", named()),
            ));
        };
        let sequence = self.next_sequence();
        slot.assign(
            &keys,
            Assignment {
                sequence,
                append,
                origin,
                value,
            },
        );
        Ok(ended_with_brace)
    }

    /// A key: names joined by dots, up to what separates it from the value.
    fn key(&mut self) -> Result<Vec<String>, Error> {
        self.dotted("a key", |reader| match reader.peek() {
            None | Some(':' | '=' | '{' | '\n') => true,
            Some('+') => reader.peek_at(1) == Some('='),
            _ => false,
        })
    }

    /// Names joined by dots. A quoted part is taken as it is; blanks inside belong to the name, around it they do not.
    fn dotted(&mut self, what: &str, at_end: impl Fn(&Self) -> bool) -> Result<Vec<String>, Error> {
        let start = self.here();
        let mut names = Vec::new();
        let mut name: Option<String> = None;
        let mut blanks = String::new();
        loop {
            if at_end(self) {
                break;
            }
            match self.peek() {
                None => break,
                Some('"') => {
                    let text = self.quoted(false)?;
                    let name = name.get_or_insert_default();
                    name.push_str(&std::mem::take(&mut blanks));
                    name.push_str(&text);
                }
                Some('.') => {
                    self.bump();
                    blanks.clear();
                    match name.take() {
                        Some(name) => names.push(name),
                        None => {
                            return Err(Error::new(
                                &start,
                                format!("{what} has a dot without a name before it"),
                            ));
                        }
                    }
                }
                Some(blank) if is_space(blank) => {
                    self.bump();
                    if name.is_some() {
                        blanks.push(blank);
                    }
                }
                Some(found) if RESERVED.contains(found) || found == '\n' => {
                    return Err(self.error(format!(
                        "{} cannot stand in {what}; put the name in double quotes, or remove it",
                        shown(found)
                    )));
                }
                Some('/') if self.peek_at(1) == Some('/') => {
                    return Err(Error::new(
                        &start,
                        format!("{what} is cut off by a comment"),
                    ));
                }
                Some(character) => {
                    self.bump();
                    let name = name.get_or_insert_default();
                    name.push_str(&std::mem::take(&mut blanks));
                    name.push(character);
                }
            }
        }
        match name {
            Some(name) => names.push(name),
            None if names.is_empty() => {
                return Err(Error::new(&start, format!("{what} is expected here")));
            }
            None => return Err(Error::new(&start, format!("{what} ends with a dot"))),
        }
        if names.len() > MAX_DEPTH {
            return Err(Error::new(
                &start,
                format!("{what} has more than {MAX_DEPTH} parts"),
            ));
        }
        Ok(names)
    }

    /// A value: one piece, or several on the same line. `None` when there is none. Also answers whether it ended with
    /// an object's `}`.
    fn value(&mut self) -> Result<Option<(Expression, bool)>, Error> {
        let origin = self.here();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut blanks = String::new();
        let mut unquoted = false;
        let mut ended_with_brace = false;
        while let Some(character) = self.peek() {
            if is_space(character) {
                self.bump();
                blanks.push(character);
                continue;
            }
            if matches!(character, '\n' | ',' | '}' | ']' | '#') || self.at_comment() {
                break;
            }
            // Text cannot be joined to an object, so what looks like text after `}` is the next key.
            if ended_with_brace && !matches!(character, '{' | '[' | '$') {
                break;
            }
            let piece_origin = self.here();
            ended_with_brace = false;
            unquoted = false;
            let piece = match character {
                '"' => Expression::Literal(Value {
                    kind: Kind::String(self.quoted(true)?),
                    origin: piece_origin,
                }),
                '{' => {
                    ended_with_brace = true;
                    Expression::Object(Box::new(self.object()?))
                }
                '[' => self.array()?,
                '$' if self.peek_at(1) == Some('{') => self.substitution()?,
                _ if RESERVED.contains(character) => {
                    return Err(self.error(format!(
                        "{} cannot stand in a value outside of quotes; put the value in double quotes",
                        shown(character)
                    )));
                }
                _ => {
                    unquoted = true;
                    Expression::Literal(Value {
                        kind: Kind::String(self.unquoted()),
                        origin: piece_origin,
                    })
                }
            };
            if !pieces.is_empty() {
                pieces.push(Piece::Blanks(std::mem::take(&mut blanks)));
            }
            blanks.clear();
            pieces.push(Piece::Value(piece));
        }
        if pieces.len() <= 1 {
            return Ok(match pieces.pop() {
                Some(Piece::Value(Expression::Literal(Value {
                    kind: Kind::String(text),
                    origin,
                }))) if unquoted => Some((
                    Expression::Literal(Value {
                        kind: classified(text),
                        origin,
                    }),
                    false,
                )),
                Some(Piece::Value(value)) => Some((value, ended_with_brace)),
                _ => None,
            });
        }
        Ok(Some((Expression::Joined(pieces, origin), ended_with_brace)))
    }

    /// `[ … ]`
    fn array(&mut self) -> Result<Expression, Error> {
        let opened = self.here();
        self.bump();
        self.path.push(ELEMENT.to_owned());
        self.check_depth(&opened)?;
        let mut items = Vec::new();
        let mut comma_allowed = false;
        loop {
            self.skip_blank();
            match self.peek() {
                None => {
                    return Err(self.error(format!(
                        "the file ends inside the list that was opened with `[` in line {}; add the missing `]`, or \
                         restore the rest of the file",
                        opened.line
                    )));
                }
                Some(']') => {
                    self.bump();
                    self.path.pop();
                    return Ok(Expression::Array(items, opened));
                }
                Some(',') if comma_allowed => {
                    self.bump();
                    comma_allowed = false;
                    continue;
                }
                Some(',') => return Err(self.error("a comma without a value before it")),
                Some('}') => {
                    return Err(self.error(format!(
                        "a `}}` inside the list that was opened with `[` in line {}; close the list first",
                        opened.line
                    )));
                }
                Some(_) => {}
            }
            match self.value()? {
                Some((item, _)) => items.push(item),
                None => return Err(self.error("a value is expected here")),
            }
            self.skip_space();
            match self.peek() {
                None | Some(',' | '\n' | ']' | '#') => {}
                _ if self.at_comment() => {}
                Some(found) => {
                    return Err(self.error(format!(
                        "{} cannot follow here; separate the values of a list by commas or new lines",
                        shown(found)
                    )));
                }
            }
            comma_allowed = true;
        }
    }

    /// `${path}` or `${?path}`
    fn substitution(&mut self) -> Result<Expression, Error> {
        let origin = self.here();
        self.bump();
        self.bump();
        let optional = self.peek() == Some('?');
        if optional {
            self.bump();
        }
        let path = self.dotted("a substitution", |reader| reader.peek() == Some('}'))?;
        if self.peek() != Some('}') {
            return Err(Error::new(
                &origin,
                "the file ends inside a substitution `${…}`",
            ));
        }
        self.bump();
        let at: Rc<[String]> = Rc::from(self.path.as_slice());
        // What is inside an array or a joined object has no assignment of its own to look back from.
        let sequence = self.shared.sequence;
        Ok(Expression::Substitution(Substitution {
            path,
            base: self.base.clone(),
            at,
            sequence,
            optional,
            origin,
        }))
    }

    fn unquoted(&mut self) -> String {
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
    fn quoted(&mut self, expand: bool) -> Result<String, Error> {
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

    /// `include …`, if that is what comes next.
    fn include(&mut self, slot: &mut Slot) -> Result<bool, Error> {
        const WORD: &str = "include";
        if !WORD
            .chars()
            .enumerate()
            .all(|(ahead, expected)| self.peek_at(ahead) == Some(expected))
        {
            return Ok(false);
        }
        let mut ahead = WORD.len();
        while self.peek_at(ahead).is_some_and(is_space) {
            ahead += 1;
        }
        // `include = 1` and `includes = 1` are ordinary members.
        let kinds = ["\"", "file(", "required(", "url(", "classpath(", "package("];
        let begins = |start: &str| {
            start
                .chars()
                .enumerate()
                .all(|(i, c)| self.peek_at(ahead + i) == Some(c))
        };
        if ahead == WORD.len() || !kinds.iter().any(|start| begins(start)) {
            return Ok(false);
        }
        let origin = self.here();
        for _ in 0..ahead {
            self.bump();
        }
        let mut required = false;
        let mut open = 0;
        while self.peek() != Some('"') {
            let kind = self.unquoted_until_parenthesis();
            match kind.as_str() {
                "required(" if open == 0 => required = true,
                "file(" => {}
                _ => {
                    return Err(Error::new(
                        &origin,
                        "only files can be included: write include \"file\", include file(\"file\") or include \
                         required(file(\"file\"))",
                    ));
                }
            }
            open += 1;
            self.skip_space();
        }
        let name = self.quoted(true)?;
        for _ in 0..open {
            self.skip_space();
            if self.peek() != Some(')') {
                return Err(self.error("a `)` is missing after the included file's name"));
            }
            self.bump();
        }
        if let Some(included) = self.included(&origin, &name, required)? {
            slot.absorb(included);
        }
        Ok(true)
    }

    fn unquoted_until_parenthesis(&mut self) -> String {
        let mut text = String::new();
        while let Some(character) = self.peek()
            && (character.is_ascii_alphabetic() || character == '(')
        {
            self.bump();
            text.push(character);
            if character == '(' {
                break;
            }
        }
        text
    }

    fn included(
        &mut self,
        origin: &Origin,
        name: &str,
        required: bool,
    ) -> Result<Option<Slot>, Error> {
        let Some(directory) = &self.directory else {
            return Err(Error::new(
                origin,
                "nothing can be included here, because this text is not a file",
            ));
        };
        if self.include_depth >= MAX_INCLUDE_DEPTH {
            return Err(Error::new(
                origin,
                format!(
                    "files include files more than {MAX_INCLUDE_DEPTH} deep; does one include itself?"
                ),
            ));
        }
        if self.shared.includes >= MAX_INCLUDES {
            return Err(Error::new(
                origin,
                format!("more than {MAX_INCLUDES} files are included"),
            ));
        }
        self.shared.includes += 1;
        // As elsewhere, the ending may be left out.
        let mut candidates = vec![directory.join(name)];
        if Path::new(name).extension().is_none() {
            candidates
                .extend(["conf", "json"].map(|ending| directory.join(name).with_extension(ending)));
        }
        for path in candidates {
            let text = match read_text(&path) {
                Ok(text) => text,
                Err(Unreadable::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(failure) => {
                    return Err(
                        failure.at(origin, &format!("the included file {}", path.display()))
                    );
                }
            };
            let mut base = self.base.to_vec();
            base.extend(self.path.iter().cloned());
            let mut inner = Reader {
                include_depth: self.include_depth + 1,
                base: Rc::from(base),
                path: self.path.clone(),
                shared: Shared {
                    sequence: self.shared.sequence,
                    includes: self.shared.includes,
                },
                directory: path.parent().map(Path::to_owned),
                ..Reader::new(
                    &text,
                    Arc::from(path.to_string_lossy()),
                    None,
                    self.environment,
                )
            };
            let slot = inner.whole()?;
            self.shared = inner.shared;
            return Ok(Some(slot));
        }
        if required {
            return Err(Error::new(
                origin,
                format!(
                    "the required file {} does not exist",
                    directory.join(name).display()
                ),
            ));
        }
        Ok(None)
    }

    fn check_depth(&self, origin: &Origin) -> Result<(), Error> {
        if self.path.len() > MAX_DEPTH {
            return Err(Error::new(
                origin,
                format!("values are nested more than {MAX_DEPTH} deep"),
            ));
        }
        Ok(())
    }

    fn next_sequence(&mut self) -> u64 {
        self.shared.sequence += 1;
        self.shared.sequence
    }

    fn here(&self) -> Origin {
        Origin {
            source: self.source.clone(),
            line: self.line,
            column: self.column,
        }
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::new(&self.here(), reason)
    }

    fn peek(&self) -> Option<char> {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> Option<char> {
        self.characters.get(self.position + ahead).copied()
    }

    fn bump(&mut self) {
        if let Some(character) = self.peek() {
            self.position += 1;
            if character == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
    }

    fn at_comment(&self) -> bool {
        self.peek() == Some('/') && self.peek_at(1) == Some('/')
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.bump();
        }
    }

    /// Skips space, new lines and comments.
    fn skip_blank(&mut self) {
        loop {
            match self.peek() {
                Some('#') => self.skip_line(),
                Some('/') if self.at_comment() => self.skip_line(),
                Some(character) if is_space(character) || character == '\n' => self.bump(),
                _ => return,
            }
        }
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|character| character != '\n') {
            self.bump();
        }
    }
}

/// Whitespace other than the new line, which separates.
fn is_space(character: char) -> bool {
    character != '\n' && (character.is_whitespace() || character == '\u{feff}')
}

fn shown(character: char) -> String {
    if character == '\n' {
        "the end of the line".to_owned()
    } else {
        format!("`{}`", character.escape_debug())
    }
}

/// What an unquoted text that stands alone means.
fn classified(text: String) -> Kind {
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
