//! `text`: the program in its canonical form, which reads back as the same program.

use anyhow::{anyhow, ensure};

use super::Kind;
use crate::filetest::Case;

/// Expects the canonical text.
pub struct Text;

impl Kind for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = ir::text::parse(&case.text).map_err(|errors| anyhow!("{}", errors.show(&case.text)))?;
        let text = ir::text::print(&program);
        let again = ir::text::parse(&text).map_err(|errors| anyhow!("{}", errors.show(&text)))?;
        ensure!(again == program, "the printed text reads back as another program:\n{text}");
        ensure!(ir::text::print(&again) == text, "printed once more, the text differs:\n{text}");
        Ok(Some(text))
    }
}
