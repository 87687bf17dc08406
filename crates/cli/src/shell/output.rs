//! How answers look: JSON, YAML, or text for reading.

use std::fmt::Write;
use std::str::FromStr;

use serde_json::Value;

/// Widest column of a table, in characters.
const MAX_COLUMN: usize = 48;

/// A way to show values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// JSON, indented.
    Json,
    /// YAML.
    #[default]
    Yaml,
    /// Tables and plain text.
    Text,
}

impl Format {
    /// The name by which `output-format` knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Text => "text",
        }
    }

    /// The value in this format, without a newline at the end.
    pub(crate) fn show(self, value: &Value) -> String {
        match self {
            Self::Json => serde_json::to_string_pretty(value).unwrap_or_default(),
            Self::Yaml => {
                let mut text = String::new();
                yaml(&mut text, value, 0, quoted_if_needed);
                text.trim_end().to_owned()
            }
            Self::Text => match table(value) {
                Some(table) => table,
                None => {
                    let mut text = String::new();
                    yaml(&mut text, value, 0, str::to_owned);
                    text.trim_end().to_owned()
                }
            },
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            "text" => Ok(Self::Text),
            _ => Err(format!("'{name}' is not a format: json, yaml or text")),
        }
    }
}

fn scalar(value: &Value, text: fn(&str) -> String) -> Option<String> {
    match value {
        Value::String(string) => Some(text(string)),
        Value::Array(items) if items.is_empty() => Some("[]".into()),
        Value::Object(fields) if fields.is_empty() => Some("{}".into()),
        Value::Array(_) | Value::Object(_) => None,
        plain => Some(plain.to_string()),
    }
}

/// Writes a value in block style; what is nested stands below, further in.
fn yaml(out: &mut String, value: &Value, indent: usize, text: fn(&str) -> String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let _ = write!(out, "{margin}{}:", text(name));
                nested(out, value, indent, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                yaml(&mut inner, item, indent + 2, text);
                // The first line of the item stands behind the dash.
                let _ = write!(out, "{margin}- {}", inner.trim_start_matches(' '));
            }
        }
        plain => {
            let _ = writeln!(out, "{margin}{}", scalar(plain, text).unwrap_or_default());
        }
    }
}

fn nested(out: &mut String, value: &Value, indent: usize, text: fn(&str) -> String) {
    match scalar(value, text) {
        Some(plain) => {
            let _ = writeln!(out, " {plain}");
        }
        None => {
            out.push('\n');
            yaml(out, value, indent + 2, text);
        }
    }
}

/// A text as a YAML scalar: quoted, as JSON quotes, where it would read as something else.
fn quoted_if_needed(text: &str) -> String {
    let plain = !text.is_empty()
        && text.trim() == text
        && text.starts_with(|c: char| c.is_alphanumeric() || "/_(<".contains(c))
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with(':')
        && !text.contains(|c: char| {
            c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
        })
        && text.parse::<f64>().is_err()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// A list of flat objects as a table.
fn table(value: &Value) -> Option<String> {
    let rows = value.as_array().filter(|rows| !rows.is_empty())?;
    let mut columns: Vec<&str> = Vec::new();
    for row in rows {
        for (name, value) in row.as_object()? {
            scalar(value, str::to_owned)?;
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
    }
    let cell = |row: &Value, column: &str| {
        let text = row
            .get(column)
            .and_then(|value| scalar(value, str::to_owned))
            .unwrap_or_default();
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match text.char_indices().nth(MAX_COLUMN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    };
    let mut lines = vec![columns.iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|column| cell(row, column)).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| {
            lines
                .iter()
                .map(|line| line[n].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let lines = lines.iter().map(|line| {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_is_nested_by_indentation_and_quotes_what_would_mislead() {
        let value = json!({
            "name": "O=PartyA, L=Osaka, C=JP",
            "empty": [],
            "odd": ["yes", "12", "", "a: b", "- x", "two\nlines", null, 1.5],
            "list": [{ "a": 1, "b": { "c": "d" } }, [1, [2]]],
        });
        let expected = "\
name: O=PartyA, L=Osaka, C=JP
empty: []
odd:
  - \"yes\"
  - \"12\"
  - \"\"
  - \"a: b\"
  - \"- x\"
  - \"two\\nlines\"
  - null
  - 1.5
list:
  - a: 1
    b:
      c: d
  - - 1
    - - 2";
        // The order of fields depends on a feature of serde_json that another crate may turn on.
        let mut shown: Vec<_> = Format::Yaml
            .show(&value)
            .lines()
            .map(str::to_owned)
            .collect();
        let mut expected: Vec<_> = expected.lines().map(str::to_owned).collect();
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected);
        assert_eq!(Format::Yaml.show(&json!("x")), "x");
    }

    #[test]
    fn text_shows_flat_lists_as_tables() {
        let value = json!([{ "a": 1, "b": "x" }, { "a": 100, "c": true }]);
        assert_eq!(Format::Text.show(&value), "a    b  c\n1    x\n100     true");
        assert_eq!(Format::Text.show(&json!({ "a": "yes" })), "a: yes");
        assert_eq!("YAML".parse(), Ok(Format::Yaml));
        assert!("xml".parse::<Format>().is_err());
    }
}
