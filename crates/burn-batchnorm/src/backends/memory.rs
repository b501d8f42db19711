//! Fresh memory for results.
//!
//! The system hands out memory page by page, at the first write to each: at 4 KiB a page this costs
//! several times what normalizing the page does. Linux can back memory with pages of 2 MiB instead,
//! if asked, and then does so once in 512 times as much. Allocators do not ask (PyTorch's does with
//! `THP_MEM_ALLOC_ENABLE=1`).

use std::mem::MaybeUninit;

/// Room for `elements` values, not zeroed, at the start of an empty `memory`.
pub(super) fn reserve<E>(memory: &mut Vec<E>, elements: usize) -> &mut [MaybeUninit<E>] {
    memory.reserve_exact(elements);
    let room = &mut memory.spare_capacity_mut()[..elements];
    prefer_huge_pages(room);
    room
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages<E>(memory: &mut [MaybeUninit<E>]) {
    const HUGE_PAGE: usize = 2 << 20;
    let range = memory.as_mut_ptr_range();
    let start = (range.start as usize).next_multiple_of(HUGE_PAGE);
    let end = range.end as usize / HUGE_PAGE * HUGE_PAGE;
    if end > start {
        // SAFETY: start to end are whole pages within `memory`, which is borrowed for writing alone.
        // The advice changes what backs them and never what they hold; where the system does not know
        // it, it is refused without effect.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<E>(_memory: &mut [MaybeUninit<E>]) {}
