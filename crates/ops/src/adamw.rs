use candle_core::{Result, Tensor, Var};

/// Constants of one [`adamw_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; 0 for parameters that are not decayed.
    pub weight_decay: f64,
    /// Number of this step, from 1 (bias correction).
    pub step: usize,
}

/// One AdamW step in place, as PyTorch's: `p -= lr wd p; m, v updated; p -= lr m' / (sqrt(v') + eps)`.
///
/// `param`, `m` and `v` are updated; all four have one shape.
///
/// # Errors
///
/// When shapes differ.
pub fn adamw_step(param: &Var, grad: &Tensor, m: &Var, v: &Var, config: AdamWStep) -> Result<()> {
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step } = config;
    let grad = grad.detach();
    let m1 = ((m.as_detached_tensor() * beta1)? + (&grad * (1. - beta1))?)?;
    let v1 = ((v.as_detached_tensor() * beta2)? + (grad.sqr()? * (1. - beta2))?)?;
    let m_hat = (&m1 / (1. - beta1.powi(step as i32)))?;
    let v_hat = (&v1 / (1. - beta2.powi(step as i32)))?;
    let decayed = (param.as_detached_tensor() * (1. - lr * weight_decay))?;
    let next = (decayed - ((m_hat / (v_hat.sqrt()? + eps)?)? * lr)?)?;
    m.set(&m1)?;
    v.set(&v1)?;
    param.set(&next)
}
