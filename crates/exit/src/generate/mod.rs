//! Text, token by token.

mod draft_length;
mod leaving;
mod sampling;
mod shortlist;
mod speculate;
mod text;

use std::{collections::HashSet, ops::ControlFlow};

use candle_core::Tensor;
use layerwise_models::{Decoder, Pass};
use layerwise_ops::init;
use serde::{Deserialize, Serialize};

pub use self::sampling::Sampling;
use self::{
    draft_length::{Acceptance, Costs},
    shortlist::{Shortlist, one_each},
    text::Text,
};
use crate::{Error, FixedDepth, Policy, Result};

/// How tokens come about.
#[derive(Clone, Copy, Debug)]
pub enum Decoding<'a> {
    /// All layers for each token.
    Full,
    /// A token leaves as the policy says. Its text's later tokens see the same of it as if it had not: what a block has not read it reads when a token comes so far.
    Leave {
        /// Who leaves where; [`FixedDepth`] for everybody after one layer.
        policy: &'a dyn Policy,
        /// The words that a policy sees logits of; `None`: all. Who leaves is answered with all words.
        words: Option<&'a [u32]>,
    },
    /// An inner exit drafts, the layers behind it check. Tokens are those of [`Full`](Self::Full): with [`Sampling::GREEDY`] the same, otherwise of the same distribution.
    Speculate(Speculate<'a>),
}

/// Options of [`Decoding::Speculate`].
#[derive(Clone, Copy, Debug)]
pub struct Speculate<'a> {
    /// The exit that drafts, from 1, below the last.
    pub layer: usize,
    /// Most tokens that are drafted before they are checked.
    pub drafts: usize,
    /// Fewer where drafts are often wrong, or texts so many that to verify them costs more than it saves; as many of each text. Where none seems
    /// to pay, one is tried now and then. What is sampled then depends on how other
    /// texts fare, though its distribution does not.
    pub adaptive: bool,
    /// The words that are drafted; `None`: all. The fewer, the less a draft costs.
    pub words: Option<&'a [u32]>,
}

/// How a prompt is continued.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// Most tokens that are said behind it; fewer where the model has no more positions.
    pub max_new_tokens: usize,
    /// The id that ends the text; it is said, too.
    pub end: Option<u32>,
    /// How each token is drawn.
    pub sampling: Sampling,
    /// Of the draws.
    pub seed: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 100, end: None, sampling: Sampling::default(), seed: 0 }
    }
}

/// A token that was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Which text it belongs to.
    pub text: usize,
    /// Its id.
    pub id: u32,
    /// The layer, from 1, whose exit it is of.
    pub layer: usize,
}

/// Continuation of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The layer, from 1, whose exit each is of.
    pub layers: Vec<usize>,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationCounts {
    /// Tokens said.
    pub tokens: usize,
    /// Steps: passes of all texts together.
    pub steps: usize,
    /// Tokens drafted.
    pub drafted: usize,
    /// Of these, tokens said.
    pub accepted: usize,
}

impl GenerationCounts {
    /// Share of drafts that were right; `None` without drafts.
    #[must_use]
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }
}

/// Texts that are written side by side; more may come at any time.
///
/// ```
/// use candle_core::Device::Cpu;
/// use layerwise_exit::{Decoding, Generation, GenerationConfig};
/// use layerwise_models::{Gpt2, Gpt2Config};
///
/// let config = Gpt2Config { vocab_size: 50, n_embd: 24, n_layer: 2, ..Default::default() };
/// let gpt2 = Gpt2::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?.packed()?;
///
/// let mut generation = Generation::new(&gpt2, Decoding::Full)?;
/// let config = GenerationConfig { max_new_tokens: 3, ..Default::default() };
/// let first = generation.add(&[5, 17], &config)?;
/// let mut tokens = generation.step()?; // one of each text
/// generation.add(&[1, 2, 3], &GenerationConfig { seed: 1, ..config })?;
/// while generation.alive() > 0 {
///     tokens.extend(generation.step()?);
/// }
/// assert_eq!(tokens.iter().filter(|token| token.text == first).count(), 3);
/// assert_eq!((tokens.len(), generation.counts().steps), (6, 4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Generation<'a, M: ?Sized> {
    model: &'a M,
    decoding: Decoding<'a>,
    words: Option<Shortlist<'a, M>>,
    /// Of drafts, and how they have fared.
    costs: Costs,
    acceptance: Acceptance,
    texts: Vec<Text>,
    added: usize,
    counts: GenerationCounts,
}

