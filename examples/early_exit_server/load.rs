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
    clients::{AskedFlags, Connection},
    requests::{Request, requests},
};

#[derive(Args)]
pub(crate) struct LoadFlags {
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    #[command(flatten)]
    asked: AskedFlags,
    /// Connections, each of which asks the next image as soon as it has an answer.
    #[arg(long, default_value = "64")]
    clients: NonZeroUsize,
    /// Seconds of each round [default: 10; with --preset smoke 1].
    #[arg(long)]
    seconds: Option<f64>,
    /// Rounds with and without exits, in turn.
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,
    /// The first so many images of the test part.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

/// One round.
struct Round {
    seconds: f64,
    latencies_ms: Vec<f64>,
    layers: usize,
    right: usize,
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
    let images = requests(flags.asked.data.as_deref(), flags.limit)?;
    // One clear line where there is no server.
    Connection::new(flags.asked.address).stats()?;
    let out = flags.common.out_folder(NAME)?;
    let smoke = flags.common.preset == Preset::Smoke;
    let seconds = flags.seconds.unwrap_or(if smoke { 1. } else { 10. });
    let settings = json!({ "preset": flags.common.preset, "data": flags.asked.data, "images": images.len(), "clients": flags.clients,
        "seconds": seconds, "rounds": flags.rounds });
    let mut results = Results::new(NAME, settings, flags.common.seed, device);
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..flags.rounds.get() {
        for (exits, rounds) in [false, true].into_iter().zip(&mut rounds) {
            let done = one(flags, &images, exits, Duration::from_secs_f64(seconds))?;
            let rate = done.latencies_ms.len() as f64 / done.seconds;
            let told = if exits { "with exits" } else { "without" };
            progress::line(&format!("round {}, {told}: {rate:.1} requests a second", round + 1));
            rounds.push(done);
        }
    }
    let rate = |round: &Round| round.latencies_ms.len() as f64 / round.seconds;
    let ratios: Vec<f64> = rounds[0].iter().zip(&rounds[1]).map(|(off, on)| rate(on) / rate(off)).collect();
    let ratio = quantile(&ratios, 0.5)?;
    let latencies = rounds.each_ref().map(|rounds| -> Vec<f64> {
        rounds.iter().flat_map(|round| round.latencies_ms.iter().copied()).collect()
    });
    let [off, on] = rounds;
    let loaded = [summed(&off)?, summed(&on)?];
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
        "{} connections, {} rounds of {seconds} s each way, in turn. With exits {ratio:.2} times the requests of without, the median of the \
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
    Report::new("A server that lets images leave early")
        .paragraph(&told)
        .figure(&figure, "Latency of the requests, as their client sees it.")
        .table(&table, "Clients and server share this machine's cores.")
        .close(&mut results, &out)
}

fn one(flags: &LoadFlags, images: &[Request], exits: bool, length: Duration) -> Result<Round> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let client = || -> Result<Round> {
        let connection = Connection::new(flags.asked.address);
        let mut round = Round { seconds: 0., latencies_ms: Vec::new(), layers: 0, right: 0 };
        while start.elapsed() < length {
            let image = &images[next.fetch_add(1, Ordering::Relaxed) % images.len()];
            let asked = Instant::now();
            let answer = connection.ask(&image.png, exits)?;
            round.latencies_ms.push(1e3 * asked.elapsed().as_secs_f64());
            round.layers += answer.layer;
            round.right += usize::from(answer.class == image.label);
        }
        Ok(round)
    };
    let parts = thread::scope(|scope| {
        let clients: Vec<_> = (0..flags.clients.get()).map(|_| scope.spawn(client)).collect();
        let joined = clients.into_iter().map(|client| client.join().ok().context("a client panicked")?);
        joined.collect::<Result<Vec<Round>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Round {
        seconds,
        layers: parts.iter().map(|part| part.layers).sum(),
        right: parts.iter().map(|part| part.right).sum(),
        latencies_ms: parts.into_iter().flat_map(|part| part.latencies_ms).collect(),
    })
}

fn summed(rounds: &[Round]) -> Result<Loaded> {
    let latencies: Vec<f64> = rounds.iter().flat_map(|round| round.latencies_ms.iter().copied()).collect();
    let requests = latencies.len();
    let rates: Vec<f64> =
        rounds.iter().map(|round| round.latencies_ms.len() as f64 / round.seconds).collect();
    let at = |level| quantile(&latencies, level);
    Ok(Loaded {
        requests,
        requests_per_s: quantile(&rates, 0.5)?,
        p50_ms: at(0.5)?,
        p95_ms: at(0.95)?,
        p99_ms: at(0.99)?,
        layers: rounds.iter().map(|round| round.layers).sum::<usize>() as f64 / requests as f64,
        accuracy: rounds.iter().map(|round| round.right).sum::<usize>() as f64 / requests as f64,
    })
}

pub(crate) fn quantile(values: &[f64], level: f64) -> Result<f64> {
    Ok(quantiles(ArrayView1::from(values), &[level])?[0])
}
