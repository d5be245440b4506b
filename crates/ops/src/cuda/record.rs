//! Results of kernels as nodes of candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

use super::launch::Fresh;
use crate::backward::hand_over;

/// The backward pass of an operation whose result is there already.
pub(super) trait Backward: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Gradients of the inputs; `None` for those that need none.
    fn backward(&self, inputs: &[&Tensor], result: &Tensor, gradient: &Tensor)
    -> Result<Vec<Option<Tensor>>>;
}

/// A result, fresh from a kernel, as one of which the gradients of its inputs, at most three, can be taken.
pub(super) fn record(inputs: &[&Tensor], result: Fresh, backward: impl Backward) -> Result<Tensor> {
    let node = Node { backward, result: Mutex::new(Some(result)) };
    match inputs {
        [a] => a.apply_op1(node),
        [a, b] => a.apply_op2(b, node),
        [a, b, c] => a.apply_op3(b, c, node),
        _ => bail!("{}: {} inputs", node.backward.name(), inputs.len()),
    }
}

struct Node<B> {
    backward: B,
    result: Mutex<Option<Fresh>>,
}

impl<B: Backward> Node<B> {
    fn elsewhere<T>(&self) -> Result<T> {
        bail!("{}: a result of CUDA on the CPU", self.backward.name())
    }

    fn result(&self) -> Result<(CudaStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Fresh { storage, shape }) => Ok((storage, shape)),
            None => bail!("{}: the result was taken before", self.backward.name()),
        }
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let gradients = self.backward.backward(&inputs, result, &gradient.contiguous()?)?;
        let mut all = [const { None }; N];
        for ((to, input), gradient) in all.iter_mut().zip(inputs).zip(gradients) {
            if let Some(gradient) = gradient {
                *to = hand_over(input, result, gradient)?;
            }
        }
        Ok(all)
    }
}

impl<B: Backward> CustomOp1 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients([a], result, gradient)?;
        Ok(a)
    }
}

impl<B: Backward> CustomOp2 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients([a, b], result, gradient)?;
        Ok((a, b))
    }
}

impl<B: Backward> CustomOp3 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
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
        self.elsewhere()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients([a, b, c], result, gradient)?;
        Ok((a, b, c))
    }
}
