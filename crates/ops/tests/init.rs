//! Initial values: fixed by their seed, with the moments and bounds that they promise.

use candle_core::{Device, Result};
use layerwise_ops::init;

#[test]
fn values_are_fixed_by_the_seed() -> Result<()> {
    let draw = |seed| init::trunc_normal(&mut init::rng(seed), 1000, 0.02, &Device::Cpu)?.to_vec1::<f32>();
    assert_eq!(draw(1)?, draw(1)?);
    assert_ne!(draw(1)?, draw(2)?);
    Ok(())
}

#[test]
fn a_deviation_is_finite_and_not_negative() -> Result<()> {
    let mut rng = init::rng(1);
    for std in [-0.02, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for draw in [init::trunc_normal, init::normal] {
            let error = draw(&mut rng, 3, std, &Device::Cpu).expect_err("a bad deviation");
            assert!(error.to_string().contains(&format!("{std}")), "{error}");
        }
    }
    for draw in [init::trunc_normal, init::normal] {
        assert_eq!(draw(&mut rng, 3, 0., &Device::Cpu)?.to_vec1::<f32>()?, [0.; 3]);
    }
    Ok(())
}

#[test]
fn moments_and_bounds() -> Result<()> {
    let mut rng = init::rng(5);
    let xs = init::trunc_normal(&mut rng, 100_000, 0.02, &Device::Cpu)?.to_vec1::<f32>()?;
    assert!(xs.iter().all(|x| x.abs() <= 0.04));
    let n = xs.len() as f64;
    let mean = xs.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let std = (xs.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    // A normal cut at two deviations has 0.8796 of its deviation.
    assert!(mean.abs() < 4. * 0.02 / n.sqrt() && (std / 0.02 - 0.8796).abs() < 0.01, "{mean} {std}");
    let bound = (6f32 / (30. + 20.)).sqrt();
    let xs = init::xavier_uniform(&mut rng, (20, 30), &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    assert!(xs.iter().all(|x| x.abs() <= bound) && xs.iter().any(|x| x.abs() > 0.95 * bound));
    assert!(init::xavier_uniform(&mut rng, 3, &Device::Cpu).is_err());
    Ok(())
}
