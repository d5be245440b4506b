//! Ids are those of Python's transformers, on real samples; `fixtures/text_hf.py` wrote the oracles.

use std::{fs, path::Path};

use candle_core::{Device::Cpu, safetensors};
use layerwise_data::{
    Encoded, Encoder, Error, Text,
    glue::{self, Task},
};
use layerwise_testkit::from_env;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const SAMPLES: usize = 56;
const TOKENS: usize = 40;

#[test]
fn ids_of_real_samples_are_transformers() -> Result {
    let (Some(shared), Some(weights)) = (from_env("LAYERWISE_SHARED"), from_env("LAYERWISE_WEIGHTS")) else {
        return Ok(());
    };
    let data = shared.join("data/glue");
    let mut texts = Vec::new();
    for task in Task::ALL {
        let folder = data.join(task.name());
        let file = ["dev.tsv.gz", "dev-subset.tsv.gz"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|file| file.exists());
        texts.extend_from_slice(
            &glue::load_file(task, &file.ok_or("no development part")?)?.texts()[..SAMPLES],
        );
    }
    assert_eq!(texts.len(), 504);
    for name in ["minilm6", "bert12"] {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}_ids.safetensors"));
        let expected = safetensors::load(fixture, &Cpu)?;
        let encoded = Encoder::open(&weights.join(name), TOKENS)?.encode(&texts)?;
        let lengths = expected["lengths"].to_vec1::<u32>()?;
        let (ids, types) = (expected["ids"].to_vec1::<u32>()?, expected["types"].to_vec1::<u8>()?);
        let mut at = 0;
        for (sample, (got, length)) in encoded.iter().zip(lengths).enumerate() {
            let span = at..at + length as usize;
            assert_eq!(got.ids, ids[span.clone()], "{name}, sample {sample}: {:?}", texts[sample]);
            assert!(
                got.types.iter().map(|x| *x as u8).eq(types[span.clone()].iter().copied()),
                "{name}, sample {sample}"
            );
            at = span.end;
        }
        assert_eq!(at, ids.len());
        let cut = encoded.iter().filter(|text| text.truncated).count();
        assert!(
            cut > 50 && encoded.iter().all(|text| !text.truncated || text.ids.len() == TOKENS),
            "{cut} cut"
        );
    }
    Ok(())
}

#[test]
fn batches_are_filled_up_to_their_longest() -> Result {
    let folder = tempfile::tempdir()?;
    let encoder = tiny(folder.path(), 8)?;
    let texts = [Text { first: "a b".into(), second: Some("c".into()) }, "a".into(), "".into()];
    let encoded = encoder.encode(&texts)?;
    assert_eq!(encoded[0].ids, [1, 4, 5, 2, 6, 2]);
    assert_eq!(encoded[0].types, [0, 0, 0, 0, 1, 1]);
    let padded = encoder.pad(&encoded.iter().collect::<Vec<_>>(), &Cpu)?;
    assert_eq!(padded.ids.to_vec2::<u32>()?, [[1, 4, 5, 2, 6, 2], [1, 4, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]]);
    let mask = padded.mask.ok_or("no mask")?.to_vec2::<u8>()?;
    assert_eq!(mask, [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]);
    assert_eq!(padded.types.to_vec2::<u32>()?[0], [0, 0, 0, 0, 1, 1]);
    assert!(encoder.pad(&[&encoded[1], &encoded[1]], &Cpu)?.mask.is_none());
    let wider = encoder.pad_to(&[&encoded[1]], 4, &Cpu)?;
    assert_eq!(wider.ids.to_vec2::<u32>()?, [[1, 4, 2, 0]]);
    assert_eq!(wider.mask.ok_or("no mask")?.to_vec2::<u8>()?, [[1, 1, 1, 0]]);
    assert_eq!(encoder.pad_to(&[&encoded[1]], 2, &Cpu)?.ids.dims(), [1, 3]);
    // A pair that is too long loses tokens of its longer text.
    let long = [Text { first: "a b a b a b a b".into(), second: Some("c c".into()) }];
    let cut = &encoder.encode(&long)?[0];
    assert_eq!((cut.ids.as_slice(), cut.truncated), (&[1, 4, 5, 4, 2, 6, 6, 2][..], true));
    assert!(matches!(encoder.pad(&[], &Cpu), Err(Error::Empty { .. })));
    let nothing = Encoded { ids: Vec::new(), types: Vec::new(), truncated: false };
    assert!(matches!(encoder.pad(&[&nothing], &Cpu), Err(Error::Empty { .. })));
    Ok(())
}

#[test]
fn a_tokenizer_that_is_not_the_models() -> Result {
    let folder = tempfile::tempdir()?;
    let encoder = tiny(folder.path(), 8)?;
    for vocabulary in [7, 8, 128] {
        encoder.check(vocabulary)?;
    }
    for vocabulary in [6, 129, 30_522] {
        let text = encoder.check(vocabulary).unwrap_err().to_string();
        assert!(
            text.contains("tokenizer.json: 7 pieces") && text.contains(&vocabulary.to_string()),
            "{text}"
        );
    }
    let says = |path: &Path, tokens, says: &str| {
        let text = Encoder::open(path, tokens).unwrap_err().to_string();
        assert!(text.contains("tokenizer.json") && text.contains(says), "{text}");
    };
    says(folder.path(), 2, "3 special tokens leave nothing of 2 tokens");
    fs::write(folder.path().join("tokenizer.json"), "{\"version\": \"1.0\"")?;
    says(folder.path(), 8, "EOF");
    fs::remove_file(folder.path().join("tokenizer.json"))?;
    says(folder.path(), 8, "No such file");
    Ok(())
}

/// Three letters, `[CLS]` and `[SEP]`; what it says itself of cutting and padding must not count.
fn tiny(folder: &Path, tokens: usize) -> Result<Encoder> {
    let special = |id: u32, name: &str| {
        format!(
            r#"{{"id":{id},"content":"{name}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
        )
    };
    let piece = |name: &str, kind: u8| format!(r#"{{"SpecialToken":{{"id":"{name}","type_id":{kind}}}}}"#);
    let text = |name: &str, kind: u8| format!(r#"{{"Sequence":{{"id":"{name}","type_id":{kind}}}}}"#);
    let ids = |name: &str, id: u32| format!(r#""{name}":{{"id":"{name}","ids":[{id}],"tokens":["{name}"]}}"#);
    let file = format!(
        r#"{{"version":"1.0","truncation":{{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0}},
        "padding":{{"strategy":{{"Fixed":5}},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"}},
        "added_tokens":[{}],"normalizer":null,"pre_tokenizer":{{"type":"WhitespaceSplit"}},
        "post_processor":{{"type":"TemplateProcessing","single":[{cls},{},{sep}],"pair":[{cls},{},{sep},{},{}],"special_tokens":{{{},{}}}}},
        "decoder":null,"model":{{"type":"WordLevel","vocab":{{"[PAD]":0,"[CLS]":1,"[SEP]":2,"[UNK]":3,"a":4,"b":5,"c":6}},"unk_token":"[UNK]"}}}}"#,
        [special(0, "[PAD]"), special(1, "[CLS]"), special(2, "[SEP]"), special(3, "[UNK]")].join(","),
        text("A", 0),
        text("A", 0),
        text("B", 1),
        piece("[SEP]", 1),
        ids("[CLS]", 1),
        ids("[SEP]", 2),
        cls = piece("[CLS]", 0),
        sep = piece("[SEP]", 0),
    );
    fs::write(folder.join("tokenizer.json"), file)?;
    Ok(Encoder::open(folder, tokens)?)
}
