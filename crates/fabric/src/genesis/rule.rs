//! The language in which policies are written: `ANY Writers`, `AND('A.member', OR('B.admin', 'C.peer'))`,
//! `OutOf(2, 'A.member', 'B.member', 'C.member')`.

use prost::Message;

use crate::proto::common::{
    ImplicitMetaPolicy, MspPrincipal, MspRole, SignaturePolicy, SignaturePolicyEnvelope,
    implicit_meta_policy::Rule,
    msp_principal::Classification,
    msp_role::MspRoleType,
    signature_policy::{NOutOf, Type},
};

/// How deep gates may be nested. Protobuf would refuse to read what is much deeper.
const MAX_DEPTH: usize = 32;

/// Reads `ANY|ALL|MAJORITY <policy name>`.
pub(super) fn implicit_meta(text: &str) -> Result<ImplicitMetaPolicy, String> {
    let words: Vec<&str> = text.split(' ').collect();
    let [rule, sub_policy] = words[..] else {
        let got = words.len();
        return Err(format!(
            "expected two space separated tokens, but got {got}"
        ));
    };
    let rule = Rule::from_str_name(rule)
        .ok_or_else(|| format!("unknown rule type '{rule}', expected ALL, ANY, or MAJORITY"))?;
    Ok(ImplicitMetaPolicy {
        sub_policy: sub_policy.to_owned(),
        rule: rule as i32,
    })
}

/// Reads a gate over principals and gates.
pub(super) fn signature(text: &str) -> Result<SignaturePolicyEnvelope, String> {
    let mut parser = Parser { rest: text };
    let term = parser.term(0)?;
    if let Some(token) = parser.token()? {
        return Err(format!("{token} after the end of the rule"));
    }
    let mut identities = Vec::new();
    let rule = match term {
        Term::Gate(gate) => assemble(gate, &mut identities),
        Term::Principal(_) => return Err("a principal without a gate: write OR('...')".to_owned()),
    };
    Ok(SignaturePolicyEnvelope {
        version: 0,
        rule: Some(rule),
        identities,
    })
}

pub(super) fn n_out_of(n: i32, rules: Vec<SignaturePolicy>) -> SignaturePolicy {
    SignaturePolicy {
        r#type: Some(Type::NOutOf(NOutOf { n, rules })),
    }
}

enum Term {
    Principal(MspPrincipal),
    Gate(Gate),
}

struct Gate {
    n: i32,
    terms: Vec<Term>,
}

/// Numbers the principals as Fabric's tool does: those of inner gates come before a gate's own, and one that is
/// named twice is there twice.
fn assemble(gate: Gate, identities: &mut Vec<MspPrincipal>) -> SignaturePolicy {
    enum Half {
        Done(SignaturePolicy),
        Principal(MspPrincipal),
    }
    let halves: Vec<Half> = gate
        .terms
        .into_iter()
        .map(|term| match term {
            Term::Gate(inner) => Half::Done(assemble(inner, identities)),
            Term::Principal(principal) => Half::Principal(principal),
        })
        .collect();
    let rules = halves.into_iter().map(|half| match half {
        Half::Done(rule) => rule,
        Half::Principal(principal) => {
            identities.push(principal);
            // There are fewer of them than the text has characters.
            let index = i32::try_from(identities.len() - 1).unwrap_or(i32::MAX);
            SignaturePolicy {
                r#type: Some(Type::SignedBy(index)),
            }
        }
    });
    n_out_of(gate.n, rules.collect())
}

struct Parser<'a> {
    rest: &'a str,
}

#[derive(PartialEq)]
enum Token<'a> {
    Open,
    Close,
    Comma,
    Word(&'a str),
    Quoted(&'a str),
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("'('"),
            Self::Close => f.write_str("')'"),
            Self::Comma => f.write_str("','"),
            Self::Word(text) | Self::Quoted(text) => write!(f, "'{text}'"),
        }
    }
}

impl<'a> Parser<'a> {
    fn token(&mut self) -> Result<Option<Token<'a>>, String> {
        self.rest = self.rest.trim_start();
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '\'' | '"' => {
                let inner = &self.rest[1..];
                let end = inner
                    .find(first)
                    .ok_or_else(|| "a quotation mark is not closed".to_owned())?;
                (Token::Quoted(&inner[..end]), end + 2)
            }
            c if c.is_ascii_alphanumeric() => {
                let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric());
                let end = end.unwrap_or(self.rest.len());
                (Token::Word(&self.rest[..end]), end)
            }
            other => return Err(format!("unrecognized token '{other}' in policy string")),
        };
        self.rest = &self.rest[length..];
        Ok(Some(token))
    }

    fn some_token(&mut self) -> Result<Token<'a>, String> {
        self.token()?
            .ok_or_else(|| "the rule ends too early".to_owned())
    }

    fn term(&mut self, depth: usize) -> Result<Term, String> {
        if depth > MAX_DEPTH {
            return Err(format!("gates are nested more than {MAX_DEPTH} deep"));
        }
        match self.some_token()? {
            Token::Quoted(text) => principal(text).map(Term::Principal),
            Token::Word(gate) => self.gate(gate, depth).map(Term::Gate),
            other => Err(format!("{other} where a gate or a principal belongs")),
        }
    }

    fn gate(&mut self, name: &str, depth: usize) -> Result<Gate, String> {
        let out_of = matches!(name, "OutOf" | "outof" | "OUTOF");
        let and = matches!(name, "And" | "and" | "AND");
        if !(out_of || and || matches!(name, "Or" | "or" | "OR")) {
            return Err(format!("unrecognized token '{name}' in policy string"));
        }
        match self.some_token()? {
            Token::Open => {}
            other => return Err(format!("{other} where '(' belongs")),
        }
        let mut n = None;
        if out_of {
            let number = match self.some_token()? {
                Token::Word(text) | Token::Quoted(text) => text.parse::<i32>().ok(),
                _ => None,
            };
            n = Some(number.ok_or("OutOf begins with a number")?);
            if self.some_token()? != Token::Comma {
                return Err("expected at least two arguments to OutOf".to_owned());
            }
        }
        let mut terms = vec![self.term(depth + 1)?];
        loop {
            match self.some_token()? {
                Token::Comma => terms.push(self.term(depth + 1)?),
                Token::Close => break,
                other => return Err(format!("{other} where ',' or ')' belongs")),
            }
        }
        let count = i32::try_from(terms.len()).unwrap_or(i32::MAX);
        let n = n.unwrap_or(if and { count } else { 1 });
        // One more than there are is allowed: it is how to write that nobody may.
        if n < 0 || n > count.saturating_add(1) {
            return Err(format!("invalid t-out-of-n predicate, t {n}, n {count}"));
        }
        Ok(Gate { n, terms })
    }
}

