//! What people and scripts see. Results go to standard output, all else to standard error.
//!
//! A closed pipe ends a command quietly instead of with a panic, and text that comes from tenants
//! or providers is shown without the control characters that could steer a terminal.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use sluice_shared::domain::Time;

use crate::Failure;

/// Writes to standard output and lets it go at once.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Io {
                what: "standard output".into(),
                source,
            },
        })
}

/// Writes one line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes a value as indented JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).map_err(|error| Failure::Role(error.into()))?)
}

/// Writes a value as one line of JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    line(&serde_json::to_string(value).map_err(|error| Failure::Role(error.into()))?)
}

/// Writes a model's text, ending in a line break. A terminal gets it without control characters,
/// a file or pipe as it is.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let shown = if io::stdout().is_terminal() {
        inert(text)
    } else {
        Cow::Borrowed(text)
    };
    if shown.ends_with('\n') {
        print(&shown)
    } else {
        line(&shown)
    }
}

/// Writes a table, as wide as it needs to be unless the terminal is narrower.
pub(crate) fn table(table: &Table) -> Result<(), Failure> {
    line(&table.trim_fmt())
}

/// A table with these columns.
pub(crate) fn columns<const N: usize>(names: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(names);
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table
}

/// Says something on standard error. If nobody can hear it, so be it.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The text without what a terminal would obey: control characters other than line breaks and
/// tabs become `\u{fffd}`.
pub(crate) fn inert(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(steers) {
        Cow::Owned(text.replace(steers, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The beginning of a text on one line, at most `most` characters.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let mut words = String::new();
    let mut length = 0;
    for word in inert(text).split_whitespace() {
        if length > 0 {
            words.push(' ');
            length += 1;
        }
        for c in word.chars() {
            if length == most {
                words.pop();
                words.push('…');
                return words;
            }
            words.push(c);
            length += 1;
        }
    }
    words
}

/// How long ago, or in how long, in one or two units.
pub(crate) fn relative(time: Time, now: Time) -> String {
    if time > now {
        format!("in {}", rough(time.since(now)))
    } else {
        format!("{} ago", rough(now.since(time)))
    }
}

/// A span in one or two units: `850ms`, `4s`, `3m 12s`, `2h 5m`, `9d 4h`.
pub(crate) fn rough(span: std::time::Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..10 => format!("{:.1}s", span.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn text_cannot_steer_the_terminal() {
        assert_eq!(inert("a\tb\nc"), "a\tb\nc");
        assert_eq!(
            inert("\u{1b}[2Jgone\r\u{9b}1m"),
            "\u{fffd}[2Jgone\u{fffd}\u{fffd}1m"
        );
    }

    #[test]
    fn a_long_text_is_cut_to_one_line() {
        assert_eq!(one_line("one\n  two\tthree", 20), "one two three");
        assert_eq!(one_line("abcdefgh", 4), "abc…");
        assert_eq!(one_line("äöüß", 4), "äöüß");
        assert_eq!(one_line("", 4), "");
    }

    #[test]
    fn spans_are_rough() {
        assert_eq!(rough(Duration::from_millis(850)), "850ms");
        assert_eq!(rough(Duration::from_millis(4_250)), "4.2s");
        assert_eq!(rough(Duration::from_secs(192)), "3m 12s");
        assert_eq!(rough(Duration::from_secs(7_500)), "2h 5m");
        assert_eq!(rough(Duration::from_secs(800_000)), "9d 6h");
        let now = Time::from_millis(10_000_000);
        assert_eq!(relative(now - Duration::from_secs(30), now), "30s ago");
        assert_eq!(relative(now + Duration::from_secs(30), now), "in 30s");
    }
}
