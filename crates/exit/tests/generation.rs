//! What is said token by token, in whatever way, is what the whole model says.

use std::{
    ops::ControlFlow,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{Device::Cpu, Tensor};
use layerwise_exit::{
    Check, Continuation, Decoding, Error, FixedDepth, Generation, GenerationConfig, GenerationCounts, Policy,
    Reads, Result, Sampling, Signal, Speculate, Thresholds, Verdict, generate,
};
use layerwise_models::{Batch, Gpt2, Gpt2Config, Pass, tap};
use layerwise_ops::init;
use proptest::prelude::*;
use rand::Rng;

const WORDS: usize = 31;
const DEPTH: usize = 4;
const LONGEST: usize = 40;

/// Weights so large that layers, and tokens, differ.
fn gpt2(seed: u64) -> Gpt2 {
    let config = Gpt2Config {
        vocab_size: WORDS,
        n_positions: LONGEST,
        n_embd: 12,
        n_layer: DEPTH,
        n_head: 3,
        initializer_range: 0.25,
        ..Default::default()
    };
    Gpt2::new(config, &mut init::rng(seed), &Cpu).and_then(|model| model.packed()).expect("a model")
}

fn prompts(seed: u64, count: usize) -> Vec<Vec<u32>> {
    let mut rng = init::rng(seed);
    let mut prompt = |_| {
        let length = rng.random_range(1..12);
        (0..length).map(|_| rng.random_range(0..WORDS as u32)).collect()
    };
    (0..count).map(&mut prompt).collect()
}

fn greedy(decoding: Decoding<'_>) -> GenerationConfig<'_> {
    GenerationConfig { max_new_tokens: 20, sampling: Sampling::GREEDY, decoding, ..Default::default() }
}

fn said(
    model: &Gpt2,
    prompts: &[Vec<u32>],
    config: GenerationConfig<'_>,
) -> Result<(Vec<Continuation>, GenerationCounts)> {
    generate(model, prompts, config, 7, |_| ControlFlow::Continue(()))
}

/// Logits of every exit for the token behind these, from a forward pass that keeps nothing.
fn whole(model: &Gpt2, ids: &[u32]) -> candle_core::Result<Vec<Vec<f32>>> {
    let batch = Batch::from(Tensor::new(ids, &Cpu)?.unsqueeze(0)?);
    let last = |logits: &Tensor| logits.get(ids.len() - 1)?.to_vec1::<f32>();
    tap::layer_logits(model, &batch, Pass::EVAL)?.iter().map(last).collect()
}

fn best(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as u32)
}

/// Leaves as dice fall, and remembers the logits that it saw go: text, layer, logits.
#[derive(Debug)]
struct Dice {
    seed: u64,
    rolls: AtomicU64,
    gone: Mutex<Vec<(u64, usize, Vec<f32>)>>,
}

impl Policy for Dice {
    fn validate(&self, _depth: usize) -> Result<()> {
        Ok(())
    }

    fn reads(&self, layer: usize, _depth: usize) -> Reads {
        // One layer is never looked at.
        if layer == 2 { Reads::Nothing } else { Reads::Logits }
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        let logits = check.logits.expect("logits").to_vec2::<f32>()?;
        let mut leaves = Vec::new();
        for (key, logits) in check.keys.iter().zip(logits) {
            let roll = self.rolls.fetch_add(1, Ordering::Relaxed);
            leaves.push(init::rng(self.seed ^ (roll << 20)).random::<f64>() < 0.5);
            if leaves.last() == Some(&true) {
                self.gone.lock().expect("no panic").push((*key, check.layer, logits));
            }
        }
        Ok(Verdict { leaves, memory: None })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Exact deferral: whoever leaves where, each token's logits are those of its exit in a whole forward pass.
    #[test]
    fn whatever_the_exits_logits_are_the_whole_models(seed: u64, texts in 1usize..5) {
        let model = gpt2(seed % 5);
        let prompts = prompts(seed, texts);
        let dice = Dice { seed, rolls: AtomicU64::new(0), gone: Mutex::new(Vec::new()) };
        let (said, counts) = said(&model, &prompts, greedy(Decoding::Leave { policy: &dice, words: None })).unwrap();
        prop_assert_eq!(counts.tokens, 20 * texts);
        let gone = dice.gone.into_inner().unwrap();
        let mut seen = vec![Vec::new(); texts];
        for (text, layer, logits) in gone {
            seen[text as usize].push((layer, logits));
        }
        for ((prompt, said), seen) in prompts.iter().zip(&said).zip(seen) {
            let mut ids = prompt.clone();
            let mut seen = seen.into_iter();
            for (&id, &layer) in said.ids.iter().zip(&said.layers) {
                let expected = &whole(&model, &ids).unwrap()[layer - 1];
                if layer < DEPTH {
                    let (left_at, logits) = seen.next().unwrap();
                    prop_assert_eq!(left_at, layer);
                    let off = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                    prop_assert!(off < 1e-4, "logits of layer {} are {} off", layer, off);
                }
                prop_assert_eq!(id, best(expected));
                ids.push(id);
            }
            prop_assert!(seen.next().is_none());
        }
    }

    /// Greedy drafts are taken back unless they are what the whole model says.
    #[test]
    fn greedy_drafts_change_nothing(seed: u64, texts in 1usize..6, layer in 1..DEPTH, drafts in 0usize..7, adaptive: bool, few: bool) {
        let model = gpt2(seed % 5);
        let prompts = prompts(seed, texts);
        let list: Vec<u32> = (0..WORDS as u32).step_by(2).collect();
        let words = few.then_some(list.as_slice());
        let how = Speculate { layer, drafts, adaptive, words };
        let (plain, before) = said(&model, &prompts, greedy(Decoding::Full)).unwrap();
        let (drafted, counts) = said(&model, &prompts, greedy(Decoding::Speculate(how))).unwrap();
        for (plain, drafted) in plain.iter().zip(&drafted) {
            prop_assert_eq!(&plain.ids, &drafted.ids);
        }
        prop_assert_eq!((counts.tokens, before.steps), (before.tokens, 20));
        prop_assert!(counts.steps <= before.steps && counts.accepted <= counts.drafted);
        prop_assert!(drafts > 0 || (counts.drafted, counts.acceptance()) == (0, None));
    }
}

/// A thousand prompts, and in the end drafts save steps.
#[test]
fn a_thousand_prompts_say_the_same_with_drafts() -> Result<()> {
    let (model, prompts) = (gpt2(1), prompts(99, 1000));
    let how = Speculate { layer: 3, drafts: 4, adaptive: false, words: None };
    let (plain, before) = said(&model, &prompts, greedy(Decoding::Full))?;
    let (drafted, counts) = said(&model, &prompts, greedy(Decoding::Speculate(how)))?;
    for (plain, drafted) in plain.iter().zip(&drafted) {
        assert_eq!(plain.ids, drafted.ids);
    }
    assert_eq!(counts.tokens, before.tokens);
    assert!(counts.accepted > 0 && counts.accepted < counts.drafted, "{counts:?}");
    Ok(())
}

/// Counts of what three tokens behind one prompt are.
fn three_tokens(config: GenerationConfig<'_>, model: &Gpt2, seed: u64) -> Result<Vec<usize>> {
    let prompts = vec![vec![3u32, 1]; 12_000];
    let config = GenerationConfig { max_new_tokens: 3, ..config };
    let (said, _) = generate(model, &prompts, config, seed, |_| ControlFlow::Continue(()))?;
    let mut counts = vec![0; 6 * 6 * 6];
    for text in said {
        counts[text.ids.iter().fold(0, |at, id| 6 * at + *id as usize)] += 1;
    }
    Ok(counts)
}

/// Two-sample chi-squared statistic and its degrees of freedom.
fn chi_squared(a: &[usize], b: &[usize]) -> (f64, f64) {
    let mut cells = (0., -1.);
    for (&a, &b) in a.iter().zip(b).filter(|(a, b)| **a + **b > 10) {
        let (a, b) = (a as f64, b as f64);
        cells.0 += (a - b) * (a - b) / (a + b);
        cells.1 += 1.;
    }
    cells
}

/// Where a chi-squared variable is once in 10,000 times (Wilson and Hilferty's cube).
fn once_in_10_000(freedom: f64) -> f64 {
    let part = 2. / (9. * freedom);
    freedom * (1. - part + 3.719 * part.sqrt()).powi(3)
}

#[test]
fn sampled_drafts_have_the_whole_models_distribution() -> Result<()> {
    let config = Gpt2Config {
        vocab_size: 6,
        n_positions: 8,
        n_embd: 8,
        n_layer: 3,
        n_head: 2,
        initializer_range: 0.4,
        ..Default::default()
    };
    let model = Gpt2::new(config, &mut init::rng(4), &Cpu).and_then(|model| model.packed());
    let model = model.map_err(|e| Error::Candle(candle_core::Error::Msg(e.to_string())))?;
    for (temperature, top_p) in [(1., 1.), (0.8, 0.9)] {
        let sampling = Sampling { temperature, top_p };
        let plain = GenerationConfig { sampling, ..Default::default() };
        let before = three_tokens(plain, &model, 1)?;
        let (same, freedom) = chi_squared(&before, &three_tokens(plain, &model, 1_000_000)?);
        assert!(freedom > 20. && same < once_in_10_000(freedom), "{same} with {freedom} degrees of freedom");
        for words in [None, Some(&[0u32, 2, 3][..])] {
            for (layer, drafts) in [(1, 1), (1, 3), (2, 2)] {
                let how = Speculate { layer, drafts, adaptive: false, words };
                let config = GenerationConfig { decoding: Decoding::Speculate(how), ..plain };
                let (off, freedom) = chi_squared(&before, &three_tokens(config, &model, 2_000_000)?);
                assert!(off < once_in_10_000(freedom), "{how:?}: {off} with {freedom} degrees of freedom");
            }
        }
        // The test can fail: what the inner exit alone says is another distribution.
        let decoding = Decoding::Leave { policy: &FixedDepth(1), words: None };
        let config = GenerationConfig { decoding, ..plain };
        let (off, freedom) = chi_squared(&before, &three_tokens(config, &model, 3_000_000)?);
        assert!(off > 2. * once_in_10_000(freedom), "{off} with {freedom} degrees of freedom");
    }
    Ok(())
}

#[test]
fn one_depth_for_all_is_the_cut_model() -> Result<()> {
    let (model, prompts) = (gpt2(2), prompts(5, 7));
    for depth in 1..=DEPTH {
        let policy = FixedDepth(depth);
        let (left, _) = said(&model, &prompts, greedy(Decoding::Leave { policy: &policy, words: None }))?;
        let cut = model.cut(depth).and_then(|cut| cut.packed()).expect("a cut model");
        let (full, _) = said(&cut, &prompts, greedy(Decoding::Full))?;
        assert_eq!(left, full);
        assert!(left.iter().all(|text| text.layers == vec![depth; 20]));
    }
    Ok(())
}

/// Signals that need no head, some words, or all: tokens are always those of the exit that they say.
#[test]
fn checks_may_be_cheap() -> Result<()> {
    let (model, prompts) = (gpt2(3), prompts(6, 5));
    let list: Vec<u32> = (0..WORDS as u32).filter(|word| word % 3 != 1).collect();
    let saturation = Thresholds::common(Signal::Saturation, 0.9, DEPTH);
    let patience = Thresholds::common(Signal::Patience, 2., DEPTH);
    let sure = Thresholds::common(Signal::MaxProbability, 0.15, DEPTH);
    let ways: [(&Thresholds, Option<&[u32]>); 5] = [
        (&saturation, None),
        (&patience, None),
        (&sure, None),
        (&sure, Some(&list)),
        (&patience, Some(&list)),
    ];
    for (policy, words) in ways {
        let (said, _) = said(&model, &prompts, greedy(Decoding::Leave { policy, words }))?;
        let mut early = 0;
        for (prompt, said) in prompts.iter().zip(&said) {
            let mut ids = prompt.clone();
            for (&id, &layer) in said.ids.iter().zip(&said.layers) {
                assert_eq!(id, best(&whole(&model, &ids)?[layer - 1]));
                ids.push(id);
                early += usize::from(layer < DEPTH);
            }
        }
        assert!(early > 0 && early < 100, "{:?}: {early} of 100 left", policy.signal);
    }
    Ok(())
}

#[test]
fn a_text_does_not_know_its_neighbours() -> Result<()> {
    let (model, prompts) = (gpt2(4), prompts(8, 4));
    let how = Speculate { layer: 2, drafts: 3, adaptive: true, words: None };
    for decoding in [Decoding::Full, Decoding::Speculate(how)] {
        let config = GenerationConfig { max_new_tokens: 15, decoding, ..Default::default() };
        let mut together = Generation::new(&model, config)?;
        let mut ids = vec![Vec::new(); 4];
        for (i, prompt) in prompts.iter().enumerate() {
            assert_eq!(together.add(prompt, i as u64)?, i);
            for token in together.step()? {
                ids[token.text].push(token.id);
            }
        }
        assert!(together.alive() == 4 && together.end(1) && !together.end(1));
        while together.alive() > 0 {
            for token in together.step()? {
                ids[token.text].push(token.id);
            }
        }
        assert!(together.step()?.is_empty());
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = generate(&model, std::slice::from_ref(prompt), config, i as u64, |_| {
                ControlFlow::Continue(())
            })?
            .0;
            match i {
                1 => assert!(ids[1].len() < 15 && alone[0].ids.starts_with(&ids[1])),
                _ => assert_eq!(ids[i], alone[0].ids),
            }
        }
    }
    Ok(())
}

#[test]
fn texts_end() -> Result<()> {
    let (model, prompts) = (gpt2(2), prompts(5, 6));
    let how = Speculate { layer: 3, drafts: 5, adaptive: false, words: None };
    for decoding in [Decoding::Full, Decoding::Speculate(how)] {
        let all = said(&model, &prompts, greedy(decoding))?.0;
        // With an id that some of them say.
        let end = Some(all[0].ids[9]);
        let ended = said(&model, &prompts, GenerationConfig { end, ..greedy(decoding) })?.0;
        for (all, ended) in all.iter().zip(&ended) {
            let length = all.ids.iter().position(|id| Some(*id) == end).map_or(20, |at| at + 1);
            assert_eq!(ended.ids, all.ids[..length]);
        }
        // When somebody has heard enough.
        let mut heard = 0;
        let stopped = generate(&model, &prompts, greedy(decoding), 7, |token| {
            heard += usize::from(token.text == 2);
            if token.text == 2 && heard == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        assert_eq!((heard, stopped.0[2].ids.as_slice(), &stopped.0[3]), (4, &all[2].ids[..4], &all[3]));
        // Where the model has no more positions: the last id is said, and not read.
        let config = GenerationConfig { max_new_tokens: 1000, ..greedy(decoding) };
        let full = said(&model, &[vec![1; LONGEST], prompts[1].clone()], config)?.0;
        assert_eq!((full[0].ids.len(), full[1].ids.len()), (1, LONGEST + 1 - prompts[1].len()));
        assert!(full[1].ids.starts_with(&all[1].ids));
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_said() -> Result<()> {
    let model = gpt2(0);
    let mut generation = Generation::new(&model, GenerationConfig::default())?;
    let mut add = |prompt: &[u32]| generation.add(prompt, 0).unwrap_err().to_string();
    assert!(add(&[]).contains("prompt 0: inputs are 0 tokens"), "{}", add(&[]));
    assert!(add(&[1; LONGEST + 1]).contains("41 tokens from place 0"), "{}", add(&[1; LONGEST + 1]));
    assert!(add(&[3, 31]).contains("the id 31, expected ids below 31"), "{}", add(&[3, 31]));
    assert_eq!(generation.alive(), 0);

    let new =
        |config: GenerationConfig<'_>| Generation::new(&model, config).map(|_| ()).unwrap_err().to_string();
    let sampling = Sampling { top_p: 1.5, ..Default::default() };
    assert!(new(GenerationConfig { sampling, ..Default::default() }).contains("top_p is 1.5"));
    assert!(new(GenerationConfig { max_new_tokens: 0, ..Default::default() }).contains("max_new_tokens"));
    let how =
        |layer, words| greedy(Decoding::Speculate(Speculate { layer, drafts: 2, adaptive: true, words }));
    for layer in [0, DEPTH] {
        assert!(new(how(layer, None)).contains("expected 1 to 3"));
    }
    assert!(new(how(1, Some(&[]))).contains("words is empty"));
    assert!(new(how(1, Some(&[4, 77]))).contains("77"));
    let policy = FixedDepth(9);
    assert!(new(greedy(Decoding::Leave { policy: &policy, words: None })).contains("layer 9"));

    // A NaN ends all texts, and is named.
    let broken = gpt2(0).copied().expect("a copy");
    let (_, var) =
        broken.params().iter().find(|(name, _)| *name == "transformer.ln_f.bias").expect("a final norm");
    var.set(&(var.as_tensor() * f64::NAN)?)?;
    let mut generation = Generation::new(&broken, GenerationConfig::default())?;
    generation.add(&[1, 2], 0)?;
    assert!(matches!(generation.step(), Err(Error::NotFinite { layer: DEPTH, row: 0 })));
    assert_eq!(generation.alive(), 0);
    Ok(())
}
