//! Floods of frames that cost the sender next to nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, SETTINGS, call, frame, hello,
    message, message_head,
};
use crate::support::bytes;
use crate::victim::{TRANSACTION, Victim};

const BROADCAST: &str = "/orderer.AtomicBroadcast/Broadcast";
const DELIVER: &str = "/orderer.AtomicBroadcast/Deliver";

/// Sends until everything is sent, the other side has closed the connection, or time is up; reads nothing.
async fn flood(victim: &Victim, rounds: usize, mut content: impl FnMut(usize) -> Vec<u8>) {
    let mut connection = victim.connect(None).await.unwrap();
    let sending = async {
        if connection.write_all(&hello()).await.is_err() {
            return;
        }
        for round in 0..rounds {
            if connection.write_all(&content(round)).await.is_err() {
                return;
            }
        }
        let _ = connection.flush().await;
        // Whatever comes, until it closes.
        let mut ignored = [0; 4096];
        while matches!(connection.read(&mut ignored).await, Ok(read) if read > 0) {}
    };
    let _ = timeout(Duration::from_secs(5), sending).await;
}

fn streams(round: usize, each: usize) -> impl Iterator<Item = u32> {
    (0..each).map(move |at| u32::try_from(2 * (round * each + at) + 1).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_harm_nobody() {
    let victim = Victim::start().await;

    // Streams that are opened and given up at once.
    let opened_and_reset = flood(&victim, 500, |round| {
        let mut out = Vec::new();
        for stream in streams(round, 100) {
            out.extend(frame(HEADERS, END_HEADERS, stream, &call(BROADCAST)));
            out.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        out
    });
    let others = victim.serves_others("rapid resets");
    tokio::join!(opened_and_reset, others);

    // More streams than anybody needs, all of them open.
    let open = flood(&victim, 400, |round| {
        let mut out = Vec::new();
        for stream in streams(round, 100) {
            out.extend(frame(HEADERS, END_HEADERS, stream, &call(DELIVER)));
        }
        out
    });
    tokio::join!(open, victim.serves_others("many streams"));
    victim.serves_others("after many streams").await;

    // Headers without end.
    let headers = flood(&victim, 2_000, |round| {
        let filler = [&[0x00, 0x01, b'x', 0x7f, 0x80, 0x7e][..], &[b'y'; 16_255]].concat();
        match round {
            0 => frame(HEADERS, 0, 1, &call(BROADCAST)),
            _ => frame(CONTINUATION, 0, 1, &filler),
        }
    });
    tokio::join!(headers, victim.serves_others("endless headers"));

    // Settings, pings, empty data, unknown frames.
    let settings = flood(&victim, 2_000, |_| {
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(100)
    });
    tokio::join!(settings, victim.serves_others("settings"));
    let pings = flood(&victim, 2_000, |_| frame(PING, 0, 0, &[7; 8]).repeat(100));
    tokio::join!(pings, victim.serves_others("pings"));
    let empty = flood(&victim, 2_000, |round| match round {
        0 => frame(HEADERS, END_HEADERS, 1, &call(BROADCAST)),
        _ => frame(DATA, 0, 1, &[]).repeat(100),
    });
    tokio::join!(empty, victim.serves_others("empty frames"));
    let unknown = flood(&victim, 500, |_| frame(77, 255, 3, &[1; 1000]).repeat(10));
    tokio::join!(unknown, victim.serves_others("unknown frames"));

    // Sixteen thousand open calls are most of it.
    victim.is_unharmed(300 * 1024);
    victim.stops().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_long_are_refused_without_being_taken_in() {
    let victim = Victim::start().await;
    // Lengths that are only claimed.
    let claims = flood(&victim, 1, |_| {
        let mut out = Vec::new();
        for stream in streams(0, 200) {
            out.extend(frame(HEADERS, END_HEADERS, stream, &call(BROADCAST)));
            out.extend(frame(DATA, 0, stream, &message_head(u32::MAX - 7)));
        }
        out
    });
    tokio::join!(claims, victim.serves_others("claimed lengths"));
    // Messages of just below a mebibyte that never end: as many as the window of a connection takes.
    let unfinished = flood(&victim, 64, |round| {
        let stream = u32::try_from(2 * round + 1).unwrap();
        let mut out = frame(HEADERS, END_HEADERS, stream, &call(BROADCAST));
        out.extend(frame(DATA, 0, stream, &message_head(1_000_000)));
        for _ in 0..50 {
            out.extend(frame(DATA, 0, stream, &[7; 16_000]));
        }
        out
    });
    tokio::join!(unfinished, victim.serves_others("unfinished messages"));
    // Good ones without end, and no answer is read.
    let transaction = bytes(TRANSACTION);
    let good = flood(&victim, 3_000, |round| {
        let mut out = Vec::new();
        if round == 0 {
            out.extend(frame(HEADERS, END_HEADERS, 1, &call(BROADCAST)));
        }
        out.extend(message(1, &transaction));
        out
    });
    tokio::join!(good, victim.serves_others("answers that are not read"));
    victim.is_unharmed(300 * 1024);
    victim.stops().await;
}
