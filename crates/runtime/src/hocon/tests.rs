use super::*;
use proptest::prelude::*;
use serde_json::json;

fn environment() -> Environment {
    [
        ("HOST", "lb.example"),
        ("PORT", "10002"),
        ("EMPTY", ""),
        ("dotted.name", "d"),
    ]
    .into_iter()
    .collect()
}

fn read(text: &str) -> Result<serde_json::Value, String> {
    parse_str(text, "node.conf", &environment())
        .map(|value| value.to_json())
        .map_err(|error| error.to_string())
}

#[track_caller]
fn means(text: &str, expected: serde_json::Value) {
    assert_eq!(read(text), Ok(expected), "{text}");
}

/// The text is refused at this place, for a reason that contains these words.
#[track_caller]
fn refused(text: &str, place: &str, words: &str) {
    let error = read(text).expect_err(text);
    assert!(
        error.starts_with(&format!("node.conf:{place}: ")) && error.contains(words),
        "{text}\n=> {error}"
    );
}

#[test]
fn what_json_means_is_kept() {
    means(
        r#"{"a": [1, -2.5e3, true, null, "x\n\u00e9\ud83d\ude00"], "b": {}}"#,
        json!({"a": [1, -2500.0, true, null, "x\né😀"], "b": {}}),
    );
    means("", json!({}));
    means("\u{feff}{}", json!({}));
}

#[test]
fn separators_comments_and_keys() {
    means(
        "a=1\nb:2,c 3 = x // gone\nd{e=f}# gone\n\n g=1,\n",
        json!({"a":1,"b":2,"c 3":"x","d":{"e":"f"},"g":1}),
    );
    means(
        "a.b.c=1\na.b { d=2 }\n\"a.b\".c=3\na . b . e=4",
        json!({"a":{"b":{"c":1,"d":2,"e":4}},"a.b":{"c":3}}),
    );
    means(
        "a =\n  1\nb =\n\n{ c=[\n1\n2,\n3,\n] }",
        json!({"a":1,"b":{"c":[1,2,3]}}),
    );
    means(
        "a=1\na=2\no{x=1}\no=null\no{y=2}",
        json!({"a":2,"o":{"y":2}}),
    );
    means(
        "include=1\nincludes{a=1}\ninclude.b=1",
        json!({"include":{"b":1},"includes":{"a":1}}),
    );
}

#[test]
fn unquoted_text() {
    means(
        "a = corda_is_awesome\nb = two words \nc = 10s\nd = 007\ne = 1e+5\nf = /var/log/x-1_y;z",
        json!({"a":"corda_is_awesome","b":"two words","c":"10s","d":"007","e":1e5,"f":"/var/log/x-1_y;z"}),
    );
    means(
        "a = \"x\" y \"z\"\nb = 1 2\nc = true false",
        json!({"a":"x y z","b":"1 2","c":"true false"}),
    );
    means(
        "a = \"\"\"raw \"${HOST}\" \\n\nline\"\"\"\"",
        json!({"a":"raw \"${HOST}\" \\n\nline\""}),
    );
}

#[test]
fn joining_lists_and_objects() {
    means(
        "a = [1] [2, 3]\nb = {x=1} {y=2}\nc = ${a} [4]\nd = ${b} {x=9}",
        json!({"a":[1,2,3],"b":{"x":1,"y":2},"c":[1,2,3,4],"d":{"x":9,"y":2}}),
    );
    means(
        "a += 1\na += {x=2}\nb = [1]\nb += 2",
        json!({"a":[1,{"x":2}],"b":[1,2]}),
    );
    refused("a = [1] b", "1:9", "cannot be joined");
    refused("a = 1\na += 2", "2:1", "`+=` adds to a list");
}

