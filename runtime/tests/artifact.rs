//! Artifacts that are not as they should be: each is refused with what is wrong, and nothing of it runs.

mod common;

use std::path::Path;

use common::Draft;
use ir::plan::manifest;
use ir::plan::{Access, Code, Grid, Kernel, ReadError, Step};
use tritter_runtime::device::any::DeviceKind;
use tritter_runtime::{Artifact, ArtifactProblem, Options, RuntimeError, Session};

fn draft() -> Draft {
    Draft::remembering(16, 2)
}

fn open(dir: &Path) -> Result<Artifact, RuntimeError> {
    Artifact::open(dir, None, &mut |_, _| ())
}

/// All problems of an artifact.
fn problems(dir: &Path) -> Vec<ArtifactProblem> {
    match open(dir) {
        Err(RuntimeError::Artifact { problems, .. }) => problems,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn problems_of(draft: &Draft) -> Vec<ArtifactProblem> {
    problems(draft.written().path())
}

#[test]
fn a_sound_artifact_opens_and_reports_progress() {
    let dir = draft().written();
    let mut seen = Vec::new();
    let artifact = Artifact::open(dir.path(), None, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(seen.last(), Some(&(artifact.bytes, artifact.bytes)));
    assert!(seen.is_sorted());
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(&dir.path().join("nothing")).unwrap_err();
    assert!(matches!(error, RuntimeError::Io { action: "read", .. }), "{error}");

    let dir = draft().written();
    for file in [manifest::PLAN, manifest::WEIGHTS] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    let problems = problems(dir.path());
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().all(|problem| matches!(problem, ArtifactProblem::Unreadable { .. })), "{problems:?}");
}

#[test]
fn a_truncated_file_is_incomplete() {
    for file in [manifest::PLAN, manifest::WEIGHTS] {
        let dir = draft().written();
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let expected =
                ArtifactProblem::Size { file: file.to_owned(), expected: bytes.len() as u64, found: length as u64 };
            assert_eq!(problems(dir.path()), [expected]);
        }
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let dir = draft().written();
    for file in [manifest::PLAN, manifest::WEIGHTS] {
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for position in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << (position % 8);
            std::fs::write(&path, &damaged).unwrap();
            let problems = problems(dir.path());
            assert!(
                matches!(&problems[..], [ArtifactProblem::Hash { file: found, .. }] if found == file),
                "{problems:?}"
            );
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    open(dir.path()).unwrap();
}

#[test]
fn damage_to_several_files_is_reported_at_once() {
    let dir = Draft { code: vec![0xcc; 64], tokenizer: Some("{}".to_owned()), ..draft() }.written();
    for file in [manifest::CODE, manifest::PLAN, manifest::WEIGHTS, manifest::TOKENIZER] {
        let path = dir.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 0x80;
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(problems(dir.path()).len(), 4);
}

#[test]
fn another_version_is_called_that_even_if_it_has_other_fields() {
    let dir = draft().written();
    let path = dir.path().join(manifest::MANIFEST);
    std::fs::write(&path, "(version: 999, planets: [\"earth\"])").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, RuntimeError::Read { source: ReadError::Version { found: 999 }, .. }), "{error}");

    let mut newer = draft();
    newer.plan.version = 999;
    let error = open(newer.written().path()).unwrap_err();
    assert!(matches!(error, RuntimeError::Read { source: ReadError::Version { found: 999 }, .. }), "{error}");
}

#[test]
fn a_plan_that_breaks_its_own_rules_is_refused_by_the_reader_too() {
    let mut overlapping = draft();
    overlapping.plan.buffers[1].offset = 0;
    let error = open(overlapping.written().path()).unwrap_err();
    assert!(matches!(error, RuntimeError::Read { source: ReadError::Invalid(_), .. }), "{error}");
}

#[test]
fn a_foreign_target_is_refused_with_its_reason() {
    let other = if cfg!(target_arch = "x86_64") { "aarch64:neon" } else { "x86_64:avx2" };
    for (target, reason) in [
        (other.to_owned(), "this machine is"),
        ("riscv64".to_owned(), "this machine is"),
        (format!("{}:avx1024", std::env::consts::ARCH), "does not know `avx1024`"),
    ] {
        let mut foreign = draft();
        foreign.plan.target = target.clone();
        let problems = problems_of(&foreign);
        assert!(
            matches!(&problems[..], [ArtifactProblem::Target { target: found, reason: why }] if *found == target && why.contains(reason)),
            "{problems:?}"
        );
    }
}

#[test]
fn files_outside_the_directory_are_not_touched() {
    let dir = draft().written();
    let path = dir.path().join(manifest::MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap();
    for name in ["../plan.ron", "/plan.ron", "sub/plan.ron", ".."] {
        std::fs::write(&path, text.replace("\"plan.ron\"", &format!("{name:?}"))).unwrap();
        let problems = problems(dir.path());
        assert!(problems.contains(&ArtifactProblem::FileName { file: name.to_owned() }), "{problems:?}");
        assert!(problems.contains(&ArtifactProblem::NotListed { file: manifest::PLAN }), "{problems:?}");
    }
}

#[test]
fn weights_must_lie_where_the_plan_says() {
    let sound = draft();

    let mut renamed = draft();
    renamed.tensors[1].0 = "layers.1.y".to_owned();
    assert_eq!(problems_of(&renamed), [ArtifactProblem::NoTensor { name: "layers.1.x".to_owned() }]);

    let mut swapped = draft();
    swapped.tensors.swap(0, 1);
    let problems = problems_of(&swapped);
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().all(|problem| matches!(problem, ArtifactProblem::TensorPlace { .. })), "{problems:?}");

    let mut shorter = draft();
    shorter.tensors[1].1.truncate(32);
    let problems = problems_of(&shorter);
    let size =
        ArtifactProblem::WeightsSize { expected: sound.plan.weights_bytes, found: sound.plan.weights_bytes - 32 };
    assert!(problems.contains(&size) && problems.len() == 2, "{problems:?}");
}

#[test]
fn a_header_that_is_none_or_not_aligned_is_refused() {
    let dir = draft().written();
    let rewrite = |bytes: &[u8]| {
        // With the manifest of these bytes, so that only the header is wrong.
        let path = dir.path().join(manifest::WEIGHTS);
        std::fs::write(&path, bytes).unwrap();
        let manifest_path = dir.path().join(manifest::MANIFEST);
        let mut manifest = manifest::Manifest::from_ron(&std::fs::read_to_string(&manifest_path).unwrap()).unwrap();
        let part = manifest.parts.iter_mut().find(|part| part.file == manifest::WEIGHTS).unwrap();
        part.bytes = bytes.len() as u64;
        part.blake3 = blake3::hash(bytes).to_hex().to_string();
        std::fs::write(&manifest_path, manifest.to_ron()).unwrap();
        problems(dir.path())
    };
    for bytes in [&[][..], &[1, 2, 3], &[0xff; 64]] {
        let problems = rewrite(bytes);
        assert!(matches!(&problems[..], [ArtifactProblem::Header { .. }]), "{problems:?}");
    }
    let file = draft().weights_file();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap());
    let mut shifted = (length + 8).to_le_bytes().to_vec();
    shifted.extend(&file[8..8 + length as usize]);
    shifted.extend([b' '; 8]);
    shifted.extend(&file[8 + length as usize..]);
    assert_eq!(rewrite(&shifted), [ArtifactProblem::DataAlignment { offset: 16 + length }]);
}

#[test]
fn kernels_must_exist_and_be_called_as_they_want() {
    let mut unknown = draft();
    unknown.plan.kernels[0].name = "kv_append_f32_f64__scalar__t1".to_owned();
    assert!(matches!(&problems_of(&unknown)[..], [ArtifactProblem::Kernel(_)]));

    let mut outside = draft();
    outside.plan.kernels[0].code = Code::Generated { offset: 8, bytes: 1 };
    assert!(matches!(&problems_of(&outside)[..], [ArtifactProblem::Code { bytes: 0, .. }]));

    let call = |change: &dyn Fn(&mut ir::plan::Call)| {
        let mut draft = self::draft();
        let Step::Repeat { steps, .. } = &mut draft.steps()[0] else { panic!("the first step is a repeat") };
        let Step::Call(call) = &mut steps[0] else { panic!("its step is a call") };
        change(call);
        problems_of(&draft)
    };
    let changes: [&dyn Fn(&mut ir::plan::Call); 4] = [
        &|call| call.args.truncate(3),
        &|call| call.dims.truncate(5),
        &|call| call.grid = common::expr("n*2").into(),
        &|call| call.args[3].access = Access::Read,
    ];
    for change in changes {
        let problems = call(change);
        assert!(matches!(&problems[..], [ArtifactProblem::Signature { .. }]), "{problems:?}");
    }
}

#[test]
fn a_machine_that_never_ends_is_refused() {
    let mut draft = self::draft();
    draft.plan.machine.read_bytes_per_us = 0;
    let Step::Repeat { steps, .. } = &mut draft.steps()[0] else { panic!("the first step is a repeat") };
    let Step::Call(call) = &mut steps[0] else { panic!("it repeats a call") };
    call.ops = common::expr("n");
    call.rate.many = 0;
    let Err(error) = open(draft.written().path()) else { panic!("it was opened") };
    let text = error.to_string();
    assert!(text.contains("reads 0 bytes a microsecond") && text.contains("a rate of 100/0 is assumed"), "{text}");
}

#[test]
fn a_plan_of_another_kind_of_program_is_refused() {
    let mut draft = self::draft();
    draft.plan.inputs[0].name = "pixels".to_owned();
    draft.plan.outputs[0].dtype = ir::DType::I32;
    draft.plan.symbols.push(ir::plan::SymbolBound { name: "z".to_owned(), max: 4 });
    let problems = problems_of(&draft);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems.iter().all(|problem| matches!(problem, ArtifactProblem::Interface { .. })), "{problems:?}");

    let mut draft = self::draft();
    let Step::Copy { bytes, .. } = &mut draft.steps()[1] else { panic!("the second step is a copy") };
    *bytes = common::expr("m*800");
    assert!(problems_of(&draft).iter().all(|problem| matches!(problem, ArtifactProblem::CopyOutside { .. })));
    let Step::Copy { bytes, .. } = &mut draft.steps()[1] else { panic!("the second step is a copy") };
    *bytes = common::expr("keys");
    let problems = problems_of(&draft);
    assert!(problems.iter().any(|problem| matches!(problem, ArtifactProblem::Interface { .. })), "{problems:?}");
}

