//! Byte-level pairs: ids are those of Python's transformers on real text; `fixtures/bpe_hf.py` wrote the oracle.

use std::{fs, path::Path};

use candle_core::{Device::Cpu, safetensors};
use layerwise_data::{ByteBpe, END_OF_TEXT, Error, TokenBlocks, text_file};
use layerwise_testkit::from_env;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[test]
fn ids_of_real_text_are_transformers() -> Result {
    let Some(shared) = from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let bpe = ByteBpe::open(&shared.join("data/gpt2-tokenizer"))?;
    assert_eq!((bpe.vocabulary(), bpe.end_of_text()), (50_257, Some(50_256)));
    bpe.check(50_257)?;
    let text = text_file(&shared.join("data/text/wikitext-2/wiki.test.raw.gz"))?;
    let ids = bpe.ids(&text)?;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2_ids.safetensors");
    let expected = safetensors::load(fixture, &Cpu)?;
    assert_eq!(ids.len() as u32, expected["length"].to_vec1::<u32>()?[0]);
    assert_eq!(ids[..4000], expected["first"].to_vec1::<u32>()?);
    assert_eq!(ids[ids.len() - 4000..], expected["last"].to_vec1::<u32>()?);
    assert_eq!(bpe.text(&ids)?, text);
    // Pieces of words of several bytes, spaces in rows, lines without words, quotes and marks.
    let odd = "  Ünïcödé ☃☃\n\n\n  don't \t we'll\r\n<|endoftext|> 1234567 !?!   ";
    let ids = bpe.ids(odd)?;
    assert_eq!(ids, expected["odd"].to_vec1::<u32>()?);
    assert_eq!(bpe.text(&ids)?, odd);
    let mut stream = bpe.stream();
    let mut streamed = String::new();
    for id in ids {
        streamed += &stream.push(id)?.unwrap_or_default();
    }
    assert_eq!((streamed.as_str(), stream.finish()?), (odd, None));
    // A text that ends within a character.
    let mut stream = bpe.stream();
    let ids = bpe.ids("a ☃")?;
    let mut streamed = String::new();
    for &id in &ids[..ids.len() - 1] {
        streamed += &stream.push(id)?.unwrap_or_default();
    }
    streamed += &stream.finish()?.unwrap_or_default();
    assert!(streamed.starts_with("a") && streamed.ends_with('\u{fffd}'), "{streamed}");
    assert_eq!(streamed, bpe.text(&ids[..ids.len() - 1])?);
    Ok(())
}

