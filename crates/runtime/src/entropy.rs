//! Randomness as a value that is handed down.
//!
//! Privacy salts, session ids and back-off jitter all come from an [`Entropy`]. In a process it is the operating
//! system's cryptographic source; in a test it is [`Entropy::seeded`], which repeats itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A source of random bytes; cheap to clone.
#[derive(Clone)]
pub struct Entropy {
    source: Source,
}

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<u64>>),
}

impl Entropy {
    /// The operating system's source, fit for keys and salts.
    pub fn system() -> Self {
        Self {
            source: Source::System,
        }
    }

    /// A repeatable source for tests and simulations. Not fit for anything secret. Clones share the sequence.
    pub fn seeded(seed: u64) -> Self {
        Self {
            source: Source::Seeded(Arc::new(Mutex::new(seed))),
        }
    }

    /// Fills `buffer` with random bytes.
    pub fn fill(&self, buffer: &mut [u8]) {
        match &self.source {
            Source::System => {
                aws_lc_rs::rand::fill(buffer)
                    .expect("the operating system's random number source always answers");
            }
            Source::Seeded(state) => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                for chunk in buffer.chunks_mut(8) {
                    chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
                }
            }
        }
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A number from 0 up to but not including `bound`; 0 when `bound` is 0. The bias, below 2⁻⁶⁴ × `bound`, is fine
    /// for scheduling and not meant for keys.
    pub fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(u64::from_le_bytes(self.bytes())) * u128::from(bound);
        (wide >> 64) as u64
    }

    /// A duration between half of `duration` and `duration`: back-off that does not come in step with others'.
    pub fn jitter(&self, duration: Duration) -> Duration {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - self.below(nanos / 2 + 1))
    }
}

impl Default for Entropy {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The state of a seeded source would tell what comes next.
        f.write_str(match self.source {
            Source::System => "Entropy(system)",
            Source::Seeded(_) => "Entropy(seeded)",
        })
    }
}

/// One step of the SplitMix64 generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_clones_share_the_sequence() {
        let (one, two) = (Entropy::seeded(7), Entropy::seeded(7));
        assert_eq!(one.bytes::<33>(), two.bytes::<33>());
        let clone = one.clone();
        assert_ne!(one.bytes::<8>(), clone.bytes::<8>());
        // The generator's published first output for seed 0: a change of it would silently change every simulation.
        assert_eq!(
            u64::from_le_bytes(Entropy::seeded(0).bytes()),
            0xE220_A839_7B1D_CDAF
        );
    }

    #[test]
    fn the_system_source_does_not_repeat() {
        let entropy = Entropy::system();
        assert_ne!(entropy.bytes::<32>(), entropy.bytes::<32>());
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let entropy = Entropy::seeded(1);
        let whole = Duration::from_millis(1000);
        for _ in 0..1000 {
            let drawn = entropy.jitter(whole);
            assert!(drawn >= whole / 2 && drawn <= whole, "{drawn:?}");
        }
        assert_eq!(entropy.jitter(Duration::ZERO), Duration::ZERO);
        assert_eq!(entropy.below(0), 0);
    }
}
