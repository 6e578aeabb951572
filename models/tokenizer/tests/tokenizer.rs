//! Encoding loses nothing, decoding piece by piece is decoding at once, and other kinds of tokenizer are refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use tritter_tokenizer::{BYTES_JSON, Refusal, Tokenizer, TokenizerError, Utf8Stream};

/// How GPT-2 spells a byte.
fn spell(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&byte| !is_printable(byte)).count() as u32;
    char::from_u32(0x100 + n_before).unwrap()
}

fn spelt(text: &str) -> String {
    text.bytes().map(spell).collect()
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer.json in the manner of Llama 3: bytes first, then these merges.
fn hugging_face() -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(spell(byte).to_string(), json!(byte));
    }
    let pairs = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        (" ", "w"),
        ("1", "2"),
        ("12", "3"),
        (" ", " "),
        ("Ã", "¤"),
    ];
    let mut merges = Vec::new();
    for (position, (left, right)) in pairs.into_iter().enumerate() {
        // The last pair is spelt already: the two bytes of `ä`.
        let spelling = |text: &str| if text.is_ascii() { spelt(text) } else { text.to_owned() };
        let (left, right) = (spelling(left), spelling(right));
        vocab.insert(format!("{left}{right}"), json!(256 + position));
        merges.push(json!(format!("{left} {right}")));
    }
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 300, "content": "<|begin|>", "special": true},
            {"id": 301, "content": "<|begin|>er", "special": true},
            {"id": 302, "content": "<tool>", "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ]},
        ]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": merges},
    })
}

fn bpe() -> Tokenizer {
    Tokenizer::from_hugging_face(&hugging_face().to_string(), None, &[301]).unwrap()
}

#[test]
fn bytes_are_shifted_by_eight() {
    let tokenizer = Tokenizer::bytes();
    assert_eq!(tokenizer.encode("a\n"), [105, 18]);
    assert_eq!(tokenizer.decode(&[1, 105, 18, 2, 319, 4_000_000_000]), b"a\n");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_len()), (Some(1), &[2][..], 264));
    assert_eq!(tokenizer.encode_documents(b"\0ab\0c"), [1, 105, 106, 1, 107]);
    assert_eq!(tokenizer.to_json(), BYTES_JSON);
}

#[test]
fn byte_pairs_merge_within_words() {
    let tokenizer = bpe();
    assert_eq!(tokenizer.bos(), Some(300));
    assert_eq!(tokenizer.vocab_len(), 303);
    assert_eq!(tokenizer.encode("hello"), [259]);
    assert_eq!(tokenizer.encode("hell w"), [258, 260]);
    // Three digits are a word; the fourth is one of its own.
    assert_eq!(tokenizer.encode("1231"), [262, u32::from(b'1')]);
    assert_eq!(tokenizer.encode("ä"), [264]);
    // `l l` is listed before `he ll`, so it is merged first: as in the list, not from the left.
    assert_eq!(tokenizer.encode("helll"), [258, u32::from(b'l')]);
    // Not a text: byte by byte.
    assert_eq!(tokenizer.encode(b"\xff\xc3"), [255, 0xC3]);
}

#[test]
fn special_tokens_are_ids_only_where_they_are_meant() {
    let tokenizer = bpe();
    assert!(!tokenizer.encode("<|begin|>").contains(&300));
    assert_eq!(tokenizer.encode_with_special("<|begin|>hello<|begin|>er<tool>"), [300, 259, 301, 302]);
    assert_eq!(tokenizer.decode_text(&[300, 259, 301, 302]), "hello<tool>");
    assert_eq!(tokenizer.encode_with_special("äh<"), [264, u32::from(b'h'), u32::from(b'<')]);
}

#[test]
fn the_file_is_read_back() {
    for tokenizer in [Tokenizer::bytes(), bpe(), Tokenizer::bytes_with(0, None, &[]).unwrap()] {
        let json = tokenizer.to_json();
        let again = Tokenizer::from_json(&json).unwrap();
        assert_eq!(again.to_json(), json);
        assert_eq!((again.bos(), again.eos()), (tokenizer.bos(), tokenizer.eos()));
        for text in ["hello world 1234\n\n", "ä<tool>"] {
            assert_eq!(again.encode(text), tokenizer.encode(text));
            assert_eq!(again.encode_with_special(text), tokenizer.encode_with_special(text));
        }
    }
    // A foreign file as it is.
    let foreign = Tokenizer::from_json(&hugging_face().to_string()).unwrap();
    assert_eq!((foreign.bos(), foreign.encode("hello")), (Some(300), vec![259]));
}

