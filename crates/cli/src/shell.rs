//! `quorate shell`: Corda's shell, over RPC.
//!
//! With a command in its arguments it carries that one out; with a script on its input, each line,
//! until one fails; at a terminal it is interactive. [`commands`] has the commands, [`invoke`] every
//! operation of the API by name, [`arguments`] the notation of arguments.

mod arguments;
mod commands;
mod interactive;
mod invoke;
mod output;
#[cfg(test)]
mod tests;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use quorate_rpc::{Client, Event, Events, Options, Password, Tls};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use self::commands::{Failure, Next, Session, Sink};
use self::interactive::{Prompt, Typed};
use self::output::Format;

/// Longest line of a script, in bytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Talk to a running node: start flows, look into the vault, operate.
#[derive(Args, Clone)]
pub(crate) struct ShellArgs {
    /// The node's RPC address, host:port, instead of --host and --port; several for a node of several machines
    #[arg(long, short = 'a', value_delimiter = ',', env = "QUORATE_RPC_ADDRESS")]
    address: Vec<String>,

    /// The host of the RPC address
    #[arg(long, default_value = "localhost")]
    host: String,

    /// The port of the RPC address
    #[arg(long, short = 'p', default_value_t = 10003)]
    port: u16,

    /// The RPC user
    #[arg(long, short = 'u', env = "QUORATE_RPC_USER")]
    user: String,

    /// The user's password; other users of this machine can see it here, so prefer the other ways
    #[arg(long, env = "QUORATE_RPC_PASSWORD", hide_env_values = true)]
    password: Option<String>,

    /// A file whose first line is the user's password; goes before --password
    #[arg(long)]
    password_file: Option<PathBuf>,

    /// Speak TLS, trusting the certificates in this PEM file
    #[arg(long, value_name = "PEM")]
    tls_trust: Option<PathBuf>,

    /// The name in the node's certificate, if it is not the host of the address
    #[arg(long, requires = "tls_trust")]
    tls_server_name: Option<String>,

    /// How answers are shown
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    output_format: Format,

    /// Seconds to wait for an answer, and for a connection
    #[arg(long, default_value_t = 30)]
    timeout: u64,

    /// Seconds to wait for the result of a flow
    #[arg(long, default_value_t = 300)]
    flow_timeout: u64,

    /// A script goes on after a command that failed; it still ends with that command's code
    #[arg(long)]
    keep_going: bool,

    /// Where the history of commands is kept [default: .quorate_history in the home directory]
    #[arg(long)]
    history_file: Option<PathBuf>,

    /// The command; without one, commands are read from the terminal or from the input
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the shell. Ends with 0; 1 when a command failed, 2 when it was not understood, 3 when the
/// node could not be reached.
pub(crate) async fn run(args: ShellArgs) -> anyhow::Result<ExitCode> {
    let options = client_options(&args)?;
    let mut output = Stdout;
    let client = match Client::connect(options).await {
        Ok(client) => client,
        Err(error) => {
            let failure = Failure::from(error);
            complain(&failure);
            return Ok(ExitCode::from(failure.exit_code()));
        }
    };
    let mut session = Session {
        client,
        format: args.output_format,
        patience: Duration::from_secs(args.flow_timeout),
    };
    let code = if !args.command.is_empty() {
        let line = args.command.join(" ");
        match session.execute(&line, &mut output).await {
            Ok(_) => 0,
            Err(failure) => {
                complain(&failure);
                failure.exit_code()
            }
        }
    } else if std::io::stdin().is_terminal() {
        interactive(session, &args, &mut output).await?;
        0
    } else {
        script(session, args.keep_going, &mut output).await?
    };
    Ok(ExitCode::from(code))
}

fn client_options(args: &ShellArgs) -> anyhow::Result<Options> {
    let addresses = if args.address.is_empty() {
        vec![format!("{}:{}", args.host, args.port)]
    } else {
        args.address.clone()
    };
    let password = match (&args.password_file, &args.password) {
        (None, Some(password)) => Password::new(password.clone()),
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the password file {}", path.display()))?;
            let text = zeroize::Zeroizing::new(text);
            Password::new(text.lines().next().unwrap_or_default())
        }
        (None, None) => bail!(
            "the password of RPC user '{}' is missing: give --password-file, or set QUORATE_RPC_PASSWORD",
            args.user
        ),
    };
    let mut options = Options::new(addresses, &args.user, password);
    options.call_timeout = Duration::from_secs(args.timeout);
    options.connect_timeout = options.connect_timeout.min(options.call_timeout);
    if let Some(path) = &args.tls_trust {
        options.tls = Some(Tls {
            config: Arc::new(tls_config(path)?),
            server_name: args.tls_server_name.clone(),
        });
    }
    Ok(options)
}

