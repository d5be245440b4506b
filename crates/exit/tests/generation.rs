//! What is said token by token, in whatever way, is what the whole model says.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise_exit::{
    Check, Continuation, Decoding, Error, FixedDepth, Generation, GenerationConfig, GenerationCounts, Policy,
    Random, Reads, Result, Sampling, Signal, Speculate, Thresholds, Token, Verdict, generate,
};
use layerwise_models::{Batch, Decoder, Gpt2, Gpt2Config, Hidden, KvCache, Next, Pass, Tapped, tap};
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

/// Where seeds of texts begin: a text's number is its seed less this.
const SEED: u64 = 7;

fn greedy() -> GenerationConfig {
    GenerationConfig { max_new_tokens: 20, sampling: Sampling::GREEDY, seed: SEED, ..Default::default() }
}

fn say(
    model: &Gpt2,
    prompts: &[Vec<u32>],
    decoding: Decoding<'_>,
    config: &GenerationConfig,
) -> Result<(Vec<Continuation>, GenerationCounts)> {
    generate(model, prompts, decoding, config, |_| ControlFlow::Continue(()))
}

fn said(
    model: &Gpt2,
    prompts: &[Vec<u32>],
    decoding: Decoding<'_>,
) -> Result<(Vec<Continuation>, GenerationCounts)> {
    say(model, prompts, decoding, &greedy())
}

/// Logits of every exit for the token behind these, from a forward pass that keeps nothing.
fn whole(model: &Gpt2, ids: &[u32]) -> candle_core::Result<Vec<Vec<f32>>> {
    let batch = Batch::from(Tensor::new(ids, &Cpu)?.unsqueeze(0)?);
    let last = |logits: &Tensor| logits.get(ids.len() - 1)?.to_vec1::<f32>();
    tap::layer_logits(model, &batch, Pass::EVAL)?.iter().map(last).collect()
}

/// How far another logit is above this one.
fn short(logits: &[f32], id: u32) -> f32 {
    logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x)) - logits[id as usize]
}

/// What rounding may do to a logit.
const ROUNDING: f32 = 1e-4;

/// The same text; where it is not, two words are equally likely but for rounding.
fn same_text(model: &Gpt2, prompt: &[u32], a: &[u32], b: &[u32]) -> bool {
    let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) else { return a.len() == b.len() };
    let ids = [prompt, &a[..at]].concat();
    let logits = &whole(model, &ids).expect("logits")[DEPTH - 1];
    short(logits, a[at]).max(short(logits, b[at])) < ROUNDING
}

/// Remembers what the last exit says: for each row that it is asked, the logits.
struct Recording {
    model: Gpt2,
    last: Mutex<Vec<Vec<f32>>>,
}

