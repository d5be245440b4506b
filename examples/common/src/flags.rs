//! The flags that mean the same in every example.

use std::env::VarError;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use layerwise_ops::keep_memory;
use layerwise_train::TrainConfig;
use serde::Serialize;

use crate::{files::create_folder, training::Trainable};

/// Flags of every example; `#[command(flatten)]` them into an example's own.
#[derive(Args, Clone, Debug)]
pub struct CommonFlags {
    /// Where to compute: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceFlag,
    /// Seed of everything random: initial weights, order of samples, augmentation, dropout.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Folder of the results [default: out/NAME of the example].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How much to do.
    #[arg(long, value_enum, default_value_t = Preset::Small)]
    pub preset: Preset,
    /// Number of CPU threads [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// `--model`, for examples that read one.
#[derive(Args, Clone, Debug)]
pub struct ModelFlag {
    /// Folder of a model: config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
}

/// `--runs`, for examples that train models which others find.
#[derive(Args, Clone, Debug)]
pub struct RunsFlag {
    /// Trained models, which the experiments share.
    #[arg(long, value_name = "DIR", default_value = "out/runs")]
    pub runs: PathBuf,
}

/// `--epochs`, `--lr` and `--precision`, for examples that train.
#[derive(Args, Clone, Copy, Debug)]
pub struct RecipeFlags {
    /// Epochs of each training [default: the preset's].
    #[arg(long, value_name = "N")]
    pub epochs: Option<NonZeroUsize>,
    /// Largest learning rate [default: the preset's].
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// What trainings compute in. Weights stay f32.
    #[arg(long, value_enum, default_value_t)]
    pub precision: Precision,
}

/// Value of `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, rounded from 32: for a GPU.
    Bf16,
}

impl RecipeFlags {
    /// Puts them in place of the preset's.
    pub fn apply(&self, config: &mut TrainConfig) {
        if let Some(epochs) = self.epochs {
            config.epochs = epochs.get();
        }
        if let Some(lr) = self.lr {
            config.optimiser.lr = lr;
        }
    }

    /// The model to train in the place of this one, whose weights then follow; none where it is this one.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn computes<M: Trainable>(&self, model: &M) -> Result<Option<M>> {
        Ok(match self.precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(model.mixed(DType::BF16)?),
        })
    }

    /// What the name of a run says of them.
    #[must_use]
    pub fn in_name(&self) -> String {
        let precision = if self.precision == Precision::Bf16 { "-bf16" } else { "" };
        in_name("epochs", self.epochs) + &in_name("lr", self.lr) + precision
    }
}

/// What the name of a run says of a setting that was asked for.
pub(crate) fn in_name(word: &str, value: Option<impl ToString>) -> String {
    value.map(|value| format!("-{word}{}", value.to_string())).unwrap_or_default()
}

/// `--limit`, for examples that measure a model on samples.
#[derive(Args, Clone, Debug)]
pub struct LimitFlag {
    /// Measure the first so many samples only [default: all; of a checkpoint with --preset smoke 64].
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
}

impl LimitFlag {
    /// The number for a checkpoint: 64 by default with [`Preset::Smoke`]; `None` for all.
    #[must_use]
    pub fn of_checkpoint(&self, preset: Preset) -> Option<usize> {
        self.limit.map(NonZeroUsize::get).or((preset == Preset::Smoke).then_some(64))
    }
}

/// How much an example does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Seconds: real but little data, a check that everything works.
    Smoke,
    /// Minutes on two CPU cores, with honest numbers.
    Small,
    /// The paper's setting: a GPU and the full data.
    Paper,
}

impl Preset {
    /// The flag's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Small => "small",
            Self::Paper => "paper",
        }
    }
}

/// Names the device of benches.
const VARIABLE: &str = "LAYERWISE_DEVICE";