impl<'a, M: Decoder + ?Sized> Generation<'a, M> {
    /// No text yet. Serve a packed model: it says the same, faster.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] and [`Error::Layer`] for settings out of range, and what [`Policy::validate`] finds.
    pub fn new(model: &'a M, decoding: Decoding<'a>) -> Result<Self> {
        let depth = model.depth();
        let words = match decoding {
            Decoding::Full => None,
            Decoding::Leave { policy, words } => {
                policy.validate(depth)?;
                words
            }
            Decoding::Speculate(Speculate { layer, words, .. }) => {
                if layer == 0 || layer >= depth {
                    let last = depth.saturating_sub(1);
                    return Err(Error::Layer { field: "speculate", layer, first: 1, last, depth });
                }
                words
            }
        };
        let words = words.map(|words| Shortlist::new(model, words)).transpose()?;
        let costs = match decoding {
            Decoding::Speculate(Speculate { layer, .. }) => {
                let head = head_in_blocks(model)?;
                let share = words.as_ref().map_or(1., |words| words.words().len() as f64 / head.words as f64);
                let all = depth as f64 + head.blocks;
                Costs { draft: (layer as f64 + share * head.blocks) / all, first: layer as f64 / all }
            }
            _ => Costs { draft: 0., first: 0. },
        };
        let counts = GenerationCounts::default();
        Ok(Self {
            model,
            decoding,
            words,
            costs,
            acceptance: Acceptance::default(),
            texts: Vec::new(),
            added: 0,
            counts,
        })
    }

    /// A prompt to be continued, and its number: 0, 1, and so on. What is said is a function of prompt and configuration, whatever other texts there are, as far as matrix
    /// products of one and of several rows round alike; only [`adaptive`](Speculate::adaptive) drafts depend on others.
    ///
    /// A policy knows a token by its text's seed and its place: `seed.rotate_left(32) ^ place`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for settings out of range; [`Error::Prompt`] for a prompt without tokens, with more than the model has positions for, or with an id that is not in its
    /// vocabulary.
    pub fn add(&mut self, prompt: &[u32], config: &GenerationConfig) -> Result<usize> {
        let GenerationConfig { max_new_tokens, end, sampling, seed } = *config;
        sampling.validate()?;
        if max_new_tokens == 0 {
            return Err(Error::Setting {
                field: "max_new_tokens",
                value: "0".into(),
                expected: "at least 1",
            });
        }
        let number = self.added;
        self.model.embed_next(&[(prompt, 0)]).map_err(|source| Error::Prompt { prompt: number, source })?;
        self.texts.push(Text {
            number,
            ids: prompt.to_vec(),
            unread: prompt.len(),
            left: max_new_tokens,
            cache: self.model.cache()?,
            waiting: vec![Vec::new(); self.model.depth()],
            sampling,
            end,
            seed,
            rng: init::rng(seed),
        });
        self.added += 1;
        Ok(number)
    }

