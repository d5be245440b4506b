use std::{
    env,
    io::{self, Write},
    path::PathBuf,
};

/// What the environment variable names: a folder or program that a test needs and that not every machine has.
///
/// Where the variable is not set the answer is `None`, and a line on stderr says so, past the capture of test output: the
/// test returns, and nobody takes it for one that ran.
///
/// # Panics
///
/// When the variable names something that does not exist.
#[must_use]
pub fn from_env(variable: &str) -> Option<PathBuf> {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        skipped(&format!("{variable} is not set"));
        return None;
    };
    assert!(path.exists(), "{variable} names {}, which does not exist", path.display());
    Some(path)
}

/// Says on stderr, past the capture of test output, that this test does not run, and why.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(io::stderr(), "skipped: {test} ({why})");
}
