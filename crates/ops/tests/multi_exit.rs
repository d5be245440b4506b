//! Cross-entropies of many exits under one head: the plain form against finite differences, the chunked one against it.

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use layerwise_ops::{ExitSummary, MultiExit, backward, multi_exit_linear_cross_entropy, plain};
use layerwise_testkit::{assert_close, check_gradients, random};

const IGNORED: u32 = u32::MAX;

/// Exits, rows, width and classes of a head with or without a bias, and what is asked of it.
struct Case {
    sizes: [usize; 4],
    bias: bool,
    row_weights: bool,
    /// Every so manieth row is ignored.
    ignored: usize,
    config: MultiExit,
}

fn cases() -> Vec<Case> {
    let sizes =
        [[1, 1, 1, 1], [1, 1, 5, 7], [3, 7, 4, 2], [2, 5, 33, 211], [4, 37, 48, 101], [12, 3, 16, 1031]];
    let mut cases = Vec::new();
    for (i, sizes) in sizes.into_iter().enumerate() {
        for (j, chunk) in [1, 5, 512].into_iter().enumerate() {
            let exit_weights = (0..sizes[0])
                .map(|exit| if sizes[0] > 1 && (exit + j) % 3 == 1 { 0. } else { 0.3 + exit as f64 })
                .collect();
            cases.push(Case {
                sizes,
                bias: (i + j) % 2 == 0,
                row_weights: j == 1,
                ignored: if sizes[1] > 2 { 3 } else { usize::MAX },
                config: MultiExit {
                    exit_weights,
                    ignore_index: Some(IGNORED),
                    label_smoothing: if j == 2 { 0.1 } else { 0. },
                    chunk,
                },
            });
        }
    }
    cases
}

impl Case {
    /// Features, weight and perhaps bias.
    fn inputs(&self) -> Vec<Tensor> {
        let [exits, rows, width, classes] = self.sizes;
        let mut inputs: Vec<Tensor> = (0..exits).map(|exit| random(exit as u64, &[rows, width])).collect();
        inputs.push(random(50, &[classes, width]));
        if self.bias {
            inputs.push(random(51, &[classes]));
        }
        inputs
    }

    fn targets(&self) -> Result<Tensor> {
        let [_, rows, _, classes] = self.sizes;
        let target = |row: usize| if row % self.ignored == 1 { IGNORED } else { (row * 7 % classes) as u32 };
        Tensor::from_iter((0..rows).map(target), &Cpu)
    }

    fn weights(&self) -> Result<Option<Tensor>> {
        let weight = |row: usize| if row % 4 == 3 { 0. } else { 0.5 + row as f32 / 3. };
        self.row_weights.then(|| Tensor::from_iter((0..self.sizes[1]).map(weight), &Cpu)).transpose()
    }

    fn fast(&self, inputs: &[Tensor]) -> Result<layerwise_ops::MultiExitLoss> {
        let (features, head) = inputs.split_at(self.sizes[0]);
        let (targets, weights) = (self.targets()?, self.weights()?);
        let bias = head.get(1);
        multi_exit_linear_cross_entropy(features, &head[0], bias, &targets, weights.as_ref(), &self.config)
    }

    fn plain(&self, inputs: &[Tensor]) -> Result<layerwise_ops::MultiExitLoss> {
        let (features, head) = inputs.split_at(self.sizes[0]);
        let (targets, weights) = (self.targets()?, self.weights()?);
        let (bias, weights) = (head.get(1), weights.as_ref());
        plain::multi_exit_linear_cross_entropy(features, &head[0], bias, &targets, weights, &self.config)
    }
}

fn vars(inputs: &[Tensor], dtype: DType) -> Result<(Vec<Var>, Vec<Tensor>)> {
    let vars: Vec<Var> =
        inputs.iter().map(|xs| Var::from_tensor(&xs.to_dtype(dtype)?)).collect::<Result<_>>()?;
    let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
    Ok((vars, tensors))
}

fn fields(summary: &ExitSummary) -> [f64; 5] {
    let ExitSummary { cross_entropy, accuracy, max_probability, margin, entropy } = *summary;
    [cross_entropy, accuracy, max_probability, margin, entropy]
}

#[test]
fn the_plain_form_is_differentiated_rightly() -> Result<()> {
    for mut case in cases().into_iter().filter(|case| case.sizes[3] <= 7) {
        // An exit of weight 0 has no gradient there.
        case.config.exit_weights.iter_mut().for_each(|weight| *weight = weight.max(0.2));
        check_gradients(&case.inputs(), 1e-6, |x| Ok(case.plain(x)?.total))?;
    }
    Ok(())
}

