//! What is refused, and how: damaged, newer and foreign artifacts, wrong specs and checkpoints, disks that fill up. Every problem is named,
//! all at once, and nothing half-written is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use compiler::artifact::{self, ArtifactError};
use compiler::weights::file::WriteWeightsError;
use compiler::weights::{Checkpoint, WeightError, WeightSource};
use compiler::{Compiled, Target};
use ir::packing::TernaryLayout;
use ir::param::TensorInfo;
use ir::plan::manifest::{self, Manifest};
use ir::plan::{Plan, ReadError, VERSION};
use models::{ImportError, import};
use runtime::{Artifact, ArtifactProblem, Options, RuntimeError, Session};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use tritter_tests::fixture;
use tritter_tests::session::{self, Build, Model};

const FIXTURE: &str = "bitnet-packed";

fn build() -> Build {
    Build { chunk: 16, ..Build::new(32) }
}

fn model() -> Model {
    Model::checkpoint(&fixture::checkpoint(FIXTURE)).unwrap()
}

fn compiled(model: &Model, build: &Build) -> (Compiled, Box<dyn WeightSource>) {
    let built = model.build(build).unwrap();
    let weights = model.weights(&built.params).unwrap();
    (session::compile(built.program, build).unwrap(), weights)
}

const GO_ON: &dyn Fn(u64) -> io::Result<()> = &|_| Ok(());

/// An artifact with all its parts, in a directory that holds nothing else.
struct Written {
    parent: TempDir,
    directory: PathBuf,
}

impl Written {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("artifact");
        let (compiled, weights) = compiled(&model(), &build());
        let tokenizer = tokenizer::Tokenizer::bytes().to_json();
        artifact::write(&directory, &compiled, Some(&*weights), Some(tokenizer.as_bytes()), GO_ON).unwrap();
        Self { parent, directory }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.directory.join(file)).unwrap()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.directory.join(file), bytes).unwrap();
    }

    fn open(&self) -> Result<Artifact, RuntimeError> {
        Artifact::open(&self.directory, None, &mut |_, _| ())
    }

    /// Changes a part, and the manifest so that it knows the new one.
    fn replace(&self, file: &str, bytes: &[u8]) {
        self.write(file, bytes);
        let mut manifest = Manifest::from_ron(&String::from_utf8(self.read(manifest::MANIFEST)).unwrap()).unwrap();
        let part = manifest.parts.iter_mut().find(|part| part.file == file).unwrap();
        part.bytes = bytes.len() as u64;
        part.blake3 = blake3::hash(bytes).to_hex().to_string();
        self.write(manifest::MANIFEST, manifest.to_ron().as_bytes());
    }

    #[track_caller]
    fn problems(&self) -> Vec<ArtifactProblem> {
        match self.open() {
            Err(RuntimeError::Artifact { problems, .. }) => problems,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was opened"),
        }
    }
}

/// All files of a directory.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All parts but the report, which the runtime does not need to read; it is hashed all the same.
const PARTS: [&str; 5] = [manifest::PLAN, manifest::CODE, manifest::WEIGHTS, manifest::TOKENIZER, manifest::REPORT];

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (first, second) = (Written::new(), Written::new());
    let files = files(&first.directory);
    assert_eq!(files.len(), PARTS.len() + 1, "{:?}", files.keys());
    assert_eq!(files, self::files(&second.directory));
    assert_eq!(names(first.parent.path()), ["artifact"]);
    first.open().unwrap();
}

#[test]
fn every_file_that_is_cut_off_is_named() {
    let artifact = Written::new();
    for file in PARTS {
        let whole = artifact.read(file);
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            artifact.write(file, &whole[..length]);
            let expected =
                ArtifactProblem::Size { file: file.to_owned(), expected: whole.len() as u64, found: length as u64 };
            let problems = artifact.problems();
            assert!(problems.contains(&expected), "{file} of {length} bytes: {problems:?}");
        }
        artifact.write(file, &whole);
    }
    let whole = artifact.read(manifest::MANIFEST);
    for length in [0, 1, whole.len() / 2, whole.len() - 3] {
        artifact.write(manifest::MANIFEST, &whole[..length]);
        let error = artifact.open().unwrap_err();
        assert!(matches!(error, RuntimeError::Read { source: ReadError::Syntax { .. }, .. }), "{length}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let artifact = Written::new();
    for file in PARTS {
        let whole = artifact.read(file);
        for position in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (position % 8);
            artifact.write(file, &damaged);
            let problems = artifact.problems();
            let is_it = |problem: &ArtifactProblem| matches!(problem, ArtifactProblem::Hash { file: found, .. } if found == file);
            assert!(problems.iter().any(is_it), "{file}, byte {position}: {problems:?}");
        }
        artifact.write(file, &whole);
    }
    artifact.open().unwrap();
}

