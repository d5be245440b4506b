use candle_core::{DType, Device, Result, Tensor, bail};

/// The next tokens of a text.
#[derive(Debug)]
pub struct Next<'a> {
    /// What the tokens before have left, and these leave.
    pub cache: &'a mut KvCache,
    /// Place of the first of them in the text, from 0.
    pub from: usize,
    /// How many they are.
    pub count: usize,
}

/// Keys and values of one text's tokens in every block: what was read need not be read again.
///
/// Blocks may be behind one another: tokens that have left early have not been through the later ones, and go through them, in their order and without gaps, before a later one
/// does.
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
    /// Of a text of which nothing was read, and which has `longest` tokens at most; `width` of keys and values.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn new(depth: usize, width: usize, longest: usize, device: &Device) -> Result<Self> {
        let slots = |_| -> Result<Slots> {
            let empty = || Tensor::zeros((ROOM.min(longest), width), DType::F32, device);
            Ok(Slots { keys: empty()?, values: empty()?, len: 0 })
        };
        Ok(Self { blocks: (0..depth).map(slots).collect::<Result<_>>()?, longest })
    }

    /// Tokens that have been through block `layer`, from 1; 0 where there is no such block.
    #[must_use]
    pub fn len(&self, layer: usize) -> usize {
        self.blocks.get(layer.wrapping_sub(1)).map_or(0, |slots| slots.len)
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

    /// Whether block `layer` may be given `count` tokens from place `from` on. To be asked of all texts before any is [pushed](Self::push).
    ///
    /// # Errors
    ///
    /// When there is no such block, it has not had exactly the tokens before, or the text becomes too long.
    pub fn check(&self, layer: usize, from: usize, count: usize) -> Result<()> {
        let (len, longest, depth) = (self.len(layer), self.longest, self.blocks.len());
        if layer == 0 || layer > depth {
            bail!("block {layer}: a cache of {depth} blocks")
        }
        if from != len {
            bail!(
                "block {layer}: tokens from place {from} on, expected {len}: those before have been there, and no others"
            )
        }
        if count > longest - len {
            bail!("a text of {} tokens, the model has positions for {longest}", len.saturating_add(count))
        }
        Ok(())
    }

    /// Adds keys and values, f32 and `(tokens, width)`, to those of block `layer`, and returns all, `(1, all tokens, width)`; views that the next call may change.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check); when shapes do not fit.
    pub fn push(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<[Tensor; 2]> {
        if keys.dims() != values.dims() {
            bail!("block {layer}: keys {:?}, values {:?}", keys.dims(), values.dims())
        }
        self.check(layer, self.len(layer), keys.dim(0)?)?;
        let (longest, slots) = (self.longest, &mut self.blocks[layer - 1]);
        let len = slots.len + keys.dim(0)?;
        let room = slots.keys.dim(0)?;
        if len > room {
            let more = (len.max(2 * room)).min(longest) - room;
            for kept in [&mut slots.keys, &mut slots.values] {
                let empty = Tensor::zeros((more, kept.dim(1)?), kept.dtype(), kept.device())?;
                *kept = Tensor::cat(&[&*kept, &empty], 0)?;
            }
        }
        for (kept, new) in [(&mut slots.keys, keys), (&mut slots.values, values)] {
            // Empty as it is, it knows nothing of the model's type of number.
            if slots.len == 0 && kept.dtype() != new.dtype() {
                *kept = kept.to_dtype(new.dtype())?;
            }
            kept.slice_set(&new.contiguous()?, 0, slots.len)?;
        }
        slots.len = len;
        let all = |kept: &Tensor| kept.narrow(0, 0, len)?.unsqueeze(0);
        Ok([all(&slots.keys)?, all(&slots.values)?])
    }
}