fn refusals(change: impl FnOnce(&mut Value)) -> Vec<Refusal> {
    let mut file = hugging_face();
    change(&mut file);
    match Tokenizer::from_hugging_face(&file.to_string(), None, &[]) {
        Err(TokenizerError::Refused(refusals)) => refusals,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_kinds_are_refused_with_everything_that_is_wrong() {
    assert_eq!(refusals(|file| file["model"]["type"] = json!("Unigram")), [Refusal::Model("Unigram".to_owned())]);
    let found = refusals(|file| {
        file["normalizer"] = json!({"type": "NFC"});
        file["model"]["byte_fallback"] = json!(true);
        file["pre_tokenizer"] = json!({"type": "Metaspace"});
        file["model"]["vocab"]["▁the"] = json!(290);
        file["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
        file["model"]["vocab"]["abc"] = json!(291);
        file["model"]["merges"].as_array_mut().unwrap().push(json!(["a", "nothing"]));
    });
    let keys: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 7, "{keys:?}");
    assert!(found.contains(&Refusal::NotBytes("▁the".to_owned())));
    assert!(found.contains(&Refusal::Rank { id: 256, before: 257 }));
    assert!(found.contains(&Refusal::Unreachable("abc".to_owned())));
    assert!(found.contains(&Refusal::UnknownMerge { left: "a".to_owned(), right: "nothing".to_owned() }));

    let remove = |file: &mut Value| drop(file["model"]["vocab"].as_object_mut().unwrap().remove("!"));
    assert_eq!(refusals(remove), [Refusal::MissingByte(b'!')]);
    assert_eq!(refusals(|file| file["model"]["vocab"]["\""] = json!(33)), [Refusal::DuplicateId(33)]);
    assert_eq!(refusals(|file| file["added_tokens"][0]["id"] = json!(259)), [Refusal::DuplicateId(259)]);
    assert_eq!(refusals(|file| file["added_tokens"][0]["id"] = json!(u32::MAX)), [Refusal::IdTooLarge(u32::MAX)]);
    let bad = |file: &mut Value| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(");
    assert!(matches!(refusals(bad)[..], [Refusal::Pattern(_)]));
}

#[test]
fn damaged_files_are_refused() {
    for json in ["", "{}", "[]", r#"{"kind": "bytes"}"#, r#"{"kind": "words"}"#, r#"{"model": 3}"#] {
        assert!(matches!(Tokenizer::from_json(json), Err(TokenizerError::Json(_))), "{json}");
    }
    let refused = |offset, bos| Tokenizer::bytes_with(offset, bos, &[]).unwrap_err();
    assert_eq!(refused(8, Some(9)), TokenizerError::Refused(vec![Refusal::SpecialIsByte(9)]));
    assert_eq!(refused(u32::MAX, None), TokenizerError::Refused(vec![Refusal::Offset(u32::MAX)]));
}

/// Expressions that leave gaps or match nothing at all lose nothing either, and runs that make the expression give up do not.
#[test]
fn nothing_is_lost_between_words_or_in_long_runs() {
    for pattern in [r"\p{L}+", r"\s*", r"x*", r"(?=a)", LLAMA3] {
        let mut file = hugging_face();
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern);
        let tokenizer = Tokenizer::from_hugging_face(&file.to_string(), None, &[]).unwrap();
        for text in ["", "hello, wörld 12 xx\n", "aaa"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text.as_bytes(), "{pattern} on {text:?}");
        }
    }
    let tokenizer = bpe();
    for long in [" ".repeat(300_000), format!("{}a", " ".repeat(100_000)), "a".repeat(300_000), "ä\n".repeat(50_000)] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&long)), long.as_bytes());
    }
}

/// A pattern whose attempts double with each letter, so that it gives up: the text is cut in halves until it does not.
#[test]
fn an_expression_that_gives_up_loses_nothing() {
    let mut file = hugging_face();
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"(?=a)(?:a|a(?!q)|a)*(?<=b)b");
    let tokenizer = Tokenizer::from_hugging_face(&file.to_string(), None, &[]).unwrap();
    let text = "a".repeat(24);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text.as_bytes());
}

#[test]
fn characters_come_out_whole() {
    let tokenizer = Tokenizer::bytes();
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = tokenizer.encode("aä€😀").into_iter().map(|id| stream.push(id)).collect();
    pieces.push(stream.finish());
    assert_eq!(pieces, ["a", "", "ä", "", "", "€", "", "", "", "😀", ""]);
    // A character that breaks off, at the end and before another.
    let mut stream = Utf8Stream::default();
    assert_eq!(stream.push(b"\xe2\x82"), "");
    assert_eq!(stream.push(b"x\xff"), "\u{fffd}x\u{fffd}");
    assert_eq!(stream.push(b"\xf0\x9f"), "");
    assert_eq!((stream.finish(), stream.finish()), ("\u{fffd}".to_owned(), String::new()));
}

/// Bytes that are text in part: characters of all lengths, cut ones among them.
fn mixed_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "hello|hell| w| {0,9}|[0-9]{1,5}|ä|\\PC{0,6}|[\r\n\t]{0,3}|<\\|begin\\|>".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn decoding_gives_the_bytes_back(bytes in mixed_bytes()) {
        for tokenizer in [Tokenizer::bytes(), bpe()] {
            let ids = tokenizer.encode(&bytes);
            prop_assert!(ids.iter().all(|&id| id < tokenizer.vocab_len()));
            prop_assert_eq!(tokenizer.decode(&ids), bytes.clone());
        }
    }

    #[test]
    fn piece_by_piece_is_at_once(bytes in mixed_bytes(), stray in proptest::collection::vec(0_u32..320, 0..8)) {
        for tokenizer in [Tokenizer::bytes(), bpe()] {
            let mut ids = tokenizer.encode(&bytes);
            ids.extend(&stray);
            let mut stream = tokenizer.stream();
            let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
            text.push_str(&stream.finish());
            prop_assert_eq!(text, tokenizer.decode_text(&ids));
        }
    }

    #[test]
    fn special_tokens_are_spelt_or_meant(text in "(hello|<\\|begin\\|>|<tool>|er| |ä|<){0,12}") {
        let tokenizer = bpe();
        let ids = tokenizer.encode_with_special(&text);
        let spelt = tokenizer.decode_text(&ids);
        prop_assert_eq!(spelt, text.replace("<|begin|>er", "").replace("<|begin|>", ""));
    }
}
