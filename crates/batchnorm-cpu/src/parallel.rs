//! How work is given to threads.
//!
//! A task is cut into a few parts per thread. The calling thread takes parts from the front, helpers from the rayon pool take them from the
//! back until none is left: the caller starts at once, and how long the helpers take to wake up costs nothing but their help. A second task over
//! the same data finds the front half in the caller's cache again, and the back half in the helper's.
//!
//! The parts are disjoint regions ([`Region::split_rows`] and [`Region::split_cols`]), so nothing is shared but the queue. Where a task is cut
//! depends on the number of threads; what is computed does not, because partial results belong to chunks (`plan.rs`) and not to parts.
//!
//! Threads are those of the current rayon pool: the global one, or that of `ThreadPool::install`. Their number includes the caller, so a caller
//! outside of the pool leaves one of the pool's threads asleep.
//!
//! [`Region::split_rows`]: crate::simd::region::Region::split_rows
//! [`Region::split_cols`]: crate::simd::region::Region::split_cols

use std::sync::{Mutex, PoisonError};

/// Below this many bytes read and written by all passes together, no thread is woken: that and waiting for it costs about 10 microseconds, in
/// which one core moves about this much through its second-level cache.
const MIN_PARALLEL_BYTES: usize = 2 << 20;

/// Parts per thread, so that a thread that was delayed is helped out.
const PARTS_PER_THREAD: usize = 4;

/// Work that can be cut.
pub(crate) trait Task: Sized + Send {
    /// How much there is, in any unit: it is cut at whole numbers of it.
    fn len(&self) -> usize;

    /// The first `at` and the rest.
    fn split(self, at: usize) -> (Self, Self);

    fn run(self);
}

/// The number of threads to use for a job that moves `bytes`.
pub(crate) fn threads(bytes: usize) -> usize {
    if bytes < MIN_PARALLEL_BYTES {
        1
    } else {
        rayon::current_num_threads()
    }
}

/// In which order the parts of a task are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// From both ends to the middle.
    FromTheEnds,
    /// From the middle to both ends: for a second task over the same data, whose middle is what is still in the caches.
    FromTheMiddle,
}

/// Runs a task on `threads` threads.
pub(crate) fn run<T: Task>(task: T, threads: usize, order: Order) {
    if threads == 1 || task.len() < 2 {
        return task.run();
    }
    let mut parts = cut(task, threads * PARTS_PER_THREAD);
    if order == Order::FromTheMiddle {
        let middle = parts.len() / 2;
        parts[..middle].reverse();
        parts[middle..].reverse();
    }
    let parts = Mutex::new(parts.into_iter());
    // The lock is released before a part runs, so a part that panics does not poison it for the others.
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let next_from_the_back = || {
        parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_back()
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| std::iter::from_fn(next_from_the_back).for_each(T::run));
        }
        std::iter::from_fn(next).for_each(T::run);
    });
}

/// Cuts a task into `parts` parts of about equal length, or fewer.
fn cut<T: Task>(task: T, parts: usize) -> Vec<T> {
    let parts = parts.min(task.len());
    let mut rest = task;
    let mut cut = Vec::with_capacity(parts);
    for left in (2..=parts).rev() {
        let at = rest.len() / left;
        let (part, others) = rest.split(at);
        cut.push(part);
        rest = others;
    }
    cut.push(rest);
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fill<'a>(&'a mut [u32]);
    impl Task for Fill<'_> {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn split(self, at: usize) -> (Self, Self) {
            let (a, b) = self.0.split_at_mut(at);
            (Fill(a), Fill(b))
        }
        fn run(self) {
            self.0.iter_mut().for_each(|x| *x += 1);
        }
    }

    #[test]
    fn every_part_runs_once_in_either_order() {
        for len in [0, 1, 2, 3, 7, 8, 9, 1000] {
            for threads in [1, 2, 3, 8] {
                let mut data = vec![0; len];
                run(Fill(&mut data), threads, Order::FromTheEnds);
                run(Fill(&mut data), threads, Order::FromTheMiddle);
                assert!(data.iter().all(|&x| x == 2), "{len} on {threads}");
            }
        }
    }

    #[test]
    fn small_work_stays_on_the_calling_thread() {
        assert_eq!(threads(32 * 50 * 4 * 3), 1);
        assert_eq!(threads(MIN_PARALLEL_BYTES), rayon::current_num_threads());
    }
}