    /// The next token of each text, or some of them where they are drafted; text after text, none of those that have ended.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] naming layer and text (as row) of a NaN among logits, and what the model or the policy report. All texts have ended then.
    pub fn step(&mut self) -> Result<Vec<Token>> {
        if self.texts.is_empty() {
            return Ok(Vec::new());
        }
        // Whatever fails leaves blocks at odds with each other.
        let mut texts = std::mem::take(&mut self.texts);
        let mut on: Vec<&mut Text> = texts.iter_mut().collect();
        let (model, words) = (self.model, self.words.as_ref());
        let said = match &self.decoding {
            Decoding::Full => leaving::step(model, &mut on, &FixedDepth(model.depth()), None),
            Decoding::Leave { policy, .. } => leaving::step(model, &mut on, *policy, words),
            Decoding::Speculate(how) => speculate::step(
                model,
                &mut on,
                how,
                words,
                (&self.costs, &mut self.acceptance),
                &mut self.counts,
            ),
        }?;
        let ended: HashSet<usize> =
            said.iter().filter(|(_, goes_on)| !goes_on).map(|(token, _)| token.text).collect();
        texts.retain(|text| !ended.contains(&text.number));
        self.texts = texts;
        self.counts.steps += 1;
        self.counts.tokens += said.len();
        let mut tokens: Vec<Token> = said.into_iter().map(|(token, _)| token).collect();
        tokens.sort_by_key(|token| token.text);
        Ok(tokens)
    }

    /// Texts that go on.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.texts.len()
    }

    /// Ends a text; whether it was going on.
    pub fn end(&mut self, text: usize) -> bool {
        let before = self.texts.len();
        self.texts.retain(|other| other.number != text);
        self.texts.len() < before
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> GenerationCounts {
        self.counts
    }
}

/// Continues prompts, all together, and calls `heard` with each token as soon as it is said; [`ControlFlow::Break`] ends its text.
///
/// Prompt `i` draws from the seed of `config` plus `i`.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use candle_core::Device::Cpu;
/// use layerwise_exit::{Decoding, GenerationConfig, Sampling, Speculate, generate};
/// use layerwise_models::{Gpt2, Gpt2Config};
///
/// let config = Gpt2Config { vocab_size: 50, n_embd: 24, n_layer: 3, ..Default::default() };
/// let gpt2 = Gpt2::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?.packed()?;
/// let config = GenerationConfig { max_new_tokens: 8, sampling: Sampling::GREEDY, ..Default::default() };
/// let prompts = [vec![5, 17], vec![2]];
///
/// let (plain, _) = generate(&gpt2, &prompts, Decoding::Full, &config, |_| ControlFlow::Continue(()))?;
/// let drafts = Decoding::Speculate(Speculate { layer: 1, drafts: 4, adaptive: true, words: None });
/// let (same, counts) = generate(&gpt2, &prompts, drafts, &config, |token| {
///     assert!(token.id < 50); // as soon as it is said
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!((same, counts.tokens), (plain, 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// As [`Generation::new`], [`Generation::add`] and [`Generation::step`].
pub fn generate<M: Decoder + ?Sized>(
    model: &M,
    prompts: &[Vec<u32>],
    decoding: Decoding<'_>,
    config: &GenerationConfig,
    mut heard: impl FnMut(Token) -> ControlFlow<()>,
) -> Result<(Vec<Continuation>, GenerationCounts)> {
    let mut generation = Generation::new(model, decoding)?;
    for (prompt, i) in prompts.iter().zip(0u64..) {
        generation.add(prompt, &GenerationConfig { seed: config.seed.wrapping_add(i), ..*config })?;
    }
    let mut said = vec![Continuation::default(); prompts.len()];
    let mut stopped = vec![false; prompts.len()];
    while generation.alive() > 0 {
        for token in generation.step()? {
            // What was drafted behind the last one that was wanted is not.
            if stopped[token.text] {
                continue;
            }
            said[token.text].ids.push(token.id);
            said[token.text].layers.push(token.layer);
            if heard(token).is_break() {
                stopped[token.text] = true;
                generation.end(token.text);
            }
        }
    }
    Ok((said, generation.counts()))
}

/// What a model's last head costs.
struct HeadCost {
    words: usize,
    /// Of a transformer's block, which has `12 width^2` weights.
    blocks: f64,
}

fn head_in_blocks<M: Decoder + ?Sized>(model: &M) -> Result<HeadCost> {
    let state: Tensor = model.embed_next(&[(&[0], 0)])?;
    let width = state.dim(1)?;
    let feature = model.feature(&one_each(&state)?)?;
    let words = model.exit(model.depth(), &feature, Pass::EVAL)?.dim(1)?;
    Ok(HeadCost { words, blocks: words as f64 / (12. * width as f64) })
}
