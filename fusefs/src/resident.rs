//! Memory that requests are read into, resident from the start.
//!
//! A process that is killed while the kernel copies a request into a page that is not there yet takes the request with it: its caller gets EIO,
//! where every other request is sent again to the next process. fuser reads into buffers that it allocates full of zeros, which means:
//! not there yet. So the program's allocator knows them by their size, and has the kernel put the part that is used in place and hold it there.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::fuse::MAX_IO;

/// What fuser 0.18 allocates for each thread of a session: the largest request that FUSE knows, and a page.
const READ_BUFFER: usize = (16 << 20) + 4096;

/// How much of it a request of ours can fill: the data of a write and what stands before it.
const USED: usize = MAX_IO + (8 << 10);

/// The system's allocator, which makes read buffers resident. To be the program's `#[global_allocator]`.
pub struct ResidentBuffers;

// SAFETY: everything is left to the system's allocator; what it returned is only looked at.
unsafe impl GlobalAlloc for ResidentBuffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if layout.size() == READ_BUFFER && !memory.is_null() {
            hold(memory);
        }
        memory
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Where the limit on locked memory (`ulimit -l`) is used up, the pages are put in place and can be paged out.
#[cfg(target_os = "linux")]
fn hold(memory: *mut u8) {
    const PAGE: usize = 4096;
    let start = memory as usize / PAGE * PAGE;
    let start = start as *mut nix::libc::c_void;
    // SAFETY: both calls take a range of this process's memory and change none of it. That they can fail is no matter: then all is
    // as without them.
    unsafe {
        if nix::libc::mlock(start, USED) != 0 {
            nix::libc::madvise(start, USED, nix::libc::MADV_POPULATE_WRITE);
        }
    }
}

/// No mount is taken over here.
#[cfg(not(target_os = "linux"))]
fn hold(_memory: *mut u8) {}
