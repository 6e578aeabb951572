//! Sessions over artifacts whose every number is known: what runs, what is refused, and what must not change the result.

mod common;

use std::ops::ControlFlow;

use common::{Draft, MAX_TOKENS};
use ir::mask::Span;
use tempfile::TempDir;
use tritter_runtime::{Options, RuntimeError, Session, Token, WeightPages};

fn session(dir: &TempDir, threads: usize) -> Session {
    Session::open(dir.path(), &Options { threads: Some(threads), ..Options::default() }).unwrap()
}

fn on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The rows of a call.
fn rows(session: &mut Session, tokens: &[Token], rows: &[usize]) -> Vec<Vec<f32>> {
    session.forward(tokens, rows).unwrap().rows().map(<[f32]>::to_vec).collect()
}

#[test]
fn a_table_kernel_computes_what_its_reference_does_on_any_number_of_threads() {
    let (k, vocab) = (16, 20);
    let x: Vec<f32> = (0..MAX_TOKENS * k).map(|i| (i % 11) as f32 - 5.0).collect();
    let w: Vec<f32> = (0..vocab * k).map(|i| (i % 7) as f32 - 3.0).collect();
    let dir = Draft::dense(&x, &w, k).written();
    for threads in [1, 2, 3, 8] {
        let mut session = session(&dir, threads);
        for n in 1..=MAX_TOKENS as usize {
            session.reset(0).unwrap();
            let tokens: Vec<Token> = (0..n).map(|id| Token::next(0, id as u32)).collect();
            let all: Vec<usize> = (0..n).collect();
            for (row, logits) in rows(&mut session, &tokens, &all).iter().enumerate() {
                for (id, logit) in logits.iter().enumerate() {
                    let dot: f32 = (0..k as usize).map(|c| x[row * k as usize + c] * w[id * k as usize + c]).sum();
                    assert_eq!(*logit, dot, "{threads} threads, {n} tokens, row {row}, id {id}");
                }
            }
        }
    }
}

#[test]
fn where_the_weights_lie_changes_no_result() {
    let (k, vocab) = (16, 20);
    let x: Vec<f32> = (0..MAX_TOKENS * k).map(|i| (i % 11) as f32 - 5.0).collect();
    let w: Vec<f32> = (0..vocab * k).map(|i| (i % 7) as f32 - 3.0).collect();
    let dir = Draft::dense(&x, &w, k).written();
    let logits = [WeightPages::Mapped, WeightPages::Copied].map(|weights| {
        let options = Options { threads: Some(2), weights, ..Options::default() };
        let mut session = Session::open(dir.path(), &options).unwrap();
        rows(&mut session, &[Token::next(0, 1), Token::next(0, 2)], &[0, 1])
    });
    assert_eq!(logits[0], logits[1]);
}

#[test]
fn a_call_is_predicted_from_what_its_steps_move_and_compute() {
    let (k, vocab) = (16, 20);
    let (x, w) = (vec![1.0; (MAX_TOKENS * k) as usize], vec![1.0; (vocab * k) as usize]);
    let dir = Draft::dense(&x, &w, k).written();
    let mut session = session(&dir, 1);
    // 500 ns a step; 1280 bytes at 1000 a microsecond, against 320 multiply-accumulates for each row at 100 a microsecond.
    let cost = session.cost(0, 1, 1).unwrap();
    assert_eq!((cost.bytes, cost.macs, cost.nanoseconds), (1280, 320, 500 + 3200));
    assert_eq!(session.cost(0, 4, 2).unwrap().nanoseconds, 500 + 6400);
}

