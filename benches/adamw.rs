//! One AdamW step of 20 parameters of 1000 times 1000.
//!
//! `benches/peers/` has PyTorch's fused one. With `--json` (for `benches/peers/compare.py`) the bench times itself and prints
//! one line: `--json --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::time::Duration;

use candle_core::{DType, Device::Cpu, Var};
use clap::Parser;
use criterion::Criterion;
use layerwise::{
    models::Params,
    ops::init,
    train::{AdamW, Gradients, StepScale},
};
use serde_json::json;

use crate::cases::{Measured, Timing, peak_rss_mib, run, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    timing: Timing,
}

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
}

fn bench() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut group = criterion.benchmark_group("adamw");
    group.measurement_time(Duration::from_secs(5));
    let mut step = step()?;
    group.bench_function("20M", |bencher| bencher.iter(|| step().expect("a step")));
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn step() -> anyhow::Result<impl FnMut() -> anyhow::Result<()>> {
    let mut rng = init::rng(0);
    let (mut params, mut gradients) = (Params::default(), Gradients::new());
    for i in 0..20 {
        let name = format!("{i}");
        params.insert(name.clone(), Var::zeros((1000, 1000), DType::F32, &Cpu)?);
        gradients.insert(name, init::normal(&mut rng, (1000, 1000), 1., &Cpu)?);
    }
    let mut optimiser = AdamW::new(&params, Default::default())?;
    Ok(move || Ok(optimiser.step(&params, &gradients, StepScale::default())?))
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let (seconds, ()) = timed(&args.timing, step()?)?;
    let more = json!({ "case": "adamw", "mode": "train" });
    Ok(Measured { seconds, peak_rss_mib: peak_rss_mib()?, more })
}
