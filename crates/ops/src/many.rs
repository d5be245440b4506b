//! Operations of any number of differentiable inputs; candle's own have three at most.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device::Cpu, Layout, Result, Shape, Tensor, bail,
};

use crate::backward::hand_over;

/// The backward pass of an operation whose result is there already.
pub(crate) trait Backward: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Gradients of the inputs, in the order in which [`record`] got them; `None` for those that need none.
    fn backward(&self, gradient: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// `values` as a tensor of which the gradients of `inputs` can be taken.
///
/// The first input that is on a graph is an argument of the operation as candle sees it. The others hang on a chain of
/// carriers: operations of no arithmetic, whose result is one zero, and which give candle the gradients that the
/// operation has left with them.
pub(crate) fn record(
    inputs: &[&Tensor],
    values: Vec<f32>,
    shape: &Shape,
    backward: impl Backward,
) -> Result<Tensor> {
    let tracked: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].track_op()).collect();
    let Some((&first, others)) = tracked.split_first() else {
        return Tensor::from_vec(values, shape, &Cpu);
    };
    let left = Arc::new(Mutex::new(Vec::new()));
    let mut carrier: Option<Tensor> = None;
    for pair in others.chunks(2) {
        let op = Carrier { inputs: pair.to_vec(), left: left.clone() };
        carrier = Some(match (pair, carrier) {
            (&[a], None) => inputs[a].apply_op1(op)?,
            (&[a], Some(next)) => inputs[a].apply_op2(&next, op)?,
            (&[a, b], None) => inputs[a].apply_op2(inputs[b], op)?,
            (&[a, b], Some(next)) => inputs[a].apply_op3(inputs[b], &next, op)?,
            _ => bail!("{}: a carrier of {} inputs", backward.name(), pair.len()),
        });
    }
    let result = Mutex::new(Some((CpuStorage::F32(values), shape.clone())));
    let node = Node { backward, first, left, result };
    match carrier {
        Some(carrier) => inputs[first].apply_op2(&carrier, node),
        None => inputs[first].apply_op1(node),
    }
}

/// Gradients that wait for their carriers.
type Left = Arc<Mutex<Vec<Option<Tensor>>>>;

struct Node<B> {
    backward: B,
    first: usize,
    left: Left,
    result: Mutex<Option<(CpuStorage, Shape)>>,
}

impl<B: Backward> Node<B> {
    fn result(&self) -> Result<(CpuStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: the result was taken before", self.backward.name()),
        }
    }

    fn gradients(&self, input: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut gradients = self.backward.backward(&gradient.contiguous()?)?;
        let own = gradients[self.first].take();
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        own.map_or(Ok(None), |own| hand_over(input, own))
    }
}

impl<B: Backward> CustomOp1 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, input: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.gradients(input, gradient)
    }
}

impl<B: Backward> CustomOp2 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        input: &Tensor,
        carrier: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.gradients(input, gradient)?, Some(carrier.detach())))
    }
}

/// Gives candle the gradients of one or two inputs, and passes on to the next carrier.
struct Carrier {
    inputs: Vec<usize>,
    left: Left,
}

impl Carrier {
    /// The gradient of input `i` of this carrier.
    fn gradient(&self, i: usize, input: &Tensor) -> Result<Option<Tensor>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        match left.get_mut(self.inputs[i]).and_then(Option::take) {
            Some(gradient) => hand_over(input, gradient),
            // candle wants a gradient of everything that is on the graph and no variable.
            None => Ok(Some(input.zeros_like()?)),
        }
    }

    fn result(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.]), Shape::from(())))
    }
}

impl CustomOp1 for Carrier {
    fn name(&self) -> &'static str {
        "carrier"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, input: &Tensor, _result: &Tensor, _gradient: &Tensor) -> Result<Option<Tensor>> {
        self.gradient(0, input)
    }
}

impl CustomOp2 for Carrier {
    fn name(&self) -> &'static str {
        "carrier"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        input: &Tensor,
        second: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let second = match self.inputs.len() {
            1 => Some(gradient.clone()),
            _ => self.gradient(1, second)?,
        };
        Ok((self.gradient(0, input)?, second))
    }
}

impl CustomOp3 for Carrier {
    fn name(&self) -> &'static str {
        "carrier"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        input: &Tensor,
        second: &Tensor,
        _next: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((self.gradient(0, input)?, self.gradient(1, second)?, Some(gradient.clone())))
    }
}
