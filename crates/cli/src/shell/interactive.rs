//! The prompt: editing, history, completion.
//!
//! The editor blocks, so it has a thread of its own and hands lines over one at a time; the next
//! prompt appears when the answer has been written.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context;
use quorate_rpc::Method;
use reedline::{
    ColumnarMenu, Completer, CompletionResult, DefaultPrompt, DefaultPromptSegment, Emacs,
    FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder, Reedline, ReedlineEvent, ReedlineMenu,
    Signal, Span, Suggestion, default_emacs_keybindings,
};
use tokio::sync::mpsc;

use super::commands::COMMANDS;

/// Lines of history that are kept.
const HISTORY_LINES: usize = 1000;
/// The completion menu's name to the editor.
const MENU: &str = "completion";

/// A line that was typed, or the end of typing.
pub(super) enum Typed {
    Line(String),
    /// The line was given up; the session goes on.
    GivenUp,
    End,
}

/// A prompt in its own thread.
pub(super) struct Prompt {
    ask: mpsc::Sender<()>,
    typed: mpsc::Receiver<std::io::Result<Typed>>,
}

impl Prompt {
    /// Starts the editor. `flows` are offered after `flow start`.
    pub(super) fn start(
        name: &str,
        history: Option<PathBuf>,
        flows: Vec<String>,
    ) -> anyhow::Result<Self> {
        let mut editor = editor(flows);
        if let Some(path) = history {
            let kept = private_history(&path)
                .with_context(|| format!("the history file {} cannot be used", path.display()))?;
            editor = editor.with_history(Box::new(kept));
        }
        let prompt = DefaultPrompt::new(
            DefaultPromptSegment::Basic(name.to_owned()),
            DefaultPromptSegment::Empty,
        );
        let (ask, mut asked) = mpsc::channel::<()>(1);
        let (send, typed) = mpsc::channel(1);
        // Ends with the session, which drops the channel; at worst after the line being typed.
        thread::Builder::new()
            .name("prompt".into())
            .spawn(move || {
                while asked.blocking_recv().is_some() {
                    let line = editor.read_line(&prompt).map(|signal| match signal {
                        Signal::Success(line) => Typed::Line(line),
                        Signal::CtrlC => Typed::GivenUp,
                        _ => Typed::End,
                    });
                    if send.blocking_send(line).is_err() {
                        return;
                    }
                }
            })
            .context("the prompt cannot start")?;
        Ok(Self { ask, typed })
    }

    /// Shows the prompt and waits for a line.
    pub(super) async fn read(&mut self) -> std::io::Result<Typed> {
        if self.ask.send(()).await.is_err() {
            return Ok(Typed::End);
        }
        self.typed.recv().await.unwrap_or(Ok(Typed::End))
    }
}

fn editor(flows: Vec<String>) -> Reedline {
    let mut keys = default_emacs_keybindings();
    keys.add_binding(
        KeyModifiers::NONE,
        KeyCode::Tab,
        ReedlineEvent::UntilFound(vec![
            ReedlineEvent::Menu(MENU.to_owned()),
            ReedlineEvent::MenuNext,
        ]),
    );
    let menu = Box::new(ColumnarMenu::default().with_name(MENU));
    Reedline::create()
        .with_completer(Box::new(Words { flows }))
        .with_menu(ReedlineMenu::EngineCompleter(menu))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_edit_mode(Box::new(Emacs::new(keys)))
}

/// A history file that only its owner reads: arguments may be confidential.
fn private_history(path: &Path) -> anyhow::Result<FileBackedHistory> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?;
    Ok(FileBackedHistory::with_file(
        HISTORY_LINES,
        path.to_owned(),
    )?)
}

/// Completion of commands, operations and flow classes.
struct Words {
    flows: Vec<String>,
}

impl Words {
    /// What may stand where the cursor is, and where that begins.
    fn candidates(&self, before: &str) -> (usize, Vec<(String, &'static str)>) {
        for command in ["flow start ", "start "] {
            if let Some(rest) = before.strip_prefix(command)
                && !rest.contains(char::is_whitespace)
            {
                let flows = self.flows.iter().map(|flow| (flow.clone(), ""));
                return (command.len(), flows.collect());
            }
        }
        if let Some(rest) = before.strip_prefix("run ") {
            if rest.contains(char::is_whitespace) {
                return (before.len(), Vec::new());
            }
            let methods = Method::all().map(|method| (method.name().to_owned(), method.about()));
            return ("run ".len(), methods.collect());
        }
        let commands = COMMANDS
            .iter()
            .map(|(name, _, about)| ((*name).to_owned(), *about));
        (0, commands.collect())
    }
}

impl Completer for Words {
    fn complete(&mut self, line: &str, position: usize) -> CompletionResult {
        let before = line.get(..position).unwrap_or(line);
        let (start, candidates) = self.candidates(before);
        let typed = before.get(start..).unwrap_or_default().to_lowercase();
        let suggestions: Vec<_> = candidates
            .into_iter()
            .filter(|(word, _)| word.to_lowercase().starts_with(&typed))
            .map(|(value, about)| Suggestion {
                value,
                description: Some(about.to_owned()).filter(|about| !about.is_empty()),
                span: Span::new(start, before.len()),
                append_whitespace: true,
                ..Suggestion::default()
            })
            .collect();
        CompletionResult::fresh(suggestions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> Vec<String> {
        let mut words = Words {
            flows: vec!["cash.Issue".into(), "cash.Payment".into()],
        };
        let result = words.complete(line, line.len());
        result
            .suggestions()
            .iter()
            .map(|word| word.value.clone())
            .collect()
    }

    #[test]
    fn completion_knows_commands_operations_and_flows() {
        assert_eq!(offered("flow start cash.P"), ["cash.Payment"]);
        assert_eq!(offered("run vaultQ"), ["vaultQuery"]);
        assert_eq!(offered("flow ki"), ["flow kill"]);
        assert!(offered("").contains(&"bye".to_owned()));
        assert!(offered("flow start cash.Payment am").is_empty());
        assert!(offered("run vaultQuery co").is_empty());
    }
}
