use std::{path::Path, sync::atomic::Ordering, time::Instant};

use candle_core::{DType, Tensor};
use layerwise_models::{Params, Pass, Tapped};
use rand::RngCore;
use tracing::{debug, info};

use crate::{
    AdamW, Error, Evaluation, Event, Gradients, Hooks, Moment, Result, Samples, StepRecord, TrainConfig,
    TrainReport,
    audit::audit_gradients,
    checkpoint::RunFolder,
    loss::{Loss, loss},
    optimiser::{StepScale, accumulate, clip_factor, global_norm, take_gradients},
    samples::{Stream, stream},
};

/// Trains the `params` of `model` on `data`.
///
/// The first thing a new run does is one backward pass over all exits that the objective weighs, to
/// [audit](crate::audit) that every parameter gets a gradient. With a `run` folder it writes `config.json`,
/// `metrics.jsonl` and `state.safetensors` there and continues where the folder's state stands, with the same bits as a run
/// that was not interrupted: order, augmentation and dropout are functions of the seed and the step. Only one run at a time
/// has the folder (`lock`).
///
/// A checkpoint that is due is written before hooks hear of its step, so an evaluation that fails or a callback that panics
/// does not lose it.
///
/// # Errors
///
/// [`Error::Audit`] before the first step; [`Error::Loss`] and [`Error::Gradient`] when a number is not finite;
/// [`Error::Config`], [`Error::Checkpoint`] and [`Error::Busy`] for a folder of another run, one with somebody else's files
/// or a damaged state, or a run that goes on elsewhere; [`Error::Empty`], [`Error::Samples`], [`Error::Setting`],
/// [`Error::Label`] for bad input.
pub fn train<M: Tapped + ?Sized, S: Samples + ?Sized>(
    model: &M,
    params: &Params,
    data: &S,
    config: &TrainConfig,
    run: Option<&Path>,
    hooks: Hooks<'_>,
) -> Result<TrainReport> {
    config.check()?;
    data.check()?;
    if data.is_empty() {
        return Err(Error::Empty);
    }
    let start = Instant::now();
    let Hooks { mut evaluate, stop, mut on_event } = hooks;
    let per_epoch = data.len().div_ceil(config.batch_size);
    let steps = per_epoch * config.epochs;
    config.objective.check(model.depth(), steps)?;
    let mut optimiser = AdamW::new(params, config.optimiser.clone())?;
    let mut evaluations = Vec::new();
    let mut folder = match run {
        Some(path) => {
            let folder = RunFolder::open(path, config, data.len())?;
            folder.restore(params, &mut optimiser)?;
            let (metrics, before) = folder.metrics(optimiser.step_count())?;
            evaluations = before;
            Some((folder, metrics))
        }
        None => None,
    };
    let done = optimiser.step_count();
    let mut tell = |event: Event| {
        debug!(?event);
        if let Some(on_event) = &mut on_event {
            on_event(&event);
        }
    };
    info!(done, steps, "training");
    tell(Event::Started { done, steps });
    if done == 0 {
        audit_first_batch(model, params, data, config)?;
    }

    let evaluation_due = |step: usize| {
        let every = config.evaluate_every;
        let epoch_ends = step > 0 && step.is_multiple_of(per_epoch);
        step == steps || (epoch_ends && every > 0 && (step / per_epoch).is_multiple_of(every))
    };
    let mut order = Vec::new();
    let mut step = done; // steps taken
    let mut saved = done; // of which the folder knows
    let stopped = loop {
        // Due after this step, or what an interrupted run did not come to.
        let missing = evaluations.last().is_none_or(|last: &Evaluation| last.step < step);
        let pending = evaluate.as_mut().filter(|_| missing && evaluation_due(step));
        if step == steps && pending.is_none() {
            break false;
        }
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            break true;
        }
        if let Some(evaluate) = pending {
            let evaluation = Evaluation { step, epoch: step / per_epoch, evaluation: evaluate()? };
            if let Some((_, metrics)) = &mut folder {
                metrics.write(&evaluation)?;
            }
            evaluations.push(evaluation.clone());
            tell(Event::Evaluated(evaluation));
            continue;
        }

        let (epoch, within) = (step / per_epoch, step % per_epoch);
        if within == 0 || order.is_empty() {
            order = order_of(data, config, epoch)?;
        }
        let from = within * config.batch_size;
        let indices = &order[from..data.len().min(from + config.batch_size)];
        let at = StepAt { step, epoch, steps };
        let record = one_step(model, params, data, config, &mut optimiser, at, indices)?;
        step += 1;
        if let Some((folder, metrics)) = &mut folder {
            metrics.write(&record)?;
            let every = config.checkpoint_every;
            let due = every > 0 && step.is_multiple_of(every);
            if due || step == steps || (evaluate.is_some() && evaluation_due(step)) {
                folder.save(params, &optimiser, metrics)?;
                saved = step;
            }
        }
        tell(Event::Step(record));
        if saved == step {
            tell(Event::Checkpoint(step));
        }
    };
    if let Some((folder, metrics)) = folder.as_ref().filter(|_| saved < step) {
        folder.save(params, &optimiser, metrics)?;
        tell(Event::Checkpoint(step));
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(TrainReport { steps: step, stopped, seconds, evaluations })
}

