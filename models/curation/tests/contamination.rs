//! Planted copies of evaluation items, whole, changed and in part; and texts that only come near one.

use proptest::prelude::*;
use tritter_curation::Secrets;
use tritter_curation::contamination::Evaluations;
use tritter_curation::judge::{Criteria, Label, judge};
use tritter_curation::quality::RuleSet;

const ITEM: &str = "def below_threshold(l: list, t: int):
    \"\"\"Return True if all numbers in the list l are below threshold t.
    >>> below_threshold([1, 2, 4, 10], 100)
    True
    \"\"\"
    for e in l:
        if e >= t:
            return False
    return True
";

const OTHER: &str = "import os\n\n\ndef list_of_names(folder):\n    return sorted(os.listdir(folder))\n";

fn evaluations(length: usize) -> Evaluations {
    Evaluations::new([("set:1".to_owned(), ITEM.to_owned())], length)
}

#[test]
fn a_whole_item_is_found_exactly_where_it_stands() {
    let evaluations = evaluations(Evaluations::DEFAULT_RUN);
    let text = format!("{OTHER}\n{ITEM}\n{OTHER}");
    let overlaps = evaluations.find(&text);
    assert_eq!(overlaps.len(), 1);
    let overlap = &overlaps[0];
    assert_eq!((overlap.item, overlap.item_line, overlap.line, overlap.column), ("set:1", 1, 7, 1));
    assert!(overlap.is_exact);
    assert_eq!(overlap.coverage, 1.0);
    assert_eq!(&text[overlap.span.clone()], ITEM.trim_end());
}

#[test]
fn letter_case_white_space_and_punctuation_hide_nothing() {
    let evaluations = evaluations(Evaluations::DEFAULT_RUN);
    let hidden = ITEM.to_uppercase().replace("    ", "\t").replace("\"\"\"", "'''").replace(", ", " ,");
    let overlaps = evaluations.find(&hidden);
    assert_eq!(overlaps.len(), 1);
    assert!(!overlaps[0].is_exact && overlaps[0].coverage == 1.0);
}

#[test]
fn thirteen_words_are_enough_and_twelve_are_not() {
    let evaluations = evaluations(Evaluations::DEFAULT_RUN);
    let part = "Return True if all numbers in the list l are below threshold t";
    assert_eq!(part.split_whitespace().count(), 13);
    let overlaps = evaluations.find(&format!("# Note: {part}, it says."));
    assert_eq!(overlaps.len(), 1);
    assert_eq!((overlaps[0].n_words, overlaps[0].item_line, overlaps[0].column), (13, 2, 9));
    let twelve = part.strip_suffix(" t").expect("it ends so");
    assert_eq!(evaluations.find(&format!("# Note: {twelve}, it says.")), []);
    // As many words, and one of them another.
    assert_eq!(evaluations.find(&part.replace("numbers", "integers")), []);
    assert_eq!(evaluations.find(&part.replace("the list", "list the")), []);
    assert_eq!(too_short().find(&format!("{OTHER}{twelve}")), []);
}

/// A set whose only item says nothing by itself.
fn too_short() -> Evaluations {
    Evaluations::new([("set:1".to_owned(), "return True if all numbers are".to_owned())], Evaluations::DEFAULT_RUN)
}

#[test]
fn short_items_must_stand_whole_and_the_shortest_are_left_out() {
    let short = "sort the numbers of a list in falling order";
    let evaluations = Evaluations::new([("short".to_owned(), short.to_owned())], Evaluations::DEFAULT_RUN);
    assert_eq!(evaluations.n_items(), 1);
    assert_eq!(evaluations.find(&format!("# Sort the numbers of a list: in falling order!\n{OTHER}")).len(), 1);
    assert_eq!(evaluations.find("# Sort the numbers of a list in rising order.\n"), []);
    assert_eq!((too_short().n_items(), too_short().n_runs()), (0, 0));
}

#[test]
fn texts_that_repeat_themselves_make_one_overlap() {
    let zeros = "0 ".repeat(50);
    let evaluations = Evaluations::new([("zeros".to_owned(), zeros)], Evaluations::DEFAULT_RUN);
    let overlaps = evaluations.find(&"0, ".repeat(10_000));
    assert_eq!(overlaps.len(), 1);
    assert_eq!((overlaps[0].n_words, overlaps[0].coverage), (10_000, 1.0));
}

#[test]
fn a_document_with_a_part_of_an_item_is_rejected() {
    let secrets = Secrets::built_in().expect("the built-in rules are well formed");
    let evaluations = Evaluations::new(
        [("set:1".to_owned(), ITEM.to_owned()), ("set:2".to_owned(), format!("{ITEM}\n{OTHER}"))],
        Evaluations::DEFAULT_RUN,
    );
    let criteria = Criteria {
        secrets: &secrets,
        count_tokens: &|text| text.len(),
        licences: None,
        rules: &[RuleSet::StarCoder],
        evaluations: Some(&evaluations),
    };
    let judgement = judge("a.py", &format!("# A copy.\n{ITEM}"), None, criteria);
    assert_eq!((judgement.label, &*judgement.reason), (Label::Rejected, "contamination"));
    let finding = &judgement.findings[0];
    assert_eq!((finding.rule.as_str(), finding.line), ("contamination/exact", 2));
    assert_eq!(finding.message, "37 words of set:1, line 1, and of 1 more; 100 % of it stands here");
    let near = ITEM.replace("e >= t", "threshold <= e").replace("numbers in the", "values of the");
    assert_ne!(judge("a.py", &near[..near.len() / 2], None, criteria).reason, "contamination");
}

proptest! {
    /// What a plain comparison of words finds, and nothing else.
    #[test]
    fn runs_are_found_as_a_plain_search_finds_them(
        item in prop::collection::vec(0_u8..3, 8..40), text in prop::collection::vec(0_u8..3, 0..60),
    ) {
        let words = |codes: &[u8]| -> String { codes.iter().map(|code| ["ab ", "c, ", "_d\n"][usize::from(*code)]).collect() };
        let length = Evaluations::DEFAULT_RUN.min(item.len());
        let expected: Vec<usize> = (0..text.len().saturating_sub(length - 1))
            .filter(|at| item.windows(length).any(|run| run == &text[*at..*at + length]))
            .collect();
        let evaluations = Evaluations::new([("item".to_owned(), words(&item))], Evaluations::DEFAULT_RUN);
        let text = words(&text);
        let overlaps = evaluations.find(&text);
        let n_runs: usize = overlaps.iter().map(|overlap| overlap.n_words + 1 - length).sum();
        prop_assert_eq!(n_runs, expected.len());
    }
}
