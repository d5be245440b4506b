//! Ctrl-C: once asks the run to stop and save, twice ends it at once.

use std::io::{self, Write};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// Exit code of a program that SIGINT ended, as shells report it.
const INTERRUPTED: i32 = 130;

/// The flag that Ctrl-C sets, the same each time. Long work looks at it, saves and returns; a second Ctrl-C does not wait for that.
///
/// # Errors
///
/// When the system refuses a handler, or one is installed that is not ours.
pub fn stop_flag() -> Result<&'static AtomicBool> {
    static HANDLER: Mutex<bool> = Mutex::new(false);
    let mut installed = HANDLER.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED);
            }
            let _ = writeln!(io::stderr(), "\nstopping after this step (Ctrl-C again: at once)");
        })
        .context("cannot listen for Ctrl-C")?;
        *installed = true;
    }
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
        assert!(std::ptr::eq(stop, stop_flag()?), "there is one flag");
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
