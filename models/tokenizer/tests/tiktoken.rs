//! Ids equal to tiktoken's on its vocabularies, and no byte lost: on random texts, on this project's sources, and on as much as one likes.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use tiktoken_rs::CoreBPE;
use tritter_tokenizer::{Tokenizer, Vocabulary};

/// Ours and tiktoken's.
static ALL: LazyLock<Vec<(Tokenizer, CoreBPE)>> = LazyLock::new(|| {
    let theirs = [tiktoken_rs::r50k_base, tiktoken_rs::cl100k_base, tiktoken_rs::o200k_base];
    let ours = Vocabulary::ALL.map(|vocabulary| Tokenizer::tiktoken(vocabulary).unwrap());
    ours.into_iter().zip(theirs.map(|make| make().unwrap())).collect()
});

#[track_caller]
fn same_ids(text: &str) {
    for ((ours, theirs), vocabulary) in ALL.iter().zip(Vocabulary::ALL) {
        let ids = ours.encode(text);
        let expected = theirs.encode_ordinary(text);
        if ids != expected {
            let at = ids.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let near =
                |ids: &[u32]| format!("{:?}", ours.decode_text(&ids[at.saturating_sub(3)..ids.len().min(at + 5)]));
            panic!("{} differs at id {at}: {} and not {}", vocabulary.name(), near(&ids), near(&expected));
        }
        assert!(ours.decode(&ids) == text.as_bytes(), "{} loses bytes", vocabulary.name());
    }
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort_unstable();
    for path in paths {
        if path.is_symlink() {
            continue;
        } else if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn ids_are_those_of_tiktoken_on_sources() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "../src", "../../kernels/src"] {
        files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    let texts: Vec<String> = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    assert!(100_000 < texts.iter().map(String::len).sum::<usize>());
    for text in texts {
        same_ids(&text);
    }
}

#[test]
fn ids_are_those_of_tiktoken_on_what_is_odd() {
    for text in [
        "",
        " ",
        "\n",
        "  \n  ",
        "a\r\n\r\n\tb ",
        "🏳️‍🌈 zażółć gęślą jaźń 日本語のテキスト한국어 ไทย हिन्दी",
        "it's IT'S we'LL",
        "0123456789012345678901234567890",
        "antidisestablishmentarianism",
        "\u{301}\u{301}e",
        "<|endoftext|>",
    ] {
        same_ids(text);
        same_ids(&text.repeat(40));
    }
    for text in ["a", "ab", "=", "-+", "\u{e9}", "日", "aB", " \n", "1"] {
        same_ids(&text.repeat(3000));
    }
}

/// The time for a run of one character grows with it, and not with its square: 1 MB of it is done in less time than a test may take.
#[test]
fn long_words_take_no_square_of_time() {
    let (tokenizer, _) = &ALL[1];
    for text in ["a", " ", "ab", "!", "\n"] {
        let text = text.repeat((1 << 20) / text.len());
        assert!(tokenizer.decode(&tokenizer.encode(&text)) == text.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_are_those_of_tiktoken(text in "([a-zA-Z]{1,40}|[ \t\r\n\u{a0}]{1,4}|['’][a-zA-Zſ]{0,2}|[0-9²]{1,4}|[!/.=\\-]{1,20}|[éÉǅʰ日本]{1,9}|[\u{301}]|\\PC){0,16}") {
        same_ids(&text);
    }

    #[test]
    fn no_bytes_are_lost(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (ours, _) in ALL.iter() {
            prop_assert_eq!(ours.decode(&ours.encode(&bytes)), bytes.clone());
        }
    }
}

/// The files below the folders of `TRITTER_CORPUS` (separated by `:`), text and binary, up to 200 MB: nothing is lost, and texts have tiktoken's ids.
#[test]
#[ignore = "takes minutes and a corpus: TRITTER_CORPUS=/usr/lib cargo test --release -p tritter-tokenizer --features tiktoken -- --ignored --nocapture"]
fn nothing_is_lost_on_200_mb() {
    const MOST: usize = 200_000_000;
    let corpus = std::env::var("TRITTER_CORPUS").expect("TRITTER_CORPUS names folders");
    let mut files = Vec::new();
    for folder in corpus.split(':') {
        files_below(Path::new(folder), &mut files);
    }
    let (mut n_bytes, mut n_text, mut n_files) = (0, 0, 0);
    let mut n_ids = [0; Vocabulary::ALL.len()];
    for file in files {
        let Ok(bytes) = std::fs::read(&file) else { continue };
        if MOST < n_bytes + bytes.len() {
            continue;
        }
        for (((ours, theirs), vocabulary), n_ids) in ALL.iter().zip(Vocabulary::ALL).zip(&mut n_ids) {
            let ids = ours.encode(&bytes);
            assert!(ours.decode(&ids) == bytes, "{}: {} loses bytes", file.display(), vocabulary.name());
            if let Ok(text) = std::str::from_utf8(&bytes) {
                assert!(ids == theirs.encode_ordinary(text), "{}: ids of {}", file.display(), vocabulary.name());
            }
            *n_ids += ids.len();
        }
        n_text += if std::str::from_utf8(&bytes).is_ok() { bytes.len() } else { 0 };
        n_bytes += bytes.len();
        n_files += 1;
    }
    println!("{n_files} files, {n_bytes} bytes, {n_text} of them in texts, ids {n_ids:?}");
    assert!(MOST / 2 < n_bytes, "the corpus is too small");
}
