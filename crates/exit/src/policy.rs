use candle_core::Tensor;

use crate::Result;

/// What a [`Policy`] wants to see after a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// Nothing: neither feature nor head are computed, and nobody leaves.
    Nothing,
    /// Nothing, but somebody may leave; the head answers those who do.
    Decision,
    /// The feature that the head would read; the head answers those who leave.
    Feature,
    /// The logits of this exit.
    Logits,
}

/// What a [`Policy`] decides on: the rows of a batch after a block.
///
/// Rows that have left may still be among them, where taking them out would not pay; what is decided for them has no effect.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// The block that ran last, from 1; below [`depth`](Check::depth), as the last layer always answers.
    pub layer: usize,
    /// Layers of the model.
    pub depth: usize,
    /// What each row is called, whatever batch it is in: its place in a data set, or a number of the caller's.
    pub keys: &'a [u64],
    /// `(rows, width)`, with [`Reads::Feature`].
    pub feature: Option<&'a Tensor>,
    /// `(rows, classes)`, with [`Reads::Logits`].
    pub logits: Option<&'a Tensor>,
    /// What the policy remembered at the last check, one row for each of these; `None` at the first.
    pub memory: Option<&'a Tensor>,
}

/// What a [`Policy`] decided.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whether each row leaves here.
    pub leaves: Vec<bool>,
    /// What is to be remembered of each row until the next check: any tensor whose first dimension is the rows.
    pub memory: Option<Tensor>,
}

/// A [`Verdict`] that a GPU may not have come to yet.
pub struct LateVerdict {
    leaves: Box<dyn FnOnce() -> Result<Vec<bool>> + Send>,
    memory: Option<Tensor>,
}

impl LateVerdict {
    /// `leaves` waits for the decision; what is remembered is a tensor, so it is there.
    pub fn new(memory: Option<Tensor>, leaves: impl FnOnce() -> Result<Vec<bool>> + Send + 'static) -> Self {
        Self { leaves: Box::new(leaves), memory }
    }

    /// Waits for it.
    ///
    /// # Errors
    ///
    /// When the decision could not be read back.
    pub fn wait(self) -> Result<Verdict> {
        Ok(Verdict { leaves: (self.leaves)()?, memory: self.memory })
    }
}

impl From<Verdict> for LateVerdict {
    fn from(Verdict { leaves, memory }: Verdict) -> Self {
        Self::new(memory, || Ok(leaves))
    }
}

impl std::fmt::Debug for LateVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LateVerdict").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// When samples leave a model.
///
/// A decision must depend on the row and on what was remembered of it, never on its neighbours: batches are cut, compacted
/// and mixed in ways that the policy does not see. A row that is not a number leaves; the engine then finds what is wrong with
/// it.
pub trait Policy: std::fmt::Debug + Send + Sync {
    /// Whether this policy makes sense for a model of so many layers.
    ///
    /// # Errors
    ///
    /// When it does not.
    fn validate(&self, depth: usize) -> Result<()>;

    /// What it wants to see after block `layer`, below `depth`.
    fn reads(&self, layer: usize, depth: usize) -> Reads;

    /// Who leaves.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    fn verdict(&self, check: &Check<'_>) -> Result<Verdict>;

    /// The same without waiting for a GPU, for [`Compaction::Late`](crate::Compaction::Late); at once where the policy knows no better. A policy around another asks that
    /// one's.
    ///
    /// # Errors
    ///
    /// As [`verdict`](Self::verdict).
    fn verdict_later(&self, check: &Check<'_>) -> Result<LateVerdict> {
        Ok(self.verdict(check)?.into())
    }
}
