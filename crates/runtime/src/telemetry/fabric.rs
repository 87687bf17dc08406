//! Fabric's layout of a log line.
//!
//! `2026-11-20 14:12:55.392 UTC [orderer.consensus.etcdraft] run -> INFO 05b Raft leader changed: 0 -> 1 channel=c node=1`,
//! where everything up to the number is in the level's colour. Behind the message come the fields in logfmt, `channel`
//! first and `node` second, since scripts look for them right behind the message.
//!
//! The layout is given by a text such as [`DEFAULT_FORMAT`], with the verbs of Fabric's `FABRIC_LOGGING_FORMAT`. Where
//! Fabric shows the name of a Go function, we show the last part of the module's name. Times are UTC.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::format::Escaped;
use super::levels::logger;

/// Fabric's default layout.
pub const DEFAULT_FORMAT: &str = "%{color}%{time:2006-01-02 15:04:05.000 MST} [%{module}] %{shortfunc} -> %{level:.4s} %{id:03x}%{color:reset} %{message}";

/// The longest layout accepted, in bytes.
const MAX_FORMAT_BYTES: usize = 1024;

/// The widest column that a layout may ask for.
const MAX_WIDTH: usize = 64;

/// A layout that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid log format: {0}")]
pub struct FormatError(String);

/// The layout of a log line, in Fabric's notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricFormat {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Color {
        bold: bool,
    },
    Reset,
    Id {
        width: usize,
        zeros: bool,
        hexadecimal: bool,
    },
    Level(Column),
    Message(Column),
    Module(Column),
    Function(Column),
    Time(Vec<TimePiece>),
}

