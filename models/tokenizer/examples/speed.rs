//! How fast a public vocabulary encodes a file on one core: `cargo run --release -p tritter-tokenizer --features tiktoken --example speed --
//! cl100k_base FILE [IDS]`. One line of JSON; the ids go to IDS as little-endian numbers. `speed.py` beside it runs tiktoken on the same file.

use std::time::Instant;

use tritter_tokenizer::{Tokenizer, Vocabulary};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ([name, file] | [name, file, _]) = &args[..] else { panic!("arguments: VOCABULARY FILE [IDS]") };
    let start = Instant::now();
    let tokenizer = Tokenizer::tiktoken(Vocabulary::of_name(name).expect("a vocabulary's name")).expect("tables");
    let load_seconds = start.elapsed().as_secs_f64();
    let bytes = std::fs::read(file).expect("the file can be read");
    let mut rounds = Vec::new();
    let mut ids = Vec::new();
    // The first round starts with an empty cache, the others with what the one before left in it.
    for _ in 0..3 {
        let start = Instant::now();
        ids = tokenizer.encode(&bytes);
        rounds.push(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    let decoded = tokenizer.decode(&ids);
    let decode_seconds = start.elapsed().as_secs_f64();
    assert!(decoded == bytes, "decoding gives the bytes back");
    if let Some(path) = args.get(2) {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(path, ids).expect("the ids can be written");
    }
    println!(
        r#"{{"bytes": {}, "ids": {}, "load_seconds": {load_seconds}, "seconds": {rounds:?}, "decode_seconds": {decode_seconds}}}"#,
        bytes.len(),
        ids.len(),
    );
}
