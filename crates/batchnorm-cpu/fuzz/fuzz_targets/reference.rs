//! `cargo +nightly fuzz run reference`: any layout, instruction set and values against the naive reference.
#![no_main]

use batchnorm_cpu::reference::Problem;
use batchnorm_cpu::{
    Activation, Affine, BatchStatistics, Epilogue, Gradients, Isa, Layout, Saved, Statistics,
    Stream, backward, train_forward,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, u8, u8, Vec<i8>)| {
    let (outer, channels, inner, isa, values) = input;
    let layout = Layout::new(outer.into(), (channels % 70).into(), inner.into()).expect("small");
    let (n, c) = (layout.elements(), layout.channels());
    // The reference is slow, and larger tensors of the same kind have nothing new.
    if n > 1 << 16 {
        return;
    }
    let value = |i: usize| {
        values
            .get(i % values.len().max(1))
            .map_or(0.0, |&v| f64::from(v) / 16.0)
    };
    let x: Vec<f64> = (0..n).map(value).collect();
    let mut dy: Vec<f64> = (0..n).map(|i| value(i * 7 + 3)).collect();
    let (gamma, beta) = (vec![1.5; c], vec![0.25; c]);
    let problem = Problem {
        layout,
        x,
        residual: None,
        gamma,
        beta,
        epsilon: 1e-3,
        activation: Activation::LeakyRelu(0.5),
    };
    let used = problem.batch();
    let (expected, gradients) = (problem.forward(&used), problem.train_backward(&used, &dy));

    let [mut mean, mut variance, mut inv_std] = std::array::from_fn(|_| vec![0.0; c]);
    let mut y = vec![0.0; n];
    let levels = Isa::available();
    levels[usize::from(isa) % levels.len()].force(|| {
        let epilogue = Epilogue::activation(problem.activation);
        let affine = Affine {
            gamma: &problem.gamma,
            beta: &problem.beta,
        };
        let out = BatchStatistics {
            mean: &mut mean,
            mean_low: None,
            variance: &mut variance,
            inv_std: &mut inv_std,
        };
        train_forward(
            layout,
            Stream::new(&problem.x, &mut y),
            affine,
            problem.epsilon,
            epilogue,
            out,
        )
        .expect("valid");
        let saved = Saved {
            gamma: &problem.gamma,
            beta: &problem.beta,
            mean: &mean,
            mean_low: None,
            inv_std: &inv_std,
            statistics: Statistics::OfBatch,
        };
        backward(
            layout,
            &problem.x,
            Stream::in_place(&mut dy),
            saved,
            epilogue,
            Gradients::default(),
        )
        .expect("valid");
    });
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
    assert!(y.iter().zip(&expected).all(|(&a, &b)| close(a, b)));
    // At the kink of the activation a rounding error decides the derivative, and with it the sums of the whole channel.
    let at_kink = expected.iter().any(|y| y.abs() < 1e-9);
    assert!(at_kink || dy.iter().zip(&gradients.x).all(|(&a, &b)| close(a, b)));
});
