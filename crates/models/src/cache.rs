use candle_core::{DType, Device, Result, Tensor, bail};

/// Keys and values of one text's tokens in every block: what was read need not be read again.
///
/// Blocks may be behind one another: a token that has left early has not been through the later ones.
#[derive(Debug)]
pub struct KvCache {
    blocks: Vec<Slots>,
    longest: usize,
}

/// Of one block: `(slots, width)`, of which the first `len` are taken.
#[derive(Debug)]
struct Slots {
    keys: Tensor,
    values: Tensor,
    len: usize,
}

/// Tokens that there is room for at first.
const ROOM: usize = 64;

impl KvCache {
    /// Of a text of which nothing was read, and which has `longest` tokens at most.
    pub(crate) fn new(depth: usize, width: usize, longest: usize, device: &Device) -> Result<Self> {
        let slots = |_| -> Result<Slots> {
            let empty = || Tensor::zeros((ROOM.min(longest), width), DType::F32, device);
            Ok(Slots { keys: empty()?, values: empty()?, len: 0 })
        };
        Ok(Self { blocks: (0..depth).map(slots).collect::<Result<_>>()?, longest })
    }

    /// Tokens that have been through block `layer`, from 1.
    ///
    /// # Panics
    ///
    /// When there is no such block.
    #[must_use]
    pub fn len(&self, layer: usize) -> usize {
        self.blocks[layer - 1].len
    }

    /// Most tokens of a text.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Forgets all tokens behind the first `len`, in every block: a draft that was refused.
    pub fn truncate(&mut self, len: usize) {
        self.blocks.iter_mut().for_each(|slots| slots.len = slots.len.min(len));
    }

    /// Adds keys and values `(tokens, width)` to those of block `layer`, and returns all, `(1, all tokens, width)`; views that the next call may change.
    pub(crate) fn push(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<[Tensor; 2]> {
        let longest = self.longest;
        let slots = &mut self.blocks[layer - 1];
        let len = slots.len + keys.dim(0)?;
        if len > longest {
            bail!("a text of {len} tokens, the model has positions for {longest}")
        }
        let room = slots.keys.dim(0)?;
        if len > room {
            let more = (len.max(2 * room)).min(longest) - room;
            for kept in [&mut slots.keys, &mut slots.values] {
                let empty = Tensor::zeros((more, kept.dim(1)?), DType::F32, kept.device())?;
                *kept = Tensor::cat(&[&*kept, &empty], 0)?;
            }
        }
        for (kept, new) in [(&slots.keys, keys), (&slots.values, values)] {
            kept.slice_set(&new.contiguous()?, 0, slots.len)?;
        }
        slots.len = len;
        let all = |kept: &Tensor| kept.narrow(0, 0, len)?.unsqueeze(0);
        Ok([all(&slots.keys)?, all(&slots.values)?])
    }
}