/// What C's `printf` may do to a text: `-10.4s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Column {
    left: bool,
    width: usize,
    precision: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TimePiece {
    Literal(String),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    /// So many digits, with a dot before them; trailing zeros are left out or not.
    Fraction {
        digits: usize,
        trimmed: bool,
    },
    Zone(&'static str),
}

impl Default for FabricFormat {
    fn default() -> Self {
        DEFAULT_FORMAT
            .parse()
            .expect("the default layout is written in our own source")
    }
}

impl std::str::FromStr for FabricFormat {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text.len() > MAX_FORMAT_BYTES {
            return Err(FormatError(format!(
                "it is longer than {MAX_FORMAT_BYTES} bytes"
            )));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("%{") {
            let Some(length) = rest[start..].find('}') else {
                break;
            };
            if start > 0 {
                pieces.push(Piece::Literal(rest[..start].to_owned()));
            }
            pieces.push(piece(&rest[start + 2..start + length])?);
            rest = &rest[start + length + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        Ok(Self { pieces })
    }
}

fn piece(verb: &str) -> Result<Piece, FormatError> {
    let (name, directive) = verb.split_once(':').unwrap_or((verb, ""));
    Ok(match name {
        "color" => match directive {
            "" => Piece::Color { bold: false },
            "bold" => Piece::Color { bold: true },
            "reset" => Piece::Reset,
            other => {
                return Err(FormatError(format!(
                    "invalid color option: {}",
                    other.escape_debug()
                )));
            }
        },
        "id" => id(directive)?,
        "level" => Piece::Level(column(directive)?),
        "message" => Piece::Message(column(directive)?),
        "module" => Piece::Module(column(directive)?),
        "shortfunc" => Piece::Function(column(directive)?),
        "time" => Piece::Time(time_pieces(if directive.is_empty() {
            "2006-01-02T15:04:05.999Z07:00"
        } else {
            directive
        })),
        other => {
            return Err(FormatError(format!(
                "`{}` is not one of color, id, level, message, module, shortfunc, time",
                other.escape_debug()
            )));
        }
    })
}

fn id(directive: &str) -> Result<Piece, FormatError> {
    let (digits, hexadecimal) = match directive.strip_suffix('x') {
        Some(digits) => (digits, true),
        None => (directive.strip_suffix('d').unwrap_or(directive), false),
    };
    Ok(Piece::Id {
        width: width(digits, directive)?,
        zeros: digits.starts_with('0'),
        hexadecimal,
    })
}

fn column(directive: &str) -> Result<Column, FormatError> {
    let text = directive.strip_suffix('s').unwrap_or(directive);
    let left = text.starts_with('-');
    let text = text.strip_prefix('-').unwrap_or(text);
    let (wide, precision) = match text.split_once('.') {
        Some((wide, precision)) => (wide, Some(width(precision, directive)?)),
        None => (text, None),
    };
    Ok(Column {
        left,
        width: width(wide, directive)?,
        precision,
    })
}

fn width(text: &str, directive: &str) -> Result<usize, FormatError> {
    let wrong = || {
        FormatError(format!(
            "`{}` is not a directive such as .4s, -10s or 03x",
            directive.escape_debug()
        ))
    };
    if text.is_empty() {
        return Ok(0);
    }
    let width: usize = text.parse().map_err(|_| wrong())?;
    if width > MAX_WIDTH {
        return Err(wrong());
    }
    Ok(width)
}

/// Go shows a layout by example: 2006 is the year, 01 the month …
fn time_pieces(layout: &str) -> Vec<TimePiece> {
    let known: [(&str, TimePiece); 10] = [
        ("2006", TimePiece::Year),
        ("01", TimePiece::Month),
        ("02", TimePiece::Day),
        ("15", TimePiece::Hour),
        ("04", TimePiece::Minute),
        ("05", TimePiece::Second),
        ("Z07:00", TimePiece::Zone("Z")),
        ("-07:00", TimePiece::Zone("+00:00")),
        ("-0700", TimePiece::Zone("+0000")),
        ("MST", TimePiece::Zone("UTC")),
    ];
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = layout;
    while let Some(first) = rest.chars().next() {
        let found = known.iter().find(|(example, _)| rest.starts_with(example));
        let (piece, length) = match found {
            Some((example, piece)) => (piece.clone(), example.len()),
            None => {
                let fraction = |digit: char| {
                    let tail = rest.strip_prefix(['.', ','])?;
                    let digits = tail.len() - tail.trim_start_matches(digit).len();
                    (1..=9).contains(&digits).then_some(digits)
                };
                if let Some(digits) = fraction('0') {
                    let trimmed = false;
                    (TimePiece::Fraction { digits, trimmed }, digits + 1)
                } else if let Some(digits) = fraction('9') {
                    let trimmed = true;
                    (TimePiece::Fraction { digits, trimmed }, digits + 1)
                } else {
                    literal.push(first);
                    rest = &rest[first.len_utf8()..];
                    continue;
                }
            }
        };
        if !literal.is_empty() {
            pieces.push(TimePiece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
        rest = &rest[length..];
    }
    if !literal.is_empty() {
        pieces.push(TimePiece::Literal(literal));
    }
    pieces
}

fn write_time(out: &mut String, pieces: &[TimePiece], now: OffsetDateTime) -> fmt::Result {
    for piece in pieces {
        match piece {
            TimePiece::Literal(text) => out.push_str(text),
            TimePiece::Year => write!(out, "{:04}", now.year())?,
            TimePiece::Month => write!(out, "{:02}", u8::from(now.month()))?,
            TimePiece::Day => write!(out, "{:02}", now.day())?,
            TimePiece::Hour => write!(out, "{:02}", now.hour())?,
            TimePiece::Minute => write!(out, "{:02}", now.minute())?,
            TimePiece::Second => write!(out, "{:02}", now.second())?,
            TimePiece::Fraction { digits, trimmed } => {
                let nanos = format!("{:09}", now.nanosecond());
                let shown = nanos.get(..*digits).unwrap_or(&nanos);
                let shown = if *trimmed {
                    shown.trim_end_matches('0')
                } else {
                    shown
                };
                if !shown.is_empty() {
                    write!(out, ".{shown}")?;
                }
            }
            TimePiece::Zone(name) => out.push_str(name),
        }
    }
    Ok(())
}

impl Column {
    fn write(self, out: &mut String, text: &str) -> fmt::Result {
        let shown = match self.precision {
            Some(precision) => {
                let end = text
                    .char_indices()
                    .nth(precision)
                    .map_or(text.len(), |(at, _)| at);
                &text[..end]
            }
            None => text,
        };
        let width = self.width;
        if self.left {
            write!(out, "{shown:<width$}")
        } else {
            write!(out, "{shown:>width$}")
        }
    }
}

/// Counts the lines of the process; the number tells whether some are missing.
static LINES: AtomicU64 = AtomicU64::new(0);

/// Writes events in Fabric's layout.
pub(super) struct FabricLines(pub(super) FabricFormat);

impl<S, N> FormatEvent<S, N> for FabricLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (level, color) = match *metadata.level() {
            Level::ERROR => ("ERROR", 31),
            Level::WARN => ("WARN", 33),
            Level::INFO => ("INFO", 34),
            Level::DEBUG => ("DEBUG", 36),
            Level::TRACE => ("TRACE", 0),
        };
        let module = metadata.module_path().unwrap_or(metadata.target());
        let function = module.rsplit("::").next().unwrap_or(module);
        let mut record = Record::default();
        event.record(&mut record);

        let mut line = String::with_capacity(256);
        for piece in &self.0.pieces {
            match piece {
                Piece::Literal(text) => line.push_str(text),
                Piece::Color { bold: false } => write!(line, "\x1b[{color}m")?,
                Piece::Color { bold: true } => write!(line, "\x1b[{color};1m")?,
                Piece::Reset => line.push_str("\x1b[0m"),
                Piece::Id {
                    width,
                    zeros,
                    hexadecimal,
                } => {
                    let number = LINES.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                    match (zeros, hexadecimal) {
                        (true, true) => write!(line, "{number:0width$x}")?,
                        (false, true) => write!(line, "{number:width$x}")?,
                        (true, false) => write!(line, "{number:0width$}")?,
                        (false, false) => write!(line, "{number:width$}")?,
                    }
                }
                Piece::Level(column) => column.write(&mut line, level)?,
                Piece::Message(column) => {
                    column.write(&mut line, record.message.trim_end_matches("\\n"))?;
                }
                Piece::Module(column) => column.write(&mut line, &logger(metadata.target()))?,
                Piece::Function(column) => column.write(&mut line, function)?,
                Piece::Time(pieces) => {
                    write_time(&mut line, pieces, OffsetDateTime::now_utc())?;
                }
            }
        }
        out.write_str(&line)?;
        out.write_str(&record.first[0])?;
        out.write_str(&record.first[1])?;
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    out.write_str(fields)?;
                }
            }
        }
        out.write_str(&record.fields)?;
        out.write_char('\n')
    }
}

