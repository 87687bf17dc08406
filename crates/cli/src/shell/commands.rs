//! The commands: Corda's, by Corda's names.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use quorate_ledger::TxId;
use quorate_rpc::api::{ClientId, FlowId, FlowKey, StartFlow};
use quorate_rpc::{Client, ClientError, ErrorCode, Method};
use serde_json::{Map, Value, json};

use super::arguments;
use super::invoke::invoke;
use super::output::Format;

/// Why a command did not succeed; each kind has an exit code.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command was not understood.
    Usage(String),
    /// It was understood, and did not succeed.
    Failed(String),
    /// The node could not be reached.
    Unreachable(String),
    /// Nobody reads the output any more.
    OutputGone,
}

impl Failure {
    /// 1 failed, 2 not understood, 3 not reached.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::OutputGone => 0,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::Unreachable(text) => f.write_str(text),
            Self::OutputGone => Ok(()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        match error {
            ClientError::Unreachable { .. } | ClientError::TimedOut { .. } => {
                Self::Unreachable(text)
            }
            _ if error.code() == Some(ErrorCode::NotReady) => Self::Unreachable(text),
            _ => Self::Failed(text),
        }
    }
}

/// Where output goes.
pub(super) trait Sink: Send {
    /// One line or block of text.
    fn line(&mut self, text: &str) -> Result<(), Failure>;

    /// One item of a stream; false when no more are wanted.
    fn item(&mut self, value: Option<Value>) -> Result<bool, Failure>;
}

/// What follows a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one.
    Continue,
    /// The end of the session.
    Bye,
}

/// A session of the shell.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) format: Format,
    /// How long a started flow is waited for.
    pub(super) patience: Duration,
}

/// The commands with what they take and do, for help and completion.
pub(super) const COMMANDS: [(&str, &str, &str); 24] = [
    (
        "flow start",
        "[--client-id ID] [--no-wait] <class> key: value, …",
        "Start a flow and wait for its result",
    ),
    ("flow list", "", "Flows that run now"),
    ("flow watch", "", "Flows and their changes, until Ctrl-C"),
    (
        "flow status",
        "<flow id or client id>",
        "One flow as it stands",
    ),
    (
        "flow result",
        "<flow id or client id>",
        "Wait for the result of a flow",
    ),
    ("flow kill", "<flow id>", "End a flow"),
    ("flow pause", "<flow id>", "Stop a flow until it is retried"),
    (
        "flow retry",
        "<flow id>",
        "Continue a paused or hospitalised flow",
    ),
    ("flow pauseAll", "", "Pause every flow"),
    (
        "flow pauseAllHospitalized",
        "",
        "Pause every flow in the hospital",
    ),
    ("flow retryAllPaused", "", "Continue every paused flow"),
    (
        "flow retryAllPausedHospitalized",
        "",
        "Continue every flow that was paused in the hospital",
    ),
    ("flow hospital", "", "Flows in the hospital and why"),
    ("checkpoints dump", "", "All checkpoints, readable"),
    (
        "attachments upload",
        "<file>",
        "Store a file as an attachment",
    ),
    (
        "attachments exists",
        "<hash>",
        "Whether an attachment is there",
    ),
    (
        "attachments save",
        "<hash> <file>",
        "Save an attachment to a file",
    ),
    (
        "hashLookup",
        "<transaction id>",
        "Whether the node has recorded a transaction",
    ),
    (
        "run",
        "<operation> key: value, …",
        "Any operation; 'run' alone lists them",
    ),
    ("output-format get", "", "How answers are shown"),
    ("output-format set", "json|yaml|text", "Change it"),
    ("start", "<class> key: value, …", "The same as 'flow start'"),
    ("help", "", "This list"),
    ("bye", "", "End the session"),
];

/// A word and what comes after it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    }
}

fn fields(text: &str) -> Result<Map<String, Value>, Failure> {
    arguments::parse(text).map_err(|error| Failure::Usage(error.to_string()))
}

fn one<'a>(text: &'a str, what: &str) -> Result<&'a str, Failure> {
    match split(text) {
        ("", _) => Err(Failure::Usage(format!("{what} is missing"))),
        (word, "") => Ok(word),
        (_, more) => Err(Failure::Usage(format!(
            "'{more}' is too much: only {what} is taken"
        ))),
    }
}

fn none(text: &str) -> Result<(), Failure> {
    match text.trim() {
        "" => Ok(()),
        more => Err(Failure::Usage(format!(
            "'{more}' is too much: the command takes nothing"
        ))),
    }
}