#[test]
fn substitution() {
    means(
        "a = ${b.c}\nb { c = 1 }\nb.c = 2",
        json!({"a":2,"b":{"c":2}}),
    );
    means("a = x\na = ${a} y\na = ${a} z", json!({"a":"x y z"}));
    means(
        "a { x = 1 }\nb = ${a} \nb { y = 2 }\nb.x = 3",
        json!({"a":{"x":1},"b":{"x":3,"y":2}}),
    );
    means("l = [1]\nl = ${l} [2]\nl += 3", json!({"l":[1,2,3]}));
    means(
        "base { list = [1] }\no = ${base}\no.list += 2",
        json!({"base":{"list":[1]},"o":{"list":[1,2]}}),
    );
    means(
        "bar { foo = 42, baz = ${bar.foo} }\nbar { foo = 43 }",
        json!({"bar":{"foo":43,"baz":43}}),
    );
    means(
        "bar { a = ${foo.d}, b = 1 }\nbar.b = 3\nfoo { c = ${bar.b}, d = 2 }\nfoo.d = 4",
        json!({"bar":{"a":4,"b":3},"foo":{"c":3,"d":4}}),
    );
    means(
        "foo { a { c = 1 } }\nfoo = ${foo.a}\nfoo { a = 2 }",
        json!({"foo":{"a":2,"c":1}}),
    );
    means(
        "a = ${?none}\nb = [${?none}, 1]\nc = x${?none}y\nd { e = ${?none} }\nf = 1\nf = ${?none}",
        json!({"b":[1],"c":"xy","d":{},"f":1}),
    );
    means(
        "o = {p = 5}\no.p.q = 1\nr = ${?o.p.q}",
        json!({"o":{"p":{"q":1}},"r":1}),
    );
    means("o.p.q = 1\no.p = 5\nr = ${?o.p.q}", json!({"o":{"p":5}}));
    means(
        "users = [{name = ${n}}]\nn = corda",
        json!({"users":[{"name":"corda"}],"n":"corda"}),
    );
    refused("a = ${b}", "1:5", "`${b}` is neither a key");
    refused(
        "a = ${b}\nb = ${c}\nc = ${b}",
        "3:5",
        "leads back to itself",
    );
    refused("a = ${a}", "1:5", "neither a key");
}

#[test]
fn the_environment() {
    means(
        "a = ${HOST}\nb = ${?EMPTY}\nc = ${HOST}\":\"${PORT}",
        json!({"a":"lb.example","b":"","c":"lb.example:10002"}),
    );
    // A key of the file comes first; inside quotes only the environment is meant.
    means(
        "HOST = mine\na = ${HOST}\nb = \"${HOST}:${PORT}\"",
        json!({"HOST":"mine","a":"mine","b":"lb.example:10002"}),
    );
    means(
        r#"a = "${?NOT_SET}x", b = "\u0024{HOST}", c = "${not a name} $5 ${}""#,
        json!({"a":"x","b":"${HOST}","c":"${not a name} $5 ${}"}),
    );
    refused(
        "\n  a = \"x${DB_PASSWORD}\"",
        "2:9",
        "`DB_PASSWORD` is not set",
    );
}

#[test]
fn the_next_key_may_follow_a_closing_brace() {
    means(
        "rpc {\n a=1\n}security {\n b=2\n} c=3",
        json!({"rpc":{"a":1},"security":{"b":2},"c":3}),
    );
}

#[test]
fn truncated_and_malformed_texts_say_where() {
    refused("a {\n  b = 1\n", "3:1", "opened with `{` in line 1");
    refused("a = [1,\n", "2:1", "opened with `[` in line 1");
    refused("a = \"abc\nb = 1", "1:5", "not closed on its line");
    refused("a = \"abc", "1:5", "closing quote");
    refused("a = \"\"\"abc\"\"", "1:5", "closing triple quotes");
    refused("a = 1\nmyLeg", "2:1", "the file ends after the key `myLeg`");
    refused(
        "a = 1\nmyLeg\nb = 2",
        "2:1",
        "followed by the end of the line",
    );
    refused("a =", "1:1", "has no value");
    refused("a = 1\n}", "2:1", "without its `{`");
    refused("{ a = 1 } }", "1:11", "after the closing");
    refused("[1]", "1:1", "not a list");
    refused("a = ,", "1:1", "has no value");
    refused("a = 1,,b = 2", "1:7", "comma");
    refused("a = jdbc:x", "1:9", "double quotes");
    refused("a = pa$$", "1:7", "double quotes");
    refused("a = \"\\x\"", "1:6", "escape");
    refused("a = \"\\ud800\"", "1:6", "\\u");
    refused("a..b = 1", "1:1", "dot");
    refused(".a = 1", "1:1", "dot");
    refused("a. = 1", "1:1", "ends with a dot");
    refused("= 1", "1:1", "a key is expected");
    refused("a = ${b", "1:5", "inside a substitution");
    refused("a = [1 }", "1:8", "list");
    refused("a = [1, }", "1:9", "inside the list");
    refused("a = [b = 1]", "1:8", "double quotes");
    refused("include \"x\"", "1:1", "not a file");
}

