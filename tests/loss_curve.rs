//! 200 training steps follow PyTorch's, from equal weights through equal batches.
//!
//! `fixtures/vit_curve.py` wrote the oracle. Its own f32 and f64 curves differ by 2e-6; leaving out the weight decay of
//! the patch projection moves the curve by 2e-3, leaving out all weight decay by 7e-3, so 1e-3 tells them apart.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise::{
    models::{Batch, Pass, Tapped, Vit},
    ops::backward,
    train::{
        AdamW, AdamWConfig, Moment, Objective, StepScale, clip_factor, global_norm, loss, take_gradients,
    },
};

const TOLERANCE: f64 = 1e-3;

#[test]
fn training_follows_pytorch() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_curve");
    let data: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("curve.safetensors"), &Cpu)?;
    let images = ((data["images"].to_dtype(DType::F32)? / 8.)? - 1.)?;
    let vit = Vit::load(&folder, &Cpu)?;
    let objective = Objective::default();
    let config = AdamWConfig { lr: 1e-3, weight_decay: 0.05, ..Default::default() };
    let mut optimiser = AdamW::new(vit.params(), config)?;
    let mut worst: f64 = 0.;
    for (step, want) in data["losses"].to_vec1::<f32>()?.into_iter().enumerate() {
        let rows = data["batches"].get(step)?;
        let batch = Batch::from(images.index_select(&rows, 0)?);
        let labels = data["labels"].index_select(&rows, 0)?;
        let terms = objective.turn(vit.depth(), Moment { step, micro_batch: step, ..Default::default() })?;
        let total = loss(&vit, &batch, &labels, &terms, 0., Pass::EVAL)?.total;
        worst = worst.max(f64::from((total.to_scalar::<f32>()? - want).abs()));
        let gradients = take_gradients(backward(&total)?, vit.params());
        let gradient = clip_factor(global_norm(&gradients)?, 1.);
        optimiser.step(vit.params(), &gradients, StepScale { gradient, ..Default::default() })?;
    }
    assert!(worst <= TOLERANCE, "the curves differ by {worst:e}");
    Ok(())
}