impl Session {
    /// Carries out one line. Dropping it halfway stops the waiting, not what the node does.
    pub(super) async fn execute(
        &mut self,
        line: &str,
        sink: &mut dyn Sink,
    ) -> Result<Next, Failure> {
        let line = line.trim();
        let (command, rest) = split(line);
        match command {
            "" => {}
            comment if comment.starts_with('#') => {}
            "bye" | "exit" | "quit" => return Ok(Next::Bye),
            "help" | "?" => sink.line(&help())?,
            "start" => self.start(rest, sink).await?,
            "flow" => self.flow(rest, sink).await?,
            "run" => self.run(rest, sink).await?,
            "checkpoints" => match split(rest) {
                ("dump", rest) => {
                    none(rest)?;
                    self.call(Method::DumpCheckpoints, Map::new(), sink).await?;
                }
                (other, _) => return Err(unknown("checkpoints", other)),
            },
            "attachments" => self.attachments(rest, sink).await?,
            "hashLookup" => self.hash_lookup(rest, sink).await?,
            "output-format" => match split(rest) {
                ("get", rest) => {
                    none(rest)?;
                    sink.line(self.format.name())?;
                }
                ("set", rest) => {
                    self.format = one(rest, "a format")?.parse().map_err(Failure::Usage)?;
                }
                (other, _) => return Err(unknown("output-format", other)),
            },
            other => {
                let near = nearest(other, COMMANDS.iter().map(|(name, ..)| split(name).0));
                let hint = near
                    .map(|near| format!("; did you mean '{near}'?"))
                    .unwrap_or_default();
                return Err(Failure::Usage(format!(
                    "there is no command '{other}'{hint} ('help' lists them)"
                )));
            }
        }
        Ok(Next::Continue)
    }

    fn show(&self, value: &Value, sink: &mut dyn Sink) -> Result<(), Failure> {
        sink.line(&self.format.show(value))
    }

    async fn call(
        &self,
        method: Method,
        fields: Map<String, Value>,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let answer = invoke(&self.client, method.name(), method, fields, sink).await?;
        match answer {
            Some(answer) => self.show(&answer, sink),
            None => Ok(()),
        }
    }

    async fn run(&self, rest: &str, sink: &mut dyn Sink) -> Result<(), Failure> {
        let (name, rest) = split(rest);
        if name.is_empty() {
            let lines = Method::all().map(|method| {
                format!(
                    "{:<34} {}\n{:35}{}",
                    method.name(),
                    method.about(),
                    "",
                    method.arguments()
                )
            });
            let lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
            return sink.line(&lines.join("\n"));
        }
        let method: Method = name.parse().map_err(|_| {
            let near = nearest(name, Method::all().map(Method::name));
            let hint = near
                .map(|near| format!("; did you mean '{near}'?"))
                .unwrap_or_default();
            Failure::Usage(format!(
                "there is no operation '{name}'{hint} ('run' lists them)"
            ))
        })?;
        let answer = invoke(&self.client, name, method, fields(rest)?, sink).await?;
        match answer {
            Some(answer) => self.show(&answer, sink),
            None => Ok(()),
        }
    }

    async fn flow(&self, rest: &str, sink: &mut dyn Sink) -> Result<(), Failure> {
        let (command, rest) = split(rest);
        let plain = match command {
            "list" => Some(Method::StateMachinesSnapshot),
            "watch" => Some(Method::StateMachinesFeed),
            "hospital" => Some(Method::HospitalSnapshot),
            "pauseAll" => Some(Method::PauseAllFlows),
            "pauseAllHospitalized" => Some(Method::PauseAllHospitalizedFlows),
            "retryAllPaused" => Some(Method::RetryAllPausedFlows),
            "retryAllPausedHospitalized" => Some(Method::RetryAllPausedHospitalizedFlows),
            _ => None,
        };
        if let Some(method) = plain {
            none(rest)?;
            return self.call(method, Map::new(), sink).await;
        }
        match command {
            "start" => self.start(rest, sink).await,
            "status" => {
                let status = self.client.flow_status(key(rest)?, Duration::ZERO).await?;
                self.show(&json!(status), sink)
            }
            "result" => {
                let result = self.client.flow_result(key(rest)?, self.patience).await?;
                self.show(&result, sink)
            }
            "kill" => {
                self.change("killed", rest, |id| self.client.kill_flow(id), sink)
                    .await
            }
            "pause" => {
                self.change("paused", rest, |id| self.client.pause_flow(id), sink)
                    .await
            }
            "retry" => {
                self.change("retried", rest, |id| self.client.retry_flow(id), sink)
                    .await
            }
            other => Err(unknown("flow", other)),
        }
    }

