//! `tidegate serve`: configuration, logging, signals, exit code. Standard output has the bound addresses and nothing else.

use std::io::{IsTerminal, Write};
use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Server, install_metrics, raise_open_files};
use crate::cli::{Exit, LogFormat, ServeArgs};
use crate::config::{self, Config, Inputs};

/// Runs the server until it is told to stop. SIGTERM and SIGINT drain; a second one ends the process at once.
#[must_use]
pub fn run(args: &ServeArgs) -> Exit {
    log_to_stderr(args.log_format, "info,tidegate::audit=off");
    let file = args.config.clone().or_else(|| {
        let default = Path::new(config::DEFAULT_FILE);
        default.exists().then(|| default.to_owned())
    });
    let inputs = Inputs { file: file.as_deref(), env: config::process_env(), flags: args.flags() };
    let loaded = match config::load(&inputs) {
        Ok(loaded) => loaded,
        Err(error) => {
            say(&error);
            return Exit::Usage;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    raise_open_files(&loaded.config.settings);
    // One TLS provider in the tree, named explicitly: whoever asks for the default gets this one.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&error);
            return Exit::Failed;
        }
    };
    runtime.block_on(serve(loaded.config))
}

async fn serve(config: Config) -> Exit {
    // Before anything is served, so that no signal is missed.
    let Ok(mut signals) = Signals::new() else {
        tracing::error!("the system does not let this process handle signals");
        return Exit::Failed;
    };
    let starting = async { Server::start(config, install_metrics()?).await };
    let started = tokio::select! {
        started = starting => started,
        // What is asked at the start may be away: who stops the server meanwhile need not wait.
        () = signals.next() => return Exit::Ok,
    };
    let server = match started {
        Ok(server) => server,
        Err(error) => {
            say(&error);
            return Exit::Failed;
        }
    };
    if announce(&server).is_err() {
        tracing::warn!("standard output is closed: the bound address is {}", server.http_addr());
    }
    let (first, again) = tokio::sync::oneshot::channel();
    let signals = tokio::spawn(async move {
        signals.next().await;
        // The server may have ended by itself: then nobody waits.
        let _ = first.send(());
        signals.next().await;
        tracing::warn!("a second signal: ending at once");
        std::process::exit(1);
    });
    server
        .run(async move {
            let _ = again.await;
        })
        .await;
    signals.abort();
    tracing::info!("ended in good order");
    Exit::Ok
}

fn announce(server: &Server) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening http {}", server.http_addr())?;
    out.flush()
}

fn say(error: &dyn std::error::Error) {
    eprintln!("tidegate: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
}

/// SIGTERM and SIGINT, heard from the moment that this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called in a tokio runtime.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Sets logging up: to standard error, as `RUST_LOG` says or as `default` does.
pub(crate) fn log_to_stderr(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(format == LogFormat::Text && std::io::stderr().is_terminal());
    let set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if set.is_err() {
        tracing::debug!("logging was set up before");
    }
}