/// The manifest has no hash of its own: what it says of the others must be so, and what it says beside that does not matter.
#[test]
fn a_damaged_manifest_opens_nothing_else() {
    let artifact = Written::new();
    let whole = artifact.read(manifest::MANIFEST);
    let plan = artifact.open().unwrap().plan;
    let mut opened = 0;
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << (position % 8);
        artifact.write(manifest::MANIFEST, &damaged);
        if let Ok(artifact) = artifact.open() {
            assert_eq!(artifact.plan, plan, "byte {position}");
            opened += 1;
        }
    }
    // The case of hexadecimal digits, and some blanks.
    assert!(3 * opened < whole.len(), "{opened} of {} flips are not noticed", whole.len());
}

#[test]
fn missing_files_and_damage_are_all_reported_at_once() {
    let artifact = Written::new();
    fs::remove_file(artifact.directory.join(manifest::WEIGHTS)).unwrap();
    let plan = artifact.read(manifest::PLAN);
    artifact.write(manifest::PLAN, &plan[..plan.len() / 2]);
    let mut code = artifact.read(manifest::CODE);
    code[7] ^= 1;
    artifact.write(manifest::CODE, &code);
    fs::remove_file(artifact.directory.join(manifest::TOKENIZER)).unwrap();
    let problems = artifact.problems();
    assert_eq!(problems.len(), 4, "{problems:?}");
    let error = artifact.open().unwrap_err().to_string();
    for file in [manifest::WEIGHTS, manifest::PLAN, manifest::CODE, manifest::TOKENIZER] {
        assert!(error.contains(file), "{error}");
    }
    fs::remove_file(artifact.directory.join(manifest::MANIFEST)).unwrap();
    assert!(matches!(artifact.open(), Err(RuntimeError::Io { .. })));
}

#[test]
fn a_newer_format_is_called_that() {
    let artifact = Written::new();
    let (ours, next) = (format!("version: {VERSION}"), VERSION + 1);
    let newer = |text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(&ours));
        text.replacen(&ours, &format!("moons: [1], version: {next}"), 1)
    };
    artifact.replace(manifest::PLAN, newer(artifact.read(manifest::PLAN)).as_bytes());
    let error = artifact.open().unwrap_err();
    assert!(
        matches!(error, RuntimeError::Read { source: ReadError::Version { found }, .. } if found == next),
        "{error}"
    );
    artifact.write(manifest::MANIFEST, newer(artifact.read(manifest::MANIFEST)).as_bytes());
    let error = artifact.open().unwrap_err();
    assert!(
        matches!(error, RuntimeError::Read { source: ReadError::Version { found }, .. } if found == next),
        "{error}"
    );
    assert!(error.to_string().contains("compile the model again"), "{error}");
}

#[test]
fn another_cpu_is_refused_with_the_reason() {
    for target in ["aarch64:neon", "x86_64:avx2"] {
        let artifact = Written::new();
        let other = build().on(&target.parse().unwrap());
        if session::targets().contains(&other.target) {
            continue;
        }
        let (compiled, weights) = compiled(&model(), &other);
        artifact::write(&artifact.directory, &compiled, Some(&*weights), None, GO_ON).unwrap();
        let problems = artifact.problems();
        let is_it = |problem: &ArtifactProblem| matches!(problem, ArtifactProblem::Target { target: found, .. } if found == target);
        assert!(problems.iter().any(is_it), "{problems:?}");
    }
    // And one that nobody has, in a plan that is sound otherwise.
    let artifact = Written::new();
    let mut plan = Plan::from_ron(&String::from_utf8(artifact.read(manifest::PLAN)).unwrap()).unwrap();
    plan.target = format!("{}:avx1024", std::env::consts::ARCH);
    artifact.replace(manifest::PLAN, plan.to_ron().as_bytes());
    let error = artifact.open().unwrap_err().to_string();
    assert!(error.contains("avx1024") && error.contains("compile it again"), "{error}");
}