    /// Does something to one flow; that it was not possible is a failure, for scripts to see.
    async fn change<F>(
        &self,
        done: &str,
        rest: &str,
        change: impl FnOnce(FlowId) -> F,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<bool, ClientError>>,
    {
        let id: FlowId = one(rest, "the id of a flow")?
            .parse()
            .map_err(|error: quorate_rpc::api::IdError| Failure::Usage(error.to_string()))?;
        if change(id.clone()).await? {
            sink.line(&format!("Flow {id} is {done}"))
        } else {
            Err(Failure::Failed(format!(
                "flow {id} was not {done}: 'flow status {id}' tells how it is"
            )))
        }
    }

    async fn start(&self, rest: &str, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut client_id = None;
        let mut wait = true;
        let mut rest = rest;
        let class = loop {
            let (word, more) = split(rest);
            rest = more;
            match word {
                "" => {
                    return Err(Failure::Usage(
                        "the class of a flow is missing ('run registeredFlows' lists them)".into(),
                    ));
                }
                "--no-wait" => wait = false,
                "--client-id" => {
                    let (id, more) = split(rest);
                    rest = more;
                    let id =
                        ClientId::new(id).map_err(|error| Failure::Usage(error.to_string()))?;
                    client_id = Some(id);
                }
                option if option.starts_with("--") => {
                    return Err(Failure::Usage(format!(
                        "there is no option '{option}': --client-id ID, --no-wait"
                    )));
                }
                class => break class,
            }
        };
        let request = StartFlow {
            client_id,
            flow: class.to_owned(),
            arguments: Value::Object(fields(rest)?),
        };
        let flow = self.client.start(request).await?;
        if !wait {
            return self.show(&json!(flow.handle()), sink);
        }
        let result = flow
            .result(self.patience)
            .await
            .map_err(|error| match error {
                ClientError::TimedOut { .. } => Failure::Unreachable(format!(
                    "flow {} has not ended within {} s; it goes on, and 'flow result {}' waits on",
                    flow.id(),
                    self.patience.as_secs(),
                    flow.id()
                )),
                other => other.into(),
            })?;
        self.show(&json!({ "flowId": flow.id(), "result": result }), sink)
    }

    async fn attachments(&self, rest: &str, sink: &mut dyn Sink) -> Result<(), Failure> {
        let (command, rest) = split(rest);
        let fields = |pairs: &[(&str, &str)]| -> Map<String, Value> {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect()
        };
        match command {
            "upload" if !rest.is_empty() => {
                let fields = fields(&[("file", rest.trim())]);
                self.call(Method::UploadAttachment, fields, sink).await
            }
            "exists" => {
                let fields = fields(&[("id", one(rest, "a hash")?)]);
                self.call(Method::AttachmentExists, fields, sink).await
            }
            "save" => {
                let (id, file) = split(rest);
                if file.is_empty() {
                    return Err(Failure::Usage("a hash and a file are needed".into()));
                }
                let fields = fields(&[("id", id), ("file", file.trim())]);
                self.call(Method::OpenAttachment, fields, sink).await
            }
            "upload" => Err(Failure::Usage("a file is missing".into())),
            other => Err(unknown("attachments", other)),
        }
    }

    async fn hash_lookup(&self, rest: &str, sink: &mut dyn Sink) -> Result<(), Failure> {
        let id = one(rest, "the id of a transaction")?;
        let id: TxId = id.parse().map_err(|error| {
            Failure::Usage(format!("'{id}' is not the id of a transaction: {error}"))
        })?;
        let found = self.client.transaction(id).await?;
        let summary =
            json!({ "id": found.id, "final": found.is_final, "recordedAt": found.recorded_at });
        self.show(&summary, sink)
    }
}

fn key(text: &str) -> Result<FlowKey, Failure> {
    let word = one(text, "the id of a flow, or its client id,")?;
    if let Ok(id) = word.parse::<FlowId>() {
        return Ok(FlowKey::Flow(id));
    }
    let id = ClientId::new(word).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(FlowKey::Client(id))
}

fn unknown(group: &str, command: &str) -> Failure {
    let members: Vec<_> = COMMANDS
        .iter()
        .filter_map(|(name, ..)| name.strip_prefix(group)?.strip_prefix(' '))
        .collect();
    let what = match command {
        "" => format!("'{group}' needs another word"),
        command => format!("there is no command '{group} {command}'"),
    };
    Failure::Usage(format!("{what}: {}", members.join(", ")))
}

fn help() -> String {
    let lines = COMMANDS.iter().map(|(name, takes, about)| {
        let usage = format!("{name} {takes}");
        if usage.chars().count() > 40 {
            format!("{usage}\n{:41}{about}", "")
        } else {
            format!("{usage:<40} {about}")
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The known word that is nearest to a mistyped one, if any is near.
fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase();
    let scored = known.map(|word| (distance(&typed, &word.to_ascii_lowercase()), word));
    let (score, word) = scored.min_by_key(|(score, _)| *score)?;
    (score <= 2 + typed.len() / 6).then_some(word)
}

/// How many letters must be changed, added or removed.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
