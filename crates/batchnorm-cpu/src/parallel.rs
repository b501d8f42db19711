//! How work is given to threads.
//!
//! Work comes in parts. The calling thread takes parts from the front, helpers from the rayon pool take them from the back until none is left:
//! the caller starts at once. It returns when every helper has had its turn, if only to find nothing left: where all threads of the pool are busy
//! with work of others, it waits for them. So do not hold a lock over a call that jobs of the same pool take.
//!
//! The parts are disjoint tiles and slices, so nothing is shared but the queue. How many there are may depend on the number of threads; what is
//! computed does not, because partial results belong to fixed blocks (`tiling.rs`) and not to parts.
//!
//! Threads are those of the current rayon pool: the global one, or that of `ThreadPool::install`. Their number includes the caller, so a caller
//! outside of the pool leaves one of the pool's threads asleep.

use std::sync::{Mutex, PoisonError};

/// Bytes read and written by all passes together that are worth a thread. To wake one and wait for it costs about 10 microseconds, in which a core
/// moves about this much through its second-level cache.
const BYTES_PER_THREAD: usize = 1 << 20;

/// Parts per thread, so that a thread that was delayed is helped out.
pub(crate) const PARTS_PER_THREAD: usize = 4;

/// The number of threads for work that moves `bytes`.
pub(crate) fn threads(bytes: usize) -> usize {
    match bytes / BYTES_PER_THREAD {
        0 | 1 => 1,
        worth => worth.min(rayon::current_num_threads()),
    }
}

/// Calls `run` with every part, on at most `threads` threads; each thread has a `state` of its own.
pub(crate) fn for_each<T: Send, State>(
    parts: impl Iterator<Item = T>,
    threads: usize,
    state: impl Fn() -> State + Sync,
    run: impl Fn(&mut State, T) + Sync,
) {
    if threads == 1 {
        let mut state = state();
        return parts.for_each(|part| run(&mut state, part));
    }
    let parts: Vec<T> = parts.collect();
    let helpers = threads.min(parts.len()).saturating_sub(1);
    let queue = Mutex::new(parts.into_iter());
    // The lock is released before a part runs, so a part that panics does not poison it for the others.
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let front = || lock().next();
    let back = || lock().next_back();
    let work = |next: &dyn Fn() -> Option<T>| {
        let mut own = state();
        while let Some(part) = next() {
            run(&mut own, part);
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work(&back));
        }
        work(&front);
    });
}

/// The parts in an order for a second pass over the same data, whose middle is what is still in the caches: from the middle to both ends, where
/// the first pass went from the ends to the middle.
pub(crate) fn from_the_middle<T>(mut parts: Vec<T>) -> Vec<T> {
    let middle = parts.len() / 2;
    parts[..middle].reverse();
    parts[middle..].reverse();
    parts
}

/// The lengths of about `parts` equal parts of `len`, each a multiple of `of` but for the last.
pub(crate) fn even(len: usize, parts: usize, of: usize) -> impl Iterator<Item = usize> {
    let length = len.div_ceil(parts.max(1)).next_multiple_of(of).max(1);
    (0..len)
        .step_by(length)
        .map(move |start| length.min(len - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_in_either_order() {
        for len in [0, 1, 2, 3, 7, 8, 9, 1000] {
            for threads in [1, 2, 3, 8] {
                let mut data = vec![0; len];
                let add = |_: &mut (), x: &mut i32| *x += 1;
                for_each(data.iter_mut(), threads, || (), add);
                let parts = from_the_middle(data.iter_mut().collect());
                for_each(parts.into_iter(), threads, || (), add);
                assert!(data.iter().all(|&x| x == 2), "{len} on {threads}");
            }
        }
    }

    #[test]
    fn parts_are_even_and_complete() {
        for (len, parts, of) in [(0, 4, 1), (1, 4, 16), (100, 8, 1), (1025, 2, 16), (7, 0, 1)] {
            let lengths: Vec<usize> = even(len, parts, of).collect();
            assert_eq!(lengths.iter().sum::<usize>(), len);
            assert!(lengths.len() <= parts.max(1));
            assert!(lengths.iter().rev().skip(1).all(|l| l % of == 0));
        }
    }

    #[test]
    fn small_work_stays_on_the_calling_thread() {
        assert_eq!(threads(32 * 50 * 4 * 3), 1);
        assert_eq!(threads(usize::MAX), rayon::current_num_threads());
    }
}
