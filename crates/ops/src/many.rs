//! Operations of any number of differentiable inputs; candle's own have three at most.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

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
/// operation has left with them. The gradient of that zero is a ticket, the number of the walk back through the graph: there
/// may be several at a time.
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
    let left = Left::default();
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
    let node = Node { backward, first, others: others.len(), left, walks: AtomicU32::new(0), result };
    match carrier {
        Some(carrier) => inputs[first].apply_op2(&carrier, node),
        None => inputs[first].apply_op1(node),
    }
}

/// Gradients that wait for their carriers, and how many they are, by ticket.
type Left = Arc<Mutex<HashMap<u32, (usize, Vec<Option<Tensor>>)>>>;

/// Tickets travel as f32, which holds integers up to this.
const TICKETS: u32 = 1 << 24;

struct Node<B> {
    backward: B,
    first: usize,
    /// Inputs that hang on carriers.
    others: usize,
    left: Left,
    walks: AtomicU32,
    result: Mutex<Option<(CpuStorage, Shape)>>,
}

impl<B: Backward> Node<B> {
    fn result(&self) -> Result<(CpuStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: the result was taken before", self.backward.name()),
        }
    }

    /// The gradient of the first input, and the ticket for the others.
    fn gradients(
        &self,
        input: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let mut gradients = self.backward.backward(&gradient.contiguous()?)?;
        let own = match gradients[self.first].take() {
            Some(own) => hand_over(input, result, own)?,
            None => bail!("{}: no gradient of input {}", self.backward.name(), self.first),
        };
        let ticket = self.walks.fetch_add(1, Ordering::Relaxed) % TICKETS;
        if self.others > 0 {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.insert(ticket, (self.others, gradients));
        }
        Ok((own, Tensor::new(ticket as f32, &Cpu)?))
    }
}

impl<B: Backward> CustomOp1 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, input: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(input, result, gradient)?.0)
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
        _carrier: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (own, ticket) = self.gradients(input, result, gradient)?;
        Ok((own, Some(ticket)))
    }
}

/// Gives candle the gradients of one or two inputs, and passes on to the next carrier.
struct Carrier {
    inputs: Vec<usize>,
    left: Left,
}

impl Carrier {
    /// The gradient of input `i` of this carrier.
    fn gradient(&self, i: usize, input: &Tensor, result: &Tensor, ticket: &Tensor) -> Result<Option<Tensor>> {
        let ticket = ticket.to_scalar::<f32>()? as u32;
        let gradient = {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((waiting, gradients)) = left.get_mut(&ticket) else { bail!("carrier: nothing is left") };
            let gradient = gradients.get_mut(self.inputs[i]).and_then(Option::take);
            *waiting -= 1;
            if *waiting == 0 {
                left.remove(&ticket);
            }
            gradient
        };
        match gradient {
            Some(gradient) => hand_over(input, result, gradient),
            None => bail!("carrier: no gradient of input {}", self.inputs[i]),
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

    fn bwd(&self, input: &Tensor, result: &Tensor, ticket: &Tensor) -> Result<Option<Tensor>> {
        self.gradient(0, input, result, ticket)
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
        result: &Tensor,
        ticket: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let second = match self.inputs.len() {
            1 => Some(ticket.clone()),
            _ => self.gradient(1, second, result, ticket)?,
        };
        Ok((self.gradient(0, input, result, ticket)?, second))
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
        result: &Tensor,
        ticket: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let first = self.gradient(0, input, result, ticket)?;
        Ok((first, self.gradient(1, second, result, ticket)?, Some(ticket.clone())))
    }
}