#[derive(Clone, Copy)]
struct StepAt {
    step: usize,
    epoch: usize,
    steps: usize,
}

/// Gradient of the samples `indices`, micro-batch by micro-batch, and one update.
fn one_step<M: Tapped + ?Sized, S: Samples + ?Sized>(
    model: &M,
    params: &Params,
    data: &S,
    config: &TrainConfig,
    optimiser: &mut AdamW,
    at: StepAt,
    indices: &[usize],
) -> Result<StepRecord> {
    let start = Instant::now();
    let depth = model.depth();
    let mut gradients = Gradients::new();
    let mut total = 0.;
    // Loss of each exit times the share of samples that it was weighed for, and that share.
    let mut per_layer = vec![(0., 0.); depth];
    for (i, part) in parts(indices, config.accumulation).enumerate() {
        let micro_batch = at.step * config.accumulation + i;
        let moment = Moment { step: at.step, steps: at.steps, micro_batch };
        let terms = config.objective.turn(depth, moment)?;
        let counter = micro_batch as u64;
        let (batch, labels) = data.batch(part, &mut stream(config.seed, Stream::Augmentation, counter))?;
        let pass = Pass::train(stream(config.seed, Stream::Dropout, counter).next_u64());
        let Loss { total: value, per_layer: values } =
            loss(model, &batch, &labels, &terms, config.label_smoothing, pass)?;
        // A mean over the whole batch, whatever the sizes of its parts.
        let share = part.len() as f64 / indices.len() as f64;
        let value = (value * share)?;
        total += scalar(&value)?;
        for ((sum, seen), value) in per_layer.iter_mut().zip(values) {
            if let Some(value) = value {
                *sum += value * share;
                *seen += share;
            }
        }
        if !total.is_finite() {
            return Err(Error::Loss { step: at.step + 1, loss: total });
        }
        accumulate(&mut gradients, take_gradients(layerwise_ops::backward(&value)?, params))?;
    }
    let grad_norm = global_norm(&gradients)?;
    if !grad_norm.is_finite() {
        return Err(Error::Gradient { step: at.step + 1, loss: total, norm: grad_norm });
    }
    let factor = config.schedule.factor(at.step, at.steps);
    let gradient = config.clip_norm.map_or(1., |max| clip_factor(grad_norm, max));
    optimiser.step(params, &gradients, StepScale { lr: factor, gradient })?;
    Ok(StepRecord {
        step: at.step + 1,
        epoch: at.epoch + 1,
        lr: config.optimiser.lr * factor,
        loss: total,
        per_layer: per_layer.into_iter().map(|(sum, seen)| (seen > 0.).then(|| sum / seen)).collect(),
        grad_norm,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Cuts a step's samples into `accumulation` micro-batches of nearly equal size, or into single samples when there are fewer.
fn parts(indices: &[usize], accumulation: usize) -> impl Iterator<Item = &[usize]> {
    let n = indices.len();
    let k = accumulation.min(n);
    (0..k).map(move |i| &indices[i * n / k..(i + 1) * n / k])
}

/// An epoch's order, with every sample once.
fn order_of<S: Samples + ?Sized>(data: &S, config: &TrainConfig, epoch: usize) -> Result<Vec<usize>> {
    let order = data.order(config.seed, epoch, config.batch_size);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted.into_iter().eq(0..data.len()) {
        return Ok(order);
    }
    let value = format!("{} indices", order.len());
    Err(Error::Setting { field: "order", value, expected: format!("each of 0 .. {} once", data.len()) })
}

/// All exits that the objective ever weighs must send a gradient to every parameter.
fn audit_first_batch<M: Tapped + ?Sized, S: Samples + ?Sized>(
    model: &M,
    params: &Params,
    data: &S,
    config: &TrainConfig,
) -> Result<()> {
    let order = order_of(data, config, 0)?;
    let first_step = &order[..config.batch_size.min(data.len())];
    let first = parts(first_step, config.accumulation).next().unwrap_or_default();
    let (batch, labels) = data.batch(first, &mut stream(config.seed, Stream::Augmentation, 0))?;
    let exits = config.objective.exits(model.depth())?;
    let total = loss(model, &batch, &labels, &exits.into(), 0., Pass::EVAL)?.total;
    let value = scalar(&total)?;
    if !value.is_finite() {
        return Err(Error::Loss { step: 1, loss: value });
    }
    audit_gradients(params, &take_gradients(layerwise_ops::backward(&total)?, params), &config.idle)
}

fn scalar(xs: &Tensor) -> Result<f64> {
    Ok(xs.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}
