//! What an operation cost: its launches, and the bytes that each of them moves.
//!
//! Every operation returns the [`Launches`] that it issued. Bytes are counted from the buffers that a launch was given: a tensor counts as
//! often as the kernel sweeps over it, a vector of one value per channel once. A share of the second sweep is served by caches, so the bytes
//! are an upper bound of the traffic to memory, and bytes over time a lower bound of the bandwidth.

/// One launch of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static str,
    /// Bytes that it reads.
    pub read: u64,
    /// Bytes that it writes.
    pub written: u64,
}

/// The launches of an operation, in order. None at all for an empty tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Launches {
    list: [Option<Launch>; Self::MOST],
}

impl Launches {
    /// The most launches of an operation.
    pub const MOST: usize = 3;

    pub(crate) fn push(&mut self, launch: Launch) {
        let free = self.list.iter_mut().find(|slot| slot.is_none());
        *free.expect("no operation has more launches than the most") = Some(launch);
    }

    /// Adds bytes that the last launch has read.
    pub(crate) fn read(&mut self, bytes: u64) {
        if let Some(last) = self.list.iter_mut().flatten().last() {
            last.read += bytes;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Launch> + '_ {
        self.list.iter().flatten().copied()
    }

    /// Bytes read and written by all of them.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|launch| launch.read + launch.written).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_all_launches() {
        let mut launches = Launches::default();
        assert_eq!((launches.count(), launches.bytes()), (0, 0));
        for read in [1, 10] {
            launches.push(Launch {
                kernel: "k",
                read,
                written: 100,
            });
        }
        assert_eq!((launches.count(), launches.bytes()), (2, 211));
    }
}
