//! Ctrl-C: once asks the run to stop and save, twice ends it at once.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// Exit code of a program that SIGINT ended, as shells report it.
const INTERRUPTED: i32 = 130;

/// The flag that Ctrl-C sets. Long work looks at it, saves and returns; a second Ctrl-C does not wait for that.
///
/// # Errors
///
/// When a handler is installed already, or the system refuses one.
pub fn stop_flag() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        let _ = writeln!(io::stderr(), "\nstopping after this step (Ctrl-C again: at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&STOP)
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ctrl_c_sets_the_flag_and_the_program_goes_on() -> Result<()> {
        let stop = stop_flag()?;
        assert!(!stop.load(Ordering::SeqCst));
        assert!(stop_flag().is_err(), "a second handler would silently replace the first");
        let itself = std::process::id().to_string();
        assert!(Command::new("kill").args(["-INT", &itself]).status()?.success());
        let start = Instant::now();
        while !stop.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(stop.load(Ordering::SeqCst));
        Ok(())
    }
}