#[test]
fn what_is_learned_is_kept() -> Result {
    let text = "the cat sat on the mat; the cat sat on the hat. ".repeat(40);
    let bpe = ByteBpe::train(text.split_inclusive(". "), 300)?;
    assert!((258..=300).contains(&bpe.vocabulary()), "{}", bpe.vocabulary());
    let ids = bpe.ids(&text)?;
    assert!(ids.len() * 3 < text.len() && bpe.text(&ids)? == text);
    assert_eq!(bpe.ids(END_OF_TEXT)?, [bpe.end_of_text().ok_or("no mark")?]);
    assert!(bpe.stream().push(300).unwrap_err().to_string().contains("an id is 300"));
    // Any bytes, seen or not.
    let unseen = "Ω\u{0}\u{10ffff} zebra";
    assert_eq!(bpe.text(&bpe.ids(unseen)?)?, unseen);
    let folder = tempfile::tempdir()?;
    bpe.save(folder.path())?;
    let again = ByteBpe::open(folder.path())?;
    assert_eq!((again.ids(&text)?, again.end_of_text()), (ids.clone(), bpe.end_of_text()));
    // What a file says of the length of samples is nothing to a corpus.
    let path = folder.path().join("tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    file["truncation"] = serde_json::json!(
        { "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0 });
    file["padding"] = serde_json::json!({ "strategy": { "Fixed": 4096 }, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT });
    fs::write(&path, file.to_string())?;
    assert_eq!(ByteBpe::open(folder.path())?.ids(&text)?, ids);
    for (key, value) in [
        ("pre_tokenizer", serde_json::json!({ "type": "WhitespaceSplit" })),
        ("decoder", serde_json::Value::Null),
    ] {
        let mut other = file.clone();
        other[key] = value;
        fs::write(&path, other.to_string())?;
        refused(folder.path(), &["tokenizer.json", "pairs of bytes"]);
    }
    for (part, key, value) in [
        ("model", "dropout", 0.1.into()),
        ("pre_tokenizer", "add_prefix_space", true.into()),
        // Pairs beyond words: a long text could not be read in parts.
        ("pre_tokenizer", "use_regex", false.into()),
    ] {
        let mut other = file.clone();
        other[part][key] = value;
        fs::write(&path, other.to_string())?;
        refused(folder.path(), &["tokenizer.json", key]);
    }
    // A byte that occurs in no pair, so that the rest is whole.
    let pieces = file["model"]["vocab"].as_object_mut().ok_or("no vocabulary")?;
    pieces.remove("Q").ok_or("no piece")?;
    let pieces = serde_json::to_string(&pieces)?;
    fs::write(&path, file.to_string())?;
    refused(folder.path(), &["tokenizer.json", "1 of the 256 bytes"]);
    // Nor may the older two files lack one.
    fs::remove_file(&path)?;
    fs::write(folder.path().join("vocab.json"), pieces)?;
    fs::write(folder.path().join("merges.txt"), "")?;
    refused(folder.path(), &["vocab.json", "1 of the 256 bytes"]);
    Ok(())
}

fn refused(folder: &Path, says: &[&str]) {
    let text = ByteBpe::open(folder).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(says.iter().all(|word| text.contains(word)), "{text}, expected {says:?}");
}

#[test]
fn what_is_wrong_is_said() -> Result {
    let folder = tempfile::tempdir()?;
    let open = || ByteBpe::open(folder.path()).unwrap_err();
    assert!(matches!(open(), Error::NotFound { .. }));
    fs::write(folder.path().join("vocab.json"), "{")?;
    assert!(open().to_string().contains("vocab.json and merges.txt"));
    fs::write(folder.path().join("merges.txt"), "a b\n")?;
    assert!(
        matches!(open(), Error::Format { .. }) && open().to_string().contains("vocab.json"),
        "{}",
        open()
    );
    fs::write(folder.path().join("tokenizer.json"), "[]")?;
    assert!(matches!(open(), Error::Format { .. }) && open().to_string().contains("tokenizer.json"));
    let bpe = ByteBpe::train(["a"], 257)?;
    assert!(matches!(bpe.check(50_257), Err(Error::Vocabulary { pieces: 257, vocabulary: 50_257, .. })));
    let text = bpe.text(&[0, 257]).unwrap_err().to_string();
    assert!(text.contains("an id is 257") && text.contains("257 pieces"), "{text}");
    assert!(ByteBpe::train(["a"], 256).unwrap_err().to_string().contains("vocabulary is 256"));

    let path = folder.path().join("text.txt");
    fs::write(&path, b"\xef\xbb\xbfone\r\n\ntwo")?;
    assert_eq!(text_file(&path)?, "one\n\ntwo\n");
    for (content, says) in [(&b"a\n\xff"[..], "line 2: not UTF-8"), (b"\n \n", "no samples")] {
        fs::write(&path, content)?;
        let text = text_file(&path).unwrap_err().to_string();
        assert!(text.contains("text.txt") && text.contains(says), "{text}");
    }
    Ok(())
}

#[test]
fn blocks_that_are_not_there() -> Result {
    let blocks = TokenBlocks::new((0..10).collect(), 3)?;
    assert_eq!((blocks.len(), blocks.tokens()), (3, 3));
    assert!(matches!(blocks.batch(&[3], &Cpu), Err(Error::Index { index: 3, len: 3 })));
    assert!(matches!(blocks.batch(&[], &Cpu), Err(Error::Empty { .. })));
    assert!(matches!(TokenBlocks::new(vec![1, 2, 3], 3), Err(Error::Empty { .. })));
    assert!(matches!(TokenBlocks::new(vec![1], 0), Err(Error::Setting { field: "tokens", .. })));
    Ok(())
}
