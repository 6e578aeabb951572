//! The rule sets for text of the web: each rule rejects for its own reason. Agreement with datatrove is measured by `compare/quality.py`.

use tritter_curation::quality::code::{Language, measure};
use tritter_curation::quality::web::{self, fineweb, gopher_quality, gopher_repetition};
use tritter_curation::quality::{Reason, RuleSet, Verdict, judge, n_sentences, words};

/// Sixty different words of usual length, in sentences.
fn prose() -> String {
    let sentence = |n: usize| {
        let word =
            |k: usize| format!("word{}", "abcdefghijklmnopqrstuvwxyz".chars().nth((n * 7 + k) % 26).unwrap_or('a'));
        let words: Vec<String> = (0..8).map(|k| format!("{}{n}", word(k))).collect();
        let (first, second) = (words[..4].join(" "), words[4..].join(" "));
        match n % 4 {
            0 => format!("The {first} and {second}."),
            1 => format!("{first} of that {second}."),
            2 => format!("With {first} to {second} be."),
            _ => format!("{first} have the {second}."),
        }
    };
    (0..8).map(sentence).collect::<Vec<_>>().join("\n")
}

fn reason(verdict: Verdict) -> Result<(), Reason> {
    verdict.map_err(|rejection| rejection.reason)
}

fn quality(text: &str) -> Result<(), Reason> {
    reason(gopher_quality(text, &words(text)))
}

fn repetition(text: &str) -> Result<(), Reason> {
    reason(gopher_repetition(text, &words(text)))
}

fn web(text: &str) -> Result<(), Reason> {
    reason(fineweb(text, &words(text)))
}

fn c4(text: &str) -> Result<String, Reason> {
    web::c4(text).map_err(|rejection| rejection.reason)
}

#[test]
fn sets_judge_together_and_every_reason_is_in_their_tables() {
    let texts = [
        prose(),
        String::new(),
        "Too short.".to_owned(),
        "ab ".repeat(60),
        "same line\n".repeat(4),
        format!("{}\nThis is {{ a bracket.", prose()),
    ];
    for text in &texts {
        let language = Language::of("a.md");
        let measures = measure(text, language);
        let verdicts = judge(&[RuleSet::FineWeb, RuleSet::C4, RuleSet::Gopher], text, &measures, language);
        let sets: Vec<RuleSet> = verdicts.iter().map(|(set, _)| *set).collect();
        assert_eq!(sets, [RuleSet::Gopher, RuleSet::C4, RuleSet::FineWeb]);
        let verdict = |set| verdicts.iter().find(|(other, _)| *other == set).map(|(_, verdict)| reason(*verdict));
        assert_eq!(verdict(RuleSet::FineWeb), Some(web(text)));
        assert_eq!(verdict(RuleSet::C4), Some(c4(text).map(drop)));
        assert_eq!(verdict(RuleSet::Gopher), Some(quality(text).and_then(|()| repetition(text))));
        for (set, verdict) in &verdicts {
            if let Err(rejection) = verdict {
                assert!(set.meaning(rejection.reason).is_some(), "{} has no {}", set.name(), rejection.reason);
            }
        }
    }
    let short = gopher_quality("Two words.", &words("Two words.")).expect_err("it is too short");
    assert_eq!((short.reason, short.figure, short.bound), ("gopher_short_doc", 2.0, 50.0));
}

#[test]
fn prose_passes_every_set() {
    let prose = prose();
    assert_eq!(quality(&prose), Ok(()));
    assert_eq!(repetition(&prose), Ok(()));
    assert_eq!(web(&prose), Ok(()));
    assert_eq!(c4(&prose), Ok(prose));
}

#[test]
fn gopher_quality_names_its_reason() {
    let prose = prose();
    assert_eq!(quality("Too short."), Err("gopher_short_doc"));
    assert_eq!(quality(&"long ".repeat(100_001)), Err("gopher_long_doc"));
    assert_eq!(quality(&"ab ".repeat(60)), Err("gopher_below_avg_threshold"));
    assert_eq!(quality(&"antidisestablishment ".repeat(60)), Err("gopher_above_avg_threshold"));
    assert_eq!(quality(&format!("{prose}{}", " # ".repeat(20))), Err("gopher_too_many_hashes"));
    assert_eq!(quality(&format!("{prose}{}", " … ".repeat(20))), Err("gopher_too_many_ellipsis"));
    assert_eq!(quality(&format!("- {}", prose.replace('\n', "\n- "))), Err("gopher_too_many_bullets"));
    assert_eq!(quality(&prose.replace(".\n", "...\n")), Err("gopher_too_many_end_ellipsis"));
    assert_eq!(quality(&format!("{prose}{}", " 12345".repeat(60))), Err("gopher_below_alpha_threshold"));
    assert_eq!(quality(&"several different words only ".repeat(20)), Err("gopher_enough_stop_words"));
}

#[test]
fn gopher_repetition_names_its_reason() {
    let prose = prose();
    assert_eq!(repetition(""), Err("empty"));
    assert_eq!(repetition(&"same\n\n".repeat(4)), Err("dup_para_frac"));
    assert_eq!(repetition(&"same line\n".repeat(4)), Err("dup_line_frac"));
    assert_eq!(repetition(&format!("{prose}{}", " one two".repeat(40))), Err("top_2_gram"));
    assert_eq!(repetition(&format!("{prose} {}", prose.replace('\n', " "))), Err("duplicated_5_n_grams"));
}

#[test]
fn fineweb_names_its_reason() {
    let prose = prose();
    assert_eq!(web(" \n "), Err("empty"));
    assert_eq!(web(&prose.replace('.', "")), Err("line_punct_ratio"));
    assert_eq!(web("Short.\nLines.\nOnly."), Err("short_line_ratio"));
    assert_eq!(web(&format!("{prose}\n{}", prose.lines().next().unwrap_or_default())), Err("char_dup_ratio"));
    assert_eq!(web(&format!("{prose}{}", "\n".repeat(60))), Err("list_ratio"));
}

#[test]
fn c4_drops_lines_and_documents() {
    let prose = prose();
    assert_eq!(c4("One sentence is here."), Err("too_few_sentences"));
    assert_eq!(c4(&format!("{prose}\nThis is lorem ipsum text.")), Err("lorem_ipsum"));
    assert_eq!(c4(&format!("{prose}\nThis is {{ a bracket.")), Err("curly_bracket"));
    let dropped = "\nno punctuation here\nToo few.\nPlease turn JavaScript on.\nRead our privacy policy here.\nHow open it ends...";
    assert_eq!(c4(&format!("{prose}{dropped}")), Ok(prose.clone()));
    assert_eq!(c4(&prose.replace(".", "[12][edit][citation needed].")), Ok(prose));
}

#[test]
fn words_and_sentences_are_what_they_say() {
    assert_eq!(words("a_b(c)  d'e\u{1c}f"), ["a_b", "(", "c", ")", "d", "'", "e", "f"]);
    assert_eq!(n_sentences("One. Two! Three? four"), 4);
    assert_eq!(n_sentences("3.5 is one."), 1);
    assert_eq!(n_sentences(" "), 0);
}
