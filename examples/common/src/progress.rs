//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one piece of work, on stderr.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: u64,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines(Lines),
}

impl Progress {
    /// Starts work of `total` steps.
    #[must_use]
    pub fn new(label: &str, total: u64) -> Self {
        let shown = if io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            let template = "{prefix:<22} {bar:28} {pos:>5}/{len} {elapsed:>4} (eta {eta}) {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_prefix(label.to_owned());
            Shown::Bar(bar)
        } else {
            Shown::Lines(Lines::starting(Instant::now()))
        };
        Self { label: label.to_owned(), total, shown }
    }

    /// `done` steps are done; `message` says how it goes.
    pub fn set(&mut self, done: u64, message: &str) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(message.to_owned());
            }
            Shown::Lines(lines) => {
                if lines.due(done, self.total, Instant::now()) {
                    line(&format!("{}: {done}/{} {message}", self.label, self.total));
                }
            }
        }
    }

    /// Ends the work with a last word.
    pub fn finish(self, message: &str) {
        match self.shown {
            Shown::Bar(bar) => bar.finish_with_message(message.to_owned()),
            Shown::Lines(lines) => {
                line(&format!("{}: {message} ({:.1} s)", self.label, lines.start.elapsed().as_secs_f64()));
            }
        }
    }
}

/// One line on stderr. Nobody reading is no error.
pub fn line(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Text on stdout, as it is. Nobody reading is no error.
pub fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// When a plain line is worth printing: a tenth of the work or ten seconds after the last one.
#[derive(Debug)]
struct Lines {
    start: Instant,
    last_done: u64,
    last_time: Instant,
}

impl Lines {
    fn starting(now: Instant) -> Self {
        Self { start: now, last_done: 0, last_time: now }
    }

    fn due(&mut self, done: u64, total: u64, now: Instant) -> bool {
        let more = done.saturating_sub(self.last_done);
        let due = more > 0 && (more * 10 >= total || now - self.last_time >= Duration::from_secs(10));
        if due {
            (self.last_done, self.last_time) = (done, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_are_few() {
        let now = Instant::now();
        let mut lines = Lines::starting(now);
        let printed = (1..=1000).filter(|&done| lines.due(done, 1000, now)).count();
        assert_eq!(printed, 10);
    }

    #[test]
    fn slow_work_still_speaks() {
        let now = Instant::now();
        let mut lines = Lines::starting(now);
        assert!(!lines.due(1, 1000, now + Duration::from_secs(9)));
        assert!(lines.due(1, 1000, now + Duration::from_secs(10)));
        assert!(!lines.due(1, 1000, now + Duration::from_secs(30)), "nothing happened since");
        assert!(lines.due(2, 1000, now + Duration::from_secs(30)));
    }

    #[test]
    fn no_work_is_fine() {
        let mut progress = Progress::new("nothing", 0);
        progress.set(0, "");
        progress.finish("done");
    }
}
