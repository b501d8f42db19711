//! The sizes of this machine's caches. They decide how work is cut and stored, never what is computed: no bit of a result depends on them.

use std::sync::OnceLock;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    second: usize,
    last: usize,
}

/// Where the system does not say: those of common server cores.
const UNKNOWN: Sizes = Sizes {
    second: 1 << 20,
    last: 32 << 20,
};

/// The most that is assumed to be left of an output in the last-level cache, however large that is: measured on a server with 300 MiB that many
/// cores share, writing and reading again 32 MiB takes 0.84 times as long with streaming stores, 16 MiB 1.1 times.
const MOST_KEPT_BYTES: usize = 24 << 20;

/// From this size on an output leaves little of itself in the caches, and is better written past them: three quarters of the last level, as glibc's
/// memcpy has it.
pub(crate) fn streaming_output_bytes() -> usize {
    (sizes().last / 4 * 3).min(MOST_KEPT_BYTES)
}

/// What a group of channels may hold of one tensor, so that `tensors` of them stay in the second-level cache between two passes.
pub(crate) fn group_bytes(tensors: usize) -> usize {
    (sizes().second / 2 / tensors.max(1)).clamp(64 << 10, 512 << 10)
}

fn sizes() -> Sizes {
    static SIZES: OnceLock<Sizes> = OnceLock::new();
    *SIZES.get_or_init(|| Sizes {
        second: level(2).unwrap_or(UNKNOWN.second),
        last: level(3).unwrap_or(UNKNOWN.last),
    })
}

/// The size of a cache level of the first processor, as Linux tells it.
#[cfg(target_os = "linux")]
fn level(level: usize) -> Option<usize> {
    (0..8).find_map(|index| {
        let read = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            std::fs::read_to_string(path).ok()
        };
        let same = read("level")?.trim().parse() == Ok(level);
        let kibibytes = read("size")?.trim().strip_suffix('K')?.parse::<usize>();
        kibibytes.ok().filter(|&k| same && k > 0).map(|k| k << 10)
    })
}

#[cfg(not(target_os = "linux"))]
fn level(_level: usize) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sane_whatever_the_system_says() {
        assert!((1 << 20..=MOST_KEPT_BYTES).contains(&streaming_output_bytes()));
        assert!(group_bytes(1) >= group_bytes(2) && group_bytes(1000) == 64 << 10);
    }
}
