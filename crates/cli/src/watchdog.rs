//! `quorate watchdog`: keeps a node running where nothing else does.
//!
//! It starts the node as its child, asks it every few seconds whether it works (the control
//! socket's self-check; a standby is well), and starts it again when it has ended or no longer
//! works. What it does when is in [`rules`]; here is what carries that out. It holds nothing that
//! could be lost: a watchdog that is killed leaves the node running.
//!
//! Where systemd is, its own watchdog does the same: see `service_manager`.

mod rules;

use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use quorate_node::control::{self, Answer, Question, SELF_CHECK_PATIENCE};
use rustix::process::{Pid, Signal, kill_process};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep_until, timeout};

use rules::{Action, Ended, Event, Limits, MAX_RESTARTS, Rules, Verdict};
pub(crate) use rules::{Checked, HELD, MISCONFIGURED};

/// Exit code of a watchdog that has given up.
const GAVE_UP: u8 = 69;

/// What a shell answers for a process that a signal has ended, without the signal.
const ENDED_BY_SIGNAL: u8 = 128;

/// Run a node, check it, and start it again when it has ended or no longer works
#[derive(Args)]
#[command(after_help = "Exit codes:\n  \
    0   the node has ended because an operator asked it, or this watchdog, to\n  \
    69  it had to be restarted too often, and nobody looks after it any more\n  \
    75  another instance serves, and the node is configured not to wait (whenHeld = EXIT)\n  \
    78  the node cannot follow its configuration")]
pub(crate) struct Arguments {
    /// Seconds between two checks
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    interval: Duration,
    /// Seconds within which a check must be answered
    #[arg(long, value_name = "SECONDS", default_value = "12", value_parser = seconds)]
    check_timeout: Duration,
    /// Checks in a row that fail before the node is restarted
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    failures: u32,
    /// Seconds that a start may take, migrations and taking up of flows included
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    start_patience: Duration,
    /// Seconds between asking the node to end and killing it
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    patience: Duration,
    /// Seconds before the first restart; doubled with each further one within the window
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    backoff: Duration,
    /// Longest pause before a restart, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    max_backoff: Duration,
    /// Restarts within the window before giving up; 0: never give up
    #[arg(long, default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_RESTARTS)))]
    max_restarts: u32,
    /// For how many seconds a restart counts
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = seconds)]
    window: Duration,
    /// The node's directory, if it cannot be seen from the command
    #[arg(short, long)]
    base_directory: Option<PathBuf>,
    /// What to run: `quorate node …`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is expected")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero seconds".to_owned()),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let base = match &arguments.base_directory {
        Some(given) => given.clone(),
        None => base_directory_of(&arguments.command)?,
    };
    if arguments.check_timeout <= SELF_CHECK_PATIENCE {
        say(&format!(
            "a check takes up to {SELF_CHECK_PATIENCE:?} to find out what is stuck; \
             --check-timeout is shorter, so that the reason stays unknown"
        ));
    }
    let limits = Limits {
        interval: arguments.interval,
        failures: arguments.failures,
        start_patience: arguments.start_patience,
        stop_patience: arguments.patience,
        backoff_min: arguments.backoff,
        backoff_max: arguments.max_backoff,
        max_restarts: arguments.max_restarts,
        window: arguments.window,
    };
    let verdict = watch(limits, &base, &arguments).await?;
    Ok(ExitCode::from(match verdict {
        Verdict::Done => 0,
        Verdict::Stopped(Ended::Code(code)) => code,
        Verdict::Stopped(Ended::Signal(signal)) => {
            u8::try_from(signal).map_or(ENDED_BY_SIGNAL, |signal| ENDED_BY_SIGNAL | signal)
        }
        Verdict::Stopped(Ended::NotStarted) => 0,
        Verdict::GaveUp => GAVE_UP,
        Verdict::Misconfigured => MISCONFIGURED,
        Verdict::Held => HELD,
    }))
}

