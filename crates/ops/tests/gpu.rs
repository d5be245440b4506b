//! The operations on a GPU against the same on the CPU, forward and backward. Skipped where there is no GPU, with its reason.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor, Var, backprop::GradStore};
use layerwise_ops::{
    AdamWStep, AdamWUpdate, Attention, CrossEntropy, Dropout, MultiExit, Reduction, adamw_steps, attention,
    backward, certainty, cross_entropy, dropout, embedding, gelu, gelu_tanh, keep_memory, layer_norm, linear,
    multi_exit_linear_cross_entropy, read_back, select_rows, softmax, sum_of_squares,
};
use layerwise_testkit::{random, skipped};

fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => {
            keep_memory(&device).expect("a GPU of our own");
            Some(device)
        }
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
fn agree(gpu: &Device, inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor>) -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 3e-2), (DType::F16, 4e-3)] {
        let rounded: Vec<Tensor> =
            inputs.iter().map(|xs| xs.to_dtype(dtype)?.to_dtype(DType::F32)).collect::<Result<_>>()?;
        let of = |inputs: &[Var]| -> Result<(Tensor, GradStore)> {
            let y = f(inputs)?;
            let g = random(99, y.dims()).to_device(y.device())?;
            let gradients = backward(&(y.to_dtype(DType::F32)? * g)?.sum_all()?)?;
            Ok((y, gradients))
        };
        let (there, here) = (vars(&rounded, dtype, gpu)?, vars(&rounded, DType::F32, &Device::Cpu)?);
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
    let Some(gpu) = gpu() else { return Ok(()) };
    for (rows, width) in [(1, 3), (7, 33), (130, 384), (1000, 65)] {
        let x = random(1, &[rows, width]);
        let (w, b) = (random(2, &[width]), random(3, &[width]));
        agree(&gpu, &[x.clone(), w, b], |x| layer_norm(&x[0], &x[1], &x[2], 1e-5))?;
        for f in [softmax, gelu, gelu_tanh] {
            agree(&gpu, std::slice::from_ref(&x), |x| f(&x[0]))?;
        }
        let keep = Dropout { p: 0.25, seed: 5 };
        agree(&gpu, std::slice::from_ref(&x), |x| dropout(&x[0], keep))?;
        let (w, b) = (random(4, &[50, width]), random(5, &[50]));
        agree(&gpu, &[x.clone(), w.clone(), b], |x| linear(&x[0], &x[1], Some(&x[2])))?;
        agree(&gpu, &[x, w], |x| linear(&x[0], &x[1], None))?;
    }
    Ok(())
}

#[test]
fn attention_of_all_kinds() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
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
        agree(&gpu, &inputs, |x| attention(&x[0], &x[1], &x[2], &config))?;
    }
    Ok(())
}

