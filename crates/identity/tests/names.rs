//! Legal names as operators, the wire and certificates bring them.

use proptest::prelude::*;
use quorate_identity::name::{Attribute, MAX_NAME_BYTES};
use quorate_identity::{NameError, SecureHash, X500Name};

fn name(text: &str) -> X500Name {
    text.parse().expect("a legal name")
}

fn refusal(text: &str) -> NameError {
    text.parse::<X500Name>().expect_err("not a legal name")
}

#[test]
fn any_order_and_spacing_gives_the_canonical_text() {
    for text in [
        "O=PartyB,L=Osaka,C=JP",
        "C=JP, L=Osaka, O=PartyB",
        "  l = Osaka ,o=PartyB,   c= JP ",
    ] {
        assert_eq!(name(text).to_string(), "O=PartyB, L=Osaka, C=JP");
    }
    let full = name("C=US,ST=New York,L=New York,O=Alice & Co. (Holding),OU=Desk #2,CN=Alice");
    assert_eq!(
        full.to_string(),
        "CN=Alice, OU=Desk #2, O=Alice & Co. (Holding), L=New York, ST=New York, C=US"
    );
    assert_eq!(full.organisation_unit(), Some("Desk #2"));
    assert_eq!(full.state(), Some("New York"));
    let built = X500Name::new("Alice & Co. (Holding)", "New York", "US")
        .and_then(|n| n.with_state("New York"))
        .and_then(|n| n.with_organisation_unit("Desk #2"))
        .and_then(|n| n.with_common_name("Alice"))
        .expect("a legal name");
    assert_eq!(built, full);
    assert_eq!(
        name("O=Société Générale, L=Zürich, C=CH").locality(),
        "Zürich"
    );
    assert_eq!(
        name("O=Castle, L=King's Lynn, C=GB").locality(),
        "King's Lynn"
    );
}

#[test]
fn each_rule_refuses_by_name() {
    use Attribute::*;
    let long = |n: usize| "a".repeat(n);
    let cases = [
        ("L=Osaka,C=JP", NameError::MissingAttribute(Organisation)),
        ("O=PartyA,C=JP", NameError::MissingAttribute(Locality)),
        ("O=PartyA,L=Osaka", NameError::MissingAttribute(Country)),
        (
            "O=PartyA,O=PartyB,L=Osaka,C=JP",
            NameError::DuplicateAttribute(Organisation),
        ),
        ("O=,L=Osaka,C=JP", NameError::Empty(Organisation)),
        ("O=X,L=Osaka,C=JP", NameError::TooFewLetters),
        ("O=1234,L=Osaka,C=JP", NameError::TooFewLetters),
        ("O=Party  A,L=Osaka,C=JP", NameError::Spaces(Organisation)),
        (
            "O=My Node,L=Osaka,C=JP",
            NameError::ForbiddenWord { word: "node" },
        ),
        (
            "O=SERVERS Ltd,L=Osaka,C=JP",
            NameError::ForbiddenWord { word: "server" },
        ),
        (
            "O=PartyA,L=Osaka,C=XX",
            NameError::UnknownCountry { code: "XX".into() },
        ),
        (
            "O=PartyA,L=Osaka,C=jp",
            NameError::UnknownCountry { code: "jp".into() },
        ),
        (
            "O=PartyA,L=Osaka,C=JP,DC=net",
            NameError::UnknownAttribute {
                keyword: "DC".into(),
            },
        ),
        (
            "O=PartyA,L=Osaka,C=JP,",
            NameError::Malformed {
                part: String::new(),
            },
        ),
        (
            "",
            NameError::Malformed {
                part: String::new(),
            },
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), expected, "{text}");
    }
    for (attribute, limit) in [
        (CommonName, 64),
        (OrganisationUnit, 64),
        (Organisation, 128),
        (Locality, 64),
        (State, 64),
    ] {
        let rest: String = [("O", "PartyA"), ("L", "Osaka"), ("C", "JP")]
            .iter()
            .filter(|(keyword, _)| *keyword != attribute.keyword())
            .map(|(keyword, value)| format!("{keyword}={value},"))
            .collect();
        let text = |n| format!("{rest}{attribute}={}", long(n));
        assert!(text(limit).parse::<X500Name>().is_ok(), "{attribute}");
        assert_eq!(
            refusal(&text(limit + 1)),
            NameError::TooLong {
                attribute,
                length: limit + 1
            }
        );
    }
    for character in [
        '=', '$', '"', '\'', '\\', '+', ';', '<', '\0', '\t', '\n', '\u{7f}', 'а', '中',
        '\u{200b}', '\u{202e}', '\u{301}', 'ſ', '×',
    ] {
        assert_eq!(
            refusal(&format!("O=Par{character}tyA,L=Osaka,C=JP")),
            NameError::ForbiddenCharacter {
                attribute: Organisation,
                character
            }
        );
    }
    assert!(matches!(
        refusal(&long(MAX_NAME_BYTES + 1)),
        NameError::TextTooLong { .. }
    ));
    // An error shows a hostile text shortened and without control characters.
    let shown = refusal(&format!("O=PartyA,L=Osaka,C=\u{1b}[31m{}", long(500))).to_string();
    assert!(shown.len() < 200 && !shown.contains('\u{1b}'), "{shown}");
    // A value given as such is not trimmed.
    assert_eq!(
        X500Name::new(" PartyA", "Osaka", "JP"),
        Err(NameError::Spaces(Organisation))
    );
}

