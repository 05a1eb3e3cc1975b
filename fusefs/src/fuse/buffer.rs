//! Where reads are put together: one buffer a thread, so that no request allocates.

use std::cell::RefCell;

use super::MAX_IO;

/// Reads of whole pages of the backing file go straight to whole pages of memory.
const PAGE: usize = 4096;

thread_local! {
    static BUFFER: RefCell<ReadBuffer> = const { RefCell::new(ReadBuffer { bytes: Vec::new() }) };
}

struct ReadBuffer {
    bytes: Vec<u8>,
}

impl ReadBuffer {
    /// `size` bytes that start at a page.
    fn slice(&mut self, size: usize) -> &mut [u8] {
        let room = size.max(MAX_IO) + PAGE;
        if self.bytes.len() < room {
            self.bytes = vec![0; room];
        }
        let start = self.bytes.as_ptr().align_offset(PAGE);
        &mut self.bytes[start..start + size]
    }
}

/// Calls `with` on `size` bytes of this thread's buffer, whatever they held before.
pub fn with_buffer<T>(size: usize, with: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| with(buffer.slice(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_starts_at_a_page_and_grows_when_asked() {
        for size in [1, PAGE, MAX_IO, 3 * MAX_IO] {
            with_buffer(size, |bytes| {
                assert_eq!(bytes.len(), size);
                assert_eq!(bytes.as_ptr() as usize % PAGE, 0);
            });
        }
    }
}