#[test]
fn chunks_agree_with_the_plain_form() -> Result<()> {
    for case in cases() {
        let (exact, exact_inputs) = vars(&case.inputs(), DType::F64)?;
        let want = case.plain(&exact_inputs)?;
        let want_gradients = want.total.backward()?;
        let (fast, inputs) = vars(&case.inputs(), DType::F32)?;
        let got = case.fast(&inputs)?;
        let label = format!("{:?}, chunks of {}", case.sizes, case.config.chunk);
        assert_close(&got.total, &want.total, 1e-5)?;
        for (got, want) in got.exits.iter().zip(&want.exits) {
            for (got, want) in fields(got).into_iter().zip(fields(want)) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.), "{label}: {got} and {want}");
            }
        }
        // candle's way back and ours, and twice the sum.
        let twice = (&got.total * 2.)?.backward()?;
        for (gradients, factor) in [(got.total.backward()?, 1.), (backward(&got.total)?, 1.), (twice, 2.)] {
            for (i, (fast, exact)) in fast.iter().zip(&exact).enumerate() {
                let got = gradients.get(fast).unwrap_or_else(|| panic!("{label}: no gradient of input {i}"));
                let zeros = exact.zeros_like()?;
                let want = (want_gradients.get(exact).unwrap_or(&zeros) * factor)?;
                assert_close(got, &want, 1e-5)
                    .map_err(|error| candle_core::Error::Msg(format!("{label}: {error}")))?;
            }
        }
    }
    Ok(())
}

/// Only what is on a graph has a gradient, and without one there is a loss all the same.
#[test]
fn gradients_only_where_they_are_wanted() -> Result<()> {
    let case = &cases()[12];
    let inputs = case.inputs();
    let alone = case.fast(&inputs)?;
    assert!(!alone.total.track_op());
    let all = vars(&inputs, DType::F32)?;
    let whole = case.fast(&all.1)?.total.backward()?;
    for wanted in 0..inputs.len() {
        let var = Var::from_tensor(&inputs[wanted])?;
        let mut mixed = inputs.clone();
        mixed[wanted] = var.as_tensor().clone();
        let loss = case.fast(&mixed)?;
        assert_eq!(loss.exits, alone.exits);
        let (got, want) = (loss.total.backward()?, whole.get(&all.0[wanted]).expect("a gradient"));
        assert_close(got.get(&var).expect("a gradient"), want, 1e-6)?;
    }
    Ok(())
}

#[test]
fn sixteen_bits_are_widened() -> Result<()> {
    for case in cases() {
        for dtype in [DType::BF16, DType::F16] {
            let rounded: Vec<Tensor> =
                case.inputs().iter().map(|xs| xs.to_dtype(dtype)).collect::<Result<_>>()?;
            let want =
                case.plain(&rounded.iter().map(|xs| xs.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?)?;
            let (half, inputs) = vars(&rounded, dtype)?;
            let got = case.fast(&inputs)?;
            assert_close(&got.total, &want.total, 1e-5)?;
            let gradients = got.total.backward()?;
            assert!(
                half.iter().all(|var| gradients.get(var).is_some_and(|gradient| gradient.dtype() == dtype))
            );
        }
    }
    Ok(())
}

#[test]
fn rows_that_count_nothing() -> Result<()> {
    let config =
        |chunk| MultiExit { exit_weights: vec![1., 2.], ignore_index: Some(9), chunk, ..Default::default() };
    let nan = Tensor::new(&[[f32::NAN, 1.], [0.5, -1.]], &Cpu)?;
    let weight = Var::new(&[[1f32, 2.], [3., 4.], [-1., 0.5]], &Cpu)?;
    let features = [nan, random(1, &[2, 2])];
    // The row of a NaN is ignored, or weighs nothing.
    for (targets, weights) in [([9u32, 2], None), ([0, 2], Some(Tensor::new(&[0f32, 1.], &Cpu)?))] {
        let targets = Tensor::new(&targets, &Cpu)?;
        for chunk in [1, 512] {
            let loss = multi_exit_linear_cross_entropy(
                &features,
                &weight,
                None,
                &targets,
                weights.as_ref(),
                &config(chunk),
            )?;
            let gradients = loss.total.backward()?;
            let values = gradients.get(&weight).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            assert!(loss.total.to_scalar::<f32>()?.is_finite() && values.iter().all(|x| x.is_finite()));
        }
    }
    // A NaN that counts is told.
    let targets = Tensor::new(&[0u32, 2], &Cpu)?;
    let loss = multi_exit_linear_cross_entropy(&features, &weight, None, &targets, None, &config(512))?;
    assert!(loss.total.to_scalar::<f32>()?.is_nan() && loss.exits[0].cross_entropy.is_nan());
    assert!(loss.exits[1].cross_entropy.is_finite());
    // An exit of weight 0 is summed up only, whatever it is.
    for chunk in [1, 512] {
        let idle = MultiExit { exit_weights: vec![0., 1.], chunk, ..Default::default() };
        let loss = multi_exit_linear_cross_entropy(&features, &weight, None, &targets, None, &idle)?;
        let gradients = loss.total.backward()?;
        let values = gradients.get(&weight).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        assert!(loss.exits[0].cross_entropy.is_nan() && values.iter().all(|x| x.is_finite()), "{values:?}");
    }
    // No rows at all.
    let none = [random(1, &[0, 2]), random(1, &[0, 2])];
    let targets = Tensor::new(&[] as &[u32], &Cpu)?;
    let loss = multi_exit_linear_cross_entropy(&none, &weight, None, &targets, None, &config(512))?;
    assert!(loss.total.to_scalar::<f32>()?.is_nan() && loss.exits[1].accuracy.is_nan());
    // A mean over nothing is NaN, and nothing is to be learned from it.
    let nothing = Tensor::new(&[9u32, 9], &Cpu)?;
    let loss = multi_exit_linear_cross_entropy(&features, &weight, None, &nothing, None, &config(512))?;
    assert!(loss.total.to_scalar::<f32>()?.is_nan() && loss.exits[1].entropy.is_nan());
    let gradients = loss.total.backward()?;
    assert_eq!(gradients.get(&weight).expect("a gradient").abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
    Ok(())
}

/// Logits far apart, equal ones, and a class that is ruled out by its bias.
#[test]
fn extremes() -> Result<()> {
    let features = [Tensor::new(&[[1e4f32, 0.], [0., 0.], [-1e4, 1.]], &Cpu)?];
    let weight = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 0.]], &Cpu)?;
    let bias = Tensor::new(&[0f32, f32::NEG_INFINITY, 0.], &Cpu)?;
    let config = MultiExit { exit_weights: vec![1.], ..Default::default() };
    let targets = Tensor::new(&[0u32, 2, 2], &Cpu)?;
    let of = |bias: Option<&Tensor>| {
        multi_exit_linear_cross_entropy(&features, &weight, bias, &targets, None, &config)
    };
    let ruled_out = of(Some(&bias))?;
    // Each row has two equal logits: ln 2, no margin, and the first of them is the answer.
    let [cross_entropy, accuracy, max_probability, margin, entropy] = fields(&ruled_out.exits[0]);
    let ln_2 = 2f64.ln();
    assert!((cross_entropy - ln_2).abs() < 1e-6 && (entropy - ln_2).abs() < 1e-6);
    assert!((accuracy - 1. / 3.).abs() < 1e-12 && (max_probability - 0.5).abs() < 1e-7 && margin == 0.);
    // In the last row the word of the first class is 1e4 below.
    let without = of(None)?;
    assert!((without.exits[0].cross_entropy - (ln_2 + 3f64.ln() + 1e4 + 1.) / 3.).abs() < 1e-2);
    Ok(())
}

