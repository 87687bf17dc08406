//! Several nodes, one thread, one seed: flows under crashes, losses, repetitions and meddling.
//!
//! `QUORATE_SIM_SEED=n` repeats one run and prints what happens in it; `QUORATE_SIM_SEEDS=n` sets
//! how many runs are made, `QUORATE_SIM_FIRST=n` where they begin. Where to start reading: the
//! flows in `app`, then `world` (what happens and what goes wrong), then `oracle` (what must hold).

#![allow(
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says why it fails"
)]

mod app;
mod host;
mod oracle;
mod rng;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use quorate_flow::Flow;

use crate::app::{Chat, Cheat, Chores, Issue, Manner, Pay, Swap};
use crate::oracle::Tally;
use crate::world::World;

/// Runs that every build makes.
const SEEDS: u64 = 4_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// One run, from workload to judgement.
fn simulate(seed: u64, trace: bool) -> Tally {
    let mut world = World::new(seed, trace);
    let careless = world.rng().permille(200);
    let json = |flow: &dyn erased::Arguments| flow.json();
    let nodes = 3;
    for node in 0..nodes {
        let amount = world.rng().between(80, 300);
        world.request((0, 100_000), node, Issue::NAME, json(&Issue { amount }));
    }
    for _ in 0..3 + world.rng().below(7) {
        let node = world.rng().below(3) as usize;
        let other = world.rng().below(3) as usize;
        let with = world.name(other).clone();
        let (class, arguments) = match world.rng().below(10) {
            0..4 => {
                let mut to = vec![with];
                if !world.crowded() && world.rng().permille(300) {
                    let another = world.rng().below(3) as usize;
                    to.push(world.name(another).clone());
                }
                let pay = Pay {
                    to,
                    amount: world.rng().between(1, 70),
                    careless: careless && world.rng().permille(500),
                };
                (Pay::NAME, json(&pay))
            }
            4..6 => {
                let swap = Swap {
                    with,
                    give: world.rng().between(1, 60),
                    take: world.rng().between(1, 60),
                };
                (Swap::NAME, json(&swap))
            }
            6 => (Cheat::NAME, json(&Cheat {})),
            7 => {
                let naps = (0..world.rng().below(4))
                    .map(|_| world.rng().below(800))
                    .collect();
                let long = world.rng().permille(20);
                let chores = Chores {
                    naps,
                    glances: if long { 2_100 } else { 2 },
                };
                (Chores::NAME, json(&chores))
            }
            _ => {
                let questions = 1 + world.rng().below(5);
                let at = world.rng().below(questions);
                let wait = world.rng().below(120);
                let manner = *world.rng().pick(&[
                    Manner::Polite,
                    Manner::Burst,
                    Manner::TheyFail(at),
                    Manner::WeFail(at),
                    Manner::Close,
                    Manner::Farewell,
                    Manner::Impatient(wait),
                    Manner::Unanswered,
                ]);
                let chat = Chat {
                    with,
                    questions,
                    manner,
                };
                (Chat::NAME, json(&chat))
            }
        };
        world.request((20_000, 3_000_000), node, class, arguments);
    }
    world.run();
    oracle::check(&world, careless)
}

/// Flows of different types as their arguments.
mod erased {
    pub(crate) trait Arguments {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Arguments for T {
        fn json(&self) -> String {
            serde_json::to_string(self).expect("arguments become JSON")
        }
    }
}

#[test]
fn flows_survive_whatever_happens() {
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        let tally = simulate(seed, true);
        println!("seed {seed}: {tally:?}");
        return;
    }
    let first = number("QUORATE_SIM_FIRST").unwrap_or(1);
    let count = number("QUORATE_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let sum = Mutex::new(Tally::default());
    let failure = Mutex::new(None);
    let began = Instant::now();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| simulate(seed, false))) {
                Ok(tally) => {
                    let mut sum = sum.lock().unwrap();
                    sum.completed += tally.completed;
                    sum.failed += tally.failed;
                    sum.notarised += tally.notarised;
                    sum.conflicts += tally.conflicts;
                    sum.crashes += tally.crashes;
                }
                Err(_) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap().get_or_insert(seed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some(seed) = *failure.lock().unwrap() {
        panic!(
            "seed {seed} fails (its reason is above); repeat it with\n  \
             QUORATE_SIM_SEED={seed} cargo test -p quorate-flow --test simulation -- --nocapture"
        );
    }
    let seconds = began.elapsed().as_secs_f64();
    let sum = sum.into_inner().unwrap();
    println!("{count} runs in {seconds:.1} s: {sum:?}");
    // A net without fish proves nothing.
    if count >= 1_000 {
        assert!(sum.completed > 4 * count, "{sum:?}");
        assert!(sum.notarised > count, "{sum:?}");
        assert!(sum.conflicts > 0 && sum.crashes > count, "{sum:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..20 {
        let (one, other) = (simulate(seed, false), simulate(seed, false));
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
    }
}
