//! Wrong shapes and labels end in an error that says what was wrong.

use candle_core::{DType, Device, Result, Tensor};
use layerwise_ops::{
    Attention, CrossEntropy, Dropout, attention, cross_entropy, dropout, embedding, layer_norm, linear,
};

fn zeros(dims: &[usize]) -> Tensor {
    Tensor::zeros(dims, DType::F32, &Device::Cpu).expect("zeros")
}

fn message(result: Result<Tensor>) -> String {
    let text = result.expect_err("wrong input").to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn shapes_that_do_not_fit() {
    assert!(message(linear(&zeros(&[2, 3]), &zeros(&[4, 5]), None)).contains("[2, 3]"));
    assert!(message(linear(&zeros(&[2, 5]), &zeros(&[4, 5]), Some(&zeros(&[3])))).contains("[3]"));
    assert!(message(layer_norm(&zeros(&[2, 3]), &zeros(&[4]), &zeros(&[4]), 1e-5)).contains("[4]"));
    let xs = zeros(&[2, 3, 4]);
    assert!(message(attention(&xs, &xs, &xs, &Attention::full(3))).contains("3 heads"));
    assert!(message(attention(&xs, &xs, &xs, &Attention::full(0))).contains("0 heads"));
    let mask = zeros(&[2, 2]);
    let config = Attention { key_mask: Some(&mask), ..Attention::full(2) };
    assert!(message(attention(&xs, &xs, &xs, &config)).contains("[2, 3]"));
}

#[test]
fn labels_and_ids_out_of_range() -> Result<()> {
    let targets = Tensor::new(&[0u32, 5], &Device::Cpu)?;
    let text = message(cross_entropy(&zeros(&[2, 3]), &targets, None, &CrossEntropy::default()));
    assert!(text.contains("row 1") && text.contains('5') && text.contains("3 classes"), "{text}");
    let text = message(embedding(&targets, &zeros(&[5, 2])));
    assert!(text.contains("id 5") && text.contains("position 1"), "{text}");
    Ok(())
}

#[test]
fn probabilities_out_of_range() {
    for p in [-0.1, 1., f32::NAN] {
        assert!(dropout(&zeros(&[3]), Dropout { p, seed: 0 }).is_err());
    }
}

#[test]
fn empty_tensors_stay_empty() -> Result<()> {
    assert_eq!(linear(&zeros(&[0, 3]), &zeros(&[4, 3]), Some(&zeros(&[4])))?.dims(), [0, 4]);
    assert_eq!(layer_norm(&zeros(&[0, 3]), &zeros(&[3]), &zeros(&[3]), 1e-5)?.dims(), [0, 3]);
    Ok(())
}
