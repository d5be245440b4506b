use candle_core::{DType, Device, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};

use crate::{Check, CostTable, Error, LateVerdict, Policy, Reads, Result, Verdict, awake::keeping_awake};

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
    /// They are taken out one block later. A GPU is given the next block before it has said who leaves, so that it is never waited for; that block is computed for
    /// nothing by those who leave. Answers and layers are those of `Always`.
    Late,
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
        let mut run = Run::new(samples, depth, keys);
        // What was asked a block ago.
        let mut asked: Option<Asked> = None;
        for l in 1..=depth {
            hidden = model.block(l, &hidden, Pass::EVAL)?.detach();
            if let Some(asked) = asked.take() {
                run.settle(model, l - 1, asked.wait(model)?)?;
                if run.is_over() {
                    break;
                }
                hidden = run.compact(model, hidden)?;
            }
            let see = See { layer: l, keys: &run.keys, memory: run.memory.as_ref() };
            if matches!(self.compaction, Compaction::Late) && l < depth {
                asked = see.ask(model, self.policy, &hidden)?;
                continue;
            }
            let Some(seen) = see.look(model, self.policy, &hidden)? else { continue };
            run.settle(model, l, seen)?;
            if run.is_over() {
                break;
            }
            if self.compacts(model, &hidden, samples - run.answered.len(), depth - l)? {
                hidden = run.compact(model, hidden)?;
            }
        }
        run.finish(hidden.xs.device())
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
            Compaction::Always | Compaction::Late => true,
            Compaction::Never => false,
            // What cannot be measured is no reason not to answer.
            Compaction::Profitable(table) => {
                table.of_state(model, hidden, rows).map_or(true, |costs| costs.pays(rows, kept, left))
            }
        })
    }
}

/// A batch on its way.
struct Run {
    /// Of each row in the state: its row of the input while it is alive.
    alive: Vec<Option<usize>>,
    keys: Vec<u64>,
    memory: Option<Tensor>,
    /// The layer that each row of the input leaves by.
    layer: Vec<usize>,
    answers: Vec<Tensor>,
    /// Rows of the input, in the order of `answers`.
    answered: Vec<usize>,
}

impl Run {
    fn new(samples: usize, depth: usize, keys: &[u64]) -> Self {
        Self {
            alive: (0..samples).map(Some).collect(),
            keys: keys.to_vec(),
            memory: None,
            layer: vec![depth; samples],
            answers: Vec::new(),
            answered: Vec::with_capacity(samples),
        }
    }

