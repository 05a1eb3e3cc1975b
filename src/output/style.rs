//! Colours, and where they go: on terminals, unless `--color`, NO_COLOR or CLICOLOR say otherwise. What prints
//! them takes them out again where none are wanted, so texts carry them always; JSON and YAML never do.

use anstyle::{AnsiColor, Style};

pub const HEADER: Style = Style::new().bold();
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
pub const HINT: Style = AnsiColor::Cyan.on_default().bold();
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub const RUNNING: Style = AnsiColor::Green.on_default();
pub const BROKEN: Style = AnsiColor::Red.on_default();

pub fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// What is printed from now on has colours or hasn't.
pub fn choose(color: clap::ColorChoice) {
    let choice = match color {
        clap::ColorChoice::Auto => anstream::ColorChoice::Auto,
        clap::ColorChoice::Always => anstream::ColorChoice::Always,
        clap::ColorChoice::Never => anstream::ColorChoice::Never,
    };
    choice.write_global();
}
