//! Throughput and latency, with exits and without, in turn.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Args;
use layerwise::similarity::quantiles;
use layerwise_example_common::{
    CommonFlags, Preset, Report, Results, Table,
    plots::{self, Series},
    progress,
    table::{decimals, percent},
};
use ndarray::ArrayView1;
use serde::Serialize;
use serde_json::json;

use crate::{
    NAME,
    clients::{AskedFlags, Connection, seconds},
    http::Answer,
    requests::{Request, requests},
};

#[derive(Args)]
pub(crate) struct LoadFlags {
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    #[command(flatten)]
    asked: AskedFlags,
    /// Connections, each of which asks the next sample as soon as it has an answer.
    #[arg(long, default_value = "64")]
    clients: NonZeroUsize,
    /// Seconds of each round [default: 10; with --preset smoke 1].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Rounds with and without exits, in turn.
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,
    /// The first so many samples of the test part.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

/// One round.
struct Round {
    seconds: f64,
    latencies_ms: Vec<f64>,
}

/// All samples, once.
struct Pass {
    layers: f64,
    accuracy: f64,
}

/// All rounds of one setting.
#[derive(Serialize)]
struct Loaded {
    requests: usize,
    /// Median of the rounds.
    requests_per_s: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    layers: f64,
    accuracy: f64,
}

pub(crate) fn load(flags: &LoadFlags, device: &Device) -> Result<()> {
    let samples = requests(flags.asked.data.as_deref(), flags.limit)?;
    // One clear line where there is no server.
    let server = Connection::new(flags.asked.address).stats()?["settings"].take();
    let out = flags.common.out_folder(&format!("{NAME}/load"))?;
    let smoke = flags.common.preset == Preset::Smoke;
    let length = flags.seconds.unwrap_or(if smoke { 1. } else { 10. });
    let settings = json!({ "command": "load", "server": server, "preset": flags.common.preset, "data": flags.asked.data, "samples": samples.len(), "clients": flags.clients,
        "seconds": length, "rounds": flags.rounds });
    let mut results = Results::new(NAME, settings, flags.common.seed, device);
    // To warm up, and for what is said of all samples.
    let passes = [pass(flags, &samples, false)?, pass(flags, &samples, true)?];
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..flags.rounds.get() {
        for place in 0..2 {
            // Each goes first in turn.
            let exits = (place == 1) == (round % 2 == 0);
            let done = one(flags, &samples, exits, Duration::from_secs_f64(length))?;
            let rate = done.latencies_ms.len() as f64 / done.seconds;
            let told = if exits { "with exits" } else { "without" };
            progress::line(&format!("round {}, {told}: {rate:.1} requests a second", round + 1));
            rounds[usize::from(exits)].push(done);
        }
    }
    let rate = |round: &Round| round.latencies_ms.len() as f64 / round.seconds;
    let ratios: Vec<f64> = rounds[0].iter().zip(&rounds[1]).map(|(off, on)| rate(on) / rate(off)).collect();
    let ratio = quantile(&ratios, 0.5)?;
    let latencies = rounds.each_ref().map(|rounds| -> Vec<f64> {
        rounds.iter().flat_map(|round| round.latencies_ms.iter().copied()).collect()
    });
    let [off, on] = rounds;
    let loaded = [summed(&off, &passes[0])?, summed(&on, &passes[1])?];
    let mut table = Table::new(["", "requests/s", "p50, ms", "p95, ms", "p99, ms", "layers", "accuracy"]);
    for (name, loaded) in ["without exits", "with exits"].iter().zip(&loaded) {
        table.row([
            (*name).to_owned(),
            decimals(loaded.requests_per_s, 1),
            decimals(loaded.p50_ms, 1),
            decimals(loaded.p95_ms, 1),
            decimals(loaded.p99_ms, 1),
            decimals(loaded.layers, 2),
            percent(loaded.accuracy),
        ]);
    }
    let told = format!(
        "{} connections, {} rounds of {length} s each way, in turn. With exits {ratio:.2} times the requests of without, the median of the \
         rounds' ratios; layers {:.2} times fewer.",
        flags.clients,
        flags.rounds,
        loaded[0].layers / loaded[1].layers
    );
    progress::print(&format!("\n{told}\n{table}\n"));
    results.more.insert("without_exits".into(), json!(loaded[0]));
    results.more.insert("with_exits".into(), json!(loaded[1]));
    results.more.insert("throughput_ratio".into(), json!({ "median": ratio, "rounds": ratios }));
    let levels: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.).collect();
    let curve = |name: &str, latencies: &[f64]| -> Result<Series> {
        let at = quantiles(ArrayView1::from(latencies), &levels)?;
        Ok(Series::new(name, at.into_iter().zip(levels.iter().copied())))
    };
    let curves = [curve("without exits", &latencies[0])?, curve("with exits", &latencies[1])?];
    let panel = plots::curves(
        "Latency",
        ("milliseconds", None),
        ("share of requests below", Some((0., 1.))),
        &curves,
    );
    let figure = plots::write(&out.join("latency"), vec![panel], 1)?;
    Report::new("A server that lets samples leave early")
        .paragraph(&told)
        .figure(&figure, "Latency of the requests, as their client sees it.")
        .table(&table, "Accuracy and layers are those of all samples, asked once. Clients and server share this machine's cores. Without exits nobody leaves, \
            but the exits are computed all the same.")
        .close(&mut results, &out)
}

