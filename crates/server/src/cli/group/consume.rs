//! `tidegate group consume`: a member of a group that prints what it is delivered. It commits (or acknowledges) a record after
//! the record was written out, never before; so at every kill a record is printed at least once, by whoever comes next.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::value::RawValue;

use super::super::command::{CommandError, Interrupt, bytes, client, name};
use super::super::{ClientArgs, stream};
use super::GroupSpecArgs;
use crate::client::change::{GapInfo, GroupInfo, record_of};
use crate::client::{Batch, Client, ClientError, Member, Notice, SharedReader};
use crate::output::RecordOutput;

/// `tidegate group consume`.
#[derive(Debug, Clone, Args)]
pub struct ConsumeArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// The group.
    #[arg(value_parser = name)]
    pub group: String,
    /// What this member calls itself [default: tidegate- and the process id].
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub client: Option<String>,
    /// Create the group if it is not there; the flags below say what it is then.
    #[arg(long)]
    pub create: bool,
    /// What it is.
    #[command(flatten)]
    pub spec: GroupSpecArgs,
    /// Stop after so many records.
    #[arg(short = 'n', long, value_name = "RECORDS")]
    pub count: Option<u64>,
    /// At most so many records a poll, and so between two commits.
    #[arg(long, default_value_t = 500, value_name = "RECORDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch_records: u64,
    /// At most so many bytes a poll; a single record may be larger.
    #[arg(long, default_value = "1MiB", value_name = "BYTES", value_parser = bytes)]
    pub batch_bytes: u64,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// Say nothing about members and lag.
    #[arg(long, short)]
    pub quiet: bool,
}

type Output = RecordOutput<io::Stdout>;

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, args: &ConsumeArgs) -> Result<(), CommandError> {
    if !args.create && args.spec != GroupSpecArgs::default() {
        return Err(CommandError::Usage(
            "what a group is can be said when it is created: with --create, or by group create",
        ));
    }
    let mut interrupt = Interrupt::listen()?;
    let client = client(common, args.retries)?;
    let info = find(&client, args).await?;
    let mut output = RecordOutput::new(io::stdout(), common.json);
    let watch = Watch::start(&client, args, common.json);
    let consumed = if info.is_shared() {
        shared(client, args, &mut output, &watch, &mut interrupt).await
    } else {
        ordered(client, args, &mut output, &watch, &mut interrupt).await
    };
    watch.end();
    consumed
}

/// The group, created if it is to be.
async fn find(client: &Client, args: &ConsumeArgs) -> Result<GroupInfo, CommandError> {
    match client.group(&args.stream, &args.group).await {
        Ok(body) => return Ok(stream::read(&body)?),
        Err(ClientError::Refused(problem)) if args.create && problem.status == 404 => {}
        Err(error) => return Err(error.into()),
    }
    client.create_group(&args.stream, &args.group, &args.spec.spec()).await?;
    Ok(stream::read(&client.group(&args.stream, &args.group).await?)?)
}

async fn ordered(
    client: Client,
    args: &ConsumeArgs,
    output: &mut Output,
    watch: &Watch,
    interrupt: &mut Interrupt,
) -> Result<(), CommandError> {
    let name = args.client.clone().unwrap_or_else(|| format!("tidegate-{}", std::process::id()));
    let mut member = tokio::select! {
        member = Member::join(client, &args.stream, &args.group, &name) => member?,
        () = interrupt.heard() => return Err(CommandError::Interrupted),
    };
    watch.note(&format!("joined as {name} ({}), {}", member.id(), holding(member.generation(), &member.partitions())));
    let consumed = poll_and_commit(&mut member, args, output, watch, interrupt).await;
    // Others have its partitions at once, whyever it ends.
    if let Err(error) = member.leave().await {
        tracing::debug!(%error, "the group did not hear that the member left");
    }
    consumed
}

