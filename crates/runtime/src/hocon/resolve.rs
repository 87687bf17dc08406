//! Resolving: from assignments in the order of reading to one tree of values.
//!
//! A [`Slot`] is a key with the history of what was assigned to it; object literals are spread over the slots of their
//! members, so that `a { b = 1 }` and `a.b = 1` are the same. Every assignment has a number that tells its place in
//! the order of reading. The value of a slot is its history laid one over the other; a substitution that refers to the
//! key it is assigned to sees the history up to its own number only, which is how `path = ${path} "more"` works.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::{
    Environment, Error, Kind, MAX_RESOLUTION_DEPTH, MAX_RESOLUTION_WORK, Object, Origin, Value,
};

pub(super) enum Expression {
    Literal(Value),
    Array(Vec<Expression>, Origin),
    Object(Box<Slot>),
    Substitution(Substitution),
    /// Several pieces side by side: text that is joined, or lists or objects that are.
    Joined(Vec<Piece>, Origin),
}

pub(super) enum Piece {
    Value(Expression),
    /// The blanks between two pieces, which count if the whole turns out to be text.
    Blanks(String),
}

pub(super) struct Substitution {
    pub(super) path: Vec<String>,
    /// Where the file with this substitution was included: looked up there first.
    pub(super) base: Rc<[String]>,
    /// The path of the key that it is part of.
    pub(super) at: Rc<[String]>,
    /// Everything with a higher number comes after it.
    pub(super) sequence: u64,
    pub(super) optional: bool,
    pub(super) origin: Origin,
}

pub(super) struct Assignment {
    pub(super) sequence: u64,
    pub(super) append: bool,
    pub(super) origin: Origin,
    pub(super) value: Expression,
}

pub(super) struct Slot {
    path: Rc<[String]>,
    origin: Origin,
    /// Numbers at which an object literal (or a dotted key through here) said that this is an object; ascending.
    marks: Vec<u64>,
    /// What else was assigned; ascending numbers.
    history: Vec<Assignment>,
    members: BTreeMap<String, Slot>,
}

impl Slot {
    pub(super) fn new(path: Rc<[String]>, origin: Origin) -> Self {
        Self {
            path,
            origin,
            marks: Vec::new(),
            history: Vec::new(),
            members: BTreeMap::new(),
        }
    }

    pub(super) fn mark(&mut self, sequence: u64) {
        self.marks.push(sequence);
    }

    /// Assigns to the member reached by `keys`.
    pub(super) fn assign(&mut self, keys: &[String], assignment: Assignment) {
        let Some((key, rest)) = keys.split_first() else {
            match assignment.value {
                Expression::Object(slot) if !assignment.append => self.absorb(*slot),
                _ => self.history.push(assignment),
            }
            return;
        };
        self.mark_last(assignment.first_sequence());
        let path = &self.path;
        let member = self.members.entry(key.clone()).or_insert_with(|| {
            let path: Vec<String> = path.iter().chain([key]).cloned().collect();
            Slot::new(Rc::from(path), assignment.origin.clone())
        });
        member.assign(rest, assignment);
    }

    /// Lays another slot, read later, over this one.
    pub(super) fn absorb(&mut self, later: Slot) {
        if self.marks.is_empty() && self.history.is_empty() && self.members.is_empty() {
            *self = later;
            return;
        }
        self.marks.extend(later.marks);
        self.history.extend(later.history);
        for (key, slot) in later.members {
            match self.members.entry(key) {
                std::collections::btree_map::Entry::Occupied(mut member) => {
                    member.get_mut().absorb(slot)
                }
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(slot);
                }
            }
        }
    }

    fn mark_last(&mut self, sequence: u64) {
        if self.marks.last().is_none_or(|last| *last < sequence) {
            self.marks.push(sequence);
        }
    }

    fn is_object_between(&self, after: u64, before: u64) -> bool {
        let first = self.marks.partition_point(|mark| *mark <= after);
        self.marks.get(first).is_some_and(|mark| *mark < before)
    }
}

impl Assignment {
    /// The number from which this assignment counts: an object's members have lower numbers than the object's end.
    fn first_sequence(&self) -> u64 {
        match &self.value {
            Expression::Object(slot) => slot.marks.first().copied().unwrap_or(self.sequence),
            _ => self.sequence,
        }
    }
}

/// What is known about a path.
#[derive(Clone)]
enum Found {
    /// Nothing was said about it.
    Absent,
    /// Something on the way is not an object, which hides what was said before.
    Hidden,
    Is(Value),
}

impl Found {
    fn overlay(&mut self, above: Found) {
        match above {
            Found::Absent => {}
            Found::Hidden => *self = Found::Hidden,
            Found::Is(value) => {
                *self = Found::Is(match std::mem::replace(self, Found::Absent) {
                    Found::Is(below) => below.overlaid_with(value),
                    _ => value,
                });
            }
        }
    }

    fn value(self) -> Option<Value> {
        match self {
            Found::Is(value) => Some(value),
            Found::Absent | Found::Hidden => None,
        }
    }
}

/// Everything that comes before the end.
const NO_LIMIT: u64 = u64::MAX;

