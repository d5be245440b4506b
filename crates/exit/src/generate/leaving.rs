//! Tokens that leave early, as a policy says. Nothing is approximated: blocks that a token has not been through read it when a later one comes by, all that wait at once.

use candle_core::{DType, Tensor};
use layerwise_models::Decoder;

use super::{
    Token,
    shortlist::{Shortlist, one_each},
    text::{Rows, Text, some_of},
};
use crate::{
    Policy, Result,
    engine::{Leaving, See, Seen},
};

/// One token of each text; `true` behind those whose text goes on.
pub(super) fn step<M: Decoder + ?Sized>(
    model: &M,
    texts: &mut [&mut Text],
    policy: &dyn Policy,
    words: Option<&Shortlist<'_, M>>,
) -> Result<Vec<(Token, bool)>> {
    let mut rows = Rows::embed(model, texts)?;
    let mut alive: Vec<usize> = (0..texts.len()).collect();
    let mut memory = None;
    let mut said = Vec::with_capacity(texts.len());
    for layer in 1..=model.depth() {
        let mut on = some_of(texts, &alive);
        rows = rows.with_waiting(layer, &mut on)?.block(model, layer, &mut on)?;
        let keys: Vec<u64> = on.iter().map(|text| text.policy_key()).collect();
        let last = one_each(&rows.last(&vec![1; alive.len()])?)?;
        let see = See { layer, keys: &keys, memory: memory.as_ref() };
        let seen = match words {
            Some(words) => see.look(words, policy, &last)?,
            None => see.look(model, policy, &last)?,
        };
        let Some(Seen { leaves, feature, logits, memory: remembered }) = seen else { continue };
        memory = remembered;
        let gone: Vec<usize> = (0..alive.len()).filter(|&at| leaves[at]).collect();
        if gone.is_empty() {
            continue;
        }
        // Those of some words are no answer.
        let logits = logits.filter(|_| words.is_none());
        let feature = match (&logits, feature) {
            (None, None) => Some(model.feature(&last)?.detach()),
            (_, feature) => feature,
        };
        let exit = Leaving { layer, feature: feature.as_ref(), logits: logits.as_ref(), rows: &gone };
        let logits = exit.answer(model)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let mut parts: Vec<Option<Tensor>> = rows.parts()?.into_iter().map(Some).collect();
        for (&at, logits) in gone.iter().zip(&logits) {
            let text = &mut texts[alive[at]];
            if let Some(rows) = parts[at].take().filter(|_| layer < model.depth()) {
                // What is of all texts is kept by none of them.
                text.wait(layer + 1, if alive.len() > 1 { rows.copy()? } else { rows })?;
            }
            let id = text.drawn(layer, logits)?.draw(&mut text.rng);
            let goes_on = text.say(id);
            text.unread = 1;
            said.push((Token { text: text.number, id, layer }, goes_on));
        }
        let stay: Vec<usize> = (0..alive.len()).filter(|&at| !leaves[at]).collect();
        if stay.is_empty() {
            break;
        }
        let pick: Vec<u32> = stay.iter().map(|&at| at as u32).collect();
        memory = memory
            .map(|memory: Tensor| memory.index_select(&Tensor::new(pick, memory.device())?, 0))
            .transpose()?;
        rows = Rows::joined(&stay.iter().filter_map(|&at| parts[at].take()).collect::<Vec<_>>())?;
        alive = stay.iter().map(|&at| alive[at]).collect();
    }
    Ok(said)
}
