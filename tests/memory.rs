//! How much memory a step takes. It is also the proof that the fused path runs on the CPU devices:
//! composed of Burn's operations the same step holds several tensors of the input's size more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_batchnorm::{Activation, BatchNormConfig, Memory};

use crate::common::random;

/// The system's allocator, counting what the calling thread holds. Tensors are allocated by the
/// thread that calls Burn, so tests beside each other do not count each other's.
pub struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counters any more, and nobody to read them.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        live.get()
    });
    if let Ok(live) = live {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
    }
}

// SAFETY: every call goes to the system's allocator with the arguments as they are; the counters
// are plain integers that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `memory` came from the system's allocator with `layout`, as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as for `dealloc`, with a size that the caller vouches for.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SHAPE: [usize; 4] = [16, 32, 32, 32];
const TENSOR: f64 = (16 * 32 * 32 * 32 * 4) as f64;

/// The most that `run` held beyond what was there before, in tensors of the input's size.
fn peak<R>(run: impl FnOnce() -> R) -> f64 {
    let before = LIVE.get();
    PEAK.set(before);
    let result = run();
    let peak = (PEAK.get() - before) as f64 / TENSOR;
    drop(result);
    peak
}

#[allow(deprecated, reason = "burn deprecates NdArray, this crate supports it")]
fn cpu_devices() -> [(&'static str, Device); 2] {
    [("flex", Device::flex()), ("ndarray", Device::ndarray())]
}

/// Forward and backward. `backward` itself makes the gradient that it starts from, of `y`'s size.
fn step(x: &Tensor<4>, layer: impl Fn(Tensor<4>) -> Tensor<4>) -> f64 {
    let x = x.clone().detach().require_grad();
    peak(|| {
        let y = layer(x.clone());
        let gradients = y.backward();
        x.grad(&gradients).expect("a gradient")
    })
}

#[test]
fn a_training_step_holds_its_input_output_and_gradient() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let layer = BatchNormConfig::new(SHAPE[1]).init(&device);
        let x = random(SHAPE, 1, &device);
        step(&x, |x| layer.forward(x));
        let held = step(&x, |x| layer.forward(x));
        // The output, and the gradient that `dx` is written into.
        assert!((2.0..2.02).contains(&held), "{name}: {held} tensors");
    }
}

#[test]
fn a_fused_relu_holds_one_tensor_less_than_one_behind_the_layer() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let config = BatchNormConfig::new(SHAPE[1]);
        let fused = config
            .clone()
            .with_activation(Activation::Relu)
            .init(&device);
        let plain = config.init(&device);
        let x = random(SHAPE, 1, &device);
        let with_fused = step(&x, |x| fused.forward(x));
        let with_own = step(&x, |x| relu(plain.forward(x)));
        assert!((2.0..2.02).contains(&with_fused), "{name}: {with_fused}");
        assert!(with_own > with_fused + 0.99, "{name}: {with_own}");
    }
}

#[test]
fn inference_writes_over_an_input_that_nobody_else_holds() {
    for (name, device) in cpu_devices() {
        let layer = BatchNormConfig::new(SHAPE[1]).init(&device);
        let kept = random(SHAPE, 1, &device);
        let held = peak(|| layer.forward(kept.clone()));
        assert!((1.0..1.02).contains(&held), "{name}: {held} tensors");
        let given_away = kept + 0.0;
        let held = peak(|| layer.forward(given_away));
        assert!(held < 0.02, "{name}: {held} tensors");
    }
}

/// In-place batch normalization: of a chain of layers, each keeps its output alone.
#[test]
fn keeping_the_output_holds_one_tensor_less_a_layer() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let chain = |memory| {
            let config = BatchNormConfig::new(SHAPE[1])
                .with_activation(Activation::LeakyRelu(0.01))
                .with_memory(memory);
            let layers = [(); 4].map(|()| config.init(&device));
            // An operation between that keeps what it is given, as a convolution does, and one that makes
            // an input of its own for the layer.
            move |x: Tensor<4>| layers.iter().fold(x, |x, norm| norm.forward(x.clone() * x))
        };
        let x = random(SHAPE, 1, &device);
        let held = [Memory::Input, Memory::Output].map(|memory| {
            let network = chain(memory);
            step(&x, &network);
            step(&x, &network)
        });
        assert!(held[1] < held[0] - 2.5, "{name}: {held:?} tensors");
    }
}
