use candle_core::{DType, Device, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};

use crate::{Check, CostTable, Error, Policy, Reads, Result, Verdict, awake::keeping_awake};

/// Answers of a batch, in the order of its rows.
#[derive(Clone, Debug)]
pub struct Exited {
    /// `(rows, classes)`: the logits of the exit that each row left by; no graph hangs on them.
    pub logits: Tensor,
    /// The layer, from 1, after which each row left.
    pub layer: Vec<usize>,
}

/// What becomes of rows that have left while others go on.
#[derive(Clone, Copy, Debug, Default)]
pub enum Compaction<'a> {
    /// They are taken out of the batch at once.
    #[default]
    Always,
    /// They stay to the end, computed for nothing.
    Never,
    /// They are taken out when that pays, by measured times: see [`Costs::pays`](crate::Costs::pays).
    Profitable(&'a CostTable),
}

/// A policy, and how batches are run under it.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    /// Who leaves where.
    pub policy: &'a dyn Policy,
    /// What becomes of their rows.
    pub compaction: Compaction<'a>,
}

/// Runs a batch block by block; rows leave as `policy` says and are not computed further. See [`Engine::run`].
///
/// # Errors
///
/// As [`Engine::run`].
pub fn leave_early<M: Tapped + ?Sized>(model: &M, batch: &Batch, policy: &dyn Policy) -> Result<Exited> {
    Engine { policy, compaction: Compaction::Always }.run(model, batch)
}

impl Engine<'_> {
    /// Runs a batch block by block; rows leave as the policy says. The last layer always answers.
    ///
    /// A row's key is its place in the batch. Which rows share a batch changes, but for rounding, no answer and no decision, except of
    /// policies that know samples by their keys: see [`run_keyed`](Self::run_keyed).
    ///
    /// # Errors
    ///
    /// What [`Policy::validate`] finds; [`Error::Empty`] for a batch without rows, [`Error::NotFinite`] naming the layer and the
    /// batch's row of a NaN among the logits, [`Error::Answers`] for a model that predicts more or less than one row a sample;
    /// what the model reports.
    pub fn run<M: Tapped + ?Sized>(&self, model: &M, batch: &Batch) -> Result<Exited> {
        let rows = batch.rows()?;
        self.run_keyed(model, batch, &(0..rows as u64).collect::<Vec<_>>())
    }

    /// As [`run`](Self::run), under keys of the caller's, one a row: what an [`Oracle`](crate::Oracle) knows samples by.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); [`Error::Keys`] unless there are as many keys as rows.
    pub fn run_keyed<M: Tapped + ?Sized>(&self, model: &M, batch: &Batch, keys: &[u64]) -> Result<Exited> {
        let (samples, depth) = (batch.rows()?, model.depth());
        self.policy.validate(depth)?;
        if samples == 0 {
            return Err(Error::Empty);
        }
        if keys.len() != samples {
            return Err(Error::Keys { keys: keys.len(), samples });
        }
        let mut hidden = model.embed(batch, Pass::EVAL)?.detach();
        let device = hidden.xs.device().clone();
        // Of each row in the state: its row of the input while it is alive.
        let mut alive: Vec<Option<usize>> = (0..samples).map(Some).collect();
        let mut keys = keys.to_vec();
        let mut memory = None;
        let mut layer = vec![depth; samples];
        let mut answers: Vec<Tensor> = Vec::new();
        let mut answered: Vec<usize> = Vec::with_capacity(samples);
        for l in 1..=depth {
            hidden = model.block(l, &hidden, Pass::EVAL)?.detach();
            let see = See { layer: l, keys: &keys, memory: memory.as_ref() };
            let seen = see.look(model, self.policy, &hidden)?;
            let Some(Seen { leaves, feature, logits, memory: remembered }) = seen else { continue };
            memory = remembered;
            let gone: Vec<usize> =
                (0..alive.len()).filter(|&row| leaves[row] && alive[row].is_some()).collect();
            if gone.is_empty() {
                continue;
            }
            let exit = Leaving { layer: l, feature: feature.as_ref(), logits: logits.as_ref(), rows: &gone };
            let logits = exit.answer(model)?;
            if let Some(at) = not_finite(&logits)? {
                let row = alive[gone[at]].unwrap_or_default();
                return Err(Error::NotFinite { layer: l, row });
            }
            answers.push(logits);
            for &row in &gone {
                if let Some(row) = alive[row].take() {
                    layer[row] = l;
                    answered.push(row);
                }
            }
            if answered.len() == samples {
                break;
            }
            let kept = samples - answered.len();
            if self.compacts(model, &hidden, kept, depth - l)? {
                let rows: Vec<u32> =
                    (0..alive.len() as u32).filter(|&row| alive[row as usize].is_some()).collect();
                keys = rows.iter().map(|&row| keys[row as usize]).collect();
                alive.retain(Option::is_some);
                let rows = Tensor::new(rows, &device)?;
                hidden = model.select(&hidden, &rows)?;
                memory = memory.map(|memory| memory.index_select(&rows, 0)).transpose()?;
            }
        }
        let logits = match answers.as_slice() {
            [all] if answered.is_sorted() => all.clone(),
            parts => in_input_order(parts, &answered, &device)?,
        };
        Ok(Exited { logits, layer })
    }

    fn compacts<M: Tapped + ?Sized>(
        &self,
        model: &M,
        hidden: &Hidden,
        kept: usize,
        left: usize,
    ) -> Result<bool> {
        let rows = hidden.xs.dim(0)?;
        Ok(match self.compaction {
            _ if kept == rows => false,
            Compaction::Always => true,
            Compaction::Never => false,
            // What cannot be measured is no reason not to answer.
            Compaction::Profitable(table) => {
                table.of_state(model, hidden, rows).map_or(true, |costs| costs.pays(rows, kept, left))
            }
        })
    }
}