fn tls_config(path: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let read = || format!("cannot read certificates from {}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).with_context(read)? {
        roots
            .add(certificate.with_context(read)?)
            .with_context(read)?;
    }
    if roots.is_empty() {
        bail!("{} has no certificate", path.display());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Standard output, one block of text at a time.
struct Stdout;

impl Sink for Stdout {
    fn line(&mut self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|_| Failure::OutputGone)
    }

    /// Items of a stream are one JSON value a line, whatever the format, so that other programs
    /// can take them as they come.
    fn item(&mut self, value: Option<Value>) -> Result<bool, Failure> {
        if let Some(value) = value {
            self.line(&value.to_string())?;
        }
        Ok(true)
    }
}

fn complain(failure: &Failure) {
    if matches!(failure, Failure::OutputGone) {
        return;
    }
    // If not even this can be written, the exit code says it.
    let _ = writeln!(std::io::stderr().lock(), "{failure}");
}

/// Each line of the input, until one fails.
async fn script(
    mut session: Session,
    keep_going: bool,
    output: &mut dyn Sink,
) -> anyhow::Result<u8> {
    let mut code = 0;
    for number in 1_u64.. {
        let Some(line) = next_line().await? else {
            break;
        };
        match session.execute(&line, output).await {
            Ok(Next::Continue) => {}
            Ok(Next::Bye) => break,
            Err(failure) => {
                let _ = write!(std::io::stderr().lock(), "line {number}: ");
                complain(&failure);
                code = failure.exit_code();
                if !keep_going || matches!(failure, Failure::OutputGone) {
                    break;
                }
            }
        }
    }
    Ok(code)
}

async fn next_line() -> anyhow::Result<Option<String>> {
    let read = quorate_runtime::tasks::blocking("input", || {
        let mut line = Vec::new();
        let mut input = std::io::Read::take(std::io::stdin().lock(), MAX_LINE_BYTES as u64 + 1);
        input.read_until(b'\n', &mut line)?;
        Ok::<_, std::io::Error>(line)
    });
    let line = read.await.context("the input cannot be read")??;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_LINE_BYTES {
        bail!("a line of the input has more than {MAX_LINE_BYTES} bytes");
    }
    String::from_utf8(line)
        .map(Some)
        .context("the input is not UTF-8 text")
}

async fn interactive(
    mut session: Session,
    args: &ShellArgs,
    output: &mut dyn Sink,
) -> anyhow::Result<()> {
    let mut events = session.client.events();
    let connected = session.client.connected_to();
    let organisation = connected
        .as_ref()
        .map_or("quorate", |(_, name)| name.organisation());
    if let Some((address, name)) = &connected {
        let greeting =
            format!("Connected to {name} at {address}. 'help' lists the commands, 'bye' ends.");
        let _ = output.line(&greeting);
    }
    let flows = match session.client.registered_flows().await {
        Ok(flows) => flows.into_iter().map(|flow| flow.name).collect(),
        // Completion does without them for a user who may not see them.
        Err(_) => Vec::new(),
    };
    let mut prompt = Prompt::start(organisation, history_file(args), flows)?;
    loop {
        let line = match prompt.read().await? {
            Typed::Line(line) => line,
            Typed::GivenUp => continue,
            Typed::End => return Ok(()),
        };
        tell(&mut events, output).await;
        let outcome = tokio::select! {
            outcome = session.execute(&line, output) => outcome,
            _ = tokio::signal::ctrl_c() => continue,
        };
        match outcome {
            Ok(Next::Continue) => {}
            Ok(Next::Bye) => return Ok(()),
            Err(Failure::OutputGone) => return Ok(()),
            Err(failure) => complain(&failure),
        }
        tell(&mut events, output).await;
    }
}

/// Says what has happened to the connection meanwhile.
async fn tell(events: &mut Events, output: &mut dyn Sink) {
    loop {
        let happened = tokio::time::timeout(Duration::ZERO, events.next()).await;
        let line = match happened {
            Ok(Some(Event::Connected { address, .. })) => format!("[connected to {address}]"),
            Ok(Some(Event::Disconnected { address, reason })) => {
                format!("[disconnected from {address}: {reason}]")
            }
            Ok(None) | Err(_) => return,
        };
        let _ = output.line(&line);
    }
}

fn history_file(args: &ShellArgs) -> Option<PathBuf> {
    args.history_file.clone().or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".quorate_history"))
    })
}
