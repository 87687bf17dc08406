//! `include`: one configuration in several files.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::super::{Error, MAX_INCLUDE_DEPTH, MAX_INCLUDES, Origin, Unreadable, read_text};
use super::{Reader, Shared, Slot, is_space};

impl Reader<'_> {
    /// `include …`, if that is what comes next.
    pub(super) fn include(&mut self, slot: &mut Slot) -> Result<bool, Error> {
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
}
