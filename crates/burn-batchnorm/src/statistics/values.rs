//! The running statistics of one moment.

use burn::module::ParamId;
use burn::tensor::Tensor;

use super::amount::like;

/// What the running statistics are at one moment, tensors of shape `[channels]`.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) mean: Tensor<1>,
    pub(crate) variance: Tensor<1>,
    /// The number of batches that were handed in.
    pub(crate) batches: u64,
    /// How many of them each channel has left out. None: none of them ever could be.
    pub(crate) skipped: Option<Tensor<1>>,
    /// What batch renormalization keeps beside them, if it does.
    pub(crate) renorm: Option<Box<Renormed>>,
}

/// The statistics of [`Reference::Separate`](crate::Reference::Separate), by Keras's names.
#[derive(Debug, Clone)]
pub(crate) struct Renormed {
    /// By which optimizers and records know the three.
    pub(crate) ids: [ParamId; 3],
    pub(crate) renorm_mean: Tensor<1>,
    pub(crate) renorm_stddev: Tensor<1>,
    pub(crate) moving_stddev: Tensor<1>,
}

impl Values {
    /// Mean 0, variance 1 and no batch, at the place and in the type of these.
    pub(crate) fn fresh(mean: Tensor<1>, variance: Tensor<1>) -> Self {
        Self {
            mean,
            variance,
            batches: 0,
            skipped: None,
            renorm: None,
        }
    }

    /// The same with a running variance that somebody has set.
    pub(crate) fn with_variance(self, variance: Tensor<1>) -> Self {
        let renorm = self.renorm.map(|renorm| {
            let before = renorm.moving_stddev.clone();
            Box::new(renorm.following(&before, &self.variance, &variance))
        });
        Self {
            variance,
            renorm,
            ..self
        }
    }

    /// Every statistic changed in the same way.
    pub(crate) fn map(&self, f: impl Fn(&Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            mean: f(&self.mean),
            variance: f(&self.variance),
            batches: self.batches,
            skipped: self.skipped.as_ref().map(&f),
            renorm: self.renorm.as_ref().map(|renorm| Box::new(renorm.map(&f))),
        }
    }

    /// The number of batches that entered: those that every channel left out do not count. Waits for the
    /// device where any could have been.
    pub(crate) fn entered(&self) -> u64 {
        let skipped = self
            .skipped
            .clone()
            .map(|skipped| skipped.min().into_data());
        let skipped = skipped.and_then(|skipped| skipped.iter::<f64>().next());
        self.batches.saturating_sub(skipped.unwrap_or(0.0) as u64)
    }

    /// Every statistic combined with its counterpart, those of a separate reference by `g`. The counts are
    /// these.
    pub(crate) fn zip(
        &self,
        other: &Self,
        f: impl Fn(&Tensor<1>, &Tensor<1>) -> Tensor<1>,
        g: impl Fn(&Tensor<1>, &Tensor<1>) -> Tensor<1>,
    ) -> Self {
        Self {
            mean: f(&self.mean, &other.mean),
            variance: f(&self.variance, &other.variance),
            batches: self.batches,
            skipped: self.skipped.clone(),
            renorm: match (&self.renorm, &other.renorm) {
                (Some(renorm), Some(other)) => Some(Box::new(Renormed {
                    ids: renorm.ids,
                    renorm_mean: g(&renorm.renorm_mean, &other.renorm_mean),
                    renorm_stddev: g(&renorm.renorm_stddev, &other.renorm_stddev),
                    moving_stddev: f(&renorm.moving_stddev, &other.moving_stddev),
                })),
                (renorm, _) => renorm.clone(),
            },
        }
    }
}

impl Renormed {
    /// At first: mean 0 and standard deviation 1.
    pub(crate) fn fresh(ids: [ParamId; 3], mean: &Tensor<1>) -> Self {
        Self {
            ids,
            renorm_mean: mean.zeros_like(),
            renorm_stddev: mean.ones_like(),
            moving_stddev: mean.ones_like(),
        }
    }

    /// After the running variance has become `new` where it was `old`, and the moving standard deviation
    /// `before`. Where that was left alone, it is the root of the new variance, as Keras initializes it: the
    /// next update makes the variance from it, and would undo the change.
    pub(crate) fn following(self, before: &Tensor<1>, old: &Tensor<1>, new: &Tensor<1>) -> Self {
        let shape = self.moving_stddev.shape();
        if [before, old, new].iter().any(|one| one.shape() != shape) {
            return self;
        }
        let of_new = |tensor: &Tensor<1>| like(tensor, new);
        let kept = of_new(old).equal(new.clone());
        let set = of_new(before).not_equal(of_new(&self.moving_stddev));
        let root = like(&new.clone().sqrt(), &self.moving_stddev);
        let kept = kept.bool_or(set).to_device(&root.device());
        Self {
            moving_stddev: root.mask_where(kept, self.moving_stddev),
            ..self
        }
    }

    /// In the order of their ids.
    pub(crate) fn tensors(self) -> [Tensor<1>; 3] {
        [self.renorm_mean, self.renorm_stddev, self.moving_stddev]
    }

    /// Of three ids and tensors, in that order.
    pub(crate) fn of(parts: [(ParamId, Tensor<1>); 3]) -> Self {
        let ids = parts.each_ref().map(|(id, _)| *id);
        let [renorm_mean, renorm_stddev, moving_stddev] = parts.map(|(_, tensor)| tensor);
        Self {
            ids,
            renorm_mean,
            renorm_stddev,
            moving_stddev,
        }
    }

    fn map(&self, f: impl Fn(&Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            ids: self.ids,
            renorm_mean: f(&self.renorm_mean),
            renorm_stddev: f(&self.renorm_stddev),
            moving_stddev: f(&self.moving_stddev),
        }
    }
}
