use std::{cell::RefCell, collections::HashMap};

use candle_core::{Result, Tensor, TensorId, backprop::GradStore};

thread_local! {
    /// Gradients of variables on their way past candle's store, while [`backward`] runs on this thread.
    static COLLECTED: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// `loss.backward()`, without candle's detour for the gradients of variables.
///
/// For every gradient that an operation gives, candle allocates zeros and adds: two passes over memory that are as large as
/// the model. Operations of this crate that are called from here hand the gradients of variables over as they are. The
/// result is that of `loss.backward()`, which works as well.
///
/// # Errors
///
/// When an operation has no backward pass.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor, Var};
/// use layerwise_ops::{backward, linear};
///
/// let weight = Var::new(&[[2f32, 3.]], &Cpu)?;
/// let loss = linear(&Tensor::new(&[[5f32, 7.]], &Cpu)?, &weight, None)?.sum_all()?;
/// assert_eq!(backward(&loss)?.get(&weight).unwrap().to_vec2::<f32>()?, [[5., 7.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let outer = Restore(COLLECTED.replace(Some(HashMap::new())));
    let mut gradients = loss.backward()?;
    let collected = COLLECTED.take().unwrap_or_default();
    drop(outer);
    #[allow(clippy::iter_over_hash_type, reason = "each gradient goes to a place of its own")]
    for (id, gradient) in collected {
        let gradient = match gradients.get_id(id) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        gradients.insert_id(id, gradient);
    }
    Ok(gradients)
}

/// Puts back what was collected before, whatever happens in between.
struct Restore(Option<HashMap<TensorId, Tensor>>);

impl Drop for Restore {
    fn drop(&mut self) {
        COLLECTED.set(self.0.take());
    }
}

/// What an operation returns to candle as the gradient of `input`: nothing if [`backward`] has taken it.
pub(crate) fn hand_over(input: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    if !input.is_variable() {
        return Ok(Some(gradient));
    }
    COLLECTED.with_borrow_mut(|collected| {
        let Some(collected) = collected else { return Ok(Some(gradient)) };
        let sum = match collected.remove(&input.id()) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        collected.insert(input.id(), sum);
        Ok(None)
    })
}
