//! A run that is killed at any moment goes on as if nothing had happened.

#![cfg(unix)] // `Child::kill` is SIGKILL there.

mod common;

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Instant,
};

use layerwise_exit::evaluate;
use layerwise_ops::init;
use layerwise_testkit::TinyStack;
use layerwise_train::{Hooks, Samples, TrainConfig, train};
use rand::Rng;
use safetensors::SafeTensors;
use tempfile::{TempDir, tempdir};

use crate::common::{Done, Noisy, config, metrics, state, two_classes};

const KILLS: usize = 20;

/// Set for the child; the folder to train in.
const FOLDER: &str = "LAYERWISE_TEST_KILLED_FOLDER";

/// What the child does. Without its variable, nothing.
#[test]
fn child() -> Done {
    let Some(folder) = env::var_os(FOLDER) else { return Ok(()) };
    let model = TinyStack::new(3, 6, 2, 1)?.with_dropout(0.2);
    let (data, held_out) = (Noisy(two_classes(40, 6, 3)), two_classes(10, 6, 4));
    let config = TrainConfig { epochs: 8, checkpoint_every: 1, ..config() };
    let score = || {
        let batch = held_out.batch(&(0..10).collect::<Vec<_>>(), &mut init::rng(0));
        evaluate(&model, [batch])
    };
    let hooks = Hooks { evaluate: Some(Box::new(score)), ..Default::default() };
    let report = train(&model, model.params(), &data, &config, Some(Path::new(&folder)), hooks)?;
    assert_eq!((report.steps, report.stopped, report.evaluations.len()), (40, false, 8));
    Ok(())
}

#[test]
fn twenty_kills_change_no_bit() -> Done {
    let whole = tempdir()?;
    let start = Instant::now();
    assert!(spawn(whole.path())?.wait()?.success());
    let usual = start.elapsed();

    let mut rng = init::rng(11);
    let mut folder = tempdir()?;
    let (mut kills, mut step) = (0, 0);
    while kills < KILLS {
        let mut child = spawn(folder.path())?;
        sleep(usual.mul_f64(rng.random()));
        match child.try_wait()? {
            Some(status) => {
                assert!(status.success());
                equal(&folder, &whole);
                (folder, step) = (tempdir()?, 0);
            }
            None => {
                child.kill()?;
                child.wait()?;
                kills += 1;
                step = intact(folder.path(), step)?;
            }
        }
    }
    assert!(spawn(folder.path())?.wait()?.success());
    equal(&folder, &whole);
    Ok(())
}

fn spawn(folder: &Path) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .args(["child", "--exact"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
}

/// The state, if there is one, is whole and not older than `before`; its step. Besides the run's files there is at most one
/// temporary file for each.
fn intact(folder: &Path, before: usize) -> Result<usize, Box<dyn std::error::Error>> {
    assert!(files(folder).len() <= 4 + 3, "{:?}", files(folder));
    let Ok(bytes) = fs::read(folder.join("state.safetensors")) else {
        assert_eq!(before, 0);
        return Ok(0);
    };
    SafeTensors::deserialize(&bytes)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let progress: serde_json::Value =
        serde_json::from_str(&header.metadata().as_ref().expect("metadata")["progress"])?;
    let step = progress["step"].as_u64().expect("a number") as usize;
    assert!(step >= before, "from step {before} back to {step}");
    Ok(step)
}

/// Same parameters, moments, step and metrics, and nothing left over.
fn equal(folder: &TempDir, whole: &TempDir) {
    let (folder, whole) = (folder.path(), whole.path());
    assert!(state(folder) == state(whole), "another state");
    assert_eq!(metrics(folder), metrics(whole));
    assert_eq!(files(folder), files(whole));
}

fn files(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}
