//! Running examples as their users do.

// Each test is a program of its own, and not every one starts a server.
#![allow(dead_code)]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

/// Runs an example with this folder for its results.
pub(crate) fn run(name: &str, arguments: &[&str], out: &Path) -> Output {
    let mut command = Command::new(example(name));
    command.args(arguments).arg("--out").arg(out).output().expect("the example starts")
}

/// The program of an example, built with the profile of this test.
pub(crate) fn example(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // target/debug/deps/examples-0123
        let test = std::env::current_exe().expect("a path");
        let profile = test.ancestors().nth(2).expect("the profile's folder");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--examples"]);
        build.arg("--target-dir").arg(profile.parent().expect("the target folder"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().expect("cargo starts").success(), "the examples do not build");
        profile.join("examples")
    });
    folder.join(name)
}

/// The example ended well.
pub(crate) fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The example ended with this code and one line that has these words.
pub(crate) fn fails_with(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    if code == 1 {
        let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert!(
            errors == 1 && stderr.lines().last().is_some_and(|line| line.starts_with("error: ")),
            "{stderr}"
        );
    }
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
}

/// An array of numbers.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map(|values| values.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A server that ends with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(model: &Path, more: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        let mut command = Command::new(example("early_exit_server"));
        command.args(["serve", "--address", "127.0.0.1:0", "--model", text(model)]).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().ok_or("its output")?).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on http://").ok_or(line.clone())?.to_owned();
        Ok(Self { child, address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
