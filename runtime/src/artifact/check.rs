//! What must agree between a plan and the machine, the kernel table, the weights and the runtime.
//!
//! `ir::plan::check` has confirmed the plan's own rules before. Expressions have no negative terms, so what holds at the largest values of
//! the symbols holds at all.

use ir::DType;
use ir::entity::Id;
use ir::plan::{self, Access, Arg, Buffer, Call, Expr, Io, Phase, Plan, ROUND, Role, Step};
use kernels::cuda::PER_CALL;
use kernels::cuda::library::LibraryKernel;
use kernels::{Arch, Isa, KernelDesc, Requires, Sm, extent, find_cuda};
use safetensors::SafeTensors;

use crate::error::ArtifactProblem;
use crate::executor::Sizes;

/// The inputs and outputs that a plan must have, in order: names, shapes and types.
struct Interface {
    inputs: Vec<(String, Vec<String>, DType)>,
    outputs: Vec<(String, Vec<String>, DType)>,
}

impl Interface {
    /// A decoder takes `ids`, `seq`, `pos` of the call's tokens, the `span` of keys that each sees, the `rows` whose logits are wanted, and the `settings`
    /// and `draws` that the token after each row is chosen with, if the program chooses one; it gives the logits of the rows, and the tokens chosen
    /// after them.
    ///
    /// A step of training takes `ids` and `targets` of a whole batch, the `span` of keys that each token sees, whether it is the `first` of those that are
    /// added up, and the `settings` of the update; it gives the loss and the norm of the gradients.
    fn of(plan: &Plan) -> Self {
        let io = |(name, shape, dtype): (&str, &[&str], DType)| {
            (name.to_owned(), shape.iter().map(|&dim| dim.to_owned()).collect(), dtype)
        };
        if plan.training.is_some() {
            let tokens = plan.phases.first().map_or(0, |phase| phase.max_tokens).to_string();
            let inputs: [(&str, &[&str], DType); 5] = [
                ("ids", &[&tokens], DType::I32),
                ("span", &[&tokens, "2"], DType::I32),
                ("targets", &[&tokens], DType::I32),
                ("first", &["1"], DType::I32),
                ("settings", &["5"], DType::F32),
            ];
            let outputs: [(&str, &[&str], DType); 2] = [("loss", &["1"], DType::F32), ("norm", &["1"], DType::F32)];
            return Self { inputs: inputs.map(io).into(), outputs: outputs.map(io).into() };
        }
        let vocab = plan.vocab.to_string();
        let inputs: [(&str, &[&str], DType); 7] = [
            ("ids", &["n"], DType::I32),
            ("seq", &["n"], DType::I32),
            ("pos", &["n"], DType::I32),
            ("span", &["n", "2"], DType::I32),
            ("rows", &["m"], DType::I32),
            ("settings", &["m", "4"], DType::F32),
            ("draws", &["m", "2"], DType::I32),
        ];
        let outputs: [(&str, &[&str], DType); 2] =
            [("logits", &["m", &vocab], DType::F32), ("next", &["m"], DType::I32)];
        let chooses = 1 < plan.outputs.len();
        let inputs = inputs.into_iter().take(if chooses { 7 } else { 5 }).map(io).collect();
        Self { inputs, outputs: outputs.into_iter().take(1 + usize::from(chooses)).map(io).collect() }
    }
}

/// The symbol that only costs may depend on, because prepared calls are kept by the values of the others.
const KEYS: &str = "keys";

/// What targets of CUDA start with.
pub(crate) const CUDA: &str = "cuda:";

/// The target is this CPU, or a GPU of a known kind.
pub(super) fn target(plan: &Plan, problems: &mut Vec<ArtifactProblem>) {
    target_of(&plan.target, problems);
}