#[test]
fn caches_are_written_where_the_tokens_stand_and_live_on() {
    let dir = Draft::remembering(16, 2).written();
    let mut session = session(&dir, 2);
    // Three tokens of sequence 0, with one of sequence 1 among them. Row i of the output is position i of sequence 0, second layer.
    let tokens = [Token::next(0, 0), Token::next(1, 1), Token::next(0, 0), Token::next(0, 1)];
    assert_eq!(rows(&mut session, &tokens, &[0, 2, 3]), [[100.0, 0.0], [102.0, 2.0], [103.0, 3.0]]);
    assert_eq!((session.length(0).unwrap(), session.length(1).unwrap()), (3, 1));
    // The next call goes on where that one ended, and what was written stays.
    let tokens = [Token::next(1, 0), Token::next(0, 0)];
    assert_eq!(rows(&mut session, &tokens, &[0, 1]), [[100.0, 0.0], [102.0, 2.0]]);
    assert_eq!((session.length(0).unwrap(), session.length(1).unwrap()), (4, 2));
    // Going back overwrites, and forgets what came after.
    let tokens = [Token { position: Some(1), ..Token::next(0, 0) }];
    assert_eq!(rows(&mut session, &tokens, &[0]), [[100.0, 0.0]]);
    assert_eq!(session.length(0).unwrap(), 2);
    let tokens = [Token { position: Some(0), ..Token::next(1, 0) }, Token::next(0, 0)];
    assert_eq!(rows(&mut session, &tokens, &[0, 1]), [[100.0, 0.0], [100.0, 0.0]]);
    assert_eq!((session.length(0).unwrap(), session.length(1).unwrap()), (3, 1));
}

#[test]
fn a_call_without_rows_or_tokens_gives_no_logits() {
    let dir = Draft::remembering(16, 1).written();
    let mut session = session(&dir, 2);
    assert_eq!(rows(&mut session, &[Token::next(0, 0)], &[]), [[0.0; 2]; 0]);
    assert_eq!(rows(&mut session, &[], &[]), [[0.0; 2]; 0]);
    assert_eq!(session.length(0).unwrap(), 1);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let dir = Draft::remembering(10, 2).written();
    let mut session = session(&dir, 1);
    session.forward(&[Token::next(0, 0), Token::next(0, 1)], &[]).unwrap();
    let next = Token::next(0, 1);
    let at = |position| Token { position: Some(position), ..next };
    let span = |first, reach| Token { span: Span { first, reach }, ..next };

    macro_rules! assert_refused {
        ($tokens:expr, $rows:expr, $error:pat) => {
            let error = session.forward(&$tokens, &$rows).map(|_| ()).unwrap_err();
            assert!(matches!(error, $error), "{error}");
            assert_eq!((session.length(0).unwrap(), session.length(1).unwrap()), (2, 0));
        };
    }
    assert_refused!([next, Token::next(0, 2)], [], RuntimeError::TokenId { index: 1, id: 2, vocab: 2 });
    assert_refused!([Token::next(2, 0)], [], RuntimeError::Sequence { sequence: 2, sequences: 2 });
    assert_refused!([at(3)], [], RuntimeError::Position { index: 0, position: 3, next: 2, .. });
    assert_refused!([next, at(2)], [], RuntimeError::Position { index: 1, position: 2, next: 3, .. });
    assert_refused!([at(1), at(1)], [], RuntimeError::Position { index: 1, position: 1, next: 2, .. });
    assert_refused!([span(3, 0)], [], RuntimeError::Span { first: 3, .. });
    assert_refused!([span(0, 11)], [], RuntimeError::Span { reach: 11, .. });
    assert_refused!([next], [1], RuntimeError::Rows { row: 1, .. });
    assert_refused!([next, next], [1, 0], RuntimeError::Rows { row: 0, .. });
    assert_refused!([next, next], [0, 0], RuntimeError::Rows { row: 0, .. });
    assert_refused!([next; 9], [], RuntimeError::TooManyTokens { tokens: 9, max: 8 });
    assert!(matches!(session.reset(2), Err(RuntimeError::Sequence { .. })));
    assert!(matches!(session.length(2), Err(RuntimeError::Sequence { .. })));

    session.forward(&[next; 8], &[]).unwrap();
    let error = session.forward(&[next], &[]).unwrap_err();
    assert!(matches!(error, RuntimeError::ContextFull { sequence: 0, position: 10, context: 10 }), "{error}");
    session.forward(&[Token::next(1, 0), at(9)], &[]).unwrap();
    session.reset(0).unwrap();
    session.forward(&[next], &[]).unwrap();
}

