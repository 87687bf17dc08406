//! How fast one party can send to another. Run with `--ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use support::Party;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn measure() {
    let (a, b) = (Party::start("PartyA"), Party::start("PartyB"));
    a.knows(&b);
    a.send(&b.name, vec![0]);
    a.settled(&b.name).await;
    for (size, count) in [(1024, 50_000), (16 * 1024, 10_000), (10_485_760, 20)] {
        for _ in 0..count {
            a.queue.put(&b.name, vec![7; size]);
        }
        let began = Instant::now();
        a.handle.notify(&b.name);
        while a.queue.left(&b.name) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        let (rate, volume) = (
            count as f64 / seconds,
            (count * size) as f64 / seconds / 1e6,
        );
        println!("{count} messages of {size} bytes: {rate:.0} messages/s, {volume:.0} MB/s");
    }
    let mut longest = Duration::ZERO;
    let began = Instant::now();
    for _ in 0..1000 {
        let sent = Instant::now();
        a.send(&b.name, vec![7; 1024]);
        while a.queue.left(&b.name) > 0 {
            tokio::task::yield_now().await;
        }
        longest = longest.max(sent.elapsed());
    }
    println!(
        "one by one: {:?} each, the longest {longest:?}",
        began.elapsed() / 1000
    );
}