#[test]
fn without_weights_there_is_much_to_see_and_nothing_to_run() {
    let artifact = Written::new();
    let (compiled, _) = compiled(&model(), &build());
    artifact::write(&artifact.directory, &compiled, None, None, GO_ON).unwrap();
    assert_eq!(names(&artifact.directory), [manifest::CODE, manifest::MANIFEST, manifest::PLAN, manifest::REPORT]);
    assert_eq!(artifact.problems(), [ArtifactProblem::NotListed { file: manifest::WEIGHTS }]);
}

#[test]
fn an_artifact_is_replaced_whole_and_a_running_one_goes_on() {
    let artifact = Written::new();
    let ids = fixture::random_ids(320, 9, 1);
    let mut running = session::session(&artifact.directory, 1).unwrap();
    let before = session::logits(&mut running, 0, &ids, 9).unwrap();
    let old = files(&artifact.directory);

    let other = Model::checkpoint(&fixture::checkpoint("bitnet-packed-bitlinear")).unwrap();
    let (compiled, weights) = compiled(&other, &build());
    artifact::write(&artifact.directory, &compiled, Some(&*weights), None, GO_ON).unwrap();
    assert_eq!(names(artifact.parent.path()), ["artifact"], "nothing else is left");
    // No file of the old one is among the new ones.
    assert!(!files(&artifact.directory).contains_key(manifest::TOKENIZER));
    assert_ne!(files(&artifact.directory), old);
    artifact.open().unwrap();
    assert_eq!(session::logits(&mut running, 0, &ids, 9).unwrap(), before, "the mapped weights are still the old ones");
}

/// Several targets share one file of weights; the best that this machine has is run, and the others' files are not even read.
#[test]
fn an_artifact_may_be_for_several_targets() {
    let model = model();
    // Targets that choose another packing cannot share.
    let on = |target: &str, packing| Build { packing: Some(packing), ..build().on(&target.parse().unwrap()) };
    let two_bits = |target: &str| compiled(&model, &on(target, TernaryLayout::Tile16)).0;
    let best = Target::native().to_string();
    let all: Vec<Compiled> =
        ["scalar", best.as_str(), "aarch64:neon", "x86_64:avx2"].map(two_bits).into_iter().collect();
    let names: Vec<String> = all.iter().map(|one| one.plan.target.clone()).collect();
    let (_, weights) = compiled(&model, &build());
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("artifact");
    let write = |compiled: &[Compiled]| artifact::write_all(&directory, compiled, Some(&*weights), None, GO_ON);
    write(&all).unwrap();
    let open = || Artifact::open(&directory, None, &mut |_, _| ());
    assert_eq!(open().unwrap().plan.target, best);
    let ids = fixture::random_ids(320, 9, 1);
    let logits = || session::logits(&mut session::session(&directory, 1).unwrap(), 0, &ids, 9).unwrap();
    let several = logits();
    // One of another target is damaged: nobody notices. One of its own is: it is named.
    let of = |target: &str| directory.join(manifest::folder(target));
    let foreign = names.iter().find(|name| **name != best && **name != names[0]).unwrap();
    fs::write(of(foreign).join(manifest::PLAN), b"?").unwrap();
    assert_eq!(logits(), several);
    fs::write(of(&best).join(manifest::CODE), b"?").unwrap();
    assert!(matches!(open(), Err(RuntimeError::Artifact { problems, .. }) if problems.len() == 1));
    // It is an artifact, so another may take its place, and then one for a single target.
    write(&all[..2]).unwrap();
    assert_eq!(logits(), several);
    assert!(!of(foreign).exists());
    write(&all[1..2]).unwrap();
    assert_eq!(logits(), several);
    assert!(matches!(write(&[]), Err(ArtifactError::NoTarget)));
    let twice = [two_bits("scalar"), two_bits("scalar")];
    assert!(matches!(write(&twice), Err(ArtifactError::Twice { target }) if target == names[0]));
    let base_3 = compiled(&model, &on("scalar", TernaryLayout::Tile16Base3)).0;
    let different = write(&[two_bits(&best), base_3]);
    assert!(matches!(different, Err(ArtifactError::Different { first, .. }) if first == best));
    assert_eq!(logits(), several, "what is refused changes nothing");
}