/// The same of its name.
pub(super) fn target_of(target: &str, problems: &mut Vec<ArtifactProblem>) {
    let mut problem = |reason: String| problems.push(ArtifactProblem::Target { target: target.to_owned(), reason });
    if let Some(sm) = target.strip_prefix(CUDA) {
        // Which GPU there is, if there is one, is asked when a session starts on it.
        if sm.parse::<Sm>().is_err() {
            problem(format!("this version does not know `{sm}`"));
        }
        return;
    }
    let (arch, isas) = target.split_once(':').unwrap_or((target, ""));
    let host = std::env::consts::ARCH;
    if arch != host {
        problem(format!("this machine is {host}"));
        return;
    }
    for name in isas.split(',').filter(|name| !name.is_empty()) {
        match name.parse::<Isa>() {
            Err(()) => problem(format!("this version does not know `{name}`")),
            Ok(isa) if isa.arch().is_some_and(|arch| Some(arch) != Arch::host()) => {
                problem(format!("this machine is {host}, not what has {isa}"));
            }
            Ok(isa) => {
                let missing = Requires { isa }.missing();
                if !missing.is_empty() {
                    problem(format!("this CPU lacks {}", missing.join(", ")));
                }
            }
        }
    }
}

/// Symbols, inputs and outputs are those of a decoder, and their buffers hold them.
pub(super) fn interface(plan: &Plan, problems: &mut Vec<ArtifactProblem>) {
    let mut problem = |what: String| problems.push(ArtifactProblem::Interface { what });
    for symbol in &plan.symbols {
        if !Sizes::SYMBOLS.contains(&symbol.name.as_str()) {
            problem(format!("nothing resolves its symbol `{}`", symbol.name));
        }
        if symbol.max == 0 || (symbol.name != KEYS && i32::MAX as u64 <= symbol.max) {
            problem(format!("its symbol `{}` goes up to {}", symbol.name, symbol.max));
        }
    }
    for (what, value) in [("context", plan.context), ("sequences", plan.sequences), ("vocab", plan.vocab)] {
        if value == 0 || i32::MAX as u64 <= value {
            problem(format!("its {what} is {value}"));
        }
    }
    let inputs: Vec<(String, Vec<String>)> = plan.inputs.iter().map(signature).collect();
    let interface = Interface::of(plan);
    let expected: Vec<(String, Vec<String>)> =
        interface.inputs.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect();
    if inputs != expected {
        problem(format!("its inputs are {}, not {}", list(&inputs), list(&expected)));
    }
    let outputs: Vec<(String, Vec<String>)> = plan.outputs.iter().map(signature).collect();
    let expected: Vec<(String, Vec<String>)> =
        interface.outputs.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect();
    if outputs != expected {
        problem(format!("its outputs are {}, not {}", list(&outputs), list(&expected)));
    }
    let inputs = plan.inputs.iter().zip(&interface.inputs).map(|(io, (_, _, dtype))| (io, *dtype, Role::Input));
    let outputs = plan.outputs.iter().zip(&interface.outputs).map(|(io, (_, _, dtype))| (io, *dtype, Role::Output));
    for (io, dtype, role) in inputs.chain(outputs) {
        let buffer = plan.buffer(io.buffer);
        if io.dtype != dtype {
            problem(format!("`{}` is {}, not {dtype}", io.name, io.dtype));
        }
        if buffer.role != role {
            problem(format!("`{}` lies in {}, whose role is another", io.name, io.buffer));
        }
        let elements = io.shape.iter().try_fold(4_u64, |product, dim| product.checked_mul(largest(plan, None, dim)?));
        if elements.is_none_or(|bytes| buffer.bytes < bytes) {
            problem(format!("`{}` does not fit into the {} bytes of {}", io.name, buffer.bytes, io.buffer));
        }
    }
}

/// Nothing but costs depends on the keys that are seen.
pub(super) fn sizes(plan: &Plan, problems: &mut Vec<ArtifactProblem>) {
    for phase in plan.all_phases() {
        each_step(&phase.steps, &mut |step, _| {
            let sizes: Vec<&Expr> = match step {
                Step::Call(call) => {
                    let offsets = call.args.iter().map(|arg| &arg.offset);
                    offsets.chain(&call.dims).chain(&call.grid.0).collect()
                }
                Step::Copy { from, to, bytes } => vec![&from.offset, &to.offset, bytes],
                Step::Repeat { .. } => Vec::new(),
            };
            for expr in sizes.into_iter().filter(|expr| expr.symbols().any(|symbol| symbol == KEYS)) {
                let what = format!("phase `{}` computes with `{expr}`, where `{KEYS}` is not resolved", phase.name);
                problems.push(ArtifactProblem::Interface { what });
            }
        });
    }
}

