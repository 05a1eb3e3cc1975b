//! Serving requests until the service is stopped, by a request or by a signal.

use std::future::IntoFuture;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::door::{Door, Guests};
use super::startup::{PidFile, Socket};
use super::tcp::Tcp;
use super::upkeep::Upkeep;
use super::{Ending, RESTART, Service};
use crate::api::{self, guard::Guard};
use crate::error::{Error, Result};

/// How long answers under way may take once the service is stopping.
const GRACE: Duration = Duration::from_secs(5);

/// How long nobody new must have come before the doors are closed for good. Who found the socket just before it was hidden
/// may be slow to speak.
const LAST_CALL: Duration = Duration::from_millis(20);

/// Signals that come while one is being obeyed, and for so long after, are the same.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

/// How long the blocks of removed files may stay.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// A service that has come up.
pub struct Running {
    pub socket: Socket,
    pub tcp: Option<Tcp>,
    pub runtime: Runtime,
    pub service: Arc<Service>,
    pub pid: PidFile,
}

impl Running {
    /// Returns what to exit with.
    pub fn serve(self) -> Result<i32> {
        let Running {
            socket,
            tcp,
            runtime,
            service,
            pid,
        } = self;
        let upkeep = Upkeep::start(service.clone());
        let served = runtime.block_on(serve(&socket, tcp, service.clone()));
        // Also where serving has failed: the thread holds the stores.
        service
            .stopped
            .send_if_modified(|ending| ending.replace(ending.unwrap_or(Ending::Stop)).is_none());
        upkeep.join();
        let restart = *service.stopped.borrow() == Some(Ending::Restart);
        if restart {
            // All of it is the next service's. The stores' locks above all are not to be given back.
            std::mem::forget((service, pid));
            return served.map(|()| RESTART);
        }
        // The process file's lock goes last: `zenith stop` waits for it.
        drop((socket, runtime, service));
        drop(pid);
        tracing::info!("stopped");
        served.map(|()| 0)
    }
}

async fn serve(socket: &Socket, tcp: Option<Tcp>, service: Arc<Service>) -> Result<()> {
    let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
    for kind in [interrupt, terminate] {
        let signals = signal(kind).map_err(Error::io("listen for signals"))?;
        tokio::spawn(stop_on(signals, service.clone()));
    }
    tokio::spawn(tidy(service.clone()));
    let stopped = service.stopped.subscribe();
    let (closing, close) = watch::channel(());
    let guests = Guests::default();
    let servers = servers(socket, tcp, &service, close, &guests).map_err(Error::io("listen"))?;
    until_stopped(stopped).await;
    // Who has connected before is told that the service is stopping, and may ask the next one.
    socket.hide();
    guests.gone(LAST_CALL, GRACE).await;
    drop(closing);
    match tokio::time::timeout(GRACE, servers.join_all()).await {
        Ok(served) => served
            .into_iter()
            .collect::<io::Result<()>>()
            .map_err(Error::io("serve requests")),
        Err(_) => {
            tracing::warn!("a client was still there after {GRACE:?}");
            Ok(())
        }
    }
}

/// One for each door; they go on until the other end of `close` is dropped.
fn servers(
    socket: &Socket,
    tcp: Option<Tcp>,
    service: &Arc<Service>,
    close: watch::Receiver<()>,
    guests: &Guests,
) -> io::Result<JoinSet<io::Result<()>>> {
    let mut servers = JoinSet::new();
    let listener = UnixListener::from_std(socket.listener()?)?;
    let router = api::router(service.clone(), Guard::of_socket());
    let door = Door {
        listener,
        guests: guests.clone(),
    };
    let server = axum::serve(door, router).with_graceful_shutdown(closed(close.clone()));
    servers.spawn(server.into_future());
    if let Some(Tcp { listener, token }) = tcp {
        let router = api::router(service.clone(), Guard::of_tcp(token));
        let server = axum::serve(TcpListener::from_std(listener)?, router).with_graceful_shutdown(closed(close));
        servers.spawn(server.into_future());
    }
    Ok(servers)
}

async fn closed(mut close: watch::Receiver<()>) {
    // Nothing is ever sent: the other end is dropped.
    let _dropped = close.changed().await.is_err();
}

/// Frees space while nobody waits for it, and ends a service whose store was deleted.
async fn tidy(service: Arc<Service>) {
    let mut ticks = tokio::time::interval(TIDY_EVERY);
    let mut stopped = service.stopped.subscribe();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(Option::is_some) => return,
        }
        let service = service.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || service.tidy()).await {
            tracing::error!("tidying failed: {error}");
        }
    }
}

/// Ready when the service has been stopped.
async fn until_stopped(mut stopped: watch::Receiver<Option<Ending>>) {
    // An error says that the service is gone, which is as good.
    let _gone = stopped.wait_for(Option::is_some).await.is_err();
}

/// The first signal stops the service unless mounts are in use; the next one does it all the same. One that came at the
/// same time is the same: a signal to all of zenith's processes comes from the keeper too.
async fn stop_on(mut signals: Signal, service: Arc<Service>) {
    let mut force = false;
    while signals.recv().await.is_some() {
        let service = service.clone();
        let stopped = tokio::task::spawn_blocking(move || service.stop(force)).await;
        let _the_same = tokio::time::timeout(SAME_SIGNAL, signals.recv()).await.is_ok();
        match stopped {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!("not stopping: {}; a second signal forces it", error.message),
            Err(error) => tracing::error!("stop failed: {error}"),
        }
        force = true;
    }
}
