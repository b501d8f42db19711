//! Updates of running statistics, held back until somebody decides.

use super::scope::{self, Scope, Seen};

/// What passes would have done to running statistics: [`hold`].
///
/// Dropped, it is discarded.
#[must_use = "nothing enters the running statistics before `commit`"]
#[derive(Debug)]
pub struct Held {
    seen: Vec<Seen>,
}

/// Runs passes of any model, on this thread, whose batches enter no running statistics yet.
///
/// - A step that may be void (loss scaling that skips, a rejected GAN step): [`commit`](Held::commit) it once
///   it is known to count, or [`discard`](Held::discard) it.
/// - Gradient accumulation: held over several passes, or [joined](Held::and), they enter as one batch, by
///   their pooled moments: what one pass over all of them would have entered.
///
/// Each pass is normalized as ever. Passes on other threads are not held.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use burn_batchnorm::{BatchNormConfig, hold};
///
/// # let device = Device::default().autodiff();
/// let layer = BatchNormConfig::new(2).init(&device);
/// let (y, held) = hold(|| layer.forward(Tensor::<2>::ones([8, 2], &device)));
/// assert_eq!(layer.num_batches_tracked.value(), 0);
/// if y.is_finite().all().into_scalar::<bool>() {
///     held.commit();
/// }
/// assert_eq!(layer.num_batches_tracked.value(), 1);
/// ```
pub fn hold<R>(passes: impl FnOnce() -> R) -> (R, Held) {
    let (result, seen) = scope::open(Scope::Hold, passes);
    (result, Held { seen })
}

impl Held {
    /// Enters what is held: one batch a layer. It reaches the layers that ran, also where they have been
    /// moved or an optimizer has stepped since; a clone that was made since is another layer.
    /// Within another [`hold`], that one holds it.
    pub fn commit(self) {
        for seen in self.seen {
            match scope::current() {
                Scope::Hold => scope::add(seen),
                _ => seen.statistics.fields().enter(&seen.rule, &seen.pooled),
            }
        }
    }

    /// Forgets what is held.
    pub fn discard(self) {}

    /// Both together, as one batch a layer.
    pub fn and(mut self, other: Self) -> Self {
        for more in other.seen {
            let known = self
                .seen
                .iter_mut()
                .find(|seen| seen.statistics.same(&more.statistics));
            match known {
                Some(seen) => seen.and(more),
                None => self.seen.push(more),
            }
        }
        self
    }

    /// The number of layers that have something held.
    pub fn layers(&self) -> usize {
        self.seen.len()
    }
}