impl Tapped for Recording {
    fn depth(&self) -> usize {
        self.model.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> candle_core::Result<Hidden> {
        self.model.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> candle_core::Result<Hidden> {
        self.model.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        self.model.feature(hidden)
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> candle_core::Result<Tensor> {
        let logits = self.model.exit(layer, feature, pass)?;
        if layer == self.depth() {
            self.last.lock().expect("no panic").extend(logits.to_vec2()?);
        }
        Ok(logits)
    }
}

impl Decoder for Recording {
    fn cache(&self) -> candle_core::Result<KvCache> {
        self.model.cache()
    }

    fn embed_next(&self, texts: &[(&[u32], usize)]) -> candle_core::Result<Tensor> {
        self.model.embed_next(texts)
    }

    fn block_next(&self, layer: usize, xs: &Tensor, texts: &mut [Next<'_>]) -> candle_core::Result<Tensor> {
        self.model.block_next(layer, xs, texts)
    }
}

/// Leaves as dice fall, and remembers the logits that it saw go: text, layer, logits.
#[derive(Debug)]
struct Dice {
    seed: u64,
    rolls: AtomicU64,
    gone: Mutex<Vec<(usize, usize, Vec<f32>)>>,
}

impl Policy for Dice {
    fn validate(&self, _depth: usize) -> Result<()> {
        Ok(())
    }

    fn reads(&self, layer: usize, _depth: usize) -> Reads {
        // One layer is never looked at.
        if layer as u64 == 1 + self.seed % 3 { Reads::Nothing } else { Reads::Logits }
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        let logits = check.logits.expect("logits").to_vec2::<f32>()?;
        let mut leaves = Vec::new();
        for (key, logits) in check.keys.iter().zip(logits) {
            let roll = self.rolls.fetch_add(1, Ordering::Relaxed);
            leaves.push(init::rng(self.seed ^ (roll << 20)).random::<f64>() < 0.5);
            if leaves.last() == Some(&true) {
                self.gone.lock().expect("no panic").push((
                    (key >> 32) as usize - SEED as usize,
                    check.layer,
                    logits,
                ));
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
        let recording = Recording { model: model.clone(), last: Mutex::new(Vec::new()) };
        let mut seen = vec![Vec::new(); texts];
        // Texts in the order in which the last exit answered them.
        let mut whole_depth = Vec::new();
        let hear = |token: Token| {
            if token.layer == DEPTH {
                whole_depth.push(token.text);
            }
            ControlFlow::Continue(())
        };
        let decoding = Decoding::Leave { policy: &dice, words: None };
        let (said, counts) = generate(&recording, &prompts, decoding, &greedy(), hear).unwrap();
        prop_assert_eq!(counts.tokens, 20 * texts);
        for (text, layer, logits) in dice.gone.into_inner().unwrap() {
            seen[text].push((layer, logits));
        }
        let last = recording.last.into_inner().unwrap();
        prop_assert_eq!(last.len(), whole_depth.len());
        let mut last_of = vec![Vec::new(); texts];
        for (text, logits) in whole_depth.into_iter().zip(last) {
            last_of[text].push(logits);
        }
        for (((prompt, said), seen), last) in prompts.iter().zip(&said).zip(seen).zip(last_of) {
            let mut ids = prompt.clone();
            let (mut seen, mut last) = (seen.into_iter(), last.into_iter());
            for (&id, &layer) in said.ids.iter().zip(&said.layers) {
                let expected = &whole(&model, &ids).unwrap()[layer - 1];
                let (left_at, logits) = if layer < DEPTH {
                    seen.next().unwrap()
                } else {
                    (DEPTH, last.next().unwrap())
                };
                prop_assert_eq!(left_at, layer);
                let off = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                prop_assert!(off < ROUNDING, "logits of layer {} are {} off", layer, off);
                prop_assert!(short(expected, id) < ROUNDING);
                ids.push(id);
            }
            prop_assert!(seen.next().is_none() && last.next().is_none());
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
        let (plain, before) = said(&model, &prompts, Decoding::Full).unwrap();
        let (drafted, counts) = said(&model, &prompts, Decoding::Speculate(how)).unwrap();
        for ((prompt, plain), drafted) in prompts.iter().zip(&plain).zip(&drafted) {
            prop_assert!(same_text(&model, prompt, &plain.ids, &drafted.ids));
        }
        prop_assert_eq!((counts.tokens, before.steps), (before.tokens, 20));
        prop_assert!(counts.steps <= before.steps && counts.accepted <= counts.drafted);
        prop_assert!(drafts > 0 || (counts.drafted, counts.acceptance()) == (0, None));
    }
}

/// 200 greedy tokens of three prompts are those of Python's transformers (`gpt2_hf.py` of `layerwise-models`), by all layers, by drafts, and where nobody leaves.
#[test]
fn what_is_said_is_what_transformers_say() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/gpt2_greedy");
    let model = Gpt2::load(&folder, &Cpu).expect("the fixture");
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Cpu)?;
    let of = |name: &str, i: usize| expected[&format!("{name}_{i}")].to_vec1::<u32>();
    let prompts = (0..3).map(|i| of("prompt", i)).collect::<candle_core::Result<Vec<_>>>()?;
    let config = GenerationConfig { max_new_tokens: 200, ..greedy() };
    let drafts = |layer, adaptive| Decoding::Speculate(Speculate { layer, drafts: 4, adaptive, words: None });
    let never = Thresholds::common(Signal::MaxProbability, 1., model.depth());
    let nobody = Decoding::Leave { policy: &never, words: None };
    for served in [model.frozen(), model.packed().expect("a packed model")] {
        for decoding in [Decoding::Full, drafts(1, false), drafts(2, true), nobody] {
            for (i, said) in say(&served, &prompts, decoding, &config)?.0.iter().enumerate() {
                assert_eq!(said.ids, of("said", i)?, "{decoding:?}, prompt {i}");
            }
        }
    }
    Ok(())
}

/// A thousand prompts, and in the end drafts save steps.
#[test]
fn a_thousand_prompts_say_the_same_with_drafts() -> Result<()> {
    let (model, prompts) = (gpt2(1), prompts(99, 1000));
    let how = Speculate { layer: 3, drafts: 4, adaptive: false, words: None };
    let (plain, before) = said(&model, &prompts, Decoding::Full)?;
    let (drafted, counts) = said(&model, &prompts, Decoding::Speculate(how))?;
    for ((prompt, plain), drafted) in prompts.iter().zip(&plain).zip(&drafted) {
        assert!(same_text(&model, prompt, &plain.ids, &drafted.ids));
    }
    // Ties but for rounding are rare.
    let equal = plain.iter().zip(&drafted).filter(|(plain, drafted)| plain.ids == drafted.ids).count();
    assert!(equal >= 995, "{equal} of 1000");
    assert_eq!(counts.tokens, before.tokens);
    assert!(counts.accepted > 0 && counts.accepted < counts.drafted, "{counts:?}");
    Ok(())
}

/// Counts of what three tokens behind one prompt are.
fn three_tokens(
    decoding: Decoding<'_>,
    config: &GenerationConfig,
    model: &Gpt2,
    seed: u64,
) -> Result<Vec<usize>> {
    let prompts = vec![vec![3u32, 1]; 1000];
    let mut counts = vec![0; 6 * 6 * 6];
    for round in 0..12 {
        let config = GenerationConfig { max_new_tokens: 3, seed: seed + 1000 * round, ..*config };
        for text in say(model, &prompts, decoding, &config)?.0 {
            counts[text.ids.iter().fold(0, |at, id| 6 * at + *id as usize)] += 1;
        }
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
        let before = three_tokens(Decoding::Full, &plain, &model, 1)?;
        let (same, freedom) = chi_squared(&before, &three_tokens(Decoding::Full, &plain, &model, 1_000_000)?);
        assert!(freedom > 20. && same < once_in_10_000(freedom), "{same} with {freedom} degrees of freedom");
        for words in [None, Some(&[0u32, 2, 3][..])] {
            for (layer, drafts, adaptive) in [(1, 1, false), (1, 3, false), (2, 2, false), (1, 3, true)] {
                let how = Speculate { layer, drafts, adaptive, words };
                let drafted = three_tokens(Decoding::Speculate(how), &plain, &model, 2_000_000)?;
                let (off, freedom) = chi_squared(&before, &drafted);
                assert!(off < once_in_10_000(freedom), "{how:?}: {off} with {freedom} degrees of freedom");
            }
        }
        // The test can fail: what the inner exit alone says is another distribution.
        let decoding = Decoding::Leave { policy: &FixedDepth(1), words: None };
        let (off, freedom) = chi_squared(&before, &three_tokens(decoding, &plain, &model, 3_000_000)?);
        assert!(off > 2. * once_in_10_000(freedom), "{off} with {freedom} degrees of freedom");
    }
    Ok(())
}

#[test]
fn one_depth_for_all_is_the_cut_model() -> Result<()> {
    let (model, prompts) = (gpt2(2), prompts(5, 7));
    for depth in 1..=DEPTH {
        let policy = FixedDepth(depth);
        let (left, _) = said(&model, &prompts, Decoding::Leave { policy: &policy, words: None })?;
        let cut = model.cut(depth).and_then(|cut| cut.packed()).expect("a cut model");
        let (full, _) = said(&cut, &prompts, Decoding::Full)?;
        assert_eq!(left, full);
        assert!(left.iter().all(|text| text.layers == vec![depth; 20]));
    }
    Ok(())
}

/// Where the text's next token leaves, by all states of a whole forward pass; none where a value is within rounding of the threshold.
fn leaves_at(
    model: &Gpt2,
    policy: &Thresholds,
    words: Option<&[u32]>,
    ids: &[u32],
) -> candle_core::Result<Option<usize>> {
    let batch = Batch::from(Tensor::new(ids, &Cpu)?.unsqueeze(0)?);
    let last = |xs: &Tensor| xs.get(ids.len() - 1)?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let features = tap::features(model, &batch, Pass::EVAL)?;
    let features = features.iter().map(last).collect::<candle_core::Result<Vec<_>>>()?;
    let logits = whole(model, ids)?;
    let kept = |row: &Vec<f32>| -> Vec<f64> {
        let all = || (0..row.len() as u32).collect::<Vec<u32>>();
        words.map_or_else(all, <[u32]>::to_vec).iter().map(|word| f64::from(row[*word as usize])).collect()
    };
    let logits: Vec<Vec<f64>> = logits.iter().map(kept).collect();
    let answer = |row: &[f64]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for layer in 1..DEPTH {
        let threshold = policy.at[&layer];
        let value = match policy.signal {
            // Nothing was remembered before the first layer.
            Signal::Saturation if layer == 1 => -1.,
            Signal::Saturation => {
                let (a, b) = (&features[layer], &features[layer - 1]);
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
            }
            Signal::Patience => {
                let same = |other: &&Vec<f64>| answer(other) == answer(&logits[layer - 1]);
                logits[..layer].iter().rev().take_while(same).count() as f64 + 0.5
            }
            _ => {
                let row = &logits[layer - 1];
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                1. / row.iter().map(|x| (x - max).exp()).sum::<f64>()
            }
        };
        if (value - threshold).abs() < 1e-4 {
            return Ok(None);
        }
        if value > threshold {
            return Ok(Some(layer));
        }
    }
    Ok(Some(DEPTH))
}

/// Signals that need no head, some words, or all: each token leaves where a whole forward pass says, and is of that exit.
#[test]
fn checks_may_be_cheap() -> Result<()> {
    let (model, prompts) = (gpt2(3), prompts(6, 5));
    let list: Vec<u32> = (0..WORDS as u32).filter(|word| word % 3 != 1).collect();
    for (policy, words) in ways(&list) {
        let (policy, words) = (&policy, words);
        let (said, _) = said(&model, &prompts, Decoding::Leave { policy, words })?;
        let mut left = [0; DEPTH];
        for (prompt, said) in prompts.iter().zip(&said) {
            let mut ids = prompt.clone();
            for (&id, &layer) in said.ids.iter().zip(&said.layers) {
                assert!(short(&whole(&model, &ids)?[layer - 1], id) < ROUNDING);
                if let Some(expected) = leaves_at(&model, policy, words, &ids)? {
                    assert_eq!(layer, expected, "{:?}", policy.signal);
                }
                ids.push(id);
                left[layer - 1] += 1;
            }
        }
        assert!(left.iter().filter(|count| **count > 0).count() > 1, "{:?}: {left:?}", policy.signal);
    }
    Ok(())
}

/// Thresholds at which some leave and some do not.
fn ways(list: &[u32]) -> Vec<(Thresholds, Option<&[u32]>)> {
    let of = |signal, threshold| Thresholds::common(signal, threshold, DEPTH);
    vec![
        (of(Signal::Saturation, 0.9), None),
        (of(Signal::Patience, 2.), None),
        (of(Signal::MaxProbability, 0.15), None),
        (of(Signal::MaxProbability, 0.15), Some(list)),
        (of(Signal::Patience, 2.), Some(list)),
    ]
}

/// Texts join while others have states waiting, and leave; each says what it says alone, and leaves where it leaves alone.
#[test]
fn a_text_does_not_know_its_neighbours() -> Result<()> {
    let (model, prompts) = (gpt2(4), prompts(8, 4));
    let list: Vec<u32> = (0..WORDS as u32).filter(|word| word % 3 != 1).collect();
    let how = Speculate { layer: 2, drafts: 3, adaptive: false, words: None };
    let random = Random { seed: 5, weights: vec![1.; DEPTH] };
    let ways = ways(&list);
    let mut decodings = vec![Decoding::Full, Decoding::Speculate(how)];
    decodings.push(Decoding::Leave { policy: &random, words: None });
    decodings.extend(ways.iter().map(|(policy, words)| Decoding::Leave { policy, words: *words }));
    for decoding in decodings {
        let config = |i: usize| GenerationConfig {
            max_new_tokens: 12 + i,
            sampling: Sampling { temperature: 1., top_p: 0.6 + 0.1 * i as f64 },
            seed: 40 + i as u64,
            end: None,
        };
        let mut together = Generation::new(&model, decoding)?;
        let mut all = vec![Continuation::default(); 4];
        let hear = |tokens: Vec<Token>, all: &mut Vec<Continuation>| {
            for token in tokens {
                all[token.text].ids.push(token.id);
                all[token.text].layers.push(token.layer);
            }
        };
        for (i, prompt) in prompts.iter().enumerate() {
            assert_eq!(together.add(prompt, &config(i))?, i);
            hear(together.step()?, &mut all);
        }
        assert!(together.alive() == 4 && together.end(1) && !together.end(1));
        while together.alive() > 0 {
            hear(together.step()?, &mut all);
        }
        assert!(together.step()?.is_empty());
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = say(&model, std::slice::from_ref(prompt), decoding, &config(i))?.0;
            match i {
                1 => assert!(all[1].ids.len() < 13 && alone[0].ids.starts_with(&all[1].ids)),
                _ => assert_eq!(all[i], alone[0], "{decoding:?}"),
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
        let all = said(&model, &prompts, decoding)?.0;
        // With an id that some of them say.
        let end = Some(all[0].ids[9]);
        let ended = say(&model, &prompts, decoding, &GenerationConfig { end, ..greedy() })?.0;
        for (all, ended) in all.iter().zip(&ended) {
            let length = all.ids.iter().position(|id| Some(*id) == end).map_or(20, |at| at + 1);
            assert_eq!(ended.ids, all.ids[..length]);
        }
        // When somebody has heard enough.
        let mut heard = 0;
        let stopped = generate(&model, &prompts, decoding, &greedy(), |token| {
            heard += usize::from(token.text == 2);
            if token.text == 2 && heard == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        assert_eq!((heard, stopped.0[2].ids.as_slice(), &stopped.0[3]), (4, &all[2].ids[..4], &all[3]));
        // Where the model has no more positions: the last id is said, and not read.
        let config = GenerationConfig { max_new_tokens: 1000, ..greedy() };
        let full = say(&model, &[vec![1; LONGEST], prompts[1].clone()], decoding, &config)?.0;
        assert_eq!((full[0].ids.len(), full[1].ids.len()), (1, LONGEST + 1 - prompts[1].len()));
        assert!(full[1].ids.starts_with(&all[1].ids));
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_said() -> Result<()> {
    let model = gpt2(0);
    let mut generation = Generation::new(&model, Decoding::Full)?;
    let mut add = |prompt: &[u32]| generation.add(prompt, &greedy()).unwrap_err().to_string();
    assert!(add(&[]).contains("prompt 0: inputs are 0 tokens"), "{}", add(&[]));
    assert!(add(&[1; LONGEST + 1]).contains("41 tokens from place 0"), "{}", add(&[1; LONGEST + 1]));
    assert!(add(&[3, 31]).contains("the id 31, expected ids below 31"), "{}", add(&[3, 31]));
    let mut add = |config: GenerationConfig| generation.add(&[1], &config).unwrap_err().to_string();
    let sampling = Sampling { top_p: 1.5, ..Default::default() };
    assert!(add(GenerationConfig { sampling, ..greedy() }).contains("top_p is 1.5"));
    assert!(add(GenerationConfig { max_new_tokens: 0, ..greedy() }).contains("max_new_tokens"));
    assert_eq!(generation.alive(), 0);

    let new = |decoding: Decoding<'_>| Generation::new(&model, decoding).map(|_| ()).unwrap_err().to_string();
    let how = |layer, words| Decoding::Speculate(Speculate { layer, drafts: 2, adaptive: true, words });
    for layer in [0, DEPTH] {
        assert!(new(how(layer, None)).contains("expected 1 to 3"));
    }
    assert!(new(how(1, Some(&[]))).contains("words is empty"));
    assert!(new(how(1, Some(&[77]))).contains("words is 77, expected ids of the model's vocabulary"));
    let policy = FixedDepth(9);
    assert!(new(Decoding::Leave { policy: &policy, words: None }).contains("layer 9"));

    // A NaN ends all texts, and is named.
    let broken = gpt2(0).copied().expect("a copy");
    let (_, var) =
        broken.params().iter().find(|(name, _)| *name == "transformer.ln_f.bias").expect("a final norm");
    var.set(&(var.as_tensor() * f64::NAN)?)?;
    let mut generation = Generation::new(&broken, Decoding::Full)?;
    generation.add(&[1, 2], &GenerationConfig::default())?;
    assert!(matches!(generation.step(), Err(Error::NotFinite { layer: DEPTH, row: 0 })));
    assert_eq!(generation.alive(), 0);
    Ok(())
}
