//! What the frameworks call a layer's tensors, and how they lay out a kernel.

use burn::tensor::{Bytes, Shape, TensorData};

use super::Framework;

pub(super) const BATCH_NORM: &str = "Struct:BatchNorm";
pub(super) const COUNTER: &str = "num_batches_tracked";

/// Names in Keras and in Flax of the tensors that other layers than Burn's call otherwise. PyTorch's
/// are burn-store's business.
const NAMES: [(&str, &str, &str, &str); 14] = [
    (BATCH_NORM, "gamma", "gamma", "scale"),
    (BATCH_NORM, "beta", "beta", "bias"),
    (BATCH_NORM, "running_mean", "moving_mean", "mean"),
    (BATCH_NORM, "running_var", "moving_variance", "var"),
    ("Struct:LayerNorm", "gamma", "gamma", "scale"),
    ("Struct:LayerNorm", "beta", "beta", "bias"),
    ("Struct:GroupNorm", "gamma", "gamma", "scale"),
    ("Struct:GroupNorm", "beta", "beta", "bias"),
    ("Struct:RmsNorm", "gamma", "scale", "scale"),
    ("Struct:Linear", "weight", "kernel", "kernel"),
    ("Struct:Conv1d", "weight", "kernel", "kernel"),
    ("Struct:Conv2d", "weight", "kernel", "kernel"),
    ("Struct:Conv3d", "weight", "kernel", "kernel"),
    ("Struct:Embedding", "weight", "embeddings", "embedding"),
];

/// Keras's transposed convolutions are ours with other axes; those of Flax are mirrored as well, which
/// no adapter here does: their kernel keeps its name, and a strict load names it.
const TRANSPOSED: [&str; 3] = [
    "Struct:ConvTranspose1d",
    "Struct:ConvTranspose2d",
    "Struct:ConvTranspose3d",
];

impl Framework {
    /// What the framework calls a tensor of a layer that is called `name` in Burn.
    pub(super) fn name(self, module: &str, name: &str) -> Option<&'static str> {
        let transposed = TRANSPOSED.contains(&module) && name == "weight";
        let row = NAMES.iter().find(|row| (row.0, row.1) == (module, name));
        match self {
            // What burn-store's own adapter for PyTorch renames.
            Self::PyTorch => match (row, name) {
                (Some(_), "gamma") => Some("weight"),
                (Some(_), "beta") => Some("bias"),
                _ => None,
            },
            Self::Keras if transposed => Some("kernel"),
            Self::Keras => row.map(|row| row.2),
            Self::Flax => row.map(|row| row.3),
        }
    }

    /// Whether the framework keeps the kernel of a layer as `[spatial.., in, out]` (transposed:
    /// `[spatial.., out, in]`), where Burn has `[out, in, spatial..]` (transposed: `[in, out, ..]`).
    pub(super) fn spatial_first(self, module: &str, name: &str) -> bool {
        let convolution = module.starts_with("Struct:Conv") && name == "weight";
        convolution && self.name(module, name) == Some("kernel")
    }

    /// A key of a file as a path in Burn.
    pub(super) fn path(self, key: &str) -> String {
        let path = key.replace('/', ".");
        match self {
            Self::PyTorch => key.to_string(),
            Self::Keras => path,
            // Linen keeps statistics in a collection of their own; NNX keeps them with the layer.
            Self::Flax => ["params.", "batch_stats."]
                .iter()
                .find_map(|collection| path.strip_prefix(collection))
                .unwrap_or(&path)
                .to_string(),
        }
    }

    /// The path of a tensor in Burn as the key that the framework writes.
    pub(super) fn key(self, module: &str, path: &str) -> String {
        let (parent, name) = split(path);
        let name = self.name(module, name).unwrap_or(name);
        let path = format!("{parent}{name}");
        match self {
            Self::Keras => path.replace('.', "/"),
            Self::PyTorch | Self::Flax => path,
        }
    }
}

/// A path as its parent, with the dot, and its last name.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('.').map_or(0, |dot| dot + 1))
}

/// The order of axes that turns `[spatial.., a, b]` into `[b, a, spatial..]`.
pub(super) fn spatial_last(rank: usize) -> Vec<usize> {
    let spatial = 0..rank - 2;
    [rank - 1, rank - 2].into_iter().chain(spatial).collect()
}

/// The order of axes that turns `[b, a, spatial..]` into `[spatial.., a, b]`.
pub(super) fn spatial_first(rank: usize) -> Vec<usize> {
    (2..rank).chain([1, 0]).collect()
}

pub(super) fn permuted(shape: &Shape, axes: &[usize]) -> Shape {
    Shape::from(axes.iter().map(|axis| shape[*axis]).collect::<Vec<_>>())
}

/// The values with their axes in another order: a copy byte by byte, whatever their type.
pub(super) fn permute(data: TensorData, axes: &[usize]) -> TensorData {
    let size = data.dtype().size();
    let (bytes, shape, dtype) = data.into_parts();
    let target = permuted(&shape, axes);
    let strides: Vec<usize> = axes
        .iter()
        .map(|axis| shape[axis + 1..].iter().product())
        .collect();
    let mut moved = Vec::with_capacity(bytes.len());
    for position in 0..shape.num_elements() {
        let mut rest = position;
        let source: usize = (0..axes.len())
            .rev()
            .map(|axis| {
                let index = rest % target[axis];
                rest /= target[axis];
                index * strides[axis]
            })
            .sum();
        moved.extend_from_slice(&bytes[source * size..(source + 1) * size]);
    }
    TensorData::from_bytes(Bytes::from_bytes_vec(moved), target, dtype)
}