/// Rows after a block, about to be looked at.
pub(crate) struct See<'a> {
    pub(crate) layer: usize,
    pub(crate) keys: &'a [u64],
    pub(crate) memory: Option<&'a Tensor>,
}

/// What a policy made of them.
pub(crate) struct Seen {
    pub(crate) leaves: Vec<bool>,
    /// Of all rows, or `logits`; neither only where nobody leaves.
    pub(crate) feature: Option<Tensor>,
    pub(crate) logits: Option<Tensor>,
    pub(crate) memory: Option<Tensor>,
}

impl See<'_> {
    /// Asks the policy; after the last layer all leave. `None` where nothing is to be looked at.
    pub(crate) fn look<M: Tapped + ?Sized>(
        self,
        model: &M,
        policy: &dyn Policy,
        hidden: &Hidden,
    ) -> Result<Option<Seen>> {
        let (layer, depth) = (self.layer, model.depth());
        match if layer < depth { policy.reads(layer, depth) } else { Reads::Decision } {
            Reads::Nothing => Ok(None),
            reads => keeping_awake(&hidden.xs, || self.look_at(reads, model, policy, hidden)).map(Some),
        }
    }

    fn look_at<M: Tapped + ?Sized>(
        self,
        reads: Reads,
        model: &M,
        policy: &dyn Policy,
        hidden: &Hidden,
    ) -> Result<Seen> {
        let Self { layer, keys, memory } = self;
        let depth = model.depth();
        let check = Check { layer, depth, keys, feature: None, logits: None, memory };
        let decide = |check: Check<'_>| -> Result<Verdict> {
            if layer == depth {
                return Ok(Verdict { leaves: vec![true; keys.len()], memory: None });
            }
            let verdict = policy.verdict(&check)?;
            let remembered = verdict.memory.as_ref().map(|memory| memory.dim(0)).transpose()?;
            let decided = [verdict.leaves.len(), remembered.unwrap_or(keys.len())];
            match decided.into_iter().find(|&decided| decided != keys.len()) {
                Some(decided) => Err(Error::Verdict { layer, decided, rows: keys.len() }),
                None => Ok(verdict),
            }
        };
        if reads == Reads::Decision {
            let Verdict { leaves, memory } = decide(check)?;
            let feature =
                leaves.contains(&true).then(|| feature(model, layer, hidden, keys.len())).transpose()?;
            return Ok(Seen { leaves, feature, logits: None, memory });
        }
        let (feature, logits) = match reads {
            Reads::Logits => {
                let logits = model.answer(layer, hidden)?;
                one_a_sample(layer, &logits, keys.len())?;
                (None, Some(logits))
            }
            _ => (Some(feature(model, layer, hidden, keys.len())?), None),
        };
        let Verdict { leaves, memory } =
            decide(Check { feature: feature.as_ref(), logits: logits.as_ref(), ..check })?;
        Ok(Seen { leaves, feature, logits, memory })
    }
}

