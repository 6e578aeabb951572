//! The code mode keeps every byte, has its boundaries where the syntax has them, and its marks mean what they spell.

use proptest::prelude::*;
use tritter_tokenizer::code::{Language, spans};
use tritter_tokenizer::{Layout, Meaning, Tokenizer, marks};

const SOURCES: &[(Language, &str)] = &[
    (
        Language::Python,
        "async def f(x, *, y=None):\n    # def in a comment\n    if x is not y:\n        return [\"def\", f'{x!r} in', 1.5]\n\n\nclass A:\n\tpass\n",
    ),
    (
        Language::Rust,
        "pub fn f<'a>(x: &'a mut u8) -> Result<(), E> { let y = x?; match y { 0..=9 => \"fn\", _ => r#\"x\"# } } // fn\n",
    ),
    (Language::JavaScript, "export const f = async (x) => `a${x ?? null}b` !== this.y; /re/g.test('const');\n"),
    (Language::TypeScript, "interface A<T extends keyof B> { readonly x?: string | undefined }\n"),
    (Language::Tsx, "const a = <div className=\"x\">{y as number}</div>;\n"),
    (
        Language::C,
        "#include <a.h>\n#define X(a) (a)\nstatic inline int f(const char *s) { return s ? sizeof(s) : NULL; }\n",
    ),
    (
        Language::Cpp,
        "template <typename T> constexpr auto f(T &&x) noexcept -> decltype(x) { return x <=> nullptr; }\n",
    ),
    (Language::Go, "package a\n\nfunc f(c chan<- int) (err error) {\n\tdefer close(c)\n\tc <- 1\n\treturn nil\n}\n"),
    (
        Language::Java,
        "@Override public final <T> void f(T x) throws E { synchronized (this) { x = true ? null : x; } }\n",
    ),
];

fn tokenizers() -> [Tokenizer; 3] {
    let layout = || Layout::of_size(65536).unwrap();
    let small = r#"(size: 3000, control: [], bos: None, eos: [], bytes: 0, marks: Some((first: 256, len: 1272)),
        pairs: Some((first: 1528, len: 200)), image: None, audio: None)"#;
    let texts = [include_str!("code.rs"), include_str!("layout.rs")];
    let trained = Tokenizer::train(Layout::from_ron(small).unwrap(), texts).unwrap();
    [Tokenizer::bytes(), Tokenizer::bytes_of(layout()), trained]
}

/// Where tokens end in the source.
fn ends(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<usize> {
    let mut end = 0;
    ids.iter()
        .map(|id| {
            end += tokenizer.decode(&[*id]).len();
            end
        })
        .collect()
}

#[test]
fn boundaries_are_those_of_the_syntax() {
    for tokenizer in tokenizers() {
        for (language, source) in SOURCES {
            let ids = tokenizer.encode_code(source.as_bytes(), *language).unwrap();
            assert_eq!(tokenizer.decode_text(&ids), *source);
            let ends = ends(&tokenizer, &ids);
            // Whole nodes end where a token ends: in particular all leaves that have a name.
            for span in spans(source.as_bytes(), *language).unwrap() {
                let text = &source[span.range.clone()];
                assert!(ends.contains(&span.range.end), "{} ends within a token: {text:?}", span.kind);
            }
        }
    }
}

#[test]
fn the_sources_are_well_formed() {
    for (language, source) in SOURCES {
        let whole: Vec<_> = spans(source.as_bytes(), *language).unwrap();
        assert!(5 < whole.len(), "{}: {whole:?}", language.name());
        assert_eq!(Language::of_name(language.name()), Some(*language));
    }
    assert_eq!(Language::of_extension("pyi"), Some(Language::Python));
    assert_eq!(Language::of_extension("txt"), None);
}

#[test]
fn keywords_operators_and_blocks_are_marks() {
    let [_, tokenizer, _] = tokenizers();
    let layout = tokenizer.layout().unwrap();
    let marked = |language, source: &str| -> Vec<String> {
        let ids = tokenizer.encode_code(source.as_bytes(), language).unwrap();
        let mark = |id: &u32| match layout.meaning(*id) {
            Meaning::Mark(marks::INDENT) => Some("INDENT".to_owned()),
            Meaning::Mark(marks::DEDENT) => Some("DEDENT".to_owned()),
            Meaning::Mark(mark) => Some(marks::text(mark).to_owned()),
            _ => None,
        };
        ids.iter().filter_map(mark).collect()
    };
    let python = "def f():\n    if x:\n        return None  # def\n    y = 'if'\n";
    let expected = "def ( ) : INDENT if : INDENT return None DEDENT = ' ' DEDENT";
    // Quotes are nodes with a name of their own in Python.
    let expected = expected.replace(" ' '", "");
    assert_eq!(marked(Language::Python, python).join(" "), expected);
    assert_eq!(
        marked(Language::Rust, "pub fn f() -> u8 { self.x && true }").join(" "),
        "pub fn ( ) -> u8 { self . && true }"
    );
    // Every keyword of a source is one id, always the same.
    assert_eq!(
        tokenizer.encode_code(b"def", Language::Python).unwrap().len(),
        1 + 2 * usize::from(marked(Language::Python, "def").is_empty())
    );
}

#[test]
fn a_part_is_moved_to_be_filled_in() {
    let [bytes, tokenizer, _] = tokenizers();
    let (language, source) = SOURCES[0];
    let spans = spans(source.as_bytes(), language).unwrap();
    let block = spans.iter().find(|span| span.kind == "block").unwrap();
    let ids = tokenizer.encode_to_fill(source.as_bytes(), block.range.clone()).unwrap();
    let text = tokenizer.decode_text(&ids);
    let (prefix, suffix) = (&source[..block.range.start], &source[block.range.end..]);
    assert_eq!(text, [prefix, suffix, &source[block.range.clone()]].concat());
    let layout = tokenizer.layout().unwrap();
    let marks: Vec<Meaning<'_>> =
        ids.iter().map(|id| layout.meaning(*id)).filter(|meaning| matches!(meaning, Meaning::Mark(_))).collect();
    assert_eq!(marks, [marks::FIM_PREFIX, marks::FIM_SUFFIX, marks::FIM_MIDDLE].map(Meaning::Mark));
    assert_eq!(bytes.encode_to_fill(b"abc", 1..2), None);
    assert_eq!(tokenizer.encode_to_fill(b"abc", 2..9), None);
}

#[test]
fn deep_nesting_is_no_matter() {
    let [_, tokenizer, _] = tokenizers();
    let source = format!("{}x{}", "[".repeat(20_000), "]".repeat(20_000));
    for language in [Language::Python, Language::JavaScript] {
        let ids = tokenizer.encode_code(source.as_bytes(), language).unwrap();
        assert!(tokenizer.decode(&ids) == source.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Sources that were cut, doubled and mixed with anything.
    #[test]
    fn broken_code_keeps_its_bytes(which in 0..SOURCES.len(), parts in proptest::collection::vec((0_usize..200, 0_usize..60), 1..5), noise in proptest::collection::vec(any::<u8>(), 0..9)) {
        let (language, source) = SOURCES[which];
        let mut bytes = Vec::new();
        for (start, len) in parts {
            let start = start.min(source.len());
            bytes.extend_from_slice(&source.as_bytes()[start..source.len().min(start + len)]);
            bytes.extend_from_slice(&noise);
        }
        for tokenizer in tokenizers() {
            let ids = tokenizer.encode_code(&bytes, language).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), bytes.clone());
        }
    }
}
