//! Any text is a program or a list of errors under its lines; a program prints and reads back, and verifies or says why not.

#![no_main]

use ir::text::{parse, parse_with_positions, print, show_verify_errors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse_with_positions(text) {
        Ok((program, map)) => {
            assert_eq!(parse(&print(&program)).as_ref(), Ok(&program));
            if let Err(errors) = ir::verify(program.clone()) {
                assert!(!show_verify_errors(&program, &errors, Some((text, &map))).is_empty());
            }
        }
        Err(errors) => assert!(!errors.show(text).is_empty()),
    }
});