#[test]
fn losses() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let targets = Tensor::new(&[3u32, 0, 9, 2, 40], &Device::Cpu)?;
    for smoothing in [0., 0.1] {
        let config = CrossEntropy { label_smoothing: smoothing, ignore_index: Some(9), ..Default::default() };
        agree(&gpu, &[random(1, &[5, 41])], |x| {
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
        agree(&gpu, &inputs, |x| loss(x)?.total.to_dtype(x[0].dtype()))?;
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
fn attention_in_parts() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    // More scores than are in memory at a time: a part for each sample.
    let tokens = 6000;
    let mask = Tensor::from_iter((0..2 * tokens).map(|i| u8::from(i % 7 != 3)), &Device::Cpu)?;
    let mask = mask.reshape((2, tokens))?;
    let config = Attention { key_mask: Some(&mask), ..Attention::full(2) };
    let inputs = [1, 2, 3].map(|seed| random(seed, &[2, tokens, 8]));
    agree(&gpu, &inputs, |x| attention(&x[0], &x[1], &x[2], &config))
}

#[test]
fn rows_of_tables() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let ids = Tensor::new(&[[3u32, 0, 3], [8, 3, 1]], &Device::Cpu)?;
    for width in [1, 33, 1000] {
        let table = random(1, &[9, width]);
        agree(&gpu, std::slice::from_ref(&table), |x| embedding(&ids.to_device(x[0].device())?, &x[0]))?;
        let rows = Tensor::new(&[8u32, 0, 8, 9], &gpu)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let table = table.to_dtype(dtype)?;
            let xs = table.unsqueeze(1)?.to_device(&gpu)?;
            let got = select_rows(&xs, &rows)?.squeeze(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let want = table.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            assert_eq!((&got[0], &got[1], &got[2]), (&want[8], &want[0], &want[8]));
            assert!(got[3].iter().all(|x| x.is_nan()), "there is no row 9");
        }
    }
    let error = embedding(&Tensor::new(&[0u32, 9], &gpu)?, &random(1, &[9, 4]).to_device(&gpu)?);
    assert!(error.is_err_and(|error| error.to_string().contains("position 1")));
    Ok(())
}

#[test]
fn losses_of_rows_that_count_differently() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let targets = Tensor::new(&[3u32, 0, 9, 2], &Device::Cpu)?;
    let weights = Tensor::new(&[0.5f32, 0., 1., 2.], &Device::Cpu)?;
    let logits = random(1, &[4, 41]);
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        let config = CrossEntropy { ignore_index: Some(9), reduction, ..Default::default() };
        agree(&gpu, std::slice::from_ref(&logits), |x| {
            let to = |xs: &Tensor| xs.to_device(x[0].device());
            cross_entropy(&x[0], &to(&targets)?, Some(&to(&weights)?), &config)?.to_dtype(x[0].dtype())
        })?;
    }
    // What counts nothing may be anything; targets may be elsewhere.
    let bad = Tensor::cat(&[logits.narrow(0, 0, 1)?, (logits.narrow(0, 1, 1)? * f64::NAN)?], 0)?;
    let of = |xs: &Tensor| -> Result<(f32, Vec<f32>)> {
        let xs = Var::from_tensor(xs)?;
        let loss = cross_entropy(
            &xs,
            &targets.narrow(0, 0, 2)?,
            Some(&weights.narrow(0, 0, 2)?),
            &CrossEntropy::default(),
        )?;
        let gradients = backward(&loss)?;
        let gradient = gradients.get(&xs).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        Ok((loss.to_scalar()?, gradient))
    };
    let ((got, of_got), (want, of_want)) = (of(&bad.to_device(&gpu)?)?, of(&bad)?);
    assert!((got - want).abs() < 1e-5, "{got} for {want}");
    assert!(of_got.iter().zip(&of_want).all(|(a, b)| (a - b).abs() < 1e-6));

    // All rows, without a bias, weighed, and with nothing to learn at the features or at the head.
    let all = Tensor::new(&[3u32, 0, 7, 2], &Device::Cpu)?;
    let config = MultiExit { exit_weights: vec![0.3, 0.7], chunk: 3, ..Default::default() };
    let inputs = [random(1, &[4, 16]), random(2, &[4, 16]), random(3, &[41, 16])];
    for weighed in [false, true] {
        for fixed in [None, Some(0), Some(2)] {
            let learning: Vec<Tensor> =
                (0..3).filter(|i| Some(*i) != fixed).map(|i| inputs[i].clone()).collect();
            agree(&gpu, &learning, |x| {
                let to = |xs: &Tensor| xs.to_device(x[0].device());
                let mut left = x.iter();
                let mut of = |i: usize| match Some(i) == fixed {
                    true => to(&inputs[i])?.to_dtype(x[0].dtype()),
                    false => Ok(left.next().expect("as many").as_tensor().clone()),
                };
                let (features, weight) = ([of(0)?, of(1)?], of(2)?);
                let weights = to(&weights)?;
                let weights = weighed.then_some(&weights);
                let loss =
                    multi_exit_linear_cross_entropy(&features, &weight, None, &to(&all)?, weights, &config)?;
                loss.total.to_dtype(x[0].dtype())
            })?;
        }
    }
    Ok(())
}