async fn poll_and_commit(
    member: &mut Member,
    args: &ConsumeArgs,
    output: &mut Output,
    watch: &Watch,
    interrupt: &mut Interrupt,
) -> Result<(), CommandError> {
    let limit = args.count.unwrap_or(u64::MAX);
    while output.records() < limit {
        let count = args.batch_records.min(limit - output.records());
        // What a poll that is given up was delivered is delivered again, for the member leaves.
        let notice = tokio::select! {
            notice = member.poll(count, args.batch_bytes) => notice?,
            () = interrupt.heard() => return Err(CommandError::Interrupted),
        };
        match notice {
            Notice::Batch(batch) => {
                print(&batch, output)?;
                if batch.delivered.is_empty() {
                    continue;
                }
                // Not given up by an interrupt: what was printed is committed, if the server answers in time.
                let committed = member.commit(&batch.delivered).await?;
                for (partition, next) in &committed.refused {
                    watch.note(&format!(
                        "partition {partition} went to another member before offset {next} was committed: some records come twice"
                    ));
                }
                watch.printed(output.records());
            }
            Notice::Changed { generation, partitions } => watch.note(&holding(generation, &partitions)),
            Notice::Rejoined { why, generation, partitions } => {
                watch.note(&format!("joined anew ({why}), {}", holding(generation, &partitions)));
            }
        }
        if interrupt.is_heard() {
            return Err(CommandError::Interrupted);
        }
    }
    Ok(())
}

/// How long a poll of a shared group waits.
const SHARED_WAIT: Duration = Duration::from_secs(5);

async fn shared(
    client: Client,
    args: &ConsumeArgs,
    output: &mut Output,
    watch: &Watch,
    interrupt: &mut Interrupt,
) -> Result<(), CommandError> {
    let mut reader = SharedReader::new(client, &args.stream, &args.group);
    let limit = args.count.unwrap_or(u64::MAX);
    while output.records() < limit && !interrupt.is_heard() {
        let count = args.batch_records.min(limit - output.records());
        let batch = tokio::select! {
            batch = reader.poll(count, args.batch_bytes, SHARED_WAIT) => batch?,
            () = interrupt.heard() => break,
        };
        print(&batch, output)?;
        let ids = deliveries(&batch)?;
        if !ids.is_empty() {
            reader.acknowledge(&ids).await?;
        }
        watch.printed(output.records());
    }
    if interrupt.is_heard() { Err(CommandError::Interrupted) } else { Ok(()) }
}

/// What an acknowledgement of all of a batch names.
fn deliveries(batch: &Batch) -> Result<Vec<Box<RawValue>>, CommandError> {
    let mut ids = Vec::with_capacity(batch.records.len());
    for json in &batch.records {
        let record = record_of(json.get()).map_err(ClientError::Answer)?;
        let delivery =
            record.delivery.ok_or(ClientError::Protocol { what: "a record of a shared group without delivery" })?;
        ids.push(delivery.id.to_owned());
    }
    Ok(ids)
}

/// Prints a batch, each gap in its place among the records of its partition.
fn print<W: io::Write>(batch: &Batch, output: &mut RecordOutput<W>) -> Result<(), CommandError> {
    let mut gaps: VecDeque<&GapInfo> = batch.gaps.iter().collect();
    for json in &batch.records {
        if !gaps.is_empty() {
            let record = record_of(json.get()).map_err(ClientError::Answer)?;
            let (before, after) = gaps
                .into_iter()
                .partition::<VecDeque<_>, _>(|gap| gap.partition == record.partition && gap.to <= record.offset);
            for gap in before {
                output.gap(gap)?;
            }
            gaps = after;
        }
        output.record(json.get())?;
    }
    for gap in gaps {
        output.gap(gap)?;
    }
    Ok(output.flush()?)
}

