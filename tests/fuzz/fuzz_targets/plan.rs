//! Any text is a plan that keeps all rules, or an error; a plan that is written reads back.

#![no_main]

use ir::plan::{Manifest, Plan, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(plan) = Plan::from_ron(text) {
        assert_eq!(check(&plan), Ok(()));
        assert_eq!(Plan::from_ron(&plan.to_ron()).as_ref(), Ok(&plan));
    }
    if let Ok(manifest) = Manifest::from_ron(text) {
        assert_eq!(Manifest::from_ron(&manifest.to_ron()).as_ref(), Ok(&manifest));
    }
});
