//! What is read token by token is what is read at once; what is said is what Python's transformers says.

mod common;

use candle_core::{Device::Cpu, Tensor};
use common::{Result, tiny_gpt2};
use layerwise_models::{Batch, Decoder, Gpt2, Gpt2Config, KvCache, Next, Pass, Tapped, tap};
use layerwise_testkit::assert_close;
use rand::Rng;

/// Runs all blocks on the next tokens of some texts; states after each, `h^0` first.
fn next(gpt2: &Gpt2, texts: &[(&[u32], usize)], caches: &mut [KvCache]) -> Result<Vec<Tensor>> {
    let mut states = vec![gpt2.embed_next(texts)?];
    for layer in 1..=gpt2.depth() {
        let part =
            |(cache, (ids, from)): (_, &(&[u32], usize))| Next { cache, from: *from, count: ids.len() };
        let mut parts: Vec<Next<'_>> = caches.iter_mut().zip(texts).map(part).collect();
        states.push(gpt2.block_next(layer, &states[layer - 1], &mut parts)?);
    }
    Ok(states)
}

fn long() -> Gpt2Config {
    Gpt2Config { n_positions: 160, ..tiny_gpt2() }
}

fn words(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = layerwise_ops::init::rng(seed);
    (0..count).map(|_| rng.random_range(0..31)).collect()
}

#[test]
fn pieces_of_any_length_are_the_whole() -> Result {
    let model = common::gpt2(long())?;
    let mut rng = layerwise_ops::init::rng(7);
    for gpt2 in [model.clone(), model.frozen(), model.packed()?] {
        // More than there is room for at first.
        let ids = words(1, 150);
        let whole = Batch::from(Tensor::new(ids.as_slice(), &Cpu)?.unsqueeze(0)?);
        let whole = tap::hidden_states(&gpt2, &whole, Pass::EVAL)?;
        let mut cache = [gpt2.cache()?];
        let mut at = 0;
        while at < ids.len() {
            let count = rng.random_range(1..=20).min(ids.len() - at);
            for (state, whole) in next(&gpt2, &[(&ids[at..at + count], at)], &mut cache)?.iter().zip(&whole) {
                assert!(!state.track_op());
                assert_close(state, &whole.xs.squeeze(0)?.narrow(0, at, count)?, 1e-5)?;
            }
            at += count;
            assert_eq!(cache[0].len(2), at);
        }
    }
    Ok(())
}

#[test]
fn texts_of_different_lengths_go_on_together() -> Result {
    let gpt2 = common::gpt2(long())?.packed()?;
    let texts = [words(1, 40), words(2, 75), words(3, 9)];
    let mut caches = [gpt2.cache()?, gpt2.cache()?, gpt2.cache()?];
    let mut alone = [gpt2.cache()?, gpt2.cache()?, gpt2.cache()?];
    for (from, counts) in [([0, 0, 0], [30, 1, 5]), ([30, 1, 5], [1, 70, 1]), ([31, 71, 6], [9, 4, 3])] {
        let of = |i: usize| (&texts[i][from[i]..from[i] + counts[i]], from[i]);
        let together = next(&gpt2, &[of(0), of(1), of(2)], &mut caches)?;
        let mut first = 0;
        for i in 0..3 {
            for (alone, together) in next(&gpt2, &[of(i)], &mut alone[i..=i])?.iter().zip(&together) {
                assert_close(alone, &together.narrow(0, first, counts[i])?, 1e-5)?;
            }
            first += counts[i];
        }
    }
    Ok(())
}

/// Drafts that are refused leave no trace, and tokens that left early go through the other blocks later, in one piece.
#[test]
fn blocks_may_be_behind_one_another() -> Result {
    let gpt2 = common::gpt2(long())?.frozen();
    let (ids, other) = (words(1, 30), words(9, 30));
    let whole = Batch::from(Tensor::new(ids.as_slice(), &Cpu)?.unsqueeze(0)?);
    let whole = tap::hidden_states(&gpt2, &whole, Pass::EVAL)?;
    let mut cache = gpt2.cache()?;
    let mut waiting = Vec::new();
    for at in 0..20 {
        let state = gpt2.embed_next(&[(&ids[at..=at], at)])?;
        waiting.push(gpt2.block_next(1, &state, &mut [Next { cache: &mut cache, from: at, count: 1 }])?);
    }
    assert_eq!((cache.len(1), cache.len(2)), (20, 0));
    let state = gpt2.block_next(
        2,
        &Tensor::cat(&waiting, 0)?,
        &mut [Next { cache: &mut cache, from: 0, count: 20 }],
    )?;
    assert_close(&state, &whole[2].xs.squeeze(0)?.narrow(0, 0, 20)?, 1e-5)?;
    let state = gpt2.block_next(3, &state, &mut [Next { cache: &mut cache, from: 0, count: 20 }])?;
    assert_close(&state, &whole[3].xs.squeeze(0)?.narrow(0, 0, 20)?, 1e-5)?;

    let mut caches = [cache];
    next(&gpt2, &[(&other[20..], 20)], &mut caches)?;
    caches[0].truncate(20);
    let state = next(&gpt2, &[(&ids[20..], 20)], &mut caches)?;
    assert_close(&state[3], &whole[3].xs.squeeze(0)?.narrow(0, 20, 10)?, 1e-5)?;
    Ok(())
}

