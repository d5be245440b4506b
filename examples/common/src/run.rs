//! How an example ends: well, with one clear line, or asked to by its user.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::Device;

use crate::CommonFlags;

/// The error of a run that Ctrl-C stopped: what became of its work.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted(pub &'static str);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Runs an example with its device: exit code 0, 1 with one line on stderr when it fails, 130 when Ctrl-C stopped it.
///
/// Wrong flags end in clap with exit code 2.
/// Warnings of the libraries go to stderr.
pub fn run_main(flags: &CommonFlags, example: impl FnOnce(Device) -> Result<()> + Send) -> ExitCode {
    let warnings = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN);
    // One that is set already stays.
    let _ = warnings.with_writer(io::stderr).with_ansi(false).with_target(false).without_time().try_init();
    exit_code(in_pool(flags.threads, || example(flags.open_device()?)))
}

/// Runs `f` on a thread of rayon's pool, with so many threads, or all cores.
///
/// There, a kernel shares its work with the other threads and goes on; called from outside the pool it would wake a thread,
/// wait for it, and be woken, each time.
///
/// # Errors
///
/// What `f` returns; also when the pool is running already and `threads` asks for another.
pub fn in_pool<T: Send>(threads: Option<NonZeroUsize>, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // Walking back through a deep graph needs more than the 2 MiB that threads usually get.
    let pool = rayon::ThreadPoolBuilder::new().stack_size(16 << 20);
    let built = pool.num_threads(threads.map_or(0, NonZeroUsize::get)).build_global();
    if let Some(threads) = threads {
        built.with_context(|| format!("--threads {threads}"))?;
    }
    rayon::scope(|_| f())
}

fn exit_code(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let interrupted = error.is::<Interrupted>();
    let word = if interrupted { "" } else { "error: " };
    // Nobody may be reading any more; the exit code still tells.
    let _ = writeln!(io::stderr(), "{word}{}", one_line(&error));
    ExitCode::from(if interrupted { 130 } else { 1 })
}

/// An error and its causes in one line, joined by `: `, each said once and without a backtrace.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        // candle appends a backtrace when RUST_BACKTRACE asks for one.
        let text = cause.to_string();
        let message = text.lines().take_while(|line| !line.trim_start().starts_with("0: "));
        let words: Vec<&str> = message.flat_map(str::split_whitespace).collect();
        let text = words.join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn says_every_cause_once_in_one_line() {
        let error = anyhow!("unexpected end\nof file").context("model.safetensors").context("quickstart");
        assert_eq!(one_line(&error), "quickstart: model.safetensors: unexpected end of file");
        let error = anyhow!("no such key").context("config.json: no such key");
        assert_eq!(one_line(&error), "config.json: no such key");
    }

    #[test]
    fn drops_backtraces() {
        let error = anyhow!("shape mismatch\n   0: candle_core::error::bt\n   1: main");
        assert_eq!(one_line(&error), "shape mismatch");
        let error = candle_core::Error::Msg("shape mismatch".into()).bt();
        assert_eq!(one_line(&anyhow::Error::from(error)), "shape mismatch");
    }

    #[test]
    fn exit_codes_tell_how_it_ended() {
        let code = |result| format!("{:?}", exit_code(result));
        assert_eq!(code(Ok(())), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(Err(anyhow!("no"))), format!("{:?}", ExitCode::from(1)));
        assert_eq!(
            code(Err(Interrupted("stopped")).context("training")),
            format!("{:?}", ExitCode::from(130))
        );
    }
}