fn signature(io: &Io) -> (String, Vec<String>) {
    (io.name.clone(), io.shape.iter().map(Expr::to_string).collect())
}

fn list(ios: &[(String, Vec<String>)]) -> String {
    let each: Vec<String> = ios.iter().map(|(name, shape)| format!("{name}[{}]", shape.join(", "))).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

/// Every kernel is in the table or in the code, runs on this CPU, and is called as it wants to be.
pub(super) fn kernels(
    plan: &Plan,
    code_bytes: u64,
    has_file: &dyn Fn(&str) -> bool,
    problems: &mut Vec<ArtifactProblem>,
) {
    let is_gpu = plan.target.starts_with(CUDA);
    for (index, kernel) in plan.kernels.iter().enumerate() {
        if is_gpu != matches!(kernel.code, plan::Code::Cuda { .. } | plan::Code::CublasLt) {
            problems.push(ArtifactProblem::Foreign { kernel: kernel.name.clone() });
            continue;
        }
        match &kernel.code {
            plan::Code::Cuda { file, .. } => {
                if !has_file(file) {
                    problems.push(ArtifactProblem::NoCubin { kernel: kernel.name.clone(), file: file.clone() });
                }
            }
            plan::Code::CublasLt => {
                if LibraryKernel::find(&kernel.name).is_none() {
                    let error = kernels::KernelError::Unknown { name: kernel.name.clone() };
                    problems.push(ArtifactProblem::Kernel(error));
                }
            }
            plan::Code::Table => {
                if let Err(error) = kernels::cpu::resolve(&kernel.name) {
                    problems.push(ArtifactProblem::Kernel(error));
                }
            }
            &plan::Code::Generated { offset, bytes } => {
                let end = offset.checked_add(bytes);
                if bytes == 0 || end.is_none_or(|end| code_bytes < end) {
                    problems.push(ArtifactProblem::Code {
                        kernel: plan::KernelId::new(index),
                        name: kernel.name.clone(),
                        offset,
                        end: end.unwrap_or(u64::MAX),
                        bytes: code_bytes,
                    });
                }
            }
        }
    }
    for phase in plan.all_phases() {
        each_step(&phase.steps, &mut |step, rounds| {
            let Step::Call(call) = step else { return };
            let kernel = plan.kernel(call.kernel);
            let found = match &kernel.code {
                plan::Code::Table => match kernels::find(&kernel.name) {
                    Some(desc) => disagreements(plan, phase, rounds, call, desc),
                    None => return,
                },
                plan::Code::Cuda { entry, .. } => cuda_disagreements(call, entry),
                plan::Code::CublasLt => match LibraryKernel::find(&kernel.name) {
                    Some(library) => library_disagreements(plan, phase, rounds, call, library),
                    None => return,
                },
                plan::Code::Generated { .. } => return,
            };
            for what in found {
                problems.push(ArtifactProblem::Signature {
                    phase: phase.name.clone(),
                    from: call.from.clone(),
                    kernel: kernel.name.clone(),
                    what,
                });
            }
        });
    }
}

/// How a call differs from what the entry of a row of the CUDA table takes; generated kernels are not in the table.
fn cuda_disagreements(call: &Call, entry: &str) -> Vec<String> {
    let Some(desc) = find_cuda(entry) else { return Vec::new() };
    let signature = desc.signature;
    let dims = signature.dims.iter().filter(|dim| PER_CALL.contains(dim)).count();
    let mut found = Vec::new();
    if call.args.len() != signature.args.len() {
        found.push(format!("{} buffers instead of {}", call.args.len(), signature.args.len()));
    }
    if call.dims.len() != dims {
        found.push(format!("{} dims instead of {dims}", call.dims.len()));
    }
    found
}

/// How a call differs from what a kernel of a library takes: the arguments of the row that computes the same, and memory to work in.
fn library_disagreements(
    plan: &Plan,
    phase: &Phase,
    rounds: Option<u32>,
    call: &Call,
    library: &LibraryKernel,
) -> Vec<String> {
    let mut own = call.clone();
    let workspace = own.args.pop();
    let mut found = disagreements(plan, phase, rounds, &own, library.desc());
    let room = |arg: &Arg| {
        let buffer = plan.buffer(arg.buffer);
        let is_own = arg.access != Access::Read && buffer.role != Role::Weight;
        let offset = largest(plan, Some((phase, rounds)), &arg.offset)?;
        buffer.bytes.checked_sub(offset).filter(|_| is_own)
    };
    let bytes = workspace.as_ref().and_then(room).unwrap_or(0);
    if bytes < library.workspace_bytes {
        found.push(format!("{bytes} bytes to work in instead of {}", library.workspace_bytes));
    }
    found
}

/// How a call differs from the signature of its kernel.
fn disagreements(plan: &Plan, phase: &Phase, rounds: Option<u32>, call: &Call, desc: &KernelDesc) -> Vec<String> {
    let mut found = Vec::new();
    let signature = desc.signature;
    if call.args.len() != signature.args.len() {
        found.push(format!("{} buffers instead of {}", call.args.len(), signature.args.len()));
    }
    for (arg, expected) in call.args.iter().zip(signature.args) {
        let agrees = match expected.access {
            kernels::Access::Read => arg.access == Access::Read,
            // A call that covers a part of a buffer updates it, though the kernel only writes its part.
            kernels::Access::Write | kernels::Access::Update => arg.access != Access::Read,
        };
        if !agrees {
            found.push(format!("`{arg}` for `{}`", expected.name));
        }
    }
    if call.dims.len() != signature.dims.len() {
        found.push(format!("{} dims instead of {}", call.dims.len(), signature.dims.len()));
        return found;
    }
    let values: Option<Vec<u64>> = call.dims.iter().map(|dim| largest(plan, Some((phase, rounds)), dim)).collect();
    let Some(values) = values else { return found };
    let dim = |name: &str| {
        let position = signature.dims.iter().position(|dim| *dim == name);
        position.map_or(0, |position| values[position] as i64)
    };
    let units = signature.grid.units(dim);
    let grid = call.grid.0.first().and_then(|units| largest(plan, Some((phase, rounds)), units));
    if grid != u64::try_from(units).ok() {
        found.push(format!("a grid of up to {}, not {units}", grid.map_or("?".to_owned(), |grid| grid.to_string())));
    }
    if let Some(limit) = extent::broken_limit(desc.family, desc.inputs, &dim) {
        found.push(limit);
    }
    for (arg, expected) in call.args.iter().zip(signature.args) {
        let buffer = plan.buffer(arg.buffer);
        let touched = extent::arg_bytes(desc, expected.name, &dim, plan.sequences);
        let end = largest(plan, Some((phase, rounds)), &arg.offset)
            .zip(touched)
            .and_then(|(offset, bytes)| offset.checked_add(bytes));
        let has = buffer.end().map_or(0, |end| end - buffer.offset);
        if end.is_none_or(|end| has < end) {
            let end = end.map_or("beyond 2^64".to_owned(), |end| end.to_string());
            found.push(format!("`{}` up to byte {end} of the {has} of `{}`", expected.name, buffer.name));
        }
    }
    if signature.dims.contains(&"n") && *desc.tokens.end() < dim("n") as u64 {
        found.push(format!("up to {} tokens, it takes {}", dim("n"), desc.tokens.end()));
    }
    found
}

/// Copies stay inside their buffers.
pub(super) fn copies(plan: &Plan, problems: &mut Vec<ArtifactProblem>) {
    for phase in plan.all_phases() {
        let mut position = 0;
        each_step(&phase.steps, &mut |step, rounds| {
            position += 1;
            let Step::Copy { from, to, bytes } = step else { return };
            let at = Some((phase, rounds));
            let bytes = largest(plan, at, bytes);
            let fits = |arg: &Arg| {
                let buffer = plan.buffer(arg.buffer);
                let extent = buffer.end()? - buffer.offset;
                let end = largest(plan, at, &arg.offset)?.checked_add(bytes?)?;
                (end <= extent).then_some(())
            };
            for arg in [from, to] {
                if fits(arg).is_none() {
                    problems.push(ArtifactProblem::CopyOutside {
                        phase: phase.name.clone(),
                        step: position - 1,
                        bytes: bytes.unwrap_or(u64::MAX),
                        buffer: arg.buffer,
                    });
                }
            }
        });
    }
}

/// Each weight of the plan is a tensor that lies where the plan says. Returns where the data starts.
pub(super) fn weights(file: &[u8], plan: Option<&Plan>, problems: &mut Vec<ArtifactProblem>) -> Option<usize> {
    let (header, metadata) = match SafeTensors::read_metadata(file) {
        Ok(read) => read,
        Err(error) => {
            problems.push(ArtifactProblem::Header { message: error.to_string() });
            return None;
        }
    };
    // The header's length is written before it in 8 bytes.
    let start = 8 + header;
    if !(start as u64).is_multiple_of(plan::ALIGNMENT) {
        problems.push(ArtifactProblem::DataAlignment { offset: start as u64 });
    }
    let plan = plan?;
    let found = (file.len() - start) as u64;
    if found != plan.weights_bytes {
        problems.push(ArtifactProblem::WeightsSize { expected: plan.weights_bytes, found });
    }
    for buffer in plan.buffers.iter().filter(|buffer| buffer.role == Role::Weight) {
        // A plan with more rounds than there are tensors lacks the tensor of the first round too many.
        let n_tensors = u32::try_from(metadata.tensors().len()).unwrap_or(u32::MAX);
        for round in 0..buffer.rounds.max(1).min(n_tensors.saturating_add(1)) {
            let name = tensor_name(buffer, round);
            let Some(tensor) = metadata.info(&name) else {
                problems.push(ArtifactProblem::NoTensor { name });
                continue;
            };
            let start = buffer.offset + u64::from(round) * buffer.stride;
            let end = start + buffer.bytes;
            let (found_start, found_end) = (tensor.data_offsets.0 as u64, tensor.data_offsets.1 as u64);
            if (found_start, found_end) != (start, end) {
                problems.push(ArtifactProblem::TensorPlace { name, start, end, found_start, found_end });
            }
        }
    }
    Some(start)
}

/// The name of a weight's tensor in one round.
fn tensor_name(buffer: &Buffer, round: u32) -> String {
    buffer.name.replace("{}", &round.to_string())
}

/// The value of an expression at the largest values of its symbols, in a phase or in all.
fn largest(plan: &Plan, phase: Option<(&Phase, Option<u32>)>, expr: &Expr) -> Option<u64> {
    expr.evaluate(&|symbol| {
        let bound = plan.symbols.iter().find(|bound| bound.name == symbol).map(|bound| bound.max);
        match (symbol, phase) {
            (ROUND, Some((_, Some(rounds)))) => Some(u64::from(rounds.max(1)) - 1),
            // A call wants the logits of some of its tokens, so neither is more than the phase takes.
            ("n" | "m", Some((phase, _))) => bound.map(|bound| bound.min(phase.max_tokens)),
            _ => bound,
        }
    })
}

/// Calls `visit` for each step but repeats, with the rounds of the repeat that it is in.
fn each_step<'a>(steps: &'a [Step], visit: &mut dyn FnMut(&'a Step, Option<u32>)) {
    for step in steps {
        match step {
            Step::Repeat { count, steps, .. } => steps.iter().for_each(|step| visit(step, Some(*count))),
            step => visit(step, None),
        }
    }
}
