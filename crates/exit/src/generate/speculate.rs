//! Draft and verify: an inner exit drafts some tokens, the blocks behind it read them all at once, and what they do not bear out is taken back.
//!
//! Blocks up to the exit have read the drafts already, so that what is checked costs the other blocks only, and those once for all drafts (self-speculation with one cache: Elhoushi et al. 2024, `LayerSkip`).

use candle_core::{DType, Tensor};
use layerwise_models::Decoder;

use super::{
    GenerationCounts, Speculate, Token,
    draft_length::{Acceptance, Costs},
    sampling::Drawn,
    shortlist::{Shortlist, one_each},
    text::{Rows, Text, joined, some_of},
};
use crate::Result;

/// What was drafted for a text.
#[derive(Default)]
struct Drafts {
    /// How many there are to be.
    wanted: usize,
    ids: Vec<u32>,
    drawn: Vec<Drawn>,
    /// States after the exit, of what the text had not read and of all drafts.
    states: Vec<Tensor>,
}

/// Some tokens of each text, one at least; `true` behind the last one of a text that goes on.
pub(super) fn step<M: Decoder + ?Sized>(
    model: &M,
    texts: &mut [&mut Text],
    how: &Speculate<'_>,
    words: Option<&Shortlist<'_, M>>,
    (costs, acceptance): (&Costs, &mut Acceptance),
    counts: &mut GenerationCounts,
) -> Result<Vec<(Token, bool)>> {
    // As many of each: a block reads its weights once for all texts that draft.
    let most = texts.iter().map(|text| room(text)).max().unwrap_or(0).min(how.drafts);
    let wanted = if how.adaptive { acceptance.best(costs, texts.len(), most) } else { most };
    let of = |text: &&mut Text| Drafts { wanted: wanted.min(room(text)), ..Default::default() };
    let mut drafts: Vec<Drafts> = texts.iter().map(of).collect();
    draft(model, texts, &mut drafts, how.layer, words)?;
    let states = drafts.iter().map(|draft| joined(&draft.states)).collect::<Result<Vec<_>>>()?;
    let mut rows = Rows::joined(&states)?;
    for layer in how.layer + 1..=model.depth() {
        rows = rows.block(model, layer, texts)?;
    }
    // The last token that was not a draft, and all drafts.
    let ends: Vec<usize> = drafts.iter().map(|draft| draft.ids.len() + 1).collect();
    let logits = model
        .answer(model.depth(), &one_each(&rows.last(&ends)?)?)?
        .to_dtype(DType::F32)?
        .to_vec2::<f32>()?;
    let mut logits = logits.iter();
    let (mut said, mut round) = (Vec::new(), Vec::with_capacity(texts.len()));
    for (text, draft) in texts.iter_mut().zip(&drafts) {
        let logits: Vec<&Vec<f32>> = logits.by_ref().take(draft.ids.len() + 1).collect();
        let right = check(model.depth(), text, draft, &logits, &mut said)?;
        round.push((right, draft.ids.len()));
        counts.drafted += draft.ids.len();
        counts.accepted += right;
        // All but the last one said have been read.
        text.cache.truncate(text.ids.len() - 1);
        text.unread = 1;
    }
    acceptance.add(round);
    Ok(said)
}

/// Drafts that a text has room for.
fn room(text: &Text) -> usize {
    (text.left - 1).min(text.cache.longest() - text.ids.len())
}

/// Drafts tokens with the exit after `layer`. Blocks up to there read the last draft, too: if it is right, the other blocks say what comes behind it.
fn draft<M: Decoder + ?Sized>(
    model: &M,
    texts: &mut [&mut Text],
    drafts: &mut [Drafts],
    layer: usize,
    words: Option<&Shortlist<'_, M>>,
) -> Result<()> {
    let mut going: Vec<usize> = (0..texts.len()).collect();
    while !going.is_empty() {
        let mut on = some_of(texts, &going);
        let mut rows = Rows::embed(model, &on)?;
        for l in 1..=layer {
            rows = rows.block(model, l, &mut on)?;
        }
        let parts = rows.parts()?;
        going.iter().zip(&parts).for_each(|(&at, part)| drafts[at].states.push(part.clone()));
        let last: Vec<Tensor> = going
            .iter()
            .zip(&parts)
            .filter(|(at, _)| drafts[**at].ids.len() < drafts[**at].wanted)
            .map(|(_, part)| part.narrow(0, part.dim(0)? - 1, 1))
            .collect::<candle_core::Result<_>>()?;
        going.retain(|&at| drafts[at].ids.len() < drafts[at].wanted);
        if going.is_empty() {
            break;
        }
        let last = one_each(&joined(&last)?)?;
        let logits = match words {
            Some(words) => layerwise_models::Tapped::answer(words, layer, &last)?,
            None => model.answer(layer, &last)?,
        };
        for (&at, logits) in going.iter().zip(logits.to_dtype(DType::F32)?.to_vec2::<f32>()?) {
            let (text, draft) = (&mut *texts[at], &mut drafts[at]);
            let drawn = text.drawn(layer, &logits)?;
            let drawn = match words {
                Some(words) => drawn.named(words.words()),
                None => drawn,
            };
            let id = drawn.draw(&mut text.rng);
            // Read as if it had been said.
            text.ids.push(id);
            text.unread = 1;
            draft.ids.push(id);
            draft.drawn.push(drawn);
            if Some(id) == text.end {
                draft.wanted = draft.ids.len();
            }
        }
    }
    for (text, draft) in texts.iter_mut().zip(drafts) {
        text.ids.truncate(text.ids.len() - draft.ids.len());
    }
    Ok(())
}

/// Says the drafts that are right and the token behind them; how many drafts were right.
fn check(
    depth: usize,
    text: &mut Text,
    draft: &Drafts,
    logits: &[&Vec<f32>],
    said: &mut Vec<(Token, bool)>,
) -> Result<usize> {
    for (at, logits) in logits.iter().enumerate() {
        let drawn = text.drawn(depth, logits)?;
        let (id, right) = match draft.ids.get(at) {
            Some(&id) => drawn.correct(id, &draft.drawn[at], &mut text.rng),
            None => (drawn.draw(&mut text.rng), false),
        };
        let goes_on = text.say(id);
        said.push((Token { text: text.number, id, layer: depth }, goes_on));
        if !right || !goes_on {
            return Ok(at + usize::from(right));
        }
    }
    Ok(draft.ids.len())
}
