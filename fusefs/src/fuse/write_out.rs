//! Writes that come from the kernel's page cache, answered when the disk has been asked to write them.
//!
//! The kernel has collected these bytes for as long as it thinks right; kept back a second time, in the backing
//! file's pages, they would meet the next sync or seal all at once. Handing them to the disk can wait for a place in its
//! queue, so one thread does that for all, and commits, which come past the page cache, find who reads them free. Since
//! the kernel sends only so many such writes at a time, an answer that comes late also slows it down to the
//! pace of the disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use fuser::{Errno, ReplyWrite};

use super::reply;
use crate::fs::Fs;
use crate::node::Node;

/// Ends, with its hold on the file system, when it is dropped.
pub struct WriteOut {
    queue: Option<Sender<Written>>,
    thread: Option<JoinHandle<()>>,
}

/// A write in the backing filesystem's hands.
struct Written {
    node: Node,
    offset: u64,
    count: usize,
    reply: ReplyWrite,
}

impl WriteOut {
    pub fn start(fs: Arc<Fs>) -> io::Result<WriteOut> {
        let (queue, written) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("write-out".into())
            .spawn(move || answer_all(&fs, &written))?;
        Ok(WriteOut {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Answers a write of `count` bytes, later.
    pub fn answer(&self, node: Node, offset: u64, count: usize, reply: ReplyWrite) {
        let written = Written {
            node,
            offset,
            count,
            reply,
        };
        let Some(queue) = &self.queue else {
            return written.reply.error(Errno::EIO);
        };
        if let Err(mpsc::SendError(written)) = queue.send(written) {
            written.reply.error(Errno::EIO);
        }
    }
}

impl Drop for WriteOut {
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that answers writes from the page cache died");
        }
    }
}

fn answer_all(fs: &Fs, written: &Receiver<Written>) {
    for Written {
        node,
        offset,
        count,
        reply,
    } in written
    {
        let asked = fs.write_out(node, offset, count as u64);
        reply::written(reply, asked.map(|()| count));
    }
}
