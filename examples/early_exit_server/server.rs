//! The model's side: one thread runs depth pools, others speak HTTP.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use layerwise::{
    exit::{
        self, Check, CostTable, Error as ExitError, Policy, PoolConfig, Reads, SavedExits, ServeConfig,
        Signal, Thresholds, Verdict,
    },
    models::{Tapped, Vit},
};
use layerwise_example_common::{
    CommonFlags,
    checkpoint::{load_vit, preprocess_of},
    flags::ModelFlag,
    interrupt, progress,
};
use serde_json::json;

use crate::http::{self, App};

#[derive(Args)]
pub(crate) struct ServeFlags {
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    #[command(flatten)]
    model: ModelFlag,
    /// Largest softmax probability above which a sample leaves [default: what `calibrate --save` has written beside the model].
    #[arg(long)]
    threshold: Option<f64>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8765")]
    address: SocketAddr,
    /// Most images of a batch.
    #[arg(long, default_value_t = PoolConfig::default().max_batch)]
    max_batch: usize,
    /// Milliseconds after which an image is not passed over any more.
    #[arg(long, default_value_t = 50)]
    max_wait: u64,
    /// Requests that may wait; one more is refused with status 503.
    #[arg(long, default_value_t = ServeConfig::default().queue)]
    queue: usize,
}

/// Time that open connections have after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) fn serve(flags: &ServeFlags, device: &Device) -> Result<()> {
    let folder = &flags.model.model;
    let (model, _) = load_vit(folder, device)?;
    let model = model.packed()?;
    let policy = Switched(policy(flags.threshold, folder, &model)?);
    policy.validate(model.depth())?;
    let pools = PoolConfig {
        max_batch: flags.max_batch,
        max_wait: Duration::from_millis(flags.max_wait),
        ..Default::default()
    };
    // Room for full batches at several depths.
    let rows = ServeConfig::default().rows.max(flags.max_batch.saturating_mul(4));
    let (client, server) = exit::serve(ServeConfig { pools, queue: flags.queue, rows })?;
    let config = model.config();
    let shape = (1, config.num_channels, config.image_size, config.image_size);
    let blank = Tensor::zeros(shape, DType::F32, device)?;
    let costs = CostTable::default();
    costs.prepare(&model, &blank.into(), flags.max_batch)?;
    let settings = json!({ "model": folder, "thresholds": policy.0, "max_batch": flags.max_batch, "max_wait_ms": flags.max_wait,
        "queue": flags.queue, "threads": rayon::current_num_threads() });
    let preprocess = preprocess_of(folder, config)?;
    let app = App::new(client, preprocess, config, device.clone(), settings)
        .with_context(|| folder.display().to_string())?;

    let stop = interrupt::stop_flag()?;
    let listener =
        TcpListener::bind(flags.address).with_context(|| format!("--address {}", flags.address))?;
    listener.set_nonblocking(true)?;
    progress::print(&format!("listening on http://{}\n", listener.local_addr()?));
    // Without the model's side there is nothing to serve: however it ends, HTTP does, too.
    let ended = Ended(Arc::default());
    thread::scope(|scope| {
        let stops = (stop, ended.0.clone());
        let http = scope.spawn(move || http::run(app, listener, stops, GRACE));
        let ended = ended;
        // Until the last client is gone and answered.
        let served = server.run(&model, &policy, &costs)?;
        drop(ended);
        http.join().map_err(|_| anyhow::anyhow!("the HTTP thread panicked"))??;
        progress::print(&format!("{served:#?}\n"));
        Ok(())
    })
}

/// Says so when it is dropped.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn policy(threshold: Option<f64>, folder: &Path, model: &Vit) -> Result<Thresholds> {
    if let Some(threshold) = threshold {
        return Ok(Thresholds::common(Signal::MaxProbability, threshold, model.depth()));
    }
    let saved = SavedExits::load(folder, model.depth());
    let help = "--threshold, or thresholds that `calibrate --save` writes beside the model";
    match saved {
        Err(ExitError::NotCalibrated { .. }) => saved.context(format!("no exits: expected {help}")),
        other => Ok(other?),
    }
    .map(|saved| saved.thresholds)
}

/// Samples of this key stay to the end: whoever asks may have the full model.
pub(crate) const NO_EXITS: u64 = 1;

/// A policy that a request can switch off. Exits are computed all the same, as they are for whole batches.
#[derive(Debug)]
struct Switched(Thresholds);

impl Policy for Switched {
    fn validate(&self, depth: usize) -> exit::Result<()> {
        self.0.validate(depth)
    }

    fn reads(&self, layer: usize, depth: usize) -> Reads {
        self.0.reads(layer, depth)
    }

    fn verdict(&self, check: &Check<'_>) -> exit::Result<Verdict> {
        let mut verdict = self.0.verdict(check)?;
        for (leaves, &key) in verdict.leaves.iter_mut().zip(check.keys) {
            *leaves &= key != NO_EXITS;
        }
        Ok(verdict)
    }
}