/// Value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFlag {
    /// The processor.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl fmt::Display for DeviceFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("expected cpu, cuda or cuda:N, not {text:?}");
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl DeviceFlag {
    /// What the environment variable `LAYERWISE_DEVICE` says, or the processor where it is not set: for benches, whose flags are
    /// criterion's.
    ///
    /// # Errors
    ///
    /// When it says something else.
    pub fn from_env() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(text) => text.parse().map_err(|error| anyhow!("{VARIABLE}: {error}")),
            Err(VarError::NotPresent) => Ok(Self::Cpu),
            Err(error) => Err(error).context(VARIABLE),
        }
    }

    /// Opens the device; `asked` is who named it.
    ///
    /// # Errors
    ///
    /// When the program was built without CUDA, or the device cannot be opened.
    pub fn open(self, asked: &str) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) if candle_core::utils::cuda_is_available() => {
                let opened = || {
                    let device = Device::new_cuda(number)?;
                    keep_memory(&device)?;
                    candle_core::Result::Ok(device)
                };
                opened().with_context(|| format!("{asked} {self}"))
            }
            Self::Cuda(_) => bail!("{asked} {self}: this program was built without CUDA"),
        }
    }
}

impl CommonFlags {
    /// So many seeds from `--seed` on.
    ///
    /// # Errors
    ///
    /// When there are not so many numbers.
    pub fn seeds(&self, count: u64) -> Result<Range<u64>> {
        let end = self.seed.checked_add(count);
        let end = end.with_context(|| format!("--seed {}: no {count} seeds from there on", self.seed))?;
        Ok(self.seed..end)
    }

    /// Opens `--device`.
    ///
    /// # Errors
    ///
    /// As [`DeviceFlag::open`].
    pub fn open_device(&self) -> Result<Device> {
        self.device.open("--device")
    }

    /// The folder of the results, created: `--out`, or `out/{example}`.
    ///
    /// # Errors
    ///
    /// When it cannot be created or written to; the message names it.
    pub fn out_folder(&self, example: &str) -> Result<PathBuf> {
        let folder = self.out.clone().unwrap_or_else(|| PathBuf::from("out").join(example));
        create_folder(&folder)?;
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        common: CommonFlags,
    }

    fn parse(words: &str) -> Result<CommonFlags, clap::Error> {
        Flags::try_parse_from(std::iter::once("example").chain(words.split_whitespace()))
            .map(|flags| flags.common)
    }

    #[test]
    fn reads_every_flag() -> Result<()> {
        let flags = parse("--device cuda:2 --seed 7 --out o --preset smoke --threads 3")?;
        assert_eq!((flags.device, flags.seed), (DeviceFlag::Cuda(2), 7));
        assert_eq!([flags.device, DeviceFlag::Cpu].map(|device| device.to_string()), ["cuda:2", "cpu"]);
        assert_eq!(flags.seeds(3)?, 7..10);
        let last = parse(&format!("--seed {}", u64::MAX - 2))?;
        assert!(last.seeds(2).is_ok() && last.seeds(3).unwrap_err().to_string().contains("--seed"));
        assert_eq!((flags.threads, flags.preset), (NonZeroUsize::new(3), Preset::Smoke));
        assert_eq!(flags.out, Some("o".into()));
        let flags = parse("")?;
        assert_eq!((flags.device, flags.seed, flags.preset), (DeviceFlag::Cpu, 0, Preset::Small));
        Ok(())
    }

    #[test]
    fn wrong_flags_end_with_code_2() {
        for words in
            ["--device gpu", "--device cuda:x", "--seed -1", "--preset huge", "--threads 0", "--data d"]
        {
            let error = parse(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words}: {error}");
        }
        let error = parse("--device gpu").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        assert!(error.to_string().contains("expected cpu, cuda or cuda:N"), "{error}");
    }

    #[test]
    fn cuda_needs_a_build_with_it() -> Result<()> {
        if !candle_core::utils::cuda_is_available() {
            let error = parse("--device cuda")?.open_device().unwrap_err().to_string();
            assert!(error.contains("built without CUDA"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn an_unwritable_out_folder_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        std::fs::write(&file, "")?;
        let flags = parse(&format!("--out {}", file.join("out").display()))?;
        let error = flags.out_folder("quickstart").unwrap_err().to_string();
        assert!(error.contains(&file.join("out").display().to_string()), "{error}");
        Ok(())
    }
}