#[test]
fn what_does_not_fit_is_said() -> Result<()> {
    let features = [random(1, &[3, 4]), random(2, &[3, 4])];
    let (weight, bias) = (random(3, &[5, 4]), random(4, &[5]));
    let targets = Tensor::new(&[0u32, 4, 2], &Cpu)?;
    let good = MultiExit { exit_weights: vec![1., 1.], ..Default::default() };
    let says = |features: &[Tensor], bias: &Tensor, targets: &Tensor, config: &MultiExit, words: &str| {
        let error = multi_exit_linear_cross_entropy(features, &weight, Some(bias), targets, None, config);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("multi_exit_linear_cross_entropy") && text.contains(words), "{text}");
    };
    says(&features, &random(1, &[4]), &targets, &good, "bias Some([4])");
    says(&[random(1, &[3, 4]), random(1, &[2, 4])], &bias, &targets, &good, "[[3, 4], [2, 4]]");
    says(
        &features,
        &bias,
        &Tensor::new(&[0u32, 5, 2], &Cpu)?,
        &good,
        "row 1 has label 5, there are 5 classes",
    );
    says(&features, &bias, &Tensor::new(&[0u32, 5], &Cpu)?, &good, "targets [2]");
    let changed = |change: fn(&mut MultiExit)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    says(&features, &bias, &targets, &changed(|config| config.exit_weights = vec![1.]), "2 exits, 1 weights");
    says(&[], &bias, &targets, &changed(|config| config.exit_weights = Vec::new()), "0 exits");
    says(&features, &bias, &targets, &changed(|config| config.exit_weights[1] = f64::NAN), "NaN");
    says(&features, &bias, &targets, &changed(|config| config.label_smoothing = 1.), "label smoothing is 1");
    says(&features, &bias, &targets, &changed(|config| config.chunk = 0), "chunk is 0");
    for bad in [f32::NAN, f32::INFINITY, -1.] {
        let rows = Tensor::new(&[1., 0., bad], &Cpu)?;
        let error =
            multi_exit_linear_cross_entropy(&features, &weight, Some(&bias), &targets, Some(&rows), &good);
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&format!("row 2 weighs {bad}")), "{text}");
    }
    Ok(())
}
