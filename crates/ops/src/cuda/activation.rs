use candle_core::{Result, Tensor};

use super::{
    columns::column_sums,
    launch::{Fresh, Input, NULL, Number, by_type, elements, launch, named, room},
    record::{Backward, record},
};
use crate::Activation;

/// The activation of `xs` plus a bias `(width)`, if there is one, in one pass.
pub(crate) fn activation(of: Activation, xs: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let result = by_type!(xs.dtype(), kernel(name(of), &xs, bias.as_ref(), None))?;
    let inputs: Vec<&Tensor> = [&xs].into_iter().chain(&bias).collect();
    record(&inputs, result, Activated(of))
}

/// `xs` plus a bias `(width)`, both contiguous.
pub(super) fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Fresh> {
    by_type!(xs.dtype(), kernel("identity", xs, Some(bias), None))
}

/// The kernel; that of its gradient has `_dx` behind it.
fn name(of: Activation) -> &'static str {
    match of {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    }
}

fn kernel<T: Number>(
    name: &str,
    xs: &Tensor,
    bias: Option<&Tensor>,
    gradient: Option<&Tensor>,
) -> Result<Fresh> {
    let input = Input::of(xs)?;
    let (device, x, count) = (input.device()?, input.view::<T>()?, xs.elem_count());
    let (of_count, width) = (count as u64, bias.map_or(1, Tensor::elem_count) as i32);
    let bias = bias.map(Input::of).transpose()?;
    let bias = bias.as_ref().map(Input::view::<T>).transpose()?;
    let gradient = gradient.map(Input::of).transpose()?;
    let gradient = gradient.as_ref().map(Input::view::<T>).transpose()?;
    let mut to = room::<T>(&device, count)?;
    launch!(device, ACTIVATION, named::<T>(name), elements(count)?, arguments => {
        arguments.arg(&x);
        match &bias {
            Some(bias) => arguments.arg(bias),
            None => arguments.arg(&NULL),
        };
        if let Some(gradient) = &gradient {
            arguments.arg(gradient);
        }
        arguments.arg(&mut to).arg(&of_count).arg(&width)
    });
    Ok(Fresh::new(to, &device, xs.shape()))
}

struct Activated(Activation);

impl Backward for Activated {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (xs, bias) = (inputs[0], inputs.get(1).copied());
        let name = format!("{}_dx", name(self.0));
        let dx = by_type!(xs.dtype(), kernel(&name, xs, bias, Some(gradient)))?.tensor();
        let db = bias.map(|bias| column_sums(&dx, bias.elem_count())?.to_dtype(xs.dtype())).transpose()?;
        Ok([Some(dx)].into_iter().chain(bias.map(|_| db)).collect())
    }
}