#[test]
fn how_sure_rows_are() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for classes in [1, 10, 5000] {
        let logits = (random(1, &[6, classes]) * 3.)?;
        // Ties, and a row that is not finite.
        let odd = [Tensor::ones((1, classes), DType::F32, &Device::Cpu)?, (logits.narrow(0, 0, 1)? / 0.)?];
        let logits = Tensor::cat(&[&logits, &odd[0], &odd[1]], 0)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let logits = logits.to_dtype(dtype)?;
            let got = certainty(&logits.to_device(&gpu)?)?.to_vec2::<f32>()?;
            let want = certainty(&logits)?.to_vec2::<f32>()?;
            for (row, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(row == 7 || got[0] == want[0], "row {row} answers {} for {}", got[0], want[0]);
                for (got, want) in got[1..].iter().zip(&want[1..]) {
                    let alike =
                        (got.is_nan() && want.is_nan()) || (got - want).abs() < 1e-5 * want.abs().max(1.);
                    assert!(alike, "{dtype:?}, row {row}: {got} for {want}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn numbers_come_back_while_more_is_computed() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let large = random(2, &[2048, 2048]).to_device(&gpu)?;
    // Other numbers each time: memory is used again.
    for turn in 0..4 {
        let all = random(10 + turn, &[4000]);
        let xs = all.to_device(&gpu)?;
        let mut on_the_way = Vec::new();
        for count in [1, 4000, 17] {
            // Work that comes before the numbers, so that they are late.
            let mut y = large.clone();
            for _ in 0..20 {
                y = (y.matmul(&large)? * 1e-3)?;
            }
            let nothing = (y.sum_all()? * 0.)?;
            let xs = xs.narrow(0, 0, count)?.broadcast_add(&nothing)?;
            on_the_way.push((count, read_back(&xs)?));
        }
        for (count, numbers) in on_the_way {
            assert_eq!(numbers.wait()?, all.narrow(0, 0, count)?.to_vec1::<f32>()?, "turn {turn}");
        }
    }
    Ok(())
}

#[test]
fn steps_of_adamw() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let by = |step: usize| AdamWStep {
        lr: 0.01 * step as f64,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.5,
    };
    let types = [DType::F32, DType::BF16, DType::F16];
    // Parameters, moments, gradients, and copies in 16 bits: of several sizes and types in one launch.
    let mut sizes = Vec::new();
    for (i, count) in [1, 77, 9000, 4096, 5].into_iter().enumerate() {
        let seed = 10 * i as u64;
        let state = [random(seed, &[count]), random(seed + 1, &[count]), random(seed + 2, &[count]).abs()?];
        let gradient = random(seed + 3, &[count]).to_dtype(types[i % 3])?;
        sizes.push((state, gradient, (i % 3 > 0).then_some(types[i % 3])));
    }
    let run = |device: &Device| -> Result<Vec<Tensor>> {
        let mut all = Vec::new();
        for (state, gradient, copy) in &sizes {
            let copy = copy
                .map(|dtype| Var::from_tensor(&state[0].zeros_like()?.to_dtype(dtype)?.to_device(device)?));
            all.push((vars(state, DType::F32, device)?, gradient.to_device(device)?, copy.transpose()?));
        }
        let updates: Vec<AdamWUpdate<'_>> = (all.iter().enumerate())
            .map(|(i, (state, gradient, rounded))| AdamWUpdate {
                param: &state[0],
                gradient,
                m: &state[1],
                v: &state[2],
                rounded: rounded.as_ref(),
                by: by(i + 1),
            })
            .collect();
        adamw_steps(&updates)?;
        let tensors = all.iter().flat_map(|(state, _, rounded)| state.iter().chain(rounded));
        Ok(tensors.map(|var| var.as_detached_tensor()).collect())
    };
    for (got, want) in run(&gpu)?.iter().zip(&run(&Device::Cpu)?) {
        let tolerance = if want.dtype() == DType::F32 { 1e-6 } else { 8e-3 };
        assert!(off(got, want)? < tolerance);
    }
    let gradients: Vec<Tensor> = sizes.iter().map(|(_, gradient, _)| gradient.clone()).collect();
    let there: Vec<Tensor> = gradients.iter().map(|xs| xs.to_device(&gpu)).collect::<Result<_>>()?;
    let (got, want) = (sum_of_squares(&there)?, sum_of_squares(&gradients)?);
    assert!((got - want).abs() < 1e-6 * want, "{got} for {want}");
    Ok(())
}