#[test]
fn greedy_words_are_transformers() -> Result {
    let folder = common::fixtures().join("gpt2_greedy");
    let expected = common::read_tensors(&folder.join("expected.safetensors"))?;
    let model = Gpt2::load(&folder, &Cpu)?;
    for gpt2 in [model.frozen(), model.packed()?] {
        for i in 0..3 {
            let prompt = expected[&format!("prompt_{i}")].to_vec1::<u32>()?;
            let (mut ids, mut caches) = (prompt.clone(), [gpt2.cache()?]);
            let mut new = prompt.len();
            for _ in 0..200 {
                let from = ids.len() - new;
                let states = next(&gpt2, &[(&ids[from..], from)], &mut caches)?;
                let last = states[3].narrow(0, new - 1, 1)?;
                let logits = gpt2.exit(3, &last, Pass::EVAL)?;
                ids.push(logits.argmax(1)?.to_vec1::<u32>()?[0]);
                new = 1;
            }
            assert_eq!(ids[prompt.len()..], expected[&format!("said_{i}")].to_vec1::<u32>()?);
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_said() -> Result {
    let gpt2 = common::gpt2(tiny_gpt2())?.frozen();
    let embed = |texts: &[(&[u32], usize)]| gpt2.embed_next(texts).unwrap_err().to_string();
    assert!(embed(&[]).contains("no text"));
    assert!(embed(&[(&[], 0)]).contains("0 tokens from place 0, expected at least one, before place 9"));
    assert!(embed(&[(&[1; 3], 7)]).contains("3 tokens from place 7"));
    assert!(embed(&[(&[31], 0)]).contains("the id 31, expected ids below 31"));
    let (mut cache, state) = (gpt2.cache()?, gpt2.embed_next(&[(&[1, 2, 3], 0)])?);
    let mut block = |layer, from, count| {
        gpt2.block_next(layer, &state, &mut [Next { cache: &mut cache, from, count }])
            .map_err(|e| e.to_string())
    };
    assert!(block(1, 0, 2).unwrap_err().contains("3 states for [2] new tokens"));
    assert!(block(4, 0, 3).unwrap_err().contains('4'));
    for from in [0, 3, 6] {
        block(1, from, 3)?;
    }
    assert!(block(1, 9, 3).unwrap_err().contains("12 tokens, the model has positions for 9"));
    // A gap, and tokens that were read before.
    block(2, 0, 3)?;
    for from in [6, 0] {
        let text = block(2, from, 3).unwrap_err();
        assert!(text.contains(&format!("from place {from} on, expected 3")), "{text}");
    }
    // One text too long: the other one's cache is as it was.
    let (mut short, mut long) = (gpt2.cache()?, gpt2.cache()?);
    gpt2.block_next(
        1,
        &gpt2.embed_next(&[(&[1; 8], 0)])?,
        &mut [Next { cache: &mut long, from: 0, count: 8 }],
    )?;
    let mut both =
        [Next { cache: &mut short, from: 0, count: 1 }, Next { cache: &mut long, from: 8, count: 2 }];
    assert!(gpt2.block_next(1, &state, &mut both).is_err());
    assert_eq!((short.len(1), long.len(1), long.len(0), long.len(9)), (0, 8, 0, 0));
    // Another model's cache.
    let mut cut = gpt2.cut(2)?.cache()?;
    let text = gpt2.block_next(3, &state, &mut [Next { cache: &mut cut, from: 0, count: 3 }]);
    assert!(text.unwrap_err().to_string().contains("a cache of 2 blocks"));
    // Keys without values, more than there is room for, and those of another width, of a model of one's own.
    let mut own = KvCache::new(2, 8, 4, &Cpu)?;
    let rows = |count, width| Tensor::zeros((count, width), candle_core::DType::F32, &Cpu);
    let text = own.push(1, &rows(2, 8)?, &rows(1, 8)?).unwrap_err().to_string();
    assert!(text.contains("keys [2, 8], values [1, 8]"), "{text}");
    assert!(own.push(1, &rows(5, 8)?, &rows(5, 8)?).unwrap_err().to_string().contains("positions for 4"));
    assert!(
        own.push(1, &rows(1, 6)?, &rows(1, 6)?).is_err() && own.push(3, &rows(1, 8)?, &rows(1, 8)?).is_err()
    );
    assert_eq!(own.len(1), 0);
    let [keys, values] = own.push(1, &rows(3, 8)?, &rows(3, 8)?)?;
    assert_eq!((keys.dims(), values.dims(), own.len(1)), (&[1, 3, 8][..], &[1, 3, 8][..], 3));
    Ok(())
}
