//! The relay of `dev`, in a runtime of its own. Killing the runtime stops the relay as kill -9 stops a
//! process: all its tasks end wherever they are, and its connections break.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::roles::relay;
use crate::systemd::Notifier;

/// Threads of the runtime: the relay steps on one, and serves its port on another.
const THREADS: usize = 2;
/// The longest wait for the tasks of a killed relay, which must free its port.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// A running relay.
#[derive(Debug)]
pub(super) struct RelayRuntime {
    kill: CancellationToken,
    ended: oneshot::Receiver<Result<()>>,
}

impl RelayRuntime {
    /// Starts a relay that serves on `listener`. It ends in order when `shutdown` is cancelled.
    pub(super) fn start(config: &Config, listener: TcpListener, shutdown: CancellationToken) -> Result<Self> {
        let (config, listener) = (config.clone(), listener.into_std()?);
        let kill = CancellationToken::new();
        let (told, ended) = oneshot::channel();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("relay")
            .enable_all()
            .build()
            .context("no runtime for the relay")?;
        let killed = kill.clone();
        // Built in its thread, because the future of a relay stays in one.
        let run = move || {
            let ended = runtime.block_on(Box::pin(serve_until_killed(&config, listener, shutdown, killed)));
            runtime.shutdown_timeout(LAST_TASKS);
            // `dev` may have ended before its relay.
            drop(told.send(ended));
        };
        thread::Builder::new().name("relay".to_owned()).spawn(run).context("no thread for the relay")?;
        Ok(Self { kill, ended })
    }

    /// Waits for the end of the relay.
    pub(super) async fn ended(&mut self) -> Result<()> {
        (&mut self.ended).await.context("the relay's thread has ended")?
    }

    /// Kills the relay, and waits until nothing of it is left.
    pub(super) async fn kill(mut self) -> Result<()> {
        self.kill.cancel();
        self.ended().await
    }
}

async fn serve_until_killed(
    config: &Config,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
    killed: CancellationToken,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    tokio::select! {
        () = killed.cancelled() => Ok(()),
        ended = relay::serve(config, listener, shutdown, Notifier::default()) => ended,
    }
}