    /// Answers those who leave after layer `l`.
    fn settle<M: Tapped + ?Sized>(&mut self, model: &M, l: usize, seen: Seen) -> Result<()> {
        let Seen { leaves, feature, logits, memory } = seen;
        self.memory = memory;
        let gone: Vec<usize> =
            (0..self.alive.len()).filter(|&row| leaves[row] && self.alive[row].is_some()).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let exit = Leaving { layer: l, feature: feature.as_ref(), logits: logits.as_ref(), rows: &gone };
        self.answers.push(exit.answer(model)?);
        for row in gone {
            if let Some(row) = self.alive[row].take() {
                self.layer[row] = l;
                self.answered.push(row);
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.answered.len() == self.layer.len()
    }

    /// Takes out those who have left.
    fn compact<M: Tapped + ?Sized>(&mut self, model: &M, hidden: Hidden) -> Result<Hidden> {
        let rows: Vec<u32> =
            (0..self.alive.len() as u32).filter(|&row| self.alive[row as usize].is_some()).collect();
        if rows.len() == self.alive.len() {
            return Ok(hidden);
        }
        self.keys = rows.iter().map(|&row| self.keys[row as usize]).collect();
        self.alive.retain(Option::is_some);
        let rows = Tensor::new(rows, hidden.xs.device())?;
        self.memory = self.memory.take().map(|memory| memory.index_select(&rows, 0)).transpose()?;
        Ok(model.select(&hidden, &rows)?)
    }

    fn finish(self, device: &Device) -> Result<Exited> {
        let logits = match self.answers.as_slice() {
            [all] if self.answered.is_sorted() => all.clone(),
            parts => in_input_order(parts, &self.answered, device)?,
        };
        match not_finite(&logits)? {
            Some(row) => Err(Error::NotFinite { layer: self.layer[row], row }),
            None => Ok(Exited { logits, layer: self.layer }),
        }
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

/// Rows that a policy was asked about.
pub(crate) struct Asked {
    layer: usize,
    rows: usize,
    verdict: LateVerdict,
    /// Where neither feature nor logits were wanted.
    state: Option<Hidden>,
    feature: Option<Tensor>,
    logits: Option<Tensor>,
}

impl See<'_> {
    /// Asks the policy and waits; after the last layer all leave. `None` where nothing is to be looked at.
    pub(crate) fn look<M: Tapped + ?Sized>(
        self,
        model: &M,
        policy: &dyn Policy,
        hidden: &Hidden,
    ) -> Result<Option<Seen>> {
        match self.reads(model, policy) {
            Reads::Nothing => Ok(None),
            reads => {
                let seen = || self.ask_at(reads, model, policy, hidden)?.wait(model);
                keeping_awake(&hidden.xs, seen).map(Some)
            }
        }
    }

    /// The same, but does not wait.
    pub(crate) fn ask<M: Tapped + ?Sized>(
        self,
        model: &M,
        policy: &dyn Policy,
        hidden: &Hidden,
    ) -> Result<Option<Asked>> {
        match self.reads(model, policy) {
            Reads::Nothing => Ok(None),
            reads => self.ask_at(reads, model, policy, hidden).map(Some),
        }
    }

    fn reads<M: Tapped + ?Sized>(&self, model: &M, policy: &dyn Policy) -> Reads {
        let (layer, depth) = (self.layer, model.depth());
        if layer < depth { policy.reads(layer, depth) } else { Reads::Decision }
    }

    fn ask_at<M: Tapped + ?Sized>(
        self,
        reads: Reads,
        model: &M,
        policy: &dyn Policy,
        hidden: &Hidden,
    ) -> Result<Asked> {
        let Self { layer, keys, memory } = self;
        let (rows, depth) = (keys.len(), model.depth());
        let (mut state, mut of_rows, mut logits) = (None, None, None);
        match reads {
            Reads::Logits => {
                let all = model.answer(layer, hidden)?;
                one_a_sample(layer, &all, rows)?;
                logits = Some(all);
            }
            Reads::Feature => of_rows = Some(feature(model, layer, hidden, rows)?),
            Reads::Decision | Reads::Nothing => state = Some(hidden.clone()),
        }
        let check = Check { layer, depth, keys, feature: of_rows.as_ref(), logits: logits.as_ref(), memory };
        let verdict = match layer == depth {
            true => Verdict { leaves: vec![true; rows], memory: None }.into(),
            false => policy.verdict_later(&check)?,
        };
        Ok(Asked { layer, rows, verdict, state, feature: of_rows, logits })
    }
}

impl Asked {
    /// Waits for the policy's verdict.
    pub(crate) fn wait<M: Tapped + ?Sized>(self, model: &M) -> Result<Seen> {
        let Self { layer, rows, verdict, state, feature: of_rows, logits } = self;
        let Verdict { leaves, memory } = verdict.wait()?;
        let remembered = memory.as_ref().map(|memory| memory.dim(0)).transpose()?;
        let decided = [leaves.len(), remembered.unwrap_or(rows)];
        if let Some(decided) = decided.into_iter().find(|&decided| decided != rows) {
            return Err(Error::Verdict { layer, decided, rows });
        }
        let of_rows = match state.filter(|_| leaves.contains(&true)) {
            Some(state) => Some(feature(model, layer, &state, rows)?),
            None => of_rows,
        };
        Ok(Seen { leaves, feature: of_rows, logits, memory })
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