#[test]
fn memory_that_is_not_to_be_had_is_an_error() {
    let open = |draft: &Draft, max_slab_bytes| {
        let artifact = open(draft.written().path()).unwrap();
        Session::new(artifact, &Options { threads: Some(1), max_slab_bytes, ..Options::default() }).map(|_| ())
    };
    let mut absurd = draft();
    absurd.plan.slab_bytes = 1 << 62;
    assert!(matches!(open(&absurd, None), Err(RuntimeError::Memory { .. })));
    assert!(matches!(open(&draft(), Some(100)), Err(RuntimeError::MemoryLimit { limit: 100, .. })));
    open(&draft(), Some(1 << 20)).unwrap();
}

#[test]
fn a_damaged_tokenizer_is_an_error_only_for_who_needs_it() {
    let dir = Draft { tokenizer: Some("{}".to_owned()), ..draft() }.written();
    let session = Session::open(dir.path(), &Options::default()).unwrap();
    assert!(matches!(session.tokenizer(), Err(RuntimeError::Tokenizer(_))));
    let dir = draft().written();
    assert!(Session::open(dir.path(), &Options::default()).unwrap().tokenizer().unwrap().is_none());
}

/// The model of a product, as if it had been compiled for a GPU; its cubin is none.
fn for_a_gpu() -> Draft {
    let mut draft = Draft::dense(&[1.0; 16], &[2.0; 16], 16);
    let file = manifest::cubin("dense__k16_m1");
    draft.plan.target = "cuda:sm_90a".to_owned();
    draft.plan.kernels[0] = Kernel {
        name: "dense__k16_m1".to_owned(),
        code: Code::Cuda {
            file: file.clone(),
            entry: "dense_matmul_f32xf32_f32__cuda__r4".to_owned(),
            threads: 128,
            shared_bytes: 0,
            waits: true,
        },
    };
    for phase in &mut draft.plan.phases {
        let Step::Call(call) = &mut phase.steps[0] else { panic!("the first step is a call") };
        call.grid = Grid(vec![common::expr("1"), common::expr("m")]);
        call.dims.truncate(1);
    }
    draft.cubins.push((file, vec![0; 64]));
    draft
}