#[test]
fn every_truncation_of_a_file_in_braces_is_refused() {
    let text = "{ a = \"x\", b { c = [1, ${?X}, \"\"\"t\"\"\"] } d = y }";
    assert!(read(text).is_ok());
    for end in 1..text.len() {
        assert!(read(&text[..end]).is_err(), "{}", &text[..end]);
    }
}

#[test]
fn hostile_texts_are_bounded() {
    let deep = |open: &str, close: &str| {
        let count = 100_000;
        format!("a = {}{}", open.repeat(count), close.repeat(count))
    };
    for text in [
        deep("[", "]"),
        deep("{a=", "}"),
        format!("{} = 1", "a.".repeat(100_000) + "a"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(
            error.contains("nested more than") || error.contains("more than 64 parts"),
            "{error}"
        );
    }
    // A bomb of doublings, and a chain longer than any sane one.
    let bomb: String = (0..60)
        .map(|n| format!("k{} = ${{k{n}}}${{k{n}}}\n", n + 1))
        .collect();
    assert!(
        read(&format!("k0 = lol\n{bomb}"))
            .unwrap_err()
            .contains("beyond all bounds")
    );
    let chain: String = (0..1000)
        .map(|n| format!("k{n} = ${{k{}}}\n", n + 1))
        .collect();
    assert!(
        read(&format!("{chain}k1000 = 1"))
            .unwrap_err()
            .contains("levels deep")
    );
    // A long history is not an attack: each step looks back once.
    let steps = 800;
    let list = read(&"a += x\n".repeat(steps)).unwrap();
    assert_eq!(list["a"].as_array().unwrap().len(), steps);
    let text = read(&format!("a = s\n{}", "a = ${a}t\n".repeat(steps))).unwrap();
    assert_eq!(text["a"].as_str().unwrap().len(), steps + 1);
}

#[test]
fn included_files() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let load = || parse_file(&directory.path().join("node.conf"), &environment());
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    write(
        "node.conf",
        "include \"base\"\ndb { include file(\"sub/db.conf\"), port = 2 }\ninclude \"missing\"\nx = ${y}\ny = 3",
    );
    write("base.conf", "y = 1\nz = ${y}\n");
    write(
        "sub/db.conf",
        "{ host = h, port = 1\n url = ${host}\":\"${port}${outer}, include \"more.conf\" }\n",
    );
    write("sub/more.conf", "user = u");
    // Not yet: `outer` is defined nowhere.
    assert!(
        load().unwrap_err().to_string().contains("sub/db.conf:2:"),
        "{}",
        load().unwrap_err()
    );
    write(
        "base.conf",
        "y = 1\nz = ${y}\nouter = !\n".replace('!', "e").as_str(),
    );
    assert_eq!(
        load().unwrap().to_json(),
        json!({"y":3,"z":3,"x":3,"outer":"e","db":{"host":"h","port":2,"url":"h:2e","user":"u"}})
    );
    for (text, words) in [
        ("include required(\"absent.conf\")", "does not exist"),
        ("include url(\"http://x\")", "only files"),
        ("include \"node.conf\"", "include itself"),
        ("include file(\"base.conf\"", "`)` is missing"),
        ("include \"sub\"", "cannot be read"),
    ] {
        write("node.conf", text);
        let error = load().unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    write("node.conf", &"include \"node.conf\"\n".repeat(3));
    assert!(load().is_err());
    std::fs::write(directory.path().join("node.conf"), b"a = 1\nb = \xff").unwrap();
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .contains("not valid UTF-8 in line 2")
    );
    write("node.conf", &" ".repeat(MAX_FILE_BYTES as usize + 1));
    assert!(load().unwrap_err().to_string().contains("larger than"));
    std::fs::remove_file(directory.path().join("node.conf")).unwrap();
    let error = load().unwrap_err();
    assert!(
        error.to_string().ends_with("node.conf: it cannot be read") && error.source.is_some(),
        "{error}"
    );
}

