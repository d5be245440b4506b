//! The operations on a GPU against the same on the CPU, forward and backward. Skipped where there is no GPU, with its reason.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor, Var, backprop::GradStore};
use layerwise_ops::{
    AdamWStep, Attention, CrossEntropy, Dropout, MultiExit, adamw_step, attention, backward, cross_entropy,
    dropout, gelu, gelu_tanh, layer_norm, linear, multi_exit_linear_cross_entropy, softmax,
};
use layerwise_testkit::{random, skipped};

fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            skipped(error.to_string().lines().next().unwrap_or("no GPU"));
            None
        }
    }
}

/// Inputs of a type, as that type rounds them, on a device.
fn vars(inputs: &[Tensor], dtype: DType, device: &Device) -> Result<Vec<Var>> {
    inputs.iter().map(|xs| Var::from_tensor(&xs.to_dtype(dtype)?.to_device(device)?)).collect()
}

fn off(got: &Tensor, want: &Tensor) -> Result<f32> {
    let values =
        |xs: &Tensor| xs.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (got, want) = (values(got)?, values(want)?);
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    // A NaN is no difference that any comparison would find.
    let one =
        |(got, want): (&f32, &f32)| if got.is_nan() { f32::INFINITY } else { (got - want).abs() / scale };
    Ok(got.iter().zip(&want).map(one).fold(0., f32::max))
}

/// Values and all gradients agree with the CPU's in f32 on the same numbers, as well as the type can say.
fn agree(inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor>) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 3e-2), (DType::F16, 4e-3)] {
        let rounded: Vec<Tensor> =
            inputs.iter().map(|xs| xs.to_dtype(dtype)?.to_dtype(DType::F32)).collect::<Result<_>>()?;
        let of = |inputs: &[Var]| -> Result<(Tensor, GradStore)> {
            let y = f(inputs)?;
            let g = random(99, y.dims()).to_device(y.device())?;
            let gradients = backward(&(y.to_dtype(DType::F32)? * g)?.sum_all()?)?;
            Ok((y, gradients))
        };
        let (there, here) = (vars(&rounded, dtype, &gpu)?, vars(&rounded, DType::F32, &Device::Cpu)?);
        let ((got, got_gradients), (want, want_gradients)) = (of(&there)?, of(&here)?);
        assert_eq!(got.dtype(), dtype);
        let error = off(&got, &want)?;
        assert!(error < tolerance, "{dtype:?}: values are off by {error}");
        for (i, (there, here)) in there.iter().zip(&here).enumerate() {
            let gradient = |of: &GradStore, xs: &Var| of.get(xs).cloned().expect("a gradient");
            let error = off(&gradient(&got_gradients, there), &gradient(&want_gradients, here))?;
            assert!(error < tolerance, "{dtype:?}: gradient {i} is off by {error}");
        }
    }
    Ok(())
}

#[test]
fn norms_maps_and_activations() -> Result<()> {
    for (rows, width) in [(1, 2), (7, 33), (130, 384), (1000, 65)] {
        let x = random(1, &[rows, width]);
        let (w, b) = (random(2, &[width]), random(3, &[width]));
        agree(&[x.clone(), w, b], |x| layer_norm(&x[0], &x[1], &x[2], 1e-5))?;
        for f in [softmax, gelu, gelu_tanh] {
            agree(std::slice::from_ref(&x), |x| f(&x[0]))?;
        }
        let keep = Dropout { p: 0.25, seed: 5 };
        agree(std::slice::from_ref(&x), |x| dropout(&x[0], keep))?;
        let (w, b) = (random(4, &[50, width]), random(5, &[50]));
        agree(&[x.clone(), w.clone(), b], |x| linear(&x[0], &x[1], Some(&x[2])))?;
        agree(&[x, w], |x| linear(&x[0], &x[1], None))?;
    }
    Ok(())
}

#[test]
fn attention_of_all_kinds() -> Result<()> {
    let mask = Tensor::new(&[[1u8, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]], &Device::Cpu)?;
    for (queries, causal, masked, dropped) in
        [(7, false, false, false), (7, true, true, false), (3, true, false, true), (7, false, true, true)]
    {
        let config = Attention {
            causal,
            key_mask: masked.then_some(&mask),
            dropout: dropped.then_some(Dropout { p: 0.3, seed: 8 }),
            ..Attention::full(3)
        };
        let inputs = [random(1, &[2, queries, 24]), random(2, &[2, 7, 24]), random(3, &[2, 7, 24])];
        agree(&inputs, |x| attention(&x[0], &x[1], &x[2], &config))?;
    }
    Ok(())
}

#[test]
fn losses() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let targets = Tensor::new(&[3u32, 0, 9, 2, 40], &Device::Cpu)?;
    for smoothing in [0., 0.1] {
        let config = CrossEntropy { label_smoothing: smoothing, ignore_index: Some(9), ..Default::default() };
        agree(&[random(1, &[5, 41])], |x| {
            let loss = cross_entropy(&x[0], &targets.to_device(x[0].device())?, None, &config)?;
            loss.to_dtype(x[0].dtype())
        })?;
        let config = MultiExit {
            exit_weights: vec![0.25, 0., 0.75],
            ignore_index: Some(9),
            label_smoothing: smoothing,
            chunk: 2,
        };
        let inputs: Vec<Tensor> =
            (0..3).map(|i| random(i, &[5, 16])).chain([random(7, &[41, 16]), random(8, &[41])]).collect();
        let loss = |x: &[Var]| {
            let features: Vec<Tensor> = x[..3].iter().map(|xs| xs.as_tensor().clone()).collect();
            let targets = targets.to_device(x[0].device())?;
            multi_exit_linear_cross_entropy(&features, &x[3], Some(&x[4]), &targets, None, &config)
        };
        agree(&inputs, |x| loss(x)?.total.to_dtype(x[0].dtype()))?;
        let (there, here) =
            (loss(&vars(&inputs, DType::F32, &gpu)?)?, loss(&vars(&inputs, DType::F32, &Device::Cpu)?)?);
        for (there, here) in there.exits.iter().zip(&here.exits) {
            let all = |of: &layerwise_ops::ExitSummary| {
                [of.cross_entropy, of.accuracy, of.max_probability, of.margin, of.entropy]
            };
            assert!(
                all(there).iter().zip(all(here)).all(|(a, b)| (a - b).abs() < 1e-5),
                "{there:?} for {here:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn steps_of_adamw() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let config = AdamWStep {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
        gradient_scale: 0.5,
    };
    for count in [1, 77, 9000] {
        let inputs = [random(1, &[count]), random(2, &[count]), random(3, &[count]).abs()?];
        let gradient = random(4, &[count]);
        let (there, here) = (vars(&inputs, DType::F32, &gpu)?, vars(&inputs, DType::F32, &Device::Cpu)?);
        adamw_step(&there[0], &gradient.to_device(&gpu)?, &there[1], &there[2], config)?;
        adamw_step(&here[0], &gradient, &here[1], &here[2], config)?;
        for (there, here) in there.iter().zip(&here) {
            assert!(off(there, here)? < 1e-6);
        }
    }
    Ok(())
}
