use pageserver::SnapshotName;

use super::{Consent, Context};
use crate::error::Result;

/// Set a branch back to one of its snapshots
///
/// The state it had is kept as NAME@HEAD{0}, the next time as NAME@HEAD{1}, and so on: checking that out goes forward
/// again. Where the branch is mounted it is unmounted and mounted again: stop Postgres first.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith checkout main@before
  zenith checkout 'main@HEAD{0}' --yes          # forward again")]
pub struct Checkout {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    to: SnapshotName,
    #[command(flatten)]
    consent: Consent,
}

impl Checkout {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.snapshot(&self.to)?;
        self.consent
            .ask(&format!("Set {} back to {}?", self.to.branch, self.to))?;
        context.outcome(&client.checkout(&self.to)?)
    }
}
