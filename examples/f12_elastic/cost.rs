//! What a model costs: time and memory.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use layerwise::{
    models::{Batch, Pass, Vit, tap},
    similarity::quantiles,
};
use layerwise_example_common::{
    CommonFlags, flags::DeviceFlag, layers::Source, memory::status_mib, progress,
};
use ndarray::ArrayView1;

/// Rounds of the latencies; the median is taken.
const ROUNDS: usize = 15;
/// Processes that measure the memory of one model; the median is taken.
const PROCESSES: usize = 5;

/// Median milliseconds of each model for so many copies of an image at once; all models in turn, round by round, after one to
/// warm up.
pub(crate) fn latencies(
    models: &[(PathBuf, Vit)],
    source: &dyn Source,
    sizes: [usize; 2],
    device: &Device,
) -> Result<Vec<[f64; 2]>> {
    let mut times = vec![[const { Vec::new() }; 2]; models.len()];
    let image = source.batch(0..1, device)?.inputs;
    let batches = sizes.map(|size| anyhow::Ok(Batch::from(image.repeat((size, 1, 1, 1))?)));
    let batches = batches.into_iter().collect::<Result<Vec<Batch>>>()?;
    for round in 0..=ROUNDS {
        for ((_, model), times) in models.iter().zip(&mut times) {
            for (batch, times) in batches.iter().zip(times) {
                let start = Instant::now();
                // Answers count when they are here: a GPU's are not when it has been told to work.
                tap::forward(model, batch, Pass::EVAL)?.to_device(&Device::Cpu)?;
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
    times.iter().map(|[one, batch]| Ok([median(one)?, median(batch)?])).collect()
}

fn median(values: &[f64]) -> Result<f64> {
    Ok(quantiles(ArrayView1::from(values), &[0.5])?[0])
}

/// Peak MiB of processes of their own that load the folder's model and answer a batch, their median; none where the system does
/// not tell, and on a GPU, whose memory it does not see.
pub(crate) fn memory_of(folder: &Path, common: &CommonFlags) -> Result<Option<f64>> {
    if common.device != DeviceFlag::Cpu {
        return Ok(None);
    }
    let mut peaks = Vec::new();
    for _ in 0..PROCESSES {
        match memory_once(folder, common)? {
            Some(peak) => peaks.push(peak),
            None => return Ok(None),
        }
    }
    median(&peaks).map(Some)
}

fn memory_once(folder: &Path, common: &CommonFlags) -> Result<Option<f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--memory-of").arg(folder).args(["--device", &common.device.to_string()]);
    if let Some(threads) = common.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let output = command.output().context("measuring memory in a process of its own")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        folder.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}

/// Loads the folder's model, answers `batch` images, and prints how far the process grew, in MiB.
pub(crate) fn print_memory(folder: &Path, batch: usize, device: &Device) -> Result<()> {
    let before = status_mib("VmHWM");
    let model = Vit::load(folder, device)?.packed()?;
    let config = model.config();
    let shape = (batch, config.num_channels, config.image_size, config.image_size);
    tap::forward(&model, &Tensor::zeros(shape, DType::F32, device)?.into(), Pass::EVAL)?;
    if let (Some(before), Some(after)) = (before, status_mib("VmHWM")) {
        progress::print(&format!("{}\n", after - before));
    }
    Ok(())
}