/// Asks from every connection at once, `next` giving each the sample to ask for, until it gives none; what each made of its answers.
fn ask<T: Default + Send>(
    flags: &LoadFlags,
    exits: bool,
    next: impl Fn() -> Option<usize> + Sync,
    samples: &[Request],
    answered: impl Fn(&mut T, &Request, &Answer, f64) + Sync,
) -> Result<Vec<T>> {
    let client = || -> Result<T> {
        let connection = Connection::new(flags.asked.address);
        let mut seen = T::default();
        while let Some(sample) = next().map(|next| &samples[next % samples.len()]) {
            let asked = Instant::now();
            let answer = connection.ask(&sample.body, exits)?;
            answered(&mut seen, sample, &answer, 1e3 * asked.elapsed().as_secs_f64());
        }
        Ok(seen)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..flags.clients.get()).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().ok().context("a client panicked")?).collect()
    })
}

fn pass(flags: &LoadFlags, samples: &[Request], exits: bool) -> Result<Pass> {
    let number = AtomicUsize::new(0);
    let next = || Some(number.fetch_add(1, Ordering::Relaxed)).filter(|&next| next < samples.len());
    let parts = ask(flags, exits, next, samples, |seen: &mut (usize, usize), sample, answer, _| {
        seen.0 += answer.layer;
        seen.1 += usize::from(answer.class() == Some(sample.label));
    })?;
    let mean =
        |of: fn(&(usize, usize)) -> usize| parts.iter().map(of).sum::<usize>() as f64 / samples.len() as f64;
    Ok(Pass { layers: mean(|seen| seen.0), accuracy: mean(|seen| seen.1) })
}

fn one(flags: &LoadFlags, samples: &[Request], exits: bool, length: Duration) -> Result<Round> {
    let (number, start) = (AtomicUsize::new(0), Instant::now());
    let next = || (start.elapsed() < length).then(|| number.fetch_add(1, Ordering::Relaxed));
    let parts = ask(flags, exits, next, samples, |seen: &mut Vec<f64>, _, _, ms| seen.push(ms))?;
    Ok(Round { seconds: start.elapsed().as_secs_f64(), latencies_ms: parts.concat() })
}

fn summed(rounds: &[Round], pass: &Pass) -> Result<Loaded> {
    let latencies: Vec<f64> = rounds.iter().flat_map(|round| round.latencies_ms.iter().copied()).collect();
    let rates: Vec<f64> =
        rounds.iter().map(|round| round.latencies_ms.len() as f64 / round.seconds).collect();
    let at = |level| quantile(&latencies, level);
    Ok(Loaded {
        requests: latencies.len(),
        requests_per_s: quantile(&rates, 0.5)?,
        p50_ms: at(0.5)?,
        p95_ms: at(0.95)?,
        p99_ms: at(0.99)?,
        layers: pass.layers,
        accuracy: pass.accuracy,
    })
}

pub(crate) fn quantile(values: &[f64], level: f64) -> Result<f64> {
    Ok(quantiles(ArrayView1::from(values), &[level])?[0])
}