#[test]
fn what_is_no_artifact_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let (compiled, weights) = compiled(&model(), &build());
    let write = |directory: &Path| artifact::write(directory, &compiled, Some(&*weights), None, GO_ON);
    let photos = parent.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("cat.png"), b"meow").unwrap();
    let file = parent.path().join("file");
    fs::write(&file, b"text").unwrap();
    for place in [&photos, &file] {
        let error = write(place).unwrap_err();
        assert!(matches!(&error, ArtifactError::Occupied { path } if path == place), "{error}");
    }
    assert_eq!(fs::read(photos.join("cat.png")).unwrap(), b"meow");
    assert_eq!(fs::read(&file).unwrap(), b"text");
    assert_eq!(names(parent.path()), ["file", "photos"]);
    // An empty directory is a place, and so is one that is not there yet.
    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    write(&empty).unwrap();
    write(&parent.path().join("not/there/yet")).unwrap();
}

#[test]
fn places_that_cannot_be_written_are_errors() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, b"text").unwrap();
    let (compiled, weights) = compiled(&model(), &build());
    for place in [file.join("artifact"), PathBuf::from("/proc/artifact/of/tritter")] {
        let error = artifact::write(&place, &compiled, Some(&*weights), None, GO_ON).unwrap_err();
        assert!(matches!(error, ArtifactError::Io { .. }), "{error}");
    }
    assert_eq!(names(parent.path()), ["file"]);
}

/// Whatever ends the writing, what was there before is still there, and nothing else is.
#[test]
fn interrupted_writing_leaves_what_was_there() {
    let artifact = Written::new();
    let before = files(&artifact.directory);
    let (compiled, weights) = compiled(&model(), &build());
    let total = compiled.weights.bytes();
    for limit in [0, total / 2, total - 64] {
        let done = std::cell::Cell::new(0);
        let stop = |bytes: u64| {
            done.set(done.get() + bytes);
            if limit < done.get() { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) }
        };
        let write = |directory: &Path| {
            done.set(0);
            artifact::write(directory, &compiled, Some(&*weights), None, &stop)
        };
        for place in [artifact.directory.clone(), artifact.parent.path().join("new")] {
            let error = write(&place).unwrap_err();
            let is_it =
                matches!(&error, ArtifactError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted);
            assert!(is_it, "{error}");
        }
        assert_eq!(names(artifact.parent.path()), ["artifact"]);
    }
    assert_eq!(files(&artifact.directory), before);
    artifact.open().unwrap();
}

/// Weights without some of their tensors, and with a code in one of them that is no ternary value.
struct Lacking<'a> {
    inner: &'a dyn WeightSource,
    missing: &'a [&'a str],
    damaged: &'a str,
}

impl WeightSource for Lacking<'_> {
    fn tensor(&self, key: &str) -> Result<compiler::weights::SourceTensor<'_>, WeightError> {
        if self.missing.contains(&key) {
            return Err(WeightError::Missing { key: key.to_owned(), tensor: format!("its.{key}") });
        }
        let mut tensor = self.inner.tensor(key)?;
        if key == self.damaged {
            tensor.bytes.to_mut()[5] = 0xFF;
        }
        Ok(tensor)
    }

    fn check(&self, key: &str) -> Result<(), WeightError> {
        self.tensor(key).map(|_| ())
    }
}

#[test]
fn weights_that_lack_something_write_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (compiled, weights) = compiled(&model(), &build());
    let write = |missing: &[&str], damaged: &str| {
        let weights = Lacking { inner: &*weights, missing, damaged };
        artifact::write(&parent.path().join("artifact"), &compiled, Some(&weights), None, GO_ON).unwrap_err()
    };
    let error = write(&["layers.1.ffn.up.weight", "norm.weight", "layers.0.attention.q.scale"], "");
    assert!(matches!(&error, ArtifactError::Weights(WriteWeightsError::Tensors(all)) if all.len() == 3), "{error}");
    let error = write(&[], "layers.1.ffn.down.weight");
    let is_it = matches!(
        &error,
        ArtifactError::Weights(WriteWeightsError::Tensors(all)) if matches!(all[..], [WeightError::BadCode { .. }])
    );
    assert!(is_it, "{error}");
    assert!(error.to_string().contains("layers.1.ffn.down.weight"), "{error}");
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn a_spec_with_five_errors_is_told_all_of_them_with_their_lines() {
    let text = models::find_shipped("tiny")
        .unwrap()
        .replace("vocab: 267", "vocab: 0")
        .replace("hidden: 30", "hiden: 30")
        .replace("heads: 5, kv_heads: 1", "heads: 5, kv_heads: 2")
        .replace("relu2", "gelu")
        .replace("head: tied", "head: attached");
    let errors = models::spec::read(&text).unwrap_err();
    assert!(5 <= errors.0.len(), "{errors}");
    let all = errors.to_string();
    for (word, line) in text.lines().zip(1_u32..).flat_map(|(line, number)| {
        ["vocab: 0", "hiden", "kv_heads: 2", "gelu", "attached"]
            .into_iter()
            .filter(|word| line.contains(word))
            .map(move |word| (word, number))
    }) {
        assert!(errors.0.iter().any(|error| error.line == line), "nothing is said of `{word}` in line {line}:\n{all}");
    }
}

