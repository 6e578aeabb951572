//! Any text is a model spec or a list of errors with their places; a spec builds, or says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::spec::{KvFormat, read};
use models::{BuildOptions, HeadFormat, Naming, build};

fuzz_target!(|text: &str| {
    match read(text) {
        Ok(spec) => {
            let written = spec.to_ron();
            let again = read(&written).unwrap_or_else(|errors| panic!("{errors}\n{written}"));
            assert_eq!(again, spec, "what is written reads back");
            let options = BuildOptions {
                context: spec.context.min(64),
                sequences: 1,
                chunk: 8,
                logits: 4,
                kv: KvFormat::Int4,
                head: HeadFormat::Int4,
                naming: Naming::Own,
            };
            // A graph has a few values a block, whatever the sizes; an error that is a bug of ours says so.
            if spec.blocks.len() < 64
                && let Err(error) = build(&spec, &options)
            {
                assert!(!error.to_string().contains("internal error"), "{error}\n{text}");
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            let lines = text.lines().count() as u32;
            assert!(errors.0.iter().all(|error| 1 <= error.line && error.line <= lines.max(1) + 1), "{errors}");
        }
    }
});