fn principal(text: &str) -> Result<MspPrincipal, String> {
    let error = || format!("error parsing principal {text}");
    let (msp, role) = text.rsplit_once('.').ok_or_else(error)?;
    let role = match role {
        "member" => MspRoleType::Member,
        "admin" => MspRoleType::Admin,
        "client" => MspRoleType::Client,
        "peer" => MspRoleType::Peer,
        "orderer" => MspRoleType::Orderer,
        _ => return Err(error()),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    if msp.is_empty() || !msp.chars().all(allowed) {
        return Err(error());
    }
    Ok(MspPrincipal {
        principal_classification: Classification::Role as i32,
        principal: MspRole {
            msp_identifier: msp.to_owned(),
            role: role as i32,
        }
        .encode_to_vec(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// The rule with its principals in place, and the principals in their order.
    fn read(text: &str) -> Result<(String, String), String> {
        fn show(rule: &SignaturePolicy) -> String {
            match rule.r#type.as_ref().unwrap() {
                Type::SignedBy(index) => index.to_string(),
                Type::NOutOf(gate) => {
                    let rules: Vec<String> = gate.rules.iter().map(show).collect();
                    format!("{}({})", gate.n, rules.join(" "))
                }
            }
        }
        let policy = signature(text)?;
        let identities = policy.identities.iter().map(|identity| {
            let role = MspRole::decode(&identity.principal[..]).unwrap();
            let kind = role.role().as_str_name().to_lowercase();
            format!("{}.{kind}", role.msp_identifier)
        });
        let identities = identities.collect::<Vec<_>>().join(" ");
        Ok((show(&policy.rule.unwrap()), identities))
    }

    #[test]
    fn gates_are_read() {
        let same = |text: &str, rule: &str, identities: &str| {
            assert_eq!(
                read(text).unwrap(),
                (rule.to_owned(), identities.to_owned()),
                "{text}"
            );
        };
        same("OR('A.member')", "1(0)", "A.member");
        same(
            "And( 'A-1.x.admin' , \"B.peer\")",
            "2(0 1)",
            "A-1.x.admin B.peer",
        );
        same(
            "outof(2, 'A.client', 'A.client', 'B.orderer')",
            "2(0 1 2)",
            "A.client A.client B.orderer",
        );
        same(
            "OutOf('1', 'A.client', 'B.client')",
            "1(0 1)",
            "A.client B.client",
        );
        same(
            "OR('A.admin', AND('B.peer', 'C.peer'), 'D.peer')",
            "1(2 2(0 1) 3)",
            "B.peer C.peer A.admin D.peer",
        );
        same("OutOf(2, 'A.admin')", "2(0)", "A.admin");
        same("OutOf(0, 'A.admin')", "0(0)", "A.admin");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let says = |text: &str, reason: &str| {
            let refusal = read(text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        };
        says("", "ends too early");
        says("'A.member'", "without a gate");
        says("OR('A.boss')", "error parsing principal A.boss");
        says("OR('member')", "error parsing principal member");
        says("OR('A_B.member')", "error parsing principal");
        says("XOR('A.member')", "unrecognized token 'XOR'");
        says("OR('A.member'", "ends too early");
        says("OR('A.member)", "not closed");
        says("OR()", "where a gate or a principal");
        says("OR('A.member') OR('A.member')", "after the end");
        says("OutOf(3, 'A.member')", "t 3, n 1");
        says("OutOf('A.member', 'A.member')", "begins with a number");
        says("OR('A.member'; 'B.member')", "unrecognized token ';'");
        says(&"OR(".repeat(100), "deep");
        assert!(implicit_meta("ANY").unwrap_err().contains("but got 1"));
        assert!(
            implicit_meta("any Admins")
                .unwrap_err()
                .contains("unknown rule type 'any'")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(OR|AND|OutOf|[('\",)A.é0-9 ]|member){0,30}") {
            let _ = (signature(&text), implicit_meta(&text));
        }
    }
}