#[test]
fn what_was_compiled_for_a_gpu_is_checked_without_one() {
    open(for_a_gpu().written().path()).unwrap();

    let mut unknown = for_a_gpu();
    unknown.plan.target = "cuda:sm_12".to_owned();
    assert!(matches!(&problems_of(&unknown)[..], [ArtifactProblem::Target { .. }]));

    let mut no_cubin = for_a_gpu();
    let Code::Cuda { file, .. } = &mut no_cubin.plan.kernels[0].code else { panic!("it is of a GPU") };
    *file = manifest::cubin("other");
    assert!(matches!(&problems_of(&no_cubin)[..], [ArtifactProblem::NoCubin { .. }]));

    let mut for_both = for_a_gpu();
    for_both.plan.kernels.push(Kernel { name: "count".to_owned(), code: Code::Generated { offset: 0, bytes: 0 } });
    assert!(matches!(&problems_of(&for_both)[..], [ArtifactProblem::Foreign { kernel }] if kernel == "count"));

    let mut called_otherwise = for_a_gpu();
    let Step::Call(call) = &mut called_otherwise.steps()[0] else { panic!("the first step is a call") };
    call.dims.clear();
    assert!(matches!(&problems_of(&called_otherwise)[..], [ArtifactProblem::Signature { .. }]));

    for (threads, name) in
        [(0, "kernels/dense__k16_m1.cubin"), (2048, "kernels/dense__k16_m1.cubin"), (32, "../dense.cubin")]
    {
        let mut wrong = for_a_gpu();
        let Code::Cuda { file, threads: block, .. } = &mut wrong.plan.kernels[0].code else { panic!("it is of a GPU") };
        (*block, *file) = (threads, name.to_owned());
        let Err(error) = open(wrong.written().path()) else { panic!("{threads} threads of {name} were taken") };
        assert!(error.to_string().contains("cannot be launched"), "{error}");
    }
    let mut wrong = for_a_gpu();
    let Step::Call(call) = &mut wrong.steps()[0] else { panic!("the first step is a call") };
    call.grid = Grid(vec![common::expr("1"), common::expr("100000")]);
    let Err(error) = open(wrong.written().path()) else { panic!("a grid of 100,000 blocks in y was taken") };
    assert!(error.to_string().contains("too many axes or units"), "{error}");
}

#[test]
fn artifacts_run_only_on_their_kind_of_device() {
    let open = |draft: &Draft, device| {
        let artifact = open(draft.written().path()).unwrap();
        Session::new(artifact, &Options { threads: Some(1), device, ..Options::default() }).map(|_| ())
    };
    assert!(matches!(open(&draft(), Some(DeviceKind::Cuda)), Err(RuntimeError::Device { .. })));
    assert!(matches!(open(&for_a_gpu(), Some(DeviceKind::Cpu)), Err(RuntimeError::Device { .. })));
    open(&draft(), Some(DeviceKind::Cpu)).unwrap();
    // Where there is a GPU, the cubin is refused instead, or the GPU is another one.
    let error = open(&for_a_gpu(), None).unwrap_err();
    let is_expected =
        matches!(error, RuntimeError::NoCuda { .. } | RuntimeError::Cuda { .. } | RuntimeError::Artifact { .. });
    assert!(is_expected, "{error}");
}
