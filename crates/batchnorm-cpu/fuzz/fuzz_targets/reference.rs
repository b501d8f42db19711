//! `cargo +nightly fuzz run reference`: any layout, instruction set, element type, epilogue and values, extreme ones too, against the naive reference.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm_cpu::reference::{Problem, gradient};
use batchnorm_cpu::{
    Accum, Activation, Affine, Element, Epilogue, Gradients, InOut, Isa, Layout, Saved, Statistics,
    backward, train,
};
use half::{bf16, f16};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input {
    shape: (u8, u8, u8),
    isa: u8,
    element: u8,
    activation: u8,
    residual: bool,
    /// Of x: the powers of ten of centre and spread.
    magnitudes: (i8, i8),
    values: Vec<i16>,
}

fuzz_target!(|input: Input| {
    let (outer, channels, inner) = input.shape;
    let layout = Layout::new(outer.into(), (channels % 70).into(), inner.into()).expect("small");
    // The reference is slow, and larger tensors of the same kind have nothing new.
    if layout.elements() > 1 << 16 {
        return;
    }
    let levels = Isa::available();
    levels[usize::from(input.isa) % levels.len()].force(|| match input.element % 4 {
        0 => check::<f32>(layout, &input, 1e-4, 15),
        1 => check::<f64>(layout, &input, 1e-8, 100),
        2 => check::<f16>(layout, &input, 4e-3, 2),
        _ => check::<bf16>(layout, &input, 4e-2, 15),
    });
});

fn check<E: Element>(layout: Layout, input: &Input, tolerance: f64, range: i32) {
    let (n, channels) = (layout.elements(), layout.channels());
    let value = |i: usize| {
        let value = input.values.get(i % input.values.len().max(1));
        value.map_or(0.0, |&v| f64::from(v) / f64::from(i16::MAX))
    };
    let power = |p: i8| 10f64.powi(i32::from(p) % (range + 1));
    let (centre, spread) = input.magnitudes;
    // A spread far below the last digit of the centre is a constant.
    let (centre, spread) = (power(centre).min(1e3 * power(spread)), power(spread));
    let narrow = |v: f64| E::from_accum(E::Accum::from_f64(v));
    let wide = |v: &[E]| v.iter().map(|v| v.to_accum().to_f64()).collect::<Vec<_>>();
    let x: Vec<E> = (0..n).map(|i| narrow(centre + spread * value(i))).collect();
    let skip: Vec<E> = (0..n).map(|i| narrow(value(i * 3 + 1))).collect();
    let mut dy: Vec<E> = (0..n).map(|i| narrow(value(i * 7 + 3))).collect();
    let vector = |v: f64| vec![E::Accum::from_f64(v); channels];
    let (gamma, beta) = (vector(1.5), vector(0.25));
    let activation = match input.activation % 12 {
        0 => Activation::None,
        1 => Activation::Relu,
        2 => Activation::LeakyRelu(0.5),
        3 => Activation::Relu6,
        4 => Activation::Clamp {
            min: f64::NEG_INFINITY,
            max: 0.5,
        },
        5 => Activation::Clamp {
            min: -0.5,
            max: 0.75,
        },
        6 => Activation::Silu,
        7 => Activation::Gelu,
        8 => Activation::GeluTanh,
        9 => Activation::HardSwish,
        10 => Activation::Sigmoid,
        _ => Activation::Tanh,
    };
    let problem = Problem {
        layout,
        x: wide(&x),
        residual: input.residual.then(|| wide(&skip)),
        gamma: vec![1.5; channels],
        beta: vec![0.25; channels],
        epsilon: 1e-3,
        activation,
    };
    let used = problem.batch();
    // At a kink a rounding error decides the derivative, and with it the sums of the whole channel: no gradient arrives there.
    let linear = Problem {
        activation: Activation::None,
        ..problem.clone()
    };
    for (dy, z) in dy.iter_mut().zip(linear.forward(&used)) {
        let slope = |z: f64| gradient(activation, z, 1.0);
        // A kink, not the bend of a curve.
        if (slope(z - 10.0 * tolerance) - slope(z + 10.0 * tolerance)).abs() > 0.4 {
            *dy = narrow(0.0);
        }
    }
    let expected = problem.forward(&used);
    let gradients = problem.train_backward(&used, &wide(&dy));

    let epilogue = Epilogue {
        residual: input.residual.then_some(&skip[..]),
        activation,
    };
    let affine = Affine {
        gamma: &gamma,
        beta: &beta,
    };
    let (mut y, mut saved) = (x.clone(), vec![E::Accum::from_f64(0.0); 4 * channels]);
    let out = Statistics::split_mut(&mut saved, channels).expect("four");
    train(layout, InOut::in_place(&mut y), affine, 1e-3, epilogue, out).expect("valid");
    let statistics = Statistics::split(&saved, channels).expect("four");
    let mut residual_grad = skip.clone();
    let out = Gradients {
        residual: input.residual.then(|| (&mut residual_grad).into()),
        ..Gradients::default()
    };
    let saved = Saved::Batch(statistics);
    backward(
        layout,
        &x,
        InOut::in_place(&mut dy),
        saved,
        affine,
        epilogue,
        out,
    )
    .expect("valid");
    let close = |a: f64, b: f64, scale: f64| (a - b).abs() <= tolerance * b.abs().max(scale);
    assert!(
        wide(&y)
            .iter()
            .zip(&expected)
            .all(|(&a, &b)| close(a, b, 1.0))
    );
    let steep = used.inv_std.iter().fold(1.0, |a: f64, &b| a.max(b));
    let x_grad = wide(&dy);
    assert!(
        x_grad
            .iter()
            .zip(&gradients.x)
            .all(|(&a, &b)| close(a, b, 10.0 * steep))
    );
    if input.residual {
        let got = wide(&residual_grad);
        assert!(
            got.iter()
                .zip(&gradients.residual)
                .all(|(&a, &b)| close(a, b, 1.0))
        );
    }
}