#[test]
fn prefill_checks_its_prompt_as_a_whole() {
    let dir = Draft::remembering(10, 1).written();
    let mut session = session(&dir, 1);
    assert!(matches!(session.prefill(0, &[], 4, &mut on), Err(RuntimeError::EmptyPrompt)));
    for chunk in [0, 9] {
        assert!(matches!(session.prefill(0, &[1], chunk, &mut on), Err(RuntimeError::Chunk { .. })));
    }
    let error = session.prefill(0, &[1; 11], 4, &mut on).unwrap_err();
    assert!(matches!(error, RuntimeError::ContextFull { position: 10, .. }), "{error}");
    assert_eq!(session.length(0).unwrap(), 0);
    let mut calls = Vec::new();
    let stop = &mut |done, total| {
        calls.push((done, total));
        if done == 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(matches!(session.prefill(0, &[1; 10], 4, stop), Err(RuntimeError::Cancelled)));
    assert_eq!((calls, session.length(0).unwrap()), (vec![(4, 10), (8, 10)], 8));
}

#[cfg(target_arch = "x86_64")]
mod counting {
    //! The model that counts, which has generated code.

    use super::*;
    use tokenizer::Tokenizer;
    use tritter_runtime::evaluate::{Windows, evaluate};
    use tritter_runtime::generate::{Event, Finish, Request};
    use tritter_runtime::{Sampling, generate};

    const VOCAB: u64 = 272;

    fn counting(context: u64, sequences: u64) -> TempDir {
        Draft::counting(VOCAB, context, sequences).written()
    }

    fn request<'a>(prompt: &'a [u32], max_new_tokens: usize) -> Request<'a> {
        Request {
            sequence: 0,
            prompt,
            chunk: 8,
            max_new_tokens,
            sampling: Sampling::GREEDY,
            draft: 0,
            stop: &[],
            end_ids: &[],
        }
    }

    #[test]
    fn generated_code_runs_alike_for_all_threads_and_chunks() {
        let dir = counting(64, 1);
        for threads in [1, 2, 5] {
            for chunk in 1..=MAX_TOKENS as usize {
                let mut session = session(&dir, threads);
                let request = Request { chunk, ..request(&[5, 5, 5, 5, 5, 5, 5, 5, 5, 40], 6) };
                let generation = generate(&mut session, &request, None, &mut |_| ControlFlow::Continue(())).unwrap();
                assert_eq!(generation.token_ids, [41, 42, 43, 44, 45, 46]);
                assert_eq!((generation.finish, generation.text.as_str()), (Finish::Length, ""));
            }
        }
    }

    #[test]
    fn text_streams_and_ends_where_it_should() {
        let dir = counting(64, 1);
        let mut session = session(&dir, 2);
        let tokenizer = Tokenizer::bytes();
        let prompt = tokenizer.encode("xa");
        let stop = ["gh".to_owned(), "zzz".to_owned()];
        let mut run = |request: &Request<'_>, cancel_at: usize| {
            session.reset(0).unwrap();
            let (mut pieces, mut tokens) = (String::new(), 0);
            let generation = generate(&mut session, request, Some(tokenizer.stream()), &mut |event| {
                match event {
                    Event::Text(text) => pieces.push_str(text),
                    Event::Token(_) => tokens += 1,
                    Event::Prefill(..) => {}
                }
                if tokens == cancel_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
            assert_eq!(pieces, generation.text);
            assert_eq!(tokens, generation.token_ids.len());
            (generation.text, generation.finish, tokens)
        };
        let all = usize::MAX;
        assert_eq!(run(&request(&prompt, 4), all), ("bcde".to_owned(), Finish::Length, 4));
        assert_eq!(run(&request(&prompt, 0), all), (String::new(), Finish::Length, 0));
        let stopped = run(&Request { stop: &stop, ..request(&prompt, 20) }, all);
        assert_eq!(stopped, ("bcdef".to_owned(), Finish::Stop("gh".to_owned()), 7));
        let end_ids = tokenizer.encode("d");
        let ended = run(&Request { end_ids: &end_ids, ..request(&prompt, 20) }, all);
        assert_eq!(ended, ("bc".to_owned(), Finish::End(end_ids[0]), 3));
        assert_eq!(run(&request(&prompt, 20), 3), ("bc".to_owned(), Finish::Cancelled, 3));
        // A stop string that only began comes through at the end.
        let held = ["deX".to_owned()];
        assert_eq!(run(&Request { stop: &held, ..request(&prompt, 4) }, all), ("bcde".to_owned(), Finish::Length, 4));
        // Bytes from 0x7e on: a character that is not ASCII is not whole before its last byte, and these never are.
        let tail = tokenizer.encode([0x7d]);
        let (text, ..) = run(&request(&tail, 4), all);
        assert_eq!(text, "~\u{7f}\u{fffd}\u{fffd}");
    }

    #[test]
    fn generation_ends_when_the_context_is_full() {
        let dir = counting(6, 1);
        let mut session = session(&dir, 1);
        let request = request(&[1, 2, 3, 4], 100);
        let generation = generate(&mut session, &request, None, &mut |_| ControlFlow::Continue(())).unwrap();
        // Two more tokens fit, and the last call gives one more.
        assert_eq!((generation.token_ids.as_slice(), generation.finish), (&[5, 6, 7][..], Finish::Context));
    }

    #[test]
    fn scores_do_not_depend_on_chunks_batches_or_threads() {
        let dir = counting(16, 3);
        // 40 ids in windows of 9 that count up by one but at a few places.
        let ids: Vec<u32> = (0..40).map(|id| if id % 7 == 3 { 200 } else { id }).collect();
        let mut expected = None;
        for (threads, chunk, batch) in [(1, 8, 1), (2, 8, 3), (1, 1, 1), (3, 5, 2), (2, 2, 3)] {
            let mut session = session(&dir, threads);
            let windows = Windows { window: 9, limit: None, chunk, batch };
            let found = evaluate(&mut session, &ids, &windows, &mut |_, _| ControlFlow::Continue(())).unwrap();
            assert_eq!(*expected.get_or_insert(found), found);
        }
        let found = expected.unwrap();
        assert_eq!((found.tokens, found.windows), (35, 5));
        let sum = (std::f64::consts::E + (VOCAB - 1) as f64).ln();
        let hits = ids.chunks(9).flat_map(|window| window.windows(2)).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!((found.nats - (35.0 * sum - hits as f64)).abs() < 1e-9);
    }

    #[test]
    fn windows_longer_than_the_context_are_refused_before_any_work() {
        let dir = counting(16, 1);
        let mut session = session(&dir, 1);
        let windows = |window, batch| Windows { window, limit: None, chunk: 8, batch };
        let mut never = |_, _| panic!("nothing is scored");
        let error = evaluate(&mut session, &[1; 20], &windows(20, 1), &mut never).unwrap_err();
        assert!(matches!(error, RuntimeError::ContextFull { .. }), "{error}");
        let error = evaluate(&mut session, &[1; 20], &windows(1, 1), &mut never).unwrap_err();
        assert!(matches!(error, RuntimeError::Window { window: 1 }), "{error}");
        let error = evaluate(&mut session, &[1; 20], &windows(8, 2), &mut never).unwrap_err();
        assert!(matches!(error, RuntimeError::Sequence { sequence: 1, sequences: 1 }), "{error}");
    }

    #[test]
    fn traces_name_the_steps_and_count_what_they_move() {
        let dir = counting(32, 1);
        let mut session = session(&dir, 2);
        session.start_trace(tritter_runtime::Trace::default());
        session.prefill(0, &[1; 12], 8, &mut on).unwrap();
        session.forward(&[Token::next(0, 3)], &[0]).unwrap();
        let trace = session.take_trace().unwrap();
        assert_eq!(trace.calls(), 3);
        let rows: Vec<_> = trace.rows().map(|row| (row.phase.as_str(), row.from.as_str(), row.launches)).collect();
        // Of the two calls of the prefill only the last wants logits.
        let expected = [
            ("decode", "layer.cache", 1),
            ("decode", "logits", 1),
            ("decode", "entry.logits", 1),
            ("prefill", "layer.cache", 2),
            ("prefill", "logits", 1),
            ("prefill", "entry.logits", 1),
        ];
        assert_eq!(rows, expected);
        let decode = trace.rows().find(|row| row.from == "entry.logits").unwrap();
        assert_eq!((decode.cost.bytes, decode.cost.macs), (4 * VOCAB + 13, 1000));
        assert_eq!(session.cost(12, 1, 1).unwrap().macs, 1000);
        assert!(session.take_trace().is_none());
    }
}
