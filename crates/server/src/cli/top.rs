//! `tidegate top`: streams and groups, live: rates, bytes, members, lag. It only reads, and asks a bounded number of questions
//! a look, however many streams there are.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::{mpsc, watch};

use super::command::{CommandError, Interrupt, client, name, run as run_command, say};
use super::{ClientArgs, Exit};
use crate::client::{Client, ClientError};

mod sample;
mod view;

use sample::{Rates, Sample};
use view::{Act, View};

/// `tidegate top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Only this stream.
    #[arg(value_parser = name)]
    pub stream: Option<String>,
    /// Print one table (or JSON document) and end; so it is, too, where stdout is no terminal.
    #[arg(long)]
    pub once: bool,
    /// The pause between two looks.
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..))]
    pub interval_ms: u64,
}

/// Runs the command.
pub(super) fn run(common: &ClientArgs, args: &TopArgs) -> Exit {
    run_command(common.json, async {
        let client = client(common, 1)?;
        if common.json || args.once || !io::stdout().is_terminal() {
            let sample = Sample::take(&client, args.stream.as_deref(), &[]).await?;
            return say(&if common.json { sample.json().to_string() } else { sample.table() });
        }
        live(&client, args).await
    })
}

/// The keys of the terminal, read on a thread of their own: reading them blocks.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Gives the terminal back, however the view ends.
struct Screen(ratatui::DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn live(client: &Client, args: &TopArgs) -> Result<(), CommandError> {
    // The first look is taken before the screen is: a server that is not there is said in plain words.
    let first = Sample::take(client, args.stream.as_deref(), &[]).await?;
    let mut interrupt = Interrupt::listen()?;
    let mut view = View::new(client.base().to_string());
    let mut rates = Rates::default();
    view.show(rates.of(first));
    let mut screen = Screen(ratatui::try_init()?);
    let mut keys = keys();
    let (wanted, asked) = watch::channel(Vec::new());
    let mut looks = looks(client.clone(), args, asked);
    loop {
        screen.0.draw(|frame| view.draw(frame))?;
        wanted.send_replace(view.visible());
        tokio::select! {
            () = interrupt.heard() => return Err(CommandError::Interrupted),
            key = keys.recv() => match key.map(|event| act(&event)) {
                Some(Some(Act::Quit)) => return Ok(()),
                Some(Some(act)) => view.act(act),
                Some(None) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
            Some(look) = looks.recv() => match look {
                Ok(sample) => view.show(rates.of(sample)),
                Err(error) => view.fail(&error),
            },
        }
    }
}

/// Looks at the server again and again, in a task of its own: a key never disturbs a look.
fn looks(
    client: Client,
    args: &TopArgs,
    wanted: watch::Receiver<Vec<String>>,
) -> mpsc::Receiver<Result<Sample, ClientError>> {
    let (sender, receiver) = mpsc::channel(1);
    let (stream, pause) = (args.stream.clone(), Duration::from_millis(args.interval_ms));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause).await;
            let wanted = wanted.borrow().clone();
            if sender.send(Sample::take(&client, stream.as_deref(), &wanted).await).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// What a key asks for.
fn act(event: &Event) -> Option<Act> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Act::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Act::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Act::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Act::Down),
        KeyCode::Left => Some(Act::SortLeft),
        KeyCode::Right => Some(Act::SortRight),
        KeyCode::Char('r') => Some(Act::Reverse),
        _ => None,
    }
}
