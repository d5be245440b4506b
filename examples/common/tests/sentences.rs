//! Texts as points, against sentence-transformers (`fixtures/sentences.py`).

use candle_core::Device::Cpu;
use layerwise_example_common::sentences::Sentences;
use layerwise_testkit::from_env;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    cosines: Vec<Vec<f32>>,
}

#[test]
fn cosines_are_those_of_sentence_transformers() -> anyhow::Result<()> {
    let Some(weights) = from_env("LAYERWISE_WEIGHTS") else { return Ok(()) };
    let Expected { texts, cosines } = serde_json::from_str(include_str!("fixtures/sentences.json"))?;
    let points = Sentences::open(&weights.join("minilm6"), &Cpu)?.embed(&texts)?;
    let got = points.matmul(&points.t()?)?.to_vec2::<f32>()?;
    assert_eq!(got.len(), texts.len());
    for (got, want) in got.iter().flatten().zip(cosines.iter().flatten()) {
        assert!((got - want).abs() < 1e-5, "{got} for {want}");
    }
    Ok(())
}