pub(super) fn resolve(
    root: &Slot,
    origin: &Origin,
    environment: &Environment,
) -> Result<Value, Error> {
    let mut resolver = Resolver {
        root,
        environment,
        known: HashMap::new(),
        active: Vec::new(),
        depth: 0,
        work: 0,
    };
    let whole = resolver.value(root, &[], 0, NO_LIMIT)?.value();
    Ok(whole.unwrap_or_else(|| Value {
        origin: origin.clone(),
        kind: Kind::Object(Object::new()),
    }))
}

/// A path, and the number before which its history counts.
type Question = (Vec<String>, u64);

struct Resolver<'a> {
    root: &'a Slot,
    environment: &'a Environment,
    known: HashMap<Question, Found>,
    active: Vec<Question>,
    depth: usize,
    work: usize,
}

impl<'a> Resolver<'a> {
    /// The value below `slot` at `rest`, from what was assigned after number `after` and before number `before`.
    fn value(
        &mut self,
        slot: &'a Slot,
        rest: &[String],
        after: u64,
        before: u64,
    ) -> Result<Found, Error> {
        self.enter(&slot.origin)?;
        let mut found = Found::Absent;
        let mut from = after;
        let first = slot
            .history
            .partition_point(|assignment| assignment.sequence <= after);
        for assignment in &slot.history[first..] {
            let sequence = assignment.sequence;
            if sequence >= before {
                break;
            }
            self.overlay_members(slot, rest, from, sequence, &mut found)?;
            if rest.is_empty() && after == 0 {
                // Exactly the answer that a reference to this key's former value will ask for. Without keeping it,
                // a key that refers to itself n times would be resolved 2ⁿ times.
                self.charge(&found, &assignment.origin)?;
                self.known
                    .insert((slot.path.to_vec(), sequence), found.clone());
            }
            if assignment.append {
                if rest.is_empty() {
                    let former = match after {
                        0 => std::mem::replace(&mut found, Found::Absent),
                        _ => self.lookup(&slot.path, sequence, &assignment.origin)?,
                    };
                    found = Found::Is(self.appended(former, assignment)?);
                } else {
                    found = Found::Hidden;
                }
            } else if let Some(value) = self.evaluate(&assignment.value)? {
                found.overlay(dig(value, rest));
            }
            from = sequence;
        }
        self.overlay_members(slot, rest, from, before, &mut found)?;
        self.depth -= 1;
        Ok(found)
    }

