//! What a command does, told on stderr while it goes on: a line for each step, with a spinner on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::Watcher;

const TICK: Duration = Duration::from_millis(100);

pub struct Progress {
    quiet: bool,
    /// The step that is being done, on a terminal.
    spinner: Option<ProgressBar>,
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, spinner: None }
    }

    fn end_step(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish();
        }
    }
}

impl Watcher for Progress {
    fn step(&mut self, what: &str) {
        self.end_step();
        if self.quiet {
            return;
        }
        if !io::stderr().is_terminal() {
            // Nobody reads it where it can't be written.
            let _lost = writeln!(io::stderr(), "{what}").is_err();
            return;
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let spinner = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(TICK);
        self.spinner = Some(spinner);
    }

    fn done(&mut self) {
        self.end_step();
    }
}