#[test]
fn values_know_where_they_were_written_and_debug_shows_no_secrets() {
    let value = parse_str(
        "a = 1\nkeyStorePassword = \"s3cret\"",
        "node.conf",
        &environment(),
    )
    .unwrap();
    let password = &value.as_object().unwrap()["keyStorePassword"];
    assert_eq!(password.origin.to_string(), "node.conf:2:20");
    assert!(!format!("{value:?} {password:?} {:?}", environment()).contains("s3cret"));
    assert!(!format!("{:?}", environment()).contains("lb.example"));
}

// Everything below is generated.

/// A tree of values in a form that both parsers write and read alike.
fn tree() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i32>().prop_map(serde_json::Value::from),
        "[ -~]{0,12}".prop_map(serde_json::Value::from),
        "\\PC{0,6}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map("[a-z]{1,3}", inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A document as an operator might write it: keys over several lines, overriding and referring to each other.
///
/// The other implementation lets an object shine through a text that was put in its place later, if the key has ever
/// had a substitution or a concatenation, against the specification. So what is substituted or joined gets a key of its
/// own.
fn document() -> impl Strategy<Value = String> {
    let key = "[abc](\\.[abc]){0,2}";
    let value = prop_oneof![
        4 => "[a-z]{1,4}|[1-9][0-9]{0,3}|true|null|\"[a-z .=]{0,6}\"",
        1 => Just("[1, x, {p = 1}]".to_owned()),
        1 => Just("{ a = 1, b { c = 2 } }".to_owned()),
    ];
    let separator = prop_oneof![Just(" = "), Just(": "), Just("=")];
    let words = "[a-z]{1,3} [a-z0-9]{1,3}( \"[a-z ]{0,2}\")?";
    prop::collection::vec((key, separator, value, "[abcxd](\\.[abck])?", words), 0..8).prop_map(
        |members| {
            let mut text = "x { a = one, b { k = v }, c = [1] } // known\n".to_owned();
            for (index, (key, separator, value, reference, words)) in
                members.into_iter().enumerate()
            {
                text += &format!("{key}{separator}{value}\n");
                text += &format!("s{index}{separator}${{?{reference}}}\n");
                text += &format!("t{index}{separator}{words}\n");
            }
            text
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_read_or_refused(text in "[a-c.=:{}\\[\\]\",$?+#/\\\\ \n1]{0,60}|\\PC{0,60}") {
        let _ = read(&text);
    }

    #[test]
    fn any_damage_to_a_real_file_is_read_or_refused(
        at in 0usize..600, cut in 0usize..20, insert in "[\\PC\n\"{}$]{0,4}"
    ) {
        let text: Vec<char> = GUIDE.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        let damaged: String = text[..at].iter().copied().chain(insert.chars()).chain(text[end..].iter().copied()).collect();
        let _ = read(&damaged);
    }

    #[test]
    fn json_is_read_as_json(value in tree()) {
        let text = serde_json::to_string_pretty(&json!({"root": value})).unwrap();
        // `${…}` in quotes is our extension, and not JSON's.
        prop_assume!(!text.contains("${"));
        prop_assert_eq!(read(&text), Ok(json!({"root": value})));
    }

    #[test]
    fn another_implementation_agrees(text in document()) {
        let theirs: Result<serde_json::Value, _> = hocon_rs::Config::parse_str(&text, None);
        if let Ok(theirs) = theirs {
            prop_assert_eq!(read(&text), Ok(theirs), "{}", text);
        }
    }
}

const GUIDE: &str = r#"
p2pAddress : "${HOST}:${PORT}"
rpcSettings {
    address : "${HOST}:10003"
}
myLegalName : "O=Corda HA, L=London, C=GB"
rpcUsers=[
    {
        user=corda
        permissions=[
            ALL
        ]
    }
]
database.runMigration = true
dataSourceProperties = {
    dataSourceClassName = "org.postgresql.ds.PGSimpleDataSource"
    dataSource.url = "jdbc:postgresql://${HOST}:5432/db" // ours
    dataSource.user = ${HOST}
}
enterpriseConfiguration = {
    mutualExclusionConfiguration = {
        on = true
        updateInterval = 20000
    }
}
"#;
