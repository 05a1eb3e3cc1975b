//! What must be known of the arguments before they are understood: in what form to say that they can't be.

use std::ffi::OsString;

use clap::{ColorChoice, ValueEnum};

use crate::output::Format;

#[derive(PartialEq, Eq, Debug)]
pub struct Early {
    pub format: Format,
    pub color: ColorChoice,
}

impl Early {
    pub fn of(arguments: impl Iterator<Item = OsString>) -> Early {
        let words = arguments.map(|argument| argument.to_string_lossy().into_owned());
        let words: Vec<String> = words.take_while(|word| word != "--").collect();
        let json = words.iter().any(|word| word == "--json");
        let format = match json {
            true => Format::Json,
            false => value(&words, "--output", Some("-o")),
        };
        let color = value(&words, "--color", None);
        Early { format, color }
    }
}

/// The value that an option was given last.
fn value<T: ValueEnum + Default>(words: &[String], long: &str, short: Option<&str>) -> T {
    let given = words.iter().enumerate().filter_map(|(at, word)| {
        if word == long || Some(word.as_str()) == short {
            return words.get(at + 1).map(String::as_str);
        }
        let after_long = word.strip_prefix(long).and_then(|rest| rest.strip_prefix('='));
        let after_short = short.and_then(|short| word.strip_prefix(short));
        after_long.or(after_short.map(|rest| rest.trim_start_matches('=')))
    });
    let mut known = given.filter_map(|value| T::from_str(value, false).ok());
    known.next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_and_colour_are_found_in_whatever_way_they_are_given() {
        let of = |line: &str| Early::of(line.split(' ').map(OsString::from));
        for line in [
            "x --json",
            "-o json",
            "-ojson",
            "-o=json y",
            "--output json",
            "-o yaml --output=json",
        ] {
            assert_eq!(of(line).format, Format::Json, "{line}");
        }
        assert_eq!(of("-o").format, Format::Table);
        assert_eq!(of("psql p -- -o json --color never"), of("psql p"));
        assert_eq!(of("--color never").color, ColorChoice::Never);
        assert_eq!(of("--color=always").color, ColorChoice::Always);
    }
}
