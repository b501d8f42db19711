//! The operations of a backend in host memory: its tensors in, those of [`host`](super::host) out.

/// The operations for a backend whose tensors are [`HostTensor`]s.
macro_rules! implement {
    ($backend:ty, $tensor:ty) => {
        fn optional(residual: Maybe<$backend>) -> Option<$tensor> {
            match residual {
                Maybe::Present(residual) => Some(residual),
                Maybe::Absent => None,
            }
        }

        /// In the type that `like` is computed in.
        fn computed(weights: Maybe<$backend>, like: &$tensor) -> Option<$tensor> {
            let dtype = composed::compute_dtype(like.dtype());
            optional(weights).map(|weights| composed::cast::<$backend>(weights, dtype))
        }

        fn in_host(moments: Moments<$backend>) -> host::HostMoments<$tensor> {
            match moments {
                Moments::Batch(moments) => host::HostMoments::Batch(moments),
                Moments::Center(center) => host::HostMoments::Center(center),
                Moments::Running(mean, variance) => host::HostMoments::Running(mean, variance),
            }
        }

        impl BatchNormOps for $backend {
            fn train(
                x: $tensor,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                weights: Maybe<Self>,
                running: Running<Self>,
                pass: Pass,
                update: Update,
            ) -> host::Four<$tensor> {
                let running = match running {
                    Running::Untracked => None,
                    Running::Tracked(mean, variance) => Some([mean, variance]),
                };
                let more = [optional(residual), computed(weights, &x)];
                host::train(x, [gamma, beta], more, running, pass, update)
            }

            fn moments(x: $tensor, view: View) -> $tensor {
                host::moments(x, view)
            }

            fn normalize(
                x: $tensor,
                moments: Moments<Self>,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                weights: Maybe<Self>,
                pass: Pass,
            ) -> $tensor {
                let more = [optional(residual), computed(weights, &x)];
                host::normalize(x, in_host(moments), [gamma, beta], more, pass)
            }

            fn backward(
                x: $tensor,
                y_grad: $tensor,
                moments: Moments<Self>,
                gamma: $tensor,
                beta: $tensor,
                residual: Maybe<Self>,
                weights: Maybe<Self>,
                pass: Pass,
                wanted: Wanted,
            ) -> host::Four<$tensor> {
                let kept = host::Kept {
                    weights: computed(weights, &x),
                    x,
                    moments: in_host(moments),
                    affine: [gamma, beta],
                    residual: optional(residual),
                };
                host::gradients(kept, y_grad, pass, wanted)
            }

            fn affine(
                x: $tensor,
                mean: $tensor,
                scale: $tensor,
                shift: $tensor,
                view: View,
            ) -> $tensor {
                host::affine(x, [mean, scale, shift], view)
            }
        }
    };
}
pub(super) use implement;
