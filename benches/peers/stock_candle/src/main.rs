//! The aligned loss over a large vocabulary in candle alone, forward and backward: what `benches/multi_exit_loss.rs` measures.
//!
//! ```sh
//! stock_candle --width 384 --vocabulary 50257 --exits 6 --tokens 1024 --threads 1 --warmup 1 --rounds 1
//! ```
//!
//! Prints one JSON object. Threads are those of `RAYON_NUM_THREADS`; the option says how many those are.

use std::{collections::HashMap, error::Error, fs, time::Instant};

use candle_core::{DType, Device::Cpu, Tensor, Var};
use candle_nn::loss::cross_entropy;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FLAGS: [&str; 7] =
    ["--width", "--vocabulary", "--exits", "--tokens", "--threads", "--warmup", "--rounds"];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut flags = HashMap::new();
    for pair in words.chunks(2) {
        match pair {
            [flag, value] if FLAGS.contains(&flag.as_str()) => flags.insert(flag.as_str(), value.as_str()),
            _ => return Err(format!("{pair:?}: expected one of {FLAGS:?} and a number").into()),
        };
    }
    let number = |flag: &str, default: usize| match flags.get(flag) {
        Some(value) => value.parse::<usize>().map_err(|error| format!("{flag} {value}: {error}")),
        None => Ok(default),
    };
    let (width, vocabulary) = (number("--width", 384)?, number("--vocabulary", 50_257)?);
    let (exits, tokens) = (number("--exits", 6)?, number("--tokens", 1024)?);
    let (threads, warmup, rounds) = (number("--threads", 1)?, number("--warmup", 1)?, number("--rounds", 3)?.max(1));

    let base = status_mib("VmRSS")?;
    let normal = |rows, std| Var::from_tensor(&Tensor::randn(0f32, std, (rows, width), &Cpu)?);
    let features = (0..exits).map(|_| normal(tokens, 1.)).collect::<candle_core::Result<Vec<_>>>()?;
    let weight = normal(vocabulary, 0.02)?;
    let targets = Tensor::from_iter((0..tokens).map(|i| (i * 7919 % vocabulary) as u32), &Cpu)?;
    let step = || -> candle_core::Result<()> {
        let mut total = Tensor::zeros((), DType::F32, &Cpu)?;
        for (l, xs) in features.iter().enumerate() {
            let weigh = 2. * (l + 1) as f64 / (exits * (exits + 1)) as f64;
            total = (total + (cross_entropy(&xs.matmul(&weight.t()?)?, &targets)? * weigh)?)?;
        }
        total.backward().map(|_| ())
    };
    let mut seconds = Vec::new();
    for round in 0..warmup + rounds {
        let start = Instant::now();
        step()?;
        if round >= warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.;
    let peak = status_mib("VmHWM")?;
    let inputs = ((vocabulary + exits * tokens) * width * 4) as f64 / f64::from(1 << 20);
    println!(
        "{{\"engine\": \"candle 0.11.1\", \"form\": \"stock\", \"threads\": {threads}, \"median_s\": {median}, \"seconds\": {seconds:?}, \
         \"base_rss_mib\": {base}, \"peak_rss_mib\": {peak}, \"extra_mib\": {}}}",
        peak - base - 2. * inputs
    );
    Ok(())
}

/// A size that Linux tells of this process.
fn status_mib(field: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()).ok_or("no such size")?.parse()?;
    Ok(kib / 1024.)
}
