use std::num::NonZeroU64;

use bytesize::ByteSize;
use pageserver::LayerId;

use super::Context;
use crate::api::check::NewCheck;
use crate::api::storages::StorageName;
use crate::client::Watcher;
use crate::error::{Kind, Result};
use crate::{launch, service};

/// Check the store and its storages for damage
///
/// Says what is damaged or left over, one line each, and what a repair would do. While the service runs it goes on, and what was
/// written to branches in use since their last seal is left out. Exits with 1 when there is damage that was not repaired.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith check
  zenith check fast                             # one storage
  zenith check --read-data --limit 100MiB
  zenith check --repair
  zenith check -o json")]
pub struct Check {
    /// Only this storage
    storage: Option<StorageName>,
    /// Do what can be done about it; what may hold data is put aside in the store's directory lost
    #[arg(long)]
    repair: bool,
    /// Read every sealed block, too, and compare it with its checksum
    #[arg(long)]
    read_data: bool,
    /// Begin with this layer, as an earlier check has told when it was interrupted
    #[arg(long, value_name = "LAYER", requires = "read_data")]
    from: Option<LayerId>,
    /// Read at most so much in a second
    #[arg(long, value_name = "SIZE", requires = "read_data", value_parser = speed)]
    limit: Option<NonZeroU64>,
}

fn speed(text: &str) -> std::result::Result<NonZeroU64, String> {
    let bytes: ByteSize = text
        .parse()
        .map_err(|_| format!("{text:?} is no size, such as 100MiB"))?;
    NonZeroU64::new(bytes.as_u64()).ok_or_else(|| "nothing can be read at that speed".into())
}

impl Check {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        let asked = NewCheck {
            storage: self.storage,
            repair: self.repair,
            read_data: self.read_data,
            from: self.from,
            bytes_per_second: self.limit,
        };
        let mut progress = context.progress();
        let checked = match context.observer_of(&dir)?.check(&asked, &mut progress) {
            // No service may be able to come up on what is damaged.
            Err(error) if error.kind == Kind::NoService => {
                launch::check_owner(&dir)?;
                let checked = service::check_closed(&dir, &asked, &mut |step| progress.step(step));
                progress.done();
                checked?
            }
            checked => checked?,
        };
        context.print(&checked)?;
        checked.verdict()
    }
}