    /// Lays over `found` what the members say between two numbers.
    fn overlay_members(
        &mut self,
        slot: &'a Slot,
        rest: &[String],
        after: u64,
        before: u64,
        found: &mut Found,
    ) -> Result<(), Error> {
        if !slot.is_object_between(after, before) {
            return Ok(());
        }
        match rest.split_first() {
            None => {
                let mut members = Object::new();
                for (key, member) in &slot.members {
                    if let Some(value) = self.value(member, &[], after, before)?.value() {
                        members.insert(key.clone(), value);
                    }
                }
                let value = Value {
                    origin: slot.origin.clone(),
                    kind: Kind::Object(members),
                };
                found.overlay(Found::Is(value));
            }
            Some((key, rest)) => {
                if matches!(found, Found::Hidden) {
                    *found = Found::Absent;
                }
                if let Some(member) = slot.members.get(key) {
                    let above = self.value(member, rest, after, before)?;
                    found.overlay(above);
                }
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, expression: &'a Expression) -> Result<Option<Value>, Error> {
        match expression {
            Expression::Literal(value) => {
                self.spend(value.weight(), &value.origin)?;
                Ok(Some(value.clone()))
            }
            Expression::Array(items, origin) => {
                self.enter(origin)?;
                let mut values = Vec::new();
                for item in items {
                    values.extend(self.evaluate(item)?);
                }
                self.depth -= 1;
                Ok(Some(Value {
                    origin: origin.clone(),
                    kind: Kind::Array(values),
                }))
            }
            Expression::Object(slot) => {
                let value = self.value(slot, &[], 0, NO_LIMIT)?.value();
                Ok(Some(value.unwrap_or_else(|| Value {
                    origin: slot.origin.clone(),
                    kind: Kind::Object(Object::new()),
                })))
            }
            Expression::Substitution(substitution) => self.substitute(substitution),
            Expression::Joined(pieces, origin) => self.join(pieces, origin),
        }
    }

    fn substitute(&mut self, wanted: &Substitution) -> Result<Option<Value>, Error> {
        let full: Vec<String> = wanted.base.iter().chain(&wanted.path).cloned().collect();
        let mut candidates = vec![full];
        if !wanted.base.is_empty() {
            candidates.push(wanted.path.clone());
        }
        for path in candidates {
            // Inside its own value a key means what it was before.
            let own = path.starts_with(&wanted.at) || wanted.at.starts_with(&path);
            let before = if own { wanted.sequence + 1 } else { NO_LIMIT };
            if let Found::Is(value) = self.lookup(&path, before, &wanted.origin)? {
                return Ok(Some(value));
            }
        }
        let name = wanted.path.join(".");
        if let Some(text) = self.environment.get(&name) {
            self.spend(text.len(), &wanted.origin)?;
            return Ok(Some(Value {
                origin: wanted.origin.clone(),
                kind: Kind::String(text.to_owned()),
            }));
        }
        if wanted.optional {
            return Ok(None);
        }
        let name = name.escape_debug();
        Err(Error::new(
            &wanted.origin,
            format!(
                "`${{{name}}}` is neither a key of this configuration nor an environment variable; define it, or write \
                 `${{?{name}}}` if it may be missing"
            ),
        ))
    }

    fn lookup(&mut self, path: &[String], before: u64, origin: &Origin) -> Result<Found, Error> {
        let question = (path.to_vec(), before);
        if let Some(found) = self.known.get(&question).cloned() {
            self.charge(&found, origin)?;
            return Ok(found);
        }
        if self.active.contains(&question) {
            let name = path.join(".");
            return Err(Error::new(
                origin,
                format!("`${{{}}}` leads back to itself", name.escape_debug()),
            ));
        }
        self.active.push(question);
        let found = self.value(self.root, path, 0, before)?;
        self.charge(&found, origin)?;
        if let Some(question) = self.active.pop() {
            self.known.insert(question, found.clone());
        }
        Ok(found)
    }

    fn join(&mut self, pieces: &'a [Piece], origin: &Origin) -> Result<Option<Value>, Error> {
        self.enter(origin)?;
        let mut text = String::new();
        let mut whole: Option<Value> = None;
        let mut any_text = false;
        for piece in pieces {
            let value = match piece {
                Piece::Blanks(blanks) => {
                    text.push_str(blanks);
                    continue;
                }
                Piece::Value(expression) => match self.evaluate(expression)? {
                    Some(value) => value,
                    None => continue,
                },
            };
            match (whole.take(), value) {
                (None, value) if value.text().is_some() => {
                    text.push_str(value.text().unwrap_or_default());
                    any_text = true;
                }
                (None, value) if !any_text => whole = Some(value),
                (
                    Some(Value {
                        kind: Kind::Array(mut items),
                        origin,
                    }),
                    Value {
                        kind: Kind::Array(more),
                        ..
                    },
                ) => {
                    items.extend(more);
                    whole = Some(Value {
                        kind: Kind::Array(items),
                        origin,
                    });
                }
                (
                    Some(
                        below @ Value {
                            kind: Kind::Object(_),
                            ..
                        },
                    ),
                    above @ Value {
                        kind: Kind::Object(_),
                        ..
                    },
                ) => {
                    whole = Some(below.overlaid_with(above));
                }
                (_, value) => {
                    return Err(Error::new(
                        &value.origin,
                        format!(
                            "{} cannot be joined to what stands before it on the line",
                            value.noun()
                        ),
                    ));
                }
            }
        }
        self.spend(text.len(), origin)?;
        self.depth -= 1;
        if whole.is_some() {
            return Ok(whole);
        }
        Ok(any_text.then(|| Value {
            origin: origin.clone(),
            kind: Kind::String(text),
        }))
    }

    fn appended(&mut self, former: Found, assignment: &'a Assignment) -> Result<Value, Error> {
        let mut list = match former {
            Found::Absent | Found::Hidden => Value {
                origin: assignment.origin.clone(),
                kind: Kind::Array(Vec::new()),
            },
            Found::Is(value) => value,
        };
        let Kind::Array(items) = &mut list.kind else {
            return Err(Error::new(
                &assignment.origin,
                format!(
                    "`+=` adds to a list, but the key is {} so far (see {})",
                    list.noun(),
                    list.origin
                ),
            ));
        };
        items.extend(self.evaluate(&assignment.value)?);
        Ok(list)
    }

    /// One level deeper; the caller takes it back when it succeeds (an error ends everything).
    fn enter(&mut self, origin: &Origin) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_RESOLUTION_DEPTH {
            return Err(Error::new(
                origin,
                format!(
                    "substitutions lead more than {MAX_RESOLUTION_DEPTH} levels deep; write fewer of them"
                ),
            ));
        }
        self.spend(1, origin)
    }

    fn charge(&mut self, found: &Found, origin: &Origin) -> Result<(), Error> {
        match found {
            Found::Is(value) => self.spend(value.weight(), origin),
            Found::Absent | Found::Hidden => self.spend(1, origin),
        }
    }

    fn spend(&mut self, weight: usize, origin: &Origin) -> Result<(), Error> {
        self.work = self.work.saturating_add(weight);
        if self.work > MAX_RESOLUTION_WORK {
            return Err(Error::new(
                origin,
                "substitutions multiply this configuration beyond all bounds",
            ));
        }
        Ok(())
    }
}

/// What an assigned value says about a path below it.
fn dig(value: Value, rest: &[String]) -> Found {
    let mut value = value;
    for key in rest {
        match value.kind {
            Kind::Object(mut members) => match members.remove(key) {
                Some(member) => value = member,
                None => return Found::Absent,
            },
            _ => return Found::Hidden,
        }
    }
    Found::Is(value)
}