fn holding(generation: u64, partitions: &[u32]) -> String {
    let numbers: Vec<String> = partitions.iter().map(u32::to_string).collect();
    match partitions.len() {
        0 => format!("generation {generation}, no partitions"),
        1 => format!("generation {generation}, partition {}", numbers[0]),
        _ => format!("generation {generation}, partitions {}", numbers.join(", ")),
    }
}

/// Between two lines about the lag where stderr is no terminal.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// The same where it is one.
const LAG_EVERY_ON_A_TERMINAL: Duration = Duration::from_secs(1);

/// What is said on stderr beside the records: members, lag, rate. It asks the server for the lag on its own, slowly.
struct Watch {
    bar: Option<ProgressBar>,
    /// The records printed so far.
    printed: tokio::sync::watch::Sender<u64>,
    task: Option<tokio::task::JoinHandle<()>>,
    silent: bool,
}

impl Watch {
    fn start(client: &Client, args: &ConsumeArgs, json: bool) -> Self {
        let (printed, count) = tokio::sync::watch::channel(0);
        if args.quiet || json {
            return Self { bar: None, printed, task: None, silent: true };
        }
        // Records on the same terminal would tear the line that is written over and over.
        let bar = (io::stderr().is_terminal() && !io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
                bar.set_style(style);
            }
            bar
        });
        let (client, stream, group) = (client.clone(), args.stream.clone(), args.group.clone());
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let every = if shown.is_some() { LAG_EVERY_ON_A_TERMINAL } else { LAG_EVERY };
            let (mut before, mut at, mut said) = (0, Instant::now(), None);
            loop {
                tokio::time::sleep(every).await;
                let Ok(body) = client.group(&stream, &group).await else { continue };
                let Ok(info) = stream::read::<GroupInfo>(&body) else { continue };
                let records = *count.borrow();
                let elapsed = at.elapsed().as_millis().max(1);
                let rate = u128::from(records - before) * 1000 / elapsed;
                (before, at) = (records, Instant::now());
                let line = format!(
                    "{} records printed  {rate} records/s  lag {}  members {}",
                    HumanCount(records),
                    HumanCount(info.lag()),
                    info.members.len()
                );
                match &shown {
                    Some(bar) => {
                        bar.set_message(line);
                        bar.tick();
                    }
                    // Nothing new is not said again and again.
                    None if said.as_ref() != Some(&line) => {
                        eprintln!("{line}");
                        said = Some(line);
                    }
                    None => {}
                }
            }
        });
        Self { bar, printed, task: Some(task), silent: false }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.silent => {}
            None => eprintln!("{text}"),
        }
    }

    fn printed(&self, records: u64) {
        self.printed.send_replace(records);
    }

    fn end(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_stands_in_its_place_among_the_records_of_its_partition() {
        let batch: Batch = serde_json::from_str(
            r#"{"records":[{"partition":0,"offset":1,"op":"insert","value":1},{"partition":1,"offset":9,"op":"insert","value":1},{"partition":0,"offset":5,"op":"insert","value":1}],
                "gaps":[{"partition":0,"from":2,"to":5,"reason":"retention"},{"partition":1,"from":0,"to":9,"reason":"trim"},{"partition":2,"from":0,"to":1,"reason":"compaction"}],
                "delivered":{"0":6,"1":10,"2":1},"generation":1}"#,
        )
        .unwrap();
        let mut written = Vec::new();
        print(&batch, &mut RecordOutput::new(&mut written, true)).unwrap();
        let text = String::from_utf8(written).unwrap();
        let places: Vec<serde_json::Value> = text
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let (record, gap) = (&line["record"], &line["gap"]);
                serde_json::json!([record["partition"], record["offset"], gap["partition"], gap["to"]])
            })
            .collect();
        let expected = serde_json::json!([
            [0, 1, null, null],
            [null, null, 1, 9],
            [1, 9, null, null],
            [null, null, 0, 5],
            [0, 5, null, null],
            [null, null, 2, 1]
        ]);
        assert_eq!(serde_json::Value::from(places), expected);
    }
}
