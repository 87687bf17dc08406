//! How long a channel is without a leader after the death of one.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::Alone;
use crate::support::client::{Answer, Books, Load, transaction};
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};

/// Leaders that are killed.
const DEATHS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_serves_soon_after_the_death_of_the_old_one() {
    let _alone = Alone::begin().await;
    let rules = Rules::default();
    let all = [0, 1, 2];
    let mut network = Network::start(3, 3, &rules).await;
    network.leader(&all).await;
    let load = Load::start(&network, &all, 4, 1);
    let mut probes = Books::new();
    let mut times = Vec::new();
    for death in 0..DEATHS {
        load.progress(100).await;
        let leader = network.leader(&all).await;
        let survivor = (leader + 1) % 3;
        network.orderers[leader].kill();
        let begin = Instant::now();
        let line = network.orderers[survivor].line();
        // Until one is acknowledged that nobody but the new leader can have ordered.
        loop {
            let name = format!("probe {} of death {death}", probes.len());
            let answer = line.submit(transaction(&name, &network.admin)).await;
            let served = answer.is_ok();
            probes.push(match answer {
                Ok(()) => (name, Answer::Acknowledged),
                Err(_) => (name, Answer::Unknown),
            });
            if served {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "nobody serves");
            sleep(Duration::from_millis(10)).await;
        }
        times.push(begin.elapsed());
        network.run(leader).await;
        network.level(&all).await;
    }
    let mut books = load.stop().await;
    books.extend(probes);
    println!(
        "served after {times:?}, at most {:?} wanted",
        rules.takeover()
    );
    judge(&network, &all, &books).await;
    // One vote may be split, or the machine busy; not most of the time.
    times.sort();
    assert!(times[DEATHS / 2] <= rules.takeover(), "{times:?}");
}
