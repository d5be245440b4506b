//! 200 training steps follow PyTorch's, from equal weights through equal batches.
//!
//! `fixtures/vit_curve.py` wrote the oracle. Its own f32 and f64 curves differ by 2e-6; leaving out the weight decay of
//! the patch projection moves the curve by 2e-3, leaving out all weight decay by 7e-3, so 1e-3 tells them apart.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise::{
    models::{Batch, Pass, Vit, VitConfig, tap},
    ops::init,
};

type Done = Result<(), Box<dyn std::error::Error>>;

const TOLERANCE: f64 = 1e-3;

#[test]
fn training_follows_pytorch() -> Done {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_curve");
    let data: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("curve.safetensors"), &Cpu)?;
    let vit = {
        let config = VitConfig {
            image_size: 8,
            patch_size: 2,
            num_channels: 1,
            hidden_size: 24,
            num_hidden_layers: 4,
            num_attention_heads: 3,
            intermediate_size: 48,
            num_labels: 10,
            ..Default::default()
        };
        let vit = Vit::new(config, &mut init::rng(0), &Cpu)?;
        let w = candle_core::safetensors::load(folder.join("model.safetensors"), &Cpu)?;
        for (n, v) in vit.params().iter() {
            v.set(&w[n])?;
        }
        vit
    };
    let images = ((data["images"].to_dtype(DType::F32)? / 8.)? - 1.)?;
    let labels = &data["labels"];
    let want = data["losses"].to_vec1::<f32>()?;

    let linear: Vec<f64> = (1..=4).map(|l| 2. * l as f64 / 20.).collect();
    let mut moments: Vec<(candle_core::Var, candle_core::Var)> = Vec::new();
    for (_, v) in vit.params().iter() {
        moments.push((
            candle_core::Var::zeros(v.shape(), DType::F32, &Cpu)?,
            candle_core::Var::zeros(v.shape(), DType::F32, &Cpu)?,
        ));
    }
    let mut worst: f64 = 0.;
    for (step, &want) in want.iter().enumerate() {
        let rows = data["batches"].get(step)?;
        let batch = Batch::from(images.index_select(&rows, 0)?);
        let labels = labels.index_select(&rows, 0)?;
        let logits = tap::layer_logits(&vit, &batch, Pass::EVAL)?;
        let ce = |l: usize| candle_nn::loss::cross_entropy(&logits[l], &labels);
        let loss = if step % 2 == 0 {
            ce(3)?
        } else {
            let mut s = (ce(0)? * linear[0])?;
            for l in 1..4 {
                s = (s + (ce(l)? * linear[l])?)?;
            }
            s
        };
        let got = f64::from(loss.to_scalar::<f32>()?);
        worst = worst.max((got - f64::from(want)).abs());
        let mut g = loss.backward()?;
        let grads: Vec<Tensor> = vit.params().iter().map(|(_, v)| g.remove(v).unwrap().detach()).collect();
        let norm = grads
            .iter()
            .map(|g| f64::from(g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()))
            .sum::<f64>()
            .sqrt();
        let scale = (1. / (norm + 1e-6)).min(1.);
        for (((n, v), g), (m1, m2)) in vit.params().iter().zip(grads).zip(&moments) {
            let g = (g * scale)?;
            let decay =
                v.dims().len() > 1 && !n.ends_with("cls_token") && !n.ends_with("position_embeddings");
            layerwise::ops::adamw_step(
                v,
                &g,
                m1,
                m2,
                layerwise::ops::AdamWStep {
                    lr: 1e-3,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: if decay { 0.05 } else { 0. },
                    step: step + 1,
                },
            )?;
        }
    }
    println!("worst {worst:e}");
    assert!(worst <= TOLERANCE, "{worst:e}");
    Ok(())
}
