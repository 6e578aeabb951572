//! Layouts are checked with everything that is wrong, ids and meanings are each other's inverse, and training is exact and deterministic.

use proptest::prelude::*;
use tritter_tokenizer::{BYTES_JSON, Layout, LayoutFault, Meaning, Tokenizer, TokenizerError, marks};

#[test]
fn shipped_layouts_give_every_id_one_meaning() {
    for size in Layout::sizes() {
        let layout = Layout::of_size(size).unwrap();
        assert_eq!(layout.size(), size);
        for id in 0..size {
            let again = match layout.meaning(id) {
                Meaning::Control(name) => layout.control_id(name),
                Meaning::Byte(byte) => Some(layout.byte_id(byte)),
                Meaning::Mark(mark) => layout.mark_id(mark),
                Meaning::Pair(merge) => layout.pair_id(merge),
                Meaning::Image(code) => layout.image_id(code),
                Meaning::Audio { book, code } => layout.audio_id(book, code),
                Meaning::Nothing => None,
            };
            assert_eq!(again, Some(id), "the layout of {size}");
        }
        assert_eq!(layout.meaning(size), Meaning::Nothing);
        let bytes = Tokenizer::bytes_of(layout);
        assert_eq!(bytes.encode("a\n"), Tokenizer::bytes().encode("a\n"));
        assert_eq!((bytes.bos(), bytes.eos(), bytes.vocab_len()), (Some(1), &[2][..], size));
        let again = Tokenizer::from_json(&bytes.to_json()).unwrap();
        assert_eq!(again.to_json(), bytes.to_json());
    }
    assert_eq!(Layout::of_size(1000), None);
    assert_eq!(Tokenizer::bytes().to_json(), BYTES_JSON);
}

#[test]
fn everything_that_is_wrong_is_listed() {
    let text = r#"(size: 300, control: ["<a>", "<a>"], bos: Some("<b>"), eos: [], bytes: 1, marks: Some((first: 256, len: 0)),
        pairs: Some((first: 250, len: 10)), image: Some((first: 290, len: 20)), audio: Some((first: 4000000000, books: 4000000000, codes: 4000000000)))"#;
    let Err(TokenizerError::Layout(faults)) = Layout::from_ron(text) else { panic!("the layout is wrong") };
    assert!(faults.contains(&LayoutFault::Shared { first: "controls", second: "bytes", id: 1 }), "{faults:?}");
    assert!(faults.contains(&LayoutFault::Empty("marks")));
    assert!(faults.contains(&LayoutFault::Shared { first: "bytes", second: "byte pairs", id: 250 }));
    assert!(
        faults.iter().any(|fault| matches!(fault, LayoutFault::Outside { name: "codes of images", last: 309, .. }))
    );
    assert!(faults.iter().any(|fault| matches!(fault, LayoutFault::Outside { name: "codes of sounds", .. })));
    assert!(
        faults.contains(&LayoutFault::Name("<a>".to_owned())) && faults.contains(&LayoutFault::Name("<b>".to_owned()))
    );
    assert_eq!(faults.len(), 7, "{faults:?}");
    assert!(matches!(Layout::from_ron("(size: 3)"), Err(TokenizerError::Ron(_))));
}

#[test]
fn marks_are_where_they_always_were() {
    // These are part of trained models.
    for (text, mark) in [("False", 0), ("def", 11), ("fn", 47), ("+", 736), ("->", 764)] {
        assert_eq!((marks::of_text(text), marks::text(mark)), (Some(mark), text));
    }
    let layout = Layout::of_size(65536).unwrap();
    assert_eq!(layout.mark_id(marks::INDENT), Some(1500));
    assert_eq!(layout.mark_id(marks::FIM_SUFFIX), Some(1504));
    let decoded = Tokenizer::bytes_of(layout).decode(&[264 + 11, 8 + 32, 1500, 1000, 1501]);
    assert_eq!(decoded, b"def +");
}

fn small(n_pairs: u32) -> Layout {
    Layout::from_ron(&format!(
        r#"(size: 2000, control: ["<pad>", "<bos>"], bos: Some("<bos>"), eos: [], bytes: 8, marks: None,
            pairs: Some((first: 300, len: {n_pairs})), image: None, audio: None)"#
    ))
    .unwrap()
}

const CORPUS: &[&str] = &[include_str!("tokenizer.rs"), include_str!("layout.rs"), "aaaa aaab ääää"];

#[test]
fn training_fills_the_layout_exactly_and_always_the_same() {
    let tokenizer = Tokenizer::train(small(500), CORPUS).unwrap();
    let used: std::collections::BTreeSet<u32> = CORPUS.iter().flat_map(|text| tokenizer.encode(text)).collect();
    assert!(used.iter().all(|id| (8..264).contains(id) || (300..800).contains(id)));
    assert!(300 < used.iter().filter(|id| 300 <= **id).count(), "most of what was learnt is of use");
    let json = tokenizer.to_json();
    for _ in 0..3 {
        assert_eq!(Tokenizer::train(small(500), CORPUS).unwrap().to_json(), json);
    }
    let again = Tokenizer::from_json(&json).unwrap();
    assert_eq!((again.to_json(), again.vocab_len()), (json.clone(), 2000));
    assert_eq!(again.encode(CORPUS[0]), tokenizer.encode(CORPUS[0]));
    assert_eq!(tokenizer.encode_with_special("<bos>"), [1]);
    // The first merges are those of the most frequent pairs.
    let first = tokenizer.decode(&[300]);
    let count = |pair: &[u8]| {
        CORPUS.iter().map(|text| text.as_bytes().windows(2).filter(|two| *two == pair).count()).sum::<usize>()
    };
    assert!(count(b"to") <= count(&first) && count(b"en") <= count(&first));
    let moved = json.replace("\"first\":300", "\"first\":301");
    assert!(Tokenizer::from_json(&moved).is_err());
}

#[test]
fn a_corpus_may_be_too_small() {
    let few = Tokenizer::train(small(1000), ["ab ab"]);
    assert!(matches!(few, Err(TokenizerError::Corpus { n_found: 2, n_wanted: 1000 })), "{few:?}");
    assert!(Tokenizer::train(Layout::of_size(264).unwrap(), CORPUS).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn what_was_trained_loses_nothing(words in proptest::collection::vec("[a-d]{1,6}", 20..60), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let corpus = words.join(" ");
        if let Ok(tokenizer) = Tokenizer::train(small(20), [&corpus]) {
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&corpus)), corpus.as_bytes());
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&bytes)), bytes);
        }
    }
}