/// Writes the fields of spans as those of events are written.
pub(super) struct LogfmtFields;

impl<'writer> FormatFields<'writer> for LogfmtFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut record = Record::default();
        fields.record(&mut record);
        writer.write_str(&record.first[0])?;
        writer.write_str(&record.first[1])?;
        writer.write_str(&record.fields)
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        // Without the space that would come between: every field brings its own.
        self.format_fields(current.as_writer(), fields)
    }
}

/// The parts of an event: the message, the fields that come first, and the others.
#[derive(Default)]
struct Record {
    message: String,
    first: [String; 2],
    fields: String,
}

impl Record {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            // Writing to a string cannot fail; a value's own formatting may, and then what came before is kept.
            let _ = Escaped(&mut self.message).write_fmt(value);
            return;
        }
        let mut text = String::new();
        let _ = text.write_fmt(value);
        let fields = match field.name() {
            "channel" => &mut self.first[0],
            "node" => &mut self.first[1],
            _ => &mut self.fields,
        };
        let _ = write!(fields, " {}=", field.name());
        let plain = |c: char| c > ' ' && !matches!(c, '=' | '"' | '\u{fffd}') && !c.is_control();
        if text.chars().all(plain) {
            fields.push_str(&text);
        } else {
            fields.push('"');
            for character in text.chars() {
                match character {
                    '"' => fields.push_str("\\\""),
                    '\\' => fields.push_str("\\\\"),
                    other => {
                        let _ = Escaped(fields).write_char(other);
                    }
                }
            }
            fields.push('"');
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record(field, format_args!("{}", crate::tasks::chain(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_go_would() {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_795_097_575_392_000_000).unwrap();
        for (layout, shown) in [
            ("2006-01-02 15:04:05.000 MST", "2026-11-19 14:12:55.392 UTC"),
            (
                "2006-01-02T15:04:05.999999Z07:00",
                "2026-11-19T14:12:55.392Z",
            ),
            ("15h04 Monday", "14h12 Monday"),
            ("", ""),
        ] {
            let mut text = String::new();
            write_time(&mut text, &time_pieces(layout), now).unwrap();
            assert_eq!(text, shown);
        }
    }

    #[test]
    fn layouts_are_read_or_refused() {
        for good in [
            DEFAULT_FORMAT,
            "",
            "%{message}",
            "%{level:-7.3s}|%{id:5d}",
            "100%{",
            "{x}",
        ] {
            good.parse::<FabricFormat>().unwrap();
        }
        for bad in [
            "%{pid}",
            "%{color:pink}",
            "%{level:.x}",
            "%{id:9999d}",
            "%{}",
        ] {
            assert!(bad.parse::<FabricFormat>().is_err(), "{bad}");
        }
        assert!("x".repeat(2000).parse::<FabricFormat>().is_err());
    }

    #[test]
    fn columns_are_cut_and_padded() {
        for (directive, shown) in [
            ("", "INFO"),
            (".2s", "IN"),
            ("6s", "  INFO"),
            ("-6.3s", "INF   "),
        ] {
            let mut text = String::new();
            column(directive).unwrap().write(&mut text, "INFO").unwrap();
            assert_eq!(text, shown, "{directive}");
        }
    }
}
