//! When a block is full: by count, by bytes, or because somebody cuts.
//!
//! The cutter holds what waits for the next block and knows no time: whoever owns it starts a timer while something
//! waits and calls [`Cutter::cut`] when it ends. Configuration updates do not pass through here; their owner cuts
//! first and then gives them a block of their own.

use quorate_fabric::config::BatchSize;

/// Messages that wait for their block.
///
/// `T` is whatever the owner wants back, an envelope and who asked for it; only its size in bytes matters here.
#[derive(Debug)]
pub struct Cutter<T> {
    limits: BatchSize,
    waiting: Vec<T>,
    waiting_bytes: usize,
}

impl<T> Cutter<T> {
    /// An empty cutter with these limits.
    pub fn new(limits: BatchSize) -> Self {
        Self {
            limits,
            waiting: Vec::new(),
            waiting_bytes: 0,
        }
    }

    /// Other limits, for the messages that come from now on.
    pub fn set_limits(&mut self, limits: BatchSize) {
        self.limits = limits;
    }

    /// Takes a message of `bytes` bytes (payload and signature) and hands every batch that is full now to `full`, in
    /// order: none, one, or two. Returns whether a message waits afterwards.
    ///
    /// A message longer than `preferred_max_bytes` has a batch of its own; one that would make the waiting ones
    /// longer than that sends them ahead.
    pub fn ordered(&mut self, message: T, bytes: usize, mut full: impl FnMut(Vec<T>)) -> bool {
        let preferred = usize::try_from(self.limits.preferred_max_bytes).unwrap_or(usize::MAX);
        if bytes > preferred {
            if !self.waiting.is_empty() {
                full(self.cut());
            }
            full(vec![message]);
            return false;
        }
        if !self.waiting.is_empty() && self.waiting_bytes + bytes > preferred {
            full(self.cut());
        }
        self.waiting.push(message);
        self.waiting_bytes += bytes;
        let count = usize::try_from(self.limits.max_message_count).unwrap_or(usize::MAX);
        if self.waiting.len() >= count {
            full(self.cut());
            return false;
        }
        true
    }

    /// Everything that waits, possibly nothing.
    pub fn cut(&mut self) -> Vec<T> {
        self.waiting_bytes = 0;
        // The next batch is likely to be as long as this one.
        let next = Vec::with_capacity(self.waiting.len());
        std::mem::replace(&mut self.waiting, next)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    /// Feeds messages of the given sizes and returns the batches cut, and what waits.
    fn feed(limits: BatchSize, sizes: &[usize]) -> (Vec<Vec<usize>>, Vec<usize>) {
        let mut cutter = Cutter::new(limits);
        let mut batches = Vec::new();
        for size in sizes {
            let waits = cutter.ordered(*size, *size, |batch| batches.push(batch));
            assert_eq!(waits, !cutter.is_empty());
        }
        (batches, cutter.cut())
    }

    #[test]
    fn batches_are_cut_by_count_and_by_bytes() {
        let limits = |count, preferred| BatchSize {
            max_message_count: count,
            absolute_max_bytes: 1000,
            preferred_max_bytes: preferred,
        };
        type Case<'a> = (u32, u32, &'a [usize], &'a [&'a [usize]], &'a [usize]);
        let cases: &[Case<'_>] = &[
            // count, preferred, messages, batches, waiting
            (3, 100, &[], &[], &[]),
            (3, 100, &[10, 10], &[], &[10, 10]),
            (3, 100, &[10, 10, 10], &[&[10, 10, 10]], &[]),
            (3, 100, &[10, 10, 10, 10], &[&[10, 10, 10]], &[10]),
            (1, 100, &[10, 10], &[&[10], &[10]], &[]),
            // Exactly the preferred size fits; a byte more does not.
            (9, 100, &[60, 40], &[], &[60, 40]),
            (9, 100, &[60, 41], &[&[60]], &[41]),
            (9, 100, &[100, 1], &[&[100]], &[1]),
            // A long message goes alone, and what waited goes before it.
            (9, 100, &[101], &[&[101]], &[]),
            (9, 100, &[5, 6, 101, 7], &[&[5, 6], &[101]], &[7]),
            // Overflow by bytes and full by count at the same message.
            (1, 100, &[101, 100], &[&[101], &[100]], &[]),
            (2, 100, &[60, 60, 40], &[&[60], &[60, 40]], &[]),
            // Messages without bytes count too.
            (2, 100, &[0, 0, 0], &[&[0, 0]], &[0]),
        ];
        for (count, preferred, messages, batches, waiting) in cases {
            let (cut, rest) = feed(limits(*count, *preferred), messages);
            assert_eq!(cut, *batches, "{count} {preferred} {messages:?}");
            assert_eq!(rest, *waiting, "{count} {preferred} {messages:?}");
        }
    }

    #[test]
    fn new_limits_hold_for_what_comes_next() {
        let mut cutter = Cutter::new(BatchSize {
            max_message_count: 10,
            absolute_max_bytes: 1000,
            preferred_max_bytes: 100,
        });
        let mut batches = Vec::new();
        cutter.ordered(1, 1, |batch| batches.push(batch));
        cutter.set_limits(BatchSize {
            max_message_count: 2,
            absolute_max_bytes: 1000,
            preferred_max_bytes: 100,
        });
        assert!(batches.is_empty());
        cutter.ordered(2, 1, |batch| batches.push(batch));
        assert_eq!(batches, [vec![1, 2]]);
    }
}