/// The fixture's tensors, changed, as a checkpoint of its own.
fn changed(change: impl Fn(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let source = fixture::checkpoint(FIXTURE);
    fs::copy(source.join("config.json"), directory.path().join("config.json")).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views: Vec<(&String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    fs::write(directory.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    directory
}

fn infos(directory: &Path) -> Vec<TensorInfo> {
    Checkpoint::open(directory).unwrap().headers()
}

#[test]
fn a_checkpoint_with_wrong_tensors_is_told_all_of_them() {
    let directory = changed(|tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
        tensors.remove("model.norm.weight").unwrap();
        let tensor = tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap();
        tensor.1.reverse();
        let tensor = tensors.get_mut("model.layers.0.mlp.ffn_sub_norm.weight").unwrap();
        tensor.1[0] -= 1;
        tensor.2.truncate(2 * tensor.1[0]);
    });
    let config = fs::read_to_string(directory.path().join("config.json")).unwrap();
    let errors = import::import(&config, &infos(directory.path())).unwrap_err();
    let missing = errors.0.iter().filter(|error| matches!(error, ImportError::MissingTensor { .. })).count();
    let misshapen = errors.0.iter().filter(|error| matches!(error, ImportError::Misshapen { .. })).count();
    assert_eq!((missing, misshapen, errors.0.len()), (2, 2, 4), "{errors}");
    for name in ["up_proj", "model.norm.weight", "k_proj", "ffn_sub_norm"] {
        assert!(errors.to_string().contains(name), "{errors}");
    }
}

#[test]
fn tensors_that_nothing_needs_are_no_error() {
    let directory = changed(|tensors| {
        tensors.insert("model.rotary.inv_freq".to_owned(), (Dtype::F32, vec![2], vec![0; 8]));
    });
    let config = fs::read_to_string(directory.path().join("config.json")).unwrap();
    let imported = import::import(&config, &infos(directory.path())).unwrap();
    assert_eq!(imported.surplus, ["model.rotary.inv_freq"]);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let directory = changed(|_| ());
    let path = directory.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let errors = Checkpoint::open(directory.path()).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("model.safetensors"), "{}", errors[0]);
    }
    // Two shards of three are not what they should be.
    fs::remove_file(&path).unwrap();
    let index =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}"#;
    fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
    fs::write(directory.path().join("model-1.safetensors"), &whole).unwrap();
    fs::write(directory.path().join("model-2.safetensors"), &whole[..50]).unwrap();
    let errors = Checkpoint::open(directory.path()).unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
}

/// A session refuses what it cannot do and is as it was then.
#[test]
fn calls_that_do_not_fit_change_nothing() {
    let artifact = Written::new();
    let mut session = Session::open(&artifact.directory, &Options { threads: Some(1), ..Options::default() }).unwrap();
    let ids = fixture::random_ids(320, 12, 2);
    let expected = session::logits(&mut session, 0, &ids, 12).unwrap();
    session.reset(0).unwrap();
    let mut logits = Vec::new();
    for &id in &ids {
        let next = runtime::Token::next(0, id);
        for wrong in [
            runtime::Token { id: 320, ..next },
            runtime::Token { sequence: 1, ..next },
            runtime::Token { position: Some(32), ..next },
        ] {
            session.forward(&[wrong], &[0]).unwrap_err();
        }
        session.forward(&[next], &[1]).unwrap_err();
        session.forward(&[next; 17], &[0]).unwrap_err();
        logits.extend_from_slice(session.forward(&[next], &[0]).unwrap().rows().next().unwrap());
    }
    assert_eq!(logits, expected);
}
