use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Cli;
use crate::error::{Error, Result};
use crate::output;

/// Print what makes a shell complete zenith's commands and options
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith completion bash >~/.local/share/bash-completion/completions/zenith
  zenith completion zsh >~/.zfunc/_zenith
  zenith completion fish >~/.config/fish/completions/zenith.fish")]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "zenith", &mut script);
        let script = String::from_utf8(script).map_err(|error| Error::failure(error.to_string()))?;
        output::raw(&script).map(drop)
    }
}
