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

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Args;
use layerwise::exit::{
    self, Check, CostTable, Error as ExitError, Policy, PoolConfig, Reads, SavedExits, ServeConfig, Signal,
    Thresholds, Verdict,
};
use layerwise_example_common::{CommonFlags, checkpoint::Checkpoint, flags::ModelFlag, interrupt, progress};
use serde_json::json;

use crate::{
    http::{self, App},
    prepare::Prepare,
};

#[derive(Args)]
pub(crate) struct ServeFlags {
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    #[command(flatten)]
    model: ModelFlag,
    /// Largest softmax probability above which a sample leaves; of a model that answers with a number, how far that may have moved in the last
    /// block [default: what `calibrate --save`, or for numbers `f07_aligned_bert`, has written beside the model].
    #[arg(long)]
    threshold: Option<f64>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8765")]
    address: SocketAddr,
    /// Most samples of a batch.
    #[arg(long, default_value_t = PoolConfig::default().max_batch)]
    max_batch: usize,
    /// Milliseconds after which a sample is not passed over any more.
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
    let (model, _) = Checkpoint::open(folder, device)?;
    let model = model.packed()?;
    let labels = model.labels();
    ensure!(!labels.is_empty(), "{}: a model without a classifier, which has no answers", folder.display());
    let prepare = Prepare::of(folder, &model, device)?;
    let signal = if labels.len() == 1 { Signal::Change } else { Signal::MaxProbability };
    let model = model.tapped();
    let policy = Switched(policy(signal, flags.threshold, folder, model.depth())?);
    policy.validate(model.depth())?;
    let pools = PoolConfig {
        max_batch: flags.max_batch,
        max_wait: Duration::from_millis(flags.max_wait),
        ..Default::default()
    };
    // Room for full batches at several depths.
    let rows = ServeConfig::default().rows.max(flags.max_batch.saturating_mul(4));
    let (client, server) = exit::serve(ServeConfig { pools, queue: flags.queue, rows })?;
    let costs = CostTable::default();
    let shapes = prepare.shapes(device)?;
    let measured = costs.prepare(model, &shapes[0], flags.max_batch)?;
    // Samples of other shapes cost more or less, but hardly in another proportion.
    for shape in &shapes[1..] {
        costs.keep(model, shape, (*measured).clone())?;
    }
    let settings = json!({ "model": folder, "device": flags.common.device.to_string(), "thresholds": policy.0, "max_batch": flags.max_batch, "max_wait_ms": flags.max_wait,
        "queue": flags.queue, "threads": rayon::current_num_threads() });
    let app = App::new(client, prepare, labels, device.clone(), settings);

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
        let served = server.run(model, &policy, &costs)?;
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

fn policy(signal: Signal, threshold: Option<f64>, folder: &Path, depth: usize) -> Result<Thresholds> {
    let writer = if signal == Signal::Change { "f07_aligned_bert" } else { "`calibrate --save`" };
    if let Some(threshold) = threshold {
        return Ok(Thresholds::common(signal, threshold, depth));
    }
    match SavedExits::load(folder, depth) {
        Err(missing @ ExitError::NotCalibrated { .. }) => Err(missing).with_context(|| {
            format!("no exits: expected --threshold, or thresholds that {writer} writes beside the model")
        }),
        saved => Ok(saved?.thresholds),
    }
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
