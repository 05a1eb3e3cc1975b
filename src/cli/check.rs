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
  zenith check --repair
  zenith check -o json")]
pub struct Check {
    /// Only this storage
    storage: Option<StorageName>,
    /// Do what can be done about it; what may hold data is put aside in the store's directory lost
    #[arg(long)]
    repair: bool,
}

impl Check {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        let asked = NewCheck {
            storage: self.storage,
            repair: self.repair,
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