/// Where the node lives whose command line this is.
fn base_directory_of(command: &[String]) -> Result<PathBuf> {
    let advice = "give its directory to the watchdog: quorate watchdog --base-directory DIR -- …";
    let parsed = crate::Arguments::try_parse_from(command)
        .with_context(|| format!("the command is not one of this program's; {advice}"))?;
    match parsed.command {
        crate::Command::Node(node) => match node.served() {
            Some(base) => Ok(base.to_owned()),
            None => bail!("the command looks at a node instead of running one; leave out its verb"),
        },
        _ => bail!("the command does not run a node: quorate watchdog -- quorate node …"),
    }
}

/// What the driver waits for.
type Check = std::pin::Pin<Box<dyn Future<Output = Checked> + Send>>;

/// Carries the rules out until they say that it is over. Dropped halfway, it leaves the child
/// running.
async fn watch(limits: Limits, base: &Path, arguments: &Arguments) -> Result<Verdict> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut rules = Rules::new(limits);
    let beginning = Instant::now();
    let mut child: Option<Child> = None;
    let mut check: Option<Check> = None;
    loop {
        let wakes_at = rules.wakes_at().map(|at| beginning + at);
        let event = tokio::select! {
            status = ended(&mut child) => {
                // A check of a child that has gone is of no interest.
                (child, check) = (None, None);
                Event::Ended(how(status?))
            }
            checked = answered(&mut check) => {
                check = None;
                Event::Checked(checked)
            }
            () = due(wakes_at) => Event::Time,
            _ = terminate.recv() => Event::Stop,
            _ = interrupt.recv() => Event::Stop,
        };
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in rules.handle(beginning.elapsed(), event) {
                match action {
                    Action::Start => match start(&arguments.command) {
                        Ok(started) => child = Some(started),
                        Err(error) => {
                            say(&format!("{error:#}"));
                            events.push(Event::Ended(Ended::NotStarted));
                        }
                    },
                    Action::Check => {
                        let (base, patience) = (base.to_owned(), arguments.check_timeout);
                        check = Some(Box::pin(async move { look(&base, patience).await }));
                    }
                    Action::Terminate => send(child.as_ref(), Signal::TERM),
                    Action::Kill => send(child.as_ref(), Signal::KILL),
                    Action::Say(text) => say(&text),
                    Action::Finish(verdict) => return Ok(verdict),
                }
            }
        }
    }
}

fn start(command: &[String]) -> Result<Child> {
    let (program, arguments) = command
        .split_first()
        .context("there is no command to run")?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("`{program}` cannot be started"))?;
    say(&format!(
        "started `{}` as process {}",
        command.join(" "),
        child.id().unwrap_or_default()
    ));
    Ok(child)
}

/// Resolves when there is a child and it has ended.
async fn ended(child: &mut Option<Child>) -> std::io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

async fn answered(check: &mut Option<Check>) -> Checked {
    match check {
        Some(check) => check.await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

fn send(child: Option<&Child>, signal: Signal) {
    let pid = child
        .and_then(Child::id)
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    // A child that has not been waited for keeps its id, so that nobody else can be hit.
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        say(&format!("process {pid:?} cannot be signalled: {error}"));
    }
}

/// Asks the node whether it works.
async fn look(base: &Path, patience: Duration) -> Checked {
    match timeout(patience, control::ask(base, &Question::Check)).await {
        Ok(Ok(answer)) => judge(answer),
        Ok(Err(error)) => Checked::Failed(error.to_string()),
        Err(_) => Checked::Failed(format!("it does not answer within {patience:?}")),
    }
}

/// What a node's answer to a check means.
pub(crate) fn judge(answer: Answer) -> Checked {
    if answer.ok {
        return Checked::Well;
    }
    match answer.role.as_str() {
        "starting" | "stopping" => Checked::OnItsWay,
        _ => Checked::Failed(answer.message),
    }
}

/// One line for people, among the child's own.
fn say(text: &str) {
    let now = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    // Nobody may be left who reads it; the node is looked after all the same.
    let _ = writeln!(io::stderr(), "{now} quorate watchdog: {text}");
}
