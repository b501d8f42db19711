//! Times every operation against a plain vectorised copy on the same device:
//!
//! ```text
//! cargo run --release -p batchnorm-cube --example kernels [-- NAME_PART]
//! ```
//!
//! A row gives the median of a forward and of a backward with all gradients, both as a multiple of a copy's time per pass: a forward reads x
//! twice and writes y (1.5 copies), a backward reads x and dy twice and writes dx (2.5 copies). Bandwidth is counted from the launches.

use std::time::{Duration, Instant};

use batchnorm_cube::*;
use cubecl::Device;
use cubecl::prelude::*;
use cubecl::wgpu::WgpuDeviceKind;

const SHAPES: [(&str, &[usize]); 12] = [
    ("n32_c64_hw56x56", &[32, 64, 56, 56]),
    ("n32_c256_hw56x56", &[32, 256, 56, 56]),
    ("n1024_c512", &[1024, 512]),
    ("n4096_c1024", &[4096, 1024]),
    ("n64_c128_l256", &[64, 128, 256]),
    ("n32_c2048_hw7x7", &[32, 2048, 7, 7]),
    ("n8_c256_hw28x28", &[8, 256, 28, 28]),
    ("n1_c64_hw224x224", &[1, 64, 224, 224]),
    ("n32_c50", &[32, 50]),
    ("n128_c512", &[128, 512]),
    ("n32_c512_hw28x28", &[32, 512, 28, 28]),
    ("n4_c32_dhw16x28x28", &[4, 32, 16, 28, 28]),
];

/// The yardstick: every unit copies vectors a grid apart.
#[cube(launch_unchecked)]
fn copy<N: Size>(input: &[Vector<f32, N>], output: &mut [Vector<f32, N>], per_unit: usize) {
    let start = CUBE_POS * CUBE_DIM as usize * per_unit + UNIT_POS as usize;
    for k in 0..per_unit {
        let i = start + k * CUBE_DIM as usize;
        if i < input.len() {
            output[i] = input[i];
        }
    }
}

fn median(client: &Client, mut run: impl FnMut()) -> Duration {
    let mut time = || {
        let start = Instant::now();
        run();
        cubecl::future::block_on(client.sync()).expect("the kernels have run");
        start.elapsed()
    };
    let first = (0..3).map(|_| time()).min().expect("three runs");
    let runs = (Duration::from_millis(400).as_nanos() / first.as_nanos().max(1)).clamp(5, 300);
    let mut times: Vec<_> = (0..runs).map(|_| time()).collect();
    times.sort();
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let device = Device::wgpu(WgpuDeviceKind::DefaultDevice)?;
    let client = device.client();
    println!("{}", client.properties().identity.name);
    println!("{:?}", client.properties().hardware);
    println!(
        "shape                 copy ms |  fwd ms  launches  of 1.5 copies  GB/s |  bwd ms  launches  of 2.5 copies  GB/s | sum"
    );

    let mut product = (0.0, 0);
    for (name, shape) in SHAPES.iter().filter(|(name, _)| name.contains(&only)) {
        let layout = Layout::from_shape(shape, 1)?;
        let problem = Problem::new(layout, Element::F32);
        let (len, channels) = (layout.len(), layout.channels);
        let values: Vec<u8> = (0..len)
            .flat_map(|i| ((i * 7919 % 1009) as f32 / 500.0).to_ne_bytes())
            .collect();
        let x = client.create_from_slice(&values);
        let dy = client.create_from_slice(&values);
        let ones: Vec<u8> = (0..channels).flat_map(|_| 1f32.to_ne_bytes()).collect();
        let [gamma, beta, mean, variance] = [(); 4].map(|()| client.create_from_slice(&ones));
        let [y, dx] = [(); 2].map(|()| client.empty(len * 4));
        let [
            new_mean,
            new_variance,
            batch_mean,
            batch_variance,
            dgamma,
            dbeta,
        ] = [(); 6].map(|()| client.empty(channels * 4));
        let saved = client.empty(channels * 12);

        let copied = [1, 16]
            .map(|per_unit| {
                let vector = if len.is_multiple_of(4) { 4 } else { 1 };
                let vectors = len / vector;
                let cubes = vectors.div_ceil(64 * per_unit) as u32;
                let width = cubes.min(65535);
                median(&client, || {
                    // SAFETY: both buffers have been made for `len` elements, and the kernel compares its indices with that.
                    unsafe {
                        copy::launch_unchecked(
                            &client,
                            CubeCount::Static(width, cubes.div_ceil(width), 1),
                            CubeDim::new_1d(64),
                            vector,
                            BufferArg::from_raw_parts(x.clone(), vectors),
                            BufferArg::from_raw_parts(y.clone(), vectors),
                            per_unit,
                        )
                    }
                })
            })
            .into_iter()
            .min()
            .expect("two copies")
            .as_secs_f64();

        let affine = Affine {
            scale: &gamma,
            shift: &beta,
        };
        let running = Running {
            mean: &mean,
            variance: &variance,
            new_mean: &new_mean,
            new_variance: &new_variance,
        };
        let params = TrainParams {
            epsilon: 1e-5,
            factor: 0.1,
            correction: 1.0,
        };
        let outputs = TrainOutputs {
            y: Target::To(&y),
            mean: Some(&batch_mean),
            variance: &batch_variance,
            saved: &saved,
        };
        let gradients = Gradients {
            input: Some(Target::To(&dx)),
            scale: Some(&dgamma),
            shift: Some(&dbeta),
            residual: None,
        };
        let mut launches = [Launches::default(); 2];
        let forward = median(&client, || {
            launches[0] = train(
                &client,
                problem,
                &x,
                affine,
                Some(running),
                params,
                Epilogue::default(),
                outputs,
            )
            .expect("the arguments are right");
        })
        .as_secs_f64();
        let backward = median(&client, || {
            launches[1] = train_backward(
                &client,
                problem,
                &x,
                &dy,
                affine,
                &saved,
                Epilogue::default(),
                gradients,
            )
            .expect("the arguments are right");
        })
        .as_secs_f64();

        let column = |time: f64, launches: Launches, copies: f64| {
            format!(
                "{:8.3}  {:8}  {:13.2} {:5.1}",
                time * 1e3,
                launches.count(),
                time / (copies * copied),
                launches.bytes() as f64 / time * 1e-9,
            )
        };
        let total = (forward + backward) / (4.0 * copied);
        product = (product.0 + total.ln(), product.1 + 1);
        println!(
            "{name:20} {:8.3} | {} | {} | {total:.2}",
            copied * 1e3,
            column(forward, launches[0], 1.5),
            column(backward, launches[1], 2.5),
        );
    }
    println!(
        "geometric mean of the sums: {:.2}",
        (product.0 / product.1 as f64).exp()
    );
    Ok(())
}
