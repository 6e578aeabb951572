//! Signatures estimate the Jaccard similarity, bands follow their curve, clusters and what stays of them.

use tritter_curation::duplicates::{
    Bands, Keep, band_keys, clusters, find_duplicates, jaccard, pairs, shingles, signature, similarity,
};

/// So many different words, from a number on.
fn text(from: usize, n: usize) -> String {
    (from..from + n).map(|k| format!("word{k} ")).collect()
}

#[test]
fn an_estimate_is_within_five_deviations_of_the_similarity() {
    let bands = Bands::DEFAULT;
    for n in [40, 300, 5000] {
        for step in 0..=20 {
            let (lhs, rhs) = (text(0, n), text(n * step / 20, n));
            let exact = jaccard(&shingles(&lhs), &shingles(&rhs));
            let estimate = similarity(&signature(&lhs, bands).unwrap(), &signature(&rhs, bands).unwrap());
            // Filled slots repeat others, so that short documents have fewer independent ones.
            let slots = bands.slots().min(n) as f64;
            let bound = 5.0 * (exact * (1.0 - exact) / slots).sqrt() + 1e-9;
            assert!((estimate - exact).abs() <= bound, "{n} words, {exact}: {estimate}");
        }
    }
}

#[test]
fn candidates_follow_the_curve() {
    let bands = Bands { n: 16, rows: 4 };
    let n = 600;
    for shift in [60, 120, 200, 300] {
        let (mut n_candidates, n_trials) = (0, 400);
        let mut expected = 0.0;
        for trial in 0..n_trials {
            let from = trial * 100_000;
            let (lhs, rhs) = (text(from, n), text(from + shift, n));
            expected = bands.probability(jaccard(&shingles(&lhs), &shingles(&rhs)));
            let keys: Vec<u64> = band_keys(&signature(&lhs, bands).unwrap(), bands).collect();
            let other = signature(&rhs, bands).unwrap();
            n_candidates += usize::from(band_keys(&other, bands).zip(keys).any(|(lhs, rhs)| lhs == rhs));
        }
        let share = n_candidates as f64 / n_trials as f64;
        let deviation = (expected * (1.0 - expected) / n_trials as f64).sqrt();
        assert!((share - expected).abs() <= 4.0 * deviation + 0.01, "shift {shift}: {share}, expected {expected}");
    }
}

#[test]
fn copies_go_and_the_policy_says_which_stays() {
    let original = text(0, 400);
    let longer = format!("{original} and one more");
    let other = text(9000, 400);
    let texts = [original.as_str(), &other, &longer, &original, "", ""];
    let first = find_duplicates(&texts, Bands::DEFAULT, 0.8, Keep::First);
    assert_eq!(first.kept, [0, 1, 0, 0, 4, 4]);
    assert_eq!((first.n_exact, first.n_near), (2, 1));
    let longest = find_duplicates(&texts, Bands::DEFAULT, 0.8, Keep::Longest);
    assert_eq!(longest.kept, [2, 1, 2, 2, 4, 4]);
}

#[test]
fn clusters_are_connected_components() {
    assert_eq!(clusters(6, [(1, 3), (3, 5), (2, 4)]), [0, 1, 2, 1, 2, 1]);
    assert_eq!(pairs(&[1, 4, 7]).collect::<Vec<_>>(), [(1, 4), (1, 7), (4, 7)]);
    let large: Vec<u32> = (0..2000).collect();
    assert!(pairs(&large).count() < 2000 * 257);
    assert!(clusters(2000, pairs(&large)).iter().all(|cluster| *cluster == 0));
}

#[test]
fn the_curve_is_printed_for_people() {
    let curve = Bands::DEFAULT.curve();
    assert!(curve.contains("0.80  0.9972"), "{curve}");
    // The figure that datatrove's documentation gives for its parameters.
    assert!((Bands::FINEWEB.probability(0.8) - 0.924).abs() < 0.001);
    assert_eq!(Bands::REFINE_CODE.slots(), 2048);
}

#[test]
fn short_documents_have_shingles_too() {
    assert_eq!(shingles("two words"), shingles("Two, WORDS!"));
    assert_ne!(shingles("two words"), shingles("words two"));
    assert!(shingles(" ... ").is_empty());
    assert_eq!(signature("", Bands::DEFAULT), None);
    assert_eq!(jaccard(&[], &[]), 1.0);
}
