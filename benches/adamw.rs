//! One AdamW step of 20 parameters of 1000 times 1000.
//!
//! `benches/peers/` has PyTorch's fused one. With `--json` (for `benches/peers/compare.py`) the bench times itself and prints
//! one line: `--json --threads 2 --warmup 2 --rounds 5`.

mod cases;

use candle_core::{DType, Var};
use clap::Parser;
use layerwise::{
    models::Params,
    ops::init,
    train::{AdamW, Gradients, StepScale},
};
use serde_json::json;

use crate::cases::{Measured, Peak, Timing, criterion, device, finished, run, timed};

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
    let mut criterion = criterion(20, (3, 5));
    let mut group = criterion.benchmark_group("adamw");
    let mut step = step()?;
    group.bench_function("20M", |bencher| bencher.iter(|| finished(&mut step).expect("a step")));
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn step() -> anyhow::Result<impl FnMut() -> anyhow::Result<()>> {
    let (mut rng, device) = (init::rng(0), device()?);
    let (mut params, mut gradients) = (Params::default(), Gradients::new());
    for i in 0..20 {
        let name = format!("{i}");
        params.insert(name.clone(), Var::zeros((1000, 1000), DType::F32, device)?);
        gradients.insert(name, init::normal(&mut rng, (1000, 1000), 1., device)?);
    }
    let mut optimiser = AdamW::new(&params, Default::default())?;
    Ok(move || Ok(optimiser.step(&params, &gradients, StepScale::default())?))
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let (seconds, ()) = timed(&args.timing, step()?)?;
    let more = json!({ "case": "adamw", "mode": "train" });
    Ok(Measured { seconds, peak: Peak::now()?, more })
}