/// What the head reads: one row for each sample.
fn feature<M: Tapped + ?Sized>(model: &M, layer: usize, hidden: &Hidden, samples: usize) -> Result<Tensor> {
    let feature = model.feature(hidden)?.detach();
    one_a_sample(layer, &feature, samples)?;
    Ok(feature)
}

/// Rows that leave after a layer.
pub(crate) struct Leaving<'a> {
    pub(crate) layer: usize,
    /// Of all rows.
    pub(crate) feature: Option<&'a Tensor>,
    /// Of all rows, where they are known already.
    pub(crate) logits: Option<&'a Tensor>,
    /// Those that leave.
    pub(crate) rows: &'a [usize],
}

impl Leaving<'_> {
    /// Their logits.
    pub(crate) fn answer<M: Tapped + ?Sized>(&self, model: &M) -> Result<Tensor> {
        let all = self.logits.or(self.feature);
        let all = all.ok_or_else(|| candle_core::Error::Msg("rows leave without a feature".into()))?;
        let rows = all.dim(0)?;
        let picked = if self.rows.len() == rows {
            all.clone()
        } else {
            let pick: Vec<u32> = self.rows.iter().map(|&row| row as u32).collect();
            all.contiguous()?.index_select(&Tensor::new(pick, all.device())?, 0)?
        };
        let logits = match self.logits {
            Some(_) => picked,
            None => model.exit(self.layer, &picked, Pass::EVAL)?.detach(),
        };
        one_a_sample(self.layer, &logits, self.rows.len())?;
        Ok(logits)
    }
}

pub(crate) fn one_a_sample(layer: usize, xs: &Tensor, samples: usize) -> Result<()> {
    match xs.dim(0)? {
        rows if rows == samples => Ok(()),
        answers => Err(Error::Answers { layer, answers, samples }),
    }
}

/// The first row that has a NaN or an infinity.
pub(crate) fn not_finite(logits: &Tensor) -> Result<Option<usize>> {
    let (_, classes) = logits.dims2()?;
    if !logits.device().is_cpu() {
        // One number for each row is read back.
        let rows = (logits.to_dtype(DType::F32)? * 0.)?.sum(1)?.to_vec1::<f32>()?;
        return Ok(rows.iter().position(|x| x.is_nan()));
    }
    let values = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().position(|x| !x.is_finite()).map(|at| at / classes.max(1)))
}

/// Rows of `parts`, one after the other, belong to the samples `order`.
fn in_input_order(parts: &[Tensor], order: &[usize], device: &Device) -> Result<Tensor> {
    let mut position = vec![0u32; order.len()];
    for (at, &sample) in order.iter().enumerate() {
        position[sample] = at as u32;
    }
    Ok(Tensor::cat(parts, 0)?.index_select(&Tensor::new(position, device)?, 0)?)
}
