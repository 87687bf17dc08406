//! Exit codes and lines of `quorate node health`, as monitoring reads them.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::processes::BaseDirectory;

/// A process that answers every question the same, or never.
fn answering(base: &BaseDirectory, answer: Option<&'static str>) {
    let listener =
        UnixListener::bind(base.path().join("control.sock")).expect("the socket can be opened");
    thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let Some(answer) = answer else {
                silent.push(stream);
                continue;
            };
            let mut question = [0; 1024];
            let _ = stream.read(&mut question);
            let _ = writeln!(stream, "{answer}");
        }
    });
}

#[test]
fn each_condition_has_its_code() {
    for (answer, code, line) in [
        (
            r#"{"ok":true,"message":"flows work","role":"active","report":{}}"#,
            0,
            "QUORATE OK - Solo: active, flows work\n",
        ),
        (
            r#"{"ok":true,"message":"standing by","role":"standby","report":{}}"#,
            0,
            "QUORATE OK - Solo: standby, standing by\n",
        ),
        (
            r#"{"ok":false,"message":"this instance is starting","role":"starting","report":{}}"#,
            1,
            "QUORATE WARNING - Solo: this instance is starting\n",
        ),
        (
            r#"{"ok":false,"message":"this instance is stopping","role":"stopping","report":{}}"#,
            1,
            "QUORATE WARNING - Solo: this instance is stopping\n",
        ),
        (
            r#"{"ok":false,"message":"the self-check failed: why","role":"active","report":{}}"#,
            2,
            "QUORATE CRITICAL - Solo: the self-check failed: why\n",
        ),
    ] {
        let base = BaseDirectory::new("");
        answering(&base, Some(answer));
        assert_eq!(base.health(), (code, line.to_owned()));
    }
}

#[test]
fn who_does_not_answer_is_critical() {
    let base = BaseDirectory::new("");
    let (code, line) = base.health();
    assert_eq!(code, 2);
    assert!(
        line.starts_with("QUORATE CRITICAL - Solo: no node answers at "),
        "{line}"
    );

    answering(&base, None);
    let (code, line) = base.health();
    assert_eq!(code, 2);
    assert!(line.contains("does not answer within"), "{line}");

    let garbled = BaseDirectory::new("");
    answering(&garbled, Some("what?"));
    assert_eq!(garbled.health().0, 2);
}

#[test]
fn a_configuration_that_cannot_be_read_tells_nothing_of_the_node() {
    let base = BaseDirectory::new("p2pAdress = nonsense\nrpcSetings = {}");
    let (code, line) = base.health();
    assert_eq!(code, 3);
    assert!(line.starts_with("QUORATE UNKNOWN - "), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
