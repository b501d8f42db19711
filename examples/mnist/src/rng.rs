//! A small seeded generator for everything random in a run: weights, split, order of the images.
//!
//! Burn's own generators are global to a backend and differ between backends. With this one the
//! same seed means the same initial weights and the same batches on every device, and a resumed
//! run sees the order that the uninterrupted run would have seen.

/// SplitMix64 (Steele, Lea and Flood 2014): 64 bits of state, passes BigCrush, five lines.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// What a stream of numbers is for; each use gets numbers independent of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Initial weights of the dense layer with this number.
    Weights(u64),
    /// Which training images are held out for validation.
    Split,
    /// The order of the training images in this epoch.
    Epoch(u64),
}

impl Rng {
    /// The generator of `stream` under `seed`.
    pub fn new(seed: u64, stream: Stream) -> Self {
        let (kind, number) = match stream {
            Stream::Weights(layer) => (1, layer),
            Stream::Split => (2, 0),
            Stream::Epoch(epoch) => (3, epoch),
        };
        // Each part passes through the mixer, so that neighbouring seeds share nothing.
        let mut rng = Self(seed);
        rng = Self(rng.next_u64() ^ kind);
        rng = Self(rng.next_u64() ^ number);
        rng
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, bound)`. The bias of the multiplication is below 2^-32 for 32-bit bounds.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u32
    }

    /// A number in `[-limit, limit)`, from the 24 bits that an `f32` holds.
    pub fn uniform(&mut self, limit: f32) -> f32 {
        let unit = (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * limit
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_are_those_of_splitmix64() {
        // From the reference implementation in C with state 0.
        let mut rng = Rng(0);
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn streams_and_seeds_differ() {
        let mut firsts: Vec<u64> = (0..4)
            .flat_map(|seed| {
                [
                    Stream::Weights(0),
                    Stream::Weights(1),
                    Stream::Split,
                    Stream::Epoch(1),
                    Stream::Epoch(2),
                ]
                .map(|stream| Rng::new(seed, stream).next_u64())
            })
            .collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 20);
    }

    #[test]
    fn shuffle_keeps_every_item_and_moves_most() {
        let mut items: Vec<u32> = (0..1000).collect();
        Rng::new(7, Stream::Epoch(1)).shuffle(&mut items);
        let fixed = items
            .iter()
            .enumerate()
            .filter(|(at, item)| *at as u32 == **item)
            .count();
        assert!(fixed < 20, "{fixed} items stayed in place");
        items.sort_unstable();
        assert!(items.into_iter().eq(0..1000));
    }

    #[test]
    fn uniform_stays_in_range_and_centred() {
        let mut rng = Rng::new(1, Stream::Weights(0));
        let values: Vec<f32> = (0..10_000).map(|_| rng.uniform(0.5)).collect();
        assert!(values.iter().all(|value| (-0.5..0.5).contains(value)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.015, "mean {mean}");
    }
}
