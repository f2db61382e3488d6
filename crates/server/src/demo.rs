//! `tidegate demo`: the narrated story on real data. The real server and a real client in one process, over a real socket;
//! nothing is staged: every number that is printed was measured, and a promise that does not hold ends the demo with an error.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Url;

use crate::cli::{DemoArgs, Exit, LogFormat, report_error};
use crate::client::{Client, ClientError, ClientOptions, SetupError};
use crate::config::{ConfigError, Flags, Inputs, load};
use crate::serve::{Server, Signals, StartError, install_metrics, log_to_stderr};

pub mod data;
mod group;
mod narrator;
mod object;
mod query_stream;

pub use narrator::Narrator;

/// Why the demo ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The folder for the data cannot be had.
    #[error("a folder for the demo's data cannot be made")]
    Folder(#[source] io::Error),
    /// The database was not built.
    #[error(transparent)]
    Build(#[from] data::BuildError),
    /// What is put together here is no configuration: a bug.
    #[error("the demo's own configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    /// The server did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The client could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The client failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The writer's own connection failed.
    #[error("the writer's transaction failed")]
    Writer(#[source] rusqlite::Error),
    /// A member's process failed.
    #[error("a member of the group cannot be run")]
    Member(#[source] io::Error),
    /// The system gives no randomness.
    #[error("the system gives no randomness for a producer's id")]
    Entropy(#[source] tidegate_core::port::EntropyUnavailable),
    /// The system does not let this process hear Ctrl-C.
    #[error("signals cannot be heard")]
    Signals(#[source] io::Error),
    /// Nobody reads the story.
    #[error("the story cannot be printed")]
    Print(#[from] io::Error),
    /// What the story promises did not happen.
    #[error("a promise does not hold: {promise}: expected {expected}, found {found}")]
    Broken {
        /// Which.
        promise: &'static str,
        /// What should be.
        expected: String,
        /// What is.
        found: String,
    },
}

/// What the scenes work on.
pub struct Stage {
    /// The server.
    pub url: Url,
    /// A client of it.
    pub client: Client,
    /// The database that the server reads, for whoever plays a writer.
    pub database: PathBuf,
}

/// A part of the story. Later parts of Tidegate add their own.
#[async_trait::async_trait]
pub trait Scene: Send + Sync {
    /// Its title.
    fn title(&self) -> &'static str;

    /// Plays it. An error ends the demo.
    async fn play(&mut self, stage: &Stage, narrator: &mut Narrator) -> Result<(), DemoError>;

    /// Lines that a reader can copy and paste afterwards.
    fn try_next(&self, _: &Stage) -> Vec<String> {
        Vec::new()
    }
}

fn scenes() -> Vec<Box<dyn Scene>> {
    vec![Box::new(query_stream::QueryStreamScene), Box::new(group::GroupScene), Box::new(object::ObjectScene)]
}

/// What the story promises; if it is not so, the demo ends.
fn promise(what: &'static str, expected: impl ToString, found: impl ToString) -> Result<(), DemoError> {
    let (expected, found) = (expected.to_string(), found.to_string());
    if expected == found { Ok(()) } else { Err(DemoError::Broken { promise: what, expected, found }) }
}

/// Runs the command. The log is silent but for warnings, so that the story can be read.
#[must_use]
pub fn run(args: &DemoArgs, json: bool) -> Exit {
    log_to_stderr(LogFormat::Text, "warn");
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report_error(&error, None, json);
            return Exit::Failed;
        }
    };
    match runtime.block_on(tell(args)) {
        Ok(()) => Exit::Ok,
        Err(DemoError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            report_error(&error, None, json);
            Exit::Failed
        }
    }
}

async fn tell(args: &DemoArgs) -> Result<(), DemoError> {
    let mut narrator = Narrator::new();
    let mut signals = Signals::new().map_err(DemoError::Signals)?;
    // Held to the end: the folder goes away with it.
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(DemoError::Folder)?),
    };
    let folder = match (&args.data_dir, &temporary) {
        (Some(folder), _) => folder.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder).map_err(DemoError::Folder)?;
    let database = folder.join("cities.db");

    narrator.title("Real data")?;
    let begun = Instant::now();
    let rows = data::build(&database)?;
    narrator.say(&format!(
        "{} places of the world, built into the SQLite file {} in {}.",
        narrator::count(rows),
        database.display(),
        narrator::time(begun.elapsed()),
    ))?;
    narrator.say(data::ATTRIBUTION)?;

    let mut flags = Flags::default();
    flags.set("--http", "listen.http", args.http.to_string());
    flags.set("--data-dir", "data_dir", folder.display().to_string());
    flags.sqlite("main", &database);
    let config = load(&Inputs { flags, ..Inputs::default() })?.config;
    crate::client::install_crypto();
    let server = Server::start(config, install_metrics()?).await?;
    let address = server.http_addr();
    writeln!(io::stdout(), "\nlistening http {address}")?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move {
        // A sender that was dropped means the same.
        let _ = stopped.await;
    }));
    // Until Ctrl-C, in the middle of the story too: the folder is taken away in every case.
    let told = tokio::select! {
        told = play(args, &mut narrator, address, database) => told,
        () = signals.next() => Ok(()),
    };
    drop(stop);
    if running.await.is_err() {
        tracing::error!("the server ended with a panic");
    }
    told
}

async fn play(
    args: &DemoArgs,
    narrator: &mut Narrator,
    address: std::net::SocketAddr,
    database: PathBuf,
) -> Result<(), DemoError> {
    let text = format!("http://{address}/");
    let url = Url::parse(&text).map_err(|_| SetupError::Url { url: text })?;
    let client =
        Client::new(ClientOptions { stall_timeout: Duration::from_secs(60), ..ClientOptions::new(url.clone()) })?;
    let stage = Stage { url, client, database };
    let mut next = Vec::new();
    for mut scene in scenes() {
        narrator.title(scene.title())?;
        scene.play(&stage, narrator).await?;
        next.extend(scene.try_next(&stage));
    }
    if args.exit {
        return Ok(());
    }
    narrator.title("Now you")?;
    narrator.say("The server goes on until Ctrl-C. In another terminal:")?;
    narrator.lines(&next)?;
    std::future::pending().await
}
