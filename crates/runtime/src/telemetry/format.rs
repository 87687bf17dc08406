//! Corda's layout of a log line.

use std::fmt::{self, Write as _};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

const TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second],[subsecond digits:3]Z");

pub(super) struct CordaLines;

impl<S, N> FormatEvent<S, N> for CordaLines
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
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN ",
            Level::INFO => "INFO ",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        };
        let now = OffsetDateTime::now_utc()
            .format(TIME)
            .map_err(|_| fmt::Error)?;
        let thread = std::thread::current();
        let target = event.metadata().target();
        let logger = super::levels::logger(target);
        write!(
            out,
            "[{level}] {now} [{}] {logger} - ",
            thread.name().unwrap_or("-")
        )?;

        let mut line = Line::default();
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                    && !fields.is_empty()
                {
                    line.begin_field();
                    let _ = write!(Escaped(&mut line.fields), "{}.{fields}", span.name());
                }
            }
        }
        event.record(&mut line);
        out.write_str(&line.message)?;
        if !line.fields.is_empty() {
            write!(out, " {{{}}}", line.fields)?;
        }
        out.write_char('\n')
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn begin_field(&mut self) {
        if !self.fields.is_empty() {
            self.fields.push_str(", ");
        }
    }

    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing to a string cannot fail; a value's own formatting may, and then what came before is kept.
        if field.name() == "message" {
            let _ = Escaped(&mut self.message).write_fmt(value);
        } else {
            self.begin_field();
            let _ = write!(self.fields, "{}=", field.name());
            let _ = Escaped(&mut self.fields).write_fmt(value);
        }
    }
}

impl Visit for Line {
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

/// Writes control characters as escapes: one event is one line, whatever a peer has put into it.
pub(super) struct Escaped<'a>(pub(super) &'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}