#[test]
fn the_encoded_name_and_the_host_name_are_fixed() {
    let party = name("O=PartyA, L=London, C=GB");
    // The same bytes as Corda's for this name.
    assert_eq!(
        hex::encode(party.to_der()),
        "302f310b3009060355040613024742310f300d06035504070c064c6f6e646f6e310f300d060355040a0c06506172747941"
    );
    let hash = SecureHash::of(b"O=PartyA, L=London, C=GB").to_string();
    assert_eq!(
        party.sni_hash(),
        format!("{}.corda.net", hash[..32].to_lowercase())
    );
    assert_eq!(
        serde_json::to_string(&party).expect("JSON"),
        "\"O=PartyA, L=London, C=GB\""
    );
}

#[test]
fn the_wire_accepts_the_canonical_text_only() {
    let bytes = borsh::to_vec(&name("O=PartyA, L=London, C=GB")).expect("bytes");
    assert_eq!(
        borsh::from_slice::<X500Name>(&bytes).expect("a name"),
        name("O=PartyA, L=London, C=GB")
    );
    for text in [
        "O=PartyA,L=London,C=GB",
        "O=PartyA",
        "C=GB, L=London, O=PartyA",
    ] {
        let bytes = borsh::to_vec(text).expect("bytes");
        assert!(borsh::from_slice::<X500Name>(&bytes).is_err(), "{text}");
    }
    // A false length is refused before anything is allocated for it.
    assert!(borsh::from_slice::<X500Name>(&u32::MAX.to_le_bytes()).is_err());
}

#[test]
fn a_subtree_holds_its_base_and_what_extends_it() {
    let base = name("O=PartyA, L=London, C=GB");
    assert!(base.is_within(&base));
    assert!(name("OU=Desk, O=PartyA, L=London, C=GB").is_within(&base));
    assert!(!base.is_within(&name("OU=Desk, O=PartyA, L=London, C=GB")));
    assert!(!name("O=PartyB, L=London, C=GB").is_within(&base));
    assert!(!name("O=PartyA, L=London, ST=Kent, C=GB").is_within(&base));
}

fn value(max: usize) -> impl Strategy<Value = String> {
    proptest::string::string_regex(&format!("[A-Za-z0-9À-ÖØ-öø-ıĴ-ľŁ-ňŊ-ž&.()/-]{{2,{max}}}"))
        .expect("a pattern")
        .prop_map(|text| format!("Ab{}", &text.chars().skip(2).collect::<String>()))
        .prop_filter("a word of the system", |text| {
            let folded = text.to_lowercase();
            !folded.contains("node") && !folded.contains("server")
        })
}

#[test]
fn bytes_after_the_last_attribute_are_refused() {
    let mut der = name("O=PartyA, L=London, C=GB").to_der();
    der[1] += 1;
    der.push(0);
    assert_eq!(X500Name::from_der(&der), Err(NameError::MalformedDer));
}

proptest! {
    #[test]
    fn every_name_survives_text_der_and_wire(
        organisation in value(128),
        locality in value(64),
        common_name in proptest::option::of(value(64)),
        state in proptest::option::of(value(64)),
        rotation in 0usize..5,
    ) {
        let mut parts = vec![format!("O={organisation}"), format!("L={locality}"), "C=DE".to_owned()];
        parts.extend(common_name.map(|v| format!("CN={v}")));
        parts.extend(state.map(|v| format!("ST={v}")));
        let count = parts.len();
        parts.rotate_left(rotation % count);
        let parsed = name(&parts.join(","));
        prop_assert_eq!(&name(parsed.as_str()), &parsed);
        prop_assert_eq!(&X500Name::from_der(&parsed.to_der()).expect("own DER"), &parsed);
        let wire = borsh::to_vec(&parsed).expect("bytes");
        prop_assert_eq!(&borsh::from_slice::<X500Name>(&wire).expect("own bytes"), &parsed);
    }

    #[test]
    fn nonsense_never_panics_and_what_is_accepted_is_canonical(text in "[COLSTNU=, a-zA-Z\\PC]{0,80}") {
        if let Ok(accepted) = text.parse::<X500Name>() {
            prop_assert_eq!(&name(accepted.as_str()), &accepted);
        }
    }

    #[test]
    fn damaged_der_never_panics(position in 0usize..49, byte: u8, cut in 0usize..49) {
        let mut der = name("O=PartyA, L=London, C=GB").to_der();
        der[position] = byte;
        let _ = X500Name::from_der(&der);
        let _ = X500Name::from_der(&der[..cut]);
        der.push(0);
        prop_assert!(X500Name::from_der(&der).is_err());
    }
}
