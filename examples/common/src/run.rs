//! How an example ends: well, with one clear line, or asked to by its user.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;

/// The error of a run that Ctrl-C stopped: what became of its work.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted(pub &'static str);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Runs an example: exit code 0, 1 with one line on stderr when it fails, 130 when Ctrl-C stopped it.
///
/// Wrong flags end in clap with exit code 2.
pub fn run_main(example: impl FnOnce() -> Result<()>) -> ExitCode {
    let Err(error) = example() else { return ExitCode::SUCCESS };
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
    use anyhow::{Context, anyhow};

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
        let code = |result: Result<()>| format!("{:?}", run_main(|| result));
        assert_eq!(code(Ok(())), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(Err(anyhow!("no"))), format!("{:?}", ExitCode::from(1)));
        assert_eq!(
            code(Err(Interrupted("stopped")).context("training")),
            format!("{:?}", ExitCode::from(130))
        );
    }
}
