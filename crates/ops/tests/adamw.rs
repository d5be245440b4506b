//! AdamW against PyTorch's numbers, and its kernel against the plain formula.

use candle_core::{DType, Device, Result, Tensor, Var};
use layerwise_ops::{AdamWStep, AdamWUpdate, adamw_step, adamw_steps, init};
use layerwise_testkit::assert_close;

/// Equivalent Python:
///
/// ```python
/// p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
/// opt = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.05)
/// for g in ([0.3, -1.0, 0.0], [0.1, 2.0, -0.5], [-0.2, 0.5, 1e-4]):
///     p.grad = torch.tensor(g, dtype=torch.float64); opt.step()
/// print(p)
/// ```
#[test]
fn three_steps_equal_pytorch() -> Result<()> {
    let want = Tensor::new(&WANT, &Device::Cpu)?;
    for dtype in [DType::F32, DType::F64] {
        let var = |xs: &[f64]| Var::from_tensor(&Tensor::new(xs, &Device::Cpu)?.to_dtype(dtype)?);
        let (p, m, v) = (var(&[1., -2., 0.5])?, var(&[0.; 3])?, var(&[0.; 3])?);
        for (i, g) in [[0.3, -1., 0.], [0.1, 2., -0.5], [-0.2, 0.5, 1e-4]].iter().enumerate() {
            let gradient = Tensor::new(g, &Device::Cpu)?.to_dtype(dtype)?;
            let config = AdamWStep {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-6,
                weight_decay: 0.05,
                step: i + 1,
                gradient_scale: 1.,
            };
            adamw_step(&p, &gradient, &m, &v, config)?;
        }
        assert_close(p.as_tensor(), &want, if dtype == DType::F32 { 1e-6 } else { 1e-12 })?;
    }
    Ok(())
}

#[test]
fn fast_and_plain_agree_on_many_parameters() -> Result<()> {
    let mut rng = init::rng(1);
    let mut random = |std| init::normal(&mut rng, 20_001, std, &Device::Cpu);
    let (p, m, v) = (random(1.)?, random(0.1)?, random(0.1)?.sqr()?);
    let gradient = random(1.)?;
    let config = AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 1e-2,
        step: 7,
        gradient_scale: 0.7,
    };
    let run = |dtype| -> Result<Tensor> {
        let var = |xs: &Tensor| Var::from_tensor(&xs.to_dtype(dtype)?);
        let (p, m, v) = (var(&p)?, var(&m)?, var(&v)?);
        adamw_step(&p, &gradient.to_dtype(dtype)?, &m, &v, config)?;
        Tensor::stack(&[p.as_tensor(), m.as_tensor(), v.as_tensor()], 0)
    };
    assert_close(&run(DType::F32)?, &run(DType::F64)?, 1e-6)
}

/// Before the first step there is no correction: it would divide by 0.
#[test]
fn step_0_is_an_error_and_changes_nothing() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let var = |x: f64| Var::from_tensor(&Tensor::new(&[x, x], &Device::Cpu)?.to_dtype(dtype)?);
        let (p, m, v) = (var(1.)?, var(0.)?, var(0.)?);
        let config = AdamWStep {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-6,
            weight_decay: 0.05,
            step: 0,
            gradient_scale: 1.,
        };
        let error = adamw_step(&p, &p.as_detached_tensor(), &m, &v, config).expect_err("step 0");
        assert!(error.to_string().contains("step is 0"), "{error}");
        for (var, want) in [(p, 1.), (m, 0.), (v, 0.)] {
            assert_eq!(var.to_dtype(DType::F64)?.to_vec1::<f64>()?, [want, want]);
        }
    }
    Ok(())
}

const WANT: [f64; 3] = [0.776485781333972, -1.9491177261580137, 0.6239219456714742];

/// Each of them is written while the others are read.
#[test]
fn tensors_that_share_memory_are_an_error() -> Result<()> {
    let var = || Var::zeros(3, DType::F32, &Device::Cpu);
    let (p, m, v, g) = (var()?, var()?, var()?, var()?);
    let config = AdamWStep {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-6,
        weight_decay: 0.,
        step: 1,
        gradient_scale: 1.,
    };
    let run = |gradient: &Var, m: &Var, v: &Var| adamw_step(&p, &gradient.as_detached_tensor(), m, v, config);
    for wrong in [run(&p, &m, &v), run(&m, &m, &v), run(&g, &m, &m), run(&g, &p, &v)] {
        assert!(wrong.unwrap_err().to_string().contains("share memory"));
    }
    run(&g, &m, &v)?;
    // Of several parameters gradients may be views of one memory; nothing that is updated may.
    let all = Tensor::new(&[[1f32, 1., 1.], [-1., -1., -1.]], &Device::Cpu)?;
    let (first, second) = ([var()?, var()?, var()?], [var()?, var()?, var()?]);
    let (up, down) = (all.get(0)?, all.get(1)?);
    let step = |first: &[Var; 3], second: &[Var; 3]| {
        let [[param, m, v], [other, of_m, of_v]] = [first, second].map(|vars| vars.each_ref());
        adamw_steps(&[
            AdamWUpdate { param, gradient: &up, m, v, rounded: None, by: config },
            AdamWUpdate { param: other, gradient: &down, m: of_m, v: of_v, rounded: None, by: config },
        ])
    };
    step(&first, &second)?;
    assert!(first[0].to_vec1::<f32>()?[0] < 0. && second[0].to_vec1::<f32>()?[2] > 0.);
    assert!(step(&first, &first).unwrap_err().to_string().contains("share memory"));
    let wide = || Var::zeros(3, DType::F64, &Device::Cpu);
    let (p, m) = (wide()?, wide()?);
    assert!(adamw_step(&p, &wide()?.as_detached_tensor(), &m, &m, config).is_err());
    Ok(())
}

/// `1 - 0.999` rounded to f32 only then: the first step has the size of the learning rate.
#[test]
fn the_first_step_is_the_learning_rate() -> Result<()> {
    let var = || Var::zeros(3, DType::F32, &Device::Cpu);
    let (p, m, v) = (var()?, var()?, var()?);
    let config = AdamWStep {
        lr: 1.,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.,
        step: 1,
        gradient_scale: 1.,
    };
    adamw_step(&p, &Tensor::ones(3, DType::F32, &Device::Cpu)?, &m, &v, config)?;
    assert!(p.to_vec1::<f32>()?.iter().all(|p| (p + 1.).abs() < 1e-6), "{p}");
    Ok(())
}
