//! The server's process: start it on a fixed address, wait until it is ready, end it in one way or another. It knows nothing of
//! what the server holds.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::client::{Ask, Client};
use super::history::{Event, Process, Recorder};

/// A start that takes longer is a failure, whatever there is to recover: far more than a machine that builds something meanwhile
/// needs. How long the starts took is reported.
pub(crate) const READY_BOUND: Duration = Duration::from_secs(180);
/// SIGTERM: the drain of `limits.drain_ms` with the margin that the documentation asks for.
const DRAIN_BOUND: Duration = Duration::from_secs(40);
/// The id of the process's own operations in the history.
pub(crate) const SERVER: u32 = 0;

/// How to start it.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub program: PathBuf,
    pub data: PathBuf,
    pub address: SocketAddr,
    /// Where standard error goes, appended by every life.
    pub log: PathBuf,
    pub environment: Vec<(String, String)>,
}

/// A running process.
pub(crate) struct Server {
    child: Child,
    recorder: Recorder,
    address: SocketAddr,
    started: u64,
}

impl Launch {
    pub(crate) fn start(&self, recorder: &Recorder) -> anyhow::Result<Server> {
        let log = |path: &PathBuf| -> anyhow::Result<File> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("opening {}", path.display()))
        };
        let started = recorder.now();
        let mut command = Command::new(&self.program);
        command.args(["serve", "--data-dir"]).arg(&self.data).args(["--http", &self.address.to_string()]);
        command.args(["--set", "limits.drain_ms=2000"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Left of an interrupted tester; a server of its own would find the port taken.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log(&self.log)?).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        recorder.note(SERVER, started, Event::Process(Process::Started));
        Ok(Server { child, recorder: recorder.clone(), address: self.address, started })
    }
}

impl Server {
    /// Waits for the line on standard output, then for `/readyz`. An `Err` = it ended, or took too long; noted as such.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let result = timeout(READY_BOUND, self.wait()).await;
        let how = match result {
            Ok(Ok(())) => {
                let after_us = self.recorder.now().saturating_sub(self.started);
                self.recorder.note(SERVER, self.started, Event::Process(Process::Ready { after_us }));
                return Ok(());
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("not ready within {} s", READY_BOUND.as_secs()),
        };
        self.died(how.clone());
        bail!(how)
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        if let Some(output) = self.child.stdout.take() {
            let mut lines = BufReader::new(output).lines();
            loop {
                match lines.next_line().await? {
                    Some(line) if line.starts_with("listening http ") => break,
                    Some(_) => {}
                    None => bail!("it ended during its start: {}", self.child.wait().await?),
                }
            }
            // Read on, so that a later line does not fill the pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        }
        let mut client = Client::new(self.address);
        loop {
            if let Ok(answer) = client.ask(Ask::get("/readyz")).await
                && answer.ok()
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended before it was ready: {status}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn died(&self, how: String) {
        self.recorder.note(SERVER, self.recorder.now(), Event::Process(Process::Died { how: how.clone() }));
        let event = Event::Unexpected { operation: "process", what: how };
        self.recorder.note(SERVER, self.recorder.now(), event);
    }

    /// Whether it still runs; a death that nobody ordered is noted.
    pub(crate) fn alive(&mut self) -> anyhow::Result<bool> {
        let status = self.child.try_wait()?;
        if let Some(status) = status {
            self.died(format!("it ended by itself: {status}"));
        }
        Ok(status.is_none())
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        if !self.alive()? {
            return Ok(());
        }
        let start = self.recorder.now();
        self.child.start_kill()?;
        self.child.wait().await?;
        self.recorder.note(SERVER, start, Event::Process(Process::Killed));
        Ok(())
    }

    /// SIGTERM; with `patience`, SIGKILL if the drain takes longer.
    pub(crate) async fn terminate(mut self, patience: Option<Duration>) -> anyhow::Result<()> {
        if !self.alive()? {
            return Ok(());
        }
        let start = self.recorder.now();
        let pid = self.child.id().context("it runs")?.to_string();
        let sent = Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().await?;
        if !sent.success() {
            bail!("kill -TERM {pid}: {sent}");
        }
        let ended = timeout(patience.unwrap_or(DRAIN_BOUND), self.child.wait()).await;
        let code = match ended {
            Ok(status) => {
                let status = status?;
                if !status.success() {
                    let event = Event::Unexpected { operation: "SIGTERM", what: format!("it ended with {status}") };
                    self.recorder.note(SERVER, start, event);
                }
                status.code()
            }
            Err(_) => {
                if patience.is_none() {
                    let what = format!("it still ran after {} s", DRAIN_BOUND.as_secs());
                    self.recorder.note(SERVER, start, Event::Unexpected { operation: "SIGTERM", what });
                }
                self.child.start_kill()?;
                self.child.wait().await?;
                None
            }
        };
        self.recorder.note(SERVER, start, Event::Process(Process::Terminated { code }));
        Ok(())
    }
}
