//! The socket's door, which knows who is inside.
//!
//! A connection that has not spoken yet is closed at once by a server that shuts down, and its client can't know whether it
//! was heard. So the service waits, once nobody can find it any more, until all who came have been answered.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

/// How many have come, and how many of them have gone.
#[derive(Clone, Default)]
pub struct Guests {
    come: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
}

impl Guests {
    /// Waits until nobody is inside and nobody came for a while, at most for `patience`.
    pub async fn gone(&self, a_while: Duration, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut before = usize::MAX;
        loop {
            let come = self.come.load(Ordering::Acquire);
            let inside = come > self.gone.load(Ordering::Acquire);
            if (!inside && come == before) || Instant::now() > deadline {
                return;
            }
            before = come;
            tokio::time::sleep(a_while).await;
        }
    }
}

pub struct Door {
    pub listener: UnixListener,
    pub guests: Guests,
}

impl Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        self.guests.come.fetch_add(1, Ordering::AcqRel);
        let guests = self.guests.clone();
        (Guest { stream, guests }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
pub struct Guest {
    stream: UnixStream,
    guests: Guests,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.gone.fetch_add(1, Ordering::AcqRel);
    }
}

impl AsyncRead for Guest {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_door_is_closed_when_the_last_guest_has_gone() {
        let guests = Guests::default();
        let (a_while, patience) = (Duration::from_millis(5), Duration::from_secs(5));
        guests.gone(a_while, patience).await;
        guests.come.fetch_add(1, Ordering::AcqRel);
        let waited = Instant::now();
        guests.gone(a_while, Duration::from_millis(50)).await;
        assert!(waited.elapsed() >= Duration::from_millis(50), "somebody is inside");
        guests.gone.fetch_add(1, Ordering::AcqRel);
        let waited = Instant::now();
        guests.gone(a_while, patience).await;
        assert!(waited.elapsed() < patience);
    }
}
