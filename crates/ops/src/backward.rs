use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use candle_core::{Result, Tensor, TensorId, backprop::GradStore};

thread_local! {
    /// What [`backward`] collects while it runs on this thread.
    static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

/// Gradients of variables on their way past candle's store.
struct Collected {
    /// The graph that is walked: while it waits in rayon, this thread may walk another one for somebody else.
    nodes: HashSet<TensorId>,
    gradients: HashMap<TensorId, Tensor>,
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
    let nodes = loss.sorted_nodes().into_iter().map(Tensor::id).collect();
    let outer = Restore(COLLECTED.replace(Some(Collected { nodes, gradients: HashMap::new() })));
    let mut gradients = loss.backward()?;
    let collected = COLLECTED.take().map(|collected| collected.gradients).unwrap_or_default();
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
struct Restore(Option<Collected>);

impl Drop for Restore {
    fn drop(&mut self) {
        COLLECTED.set(self.0.take());
    }
}

/// What the operation that has given `result` returns to candle as the gradient of `input`: nothing if [`backward`] has taken it.
pub(crate) fn hand_over(input: &Tensor, result: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    if !input.is_variable() {
        return Ok(Some(gradient));
    }
    COLLECTED.with_borrow_mut(|collected| {
        let Some(Collected { gradients, .. }) =
            collected.as_mut().filter(|collected| collected.nodes.contains(&result.id()))
        else {
            return Ok(Some(gradient));
        };
        let sum = match gradients.remove(&input.id()) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        gradients.insert(input.id(), sum);
        Ok(None)
    })
}
