//! Reading: from characters to assignments that are not yet resolved. Keys, values, objects and lists are read here,
//! strings in `text`, included files in `include`.

mod include;
mod text;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::resolve::{Assignment, Expression, Piece, Slot, Substitution};
use super::{Environment, Error, Kind, MAX_DEPTH, Origin, Value};
use text::classified;

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
