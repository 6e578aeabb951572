//! Artifacts made by hand, small enough to know every number of.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::path::Path;

use ir::DType;
use ir::entity::Id;
use ir::plan::manifest::{self, Compilation, Manifest, Part};
use ir::plan::{
    Access, Arg, Budget, Buffer, BufferId, Call, Code, Expr, Io, Kernel, KernelId, Machine, Phase, Placement, Plan,
    Rate, Role, Step, SymbolBound, VERSION,
};
use tempfile::TempDir;
use tokenizer::Tokenizer;

/// Tokens of the largest call.
pub(crate) const MAX_TOKENS: u64 = 8;

/// An artifact before it is written.
pub(crate) struct Draft {
    pub(crate) plan: Plan,
    pub(crate) code: Vec<u8>,
    /// Names and bytes, in order; each is padded to 64 bytes in the file.
    pub(crate) tensors: Vec<(String, Vec<u8>)>,
    pub(crate) tokenizer: Option<String>,
    /// Files of kernels of a GPU.
    pub(crate) cubins: Vec<(String, Vec<u8>)>,
}

impl Draft {
    /// A plan with the inputs and the output of a decoder, and no steps.
    pub(crate) fn new(vocab: u64, context: u64, sequences: u64) -> Self {
        let bound = |name: &str, max: u64| SymbolBound { name: name.to_owned(), max };
        let plan = Plan {
            version: VERSION,
            model: "hand-made".to_owned(),
            target: std::env::consts::ARCH.to_owned(),
            machine: Machine {
                threads: 1,
                read_bytes_per_us: 1000,
                link_bytes_per_us: 1000,
                copy_ns: 0,
                step_ns: 500,
                call_ns: 0,
            },
            context,
            sequences,
            vocab,
            slab_bytes: 0,
            weights_bytes: 0,
            placement: Placement::resident(0),
            budget: Budget::default(),
            symbols: vec![bound("n", MAX_TOKENS), bound("m", MAX_TOKENS), bound("keys", MAX_TOKENS * context)],
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            kernels: Vec::new(),
            training: None,
            phases: Vec::new(),
        };
        let mut draft = Self { plan, code: Vec::new(), tensors: Vec::new(), tokenizer: None, cubins: Vec::new() };
        for (name, shape) in
            [("ids", ["n", ""]), ("seq", ["n", ""]), ("pos", ["n", ""]), ("span", ["n", "2"]), ("rows", ["m", ""])]
        {
            let buffer = draft.slab_buffer(name, Role::Input, 4 * 2 * MAX_TOKENS, 1);
            let shape = shape.iter().filter(|dim| !dim.is_empty()).map(|dim| expr(dim)).collect();
            draft.plan.inputs.push(Io { name: name.to_owned(), buffer, dtype: DType::I32, shape });
        }
        let buffer = draft.slab_buffer("logits", Role::Output, 4 * MAX_TOKENS * vocab, 1);
        let shape = vec![expr("m"), Expr::from(vocab)];
        draft.plan.outputs.push(Io { name: "logits".to_owned(), buffer, dtype: DType::F32, shape });
        draft
    }

    /// The model whose most probable next id is the id plus 1, modulo the vocabulary: its logit is 1, all others are 0. It has a cache that
    /// remembers, for each token, the number of its place in its call.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn counting(vocab: u64, context: u64, sequences: u64) -> Self {
        /// for i in begin..end { out[i * vocab + (ids[rows[i]] + 1) % vocab] = 1.0 }
        const COUNT: &[u8] = &[
            0x4c, 0x8b, 0x07, // mov r8, [rdi]            ; ids
            0x4c, 0x8b, 0x4f, 0x08, // mov r9, [rdi+8]    ; rows
            0x4c, 0x8b, 0x57, 0x10, // mov r10, [rdi+16]  ; out
            0x4c, 0x8b, 0x1e, // mov r11, [rsi]           ; vocab
            0x48, 0x39, 0xca, // next: cmp rdx, rcx
            0x7d, 0x29, // jge done
            0x49, 0x63, 0x04, 0x91, // movsxd rax, [r9+rdx*4]
            0x41, 0x8b, 0x04, 0x80, // mov eax, [r8+rax*4]
            0x48, 0xff, 0xc0, // inc rax
            0x4c, 0x39, 0xd8, // cmp rax, r11
            0x72, 0x02, // jb store
            0x31, 0xc0, // xor eax, eax
            0x48, 0x89, 0xd7, // store: mov rdi, rdx
            0x49, 0x0f, 0xaf, 0xfb, // imul rdi, r11
            0x48, 0x01, 0xc7, // add rdi, rax
            0x41, 0xc7, 0x04, 0xba, 0x00, 0x00, 0x80, 0x3f, // mov dword [r10+rdi*4], 1.0
            0x48, 0xff, 0xc2, // inc rdx
            0xeb, 0xd2, // jmp next
            0xc3, // done: ret
        ];
        let mut draft = Self::new(vocab, context, sequences);
        // A function need not start where the code does, only at a multiple of the alignment.
        draft.code = [&[0xcc; 64], COUNT].concat();
        let logits = draft.plan.outputs[0].buffer;
        let zeros = draft.weight("zeros", &vec![0.0; (MAX_TOKENS * vocab) as usize]);
        let append = draft.append_steps(1);
        let generated = Code::Generated { offset: 64, bytes: COUNT.len() as u64 };
        let kernel = draft.kernel("count", generated);
        let clear = Step::Copy {
            from: arg(Access::Read, zeros),
            to: arg(Access::Write, logits),
            bytes: expr("m") * Expr::from(4 * vocab),
        };
        let count = Step::Call(Call {
            kernel,
            grid: expr("m").into(),
            args: vec![
                arg(Access::Read, draft.input("ids")),
                arg(Access::Read, draft.input("rows")),
                arg(Access::Update, logits),
            ],
            dims: vec![Expr::from(vocab)],
            moves: expr("m") * Expr::from(4 * vocab) + expr("keys"),
            macs: expr("n") * Expr::from(1000),
            ops: Expr::from(0),
            rate: Rate::flat(100),
            start_ns: 500,
            from: "entry.logits".to_owned(),
        });
        draft.phases(vec![append, clear, count]);
        draft.tokenizer = Some(Tokenizer::bytes().to_json());
        draft
    }

    /// The model of vocabulary 2 that gives as logits of row `i` what two layers' caches hold at position `i` of sequence 0, of the second
    /// layer: the numbers of the token's place in its call.
    pub(crate) fn remembering(context: u64, sequences: u64) -> Self {
        let mut draft = Self::new(2, context, sequences);
        let append = draft.append_steps(2);
        let (cache, stride) = (draft.find("layers.{}.cache"), draft.buffer("layers.{}.cache").stride);
        let read = Step::Copy {
            from: Arg { access: Access::Read, buffer: cache, offset: Expr::from(stride) },
            to: arg(Access::Write, draft.plan.outputs[0].buffer),
            bytes: expr("m") * Expr::from(8),
        };
        draft.phases(vec![append, read]);
        draft
    }

    /// The model whose logits are rows of `x . w^T`, of a table kernel, with `k` columns.
    pub(crate) fn dense(x: &[f32], w: &[f32], k: u64) -> Self {
        let vocab = w.len() as u64 / k;
        let mut draft = Self::new(vocab, 64, 1);
        let (x, w) = (draft.weight("x", x), draft.weight("w", w));
        let kernel = draft.kernel("dense_matmul_f32xf32_f32__scalar__r4", Code::Table);
        let logits = draft.plan.outputs[0].buffer;
        draft.phases(vec![Step::Call(Call {
            kernel,
            grid: Expr::from(vocab.div_ceil(4)).into(),
            args: vec![arg(Access::Read, x), arg(Access::Read, w), arg(Access::Write, logits)],
            dims: vec![expr("m"), Expr::from(k), Expr::from(vocab)],
            moves: Expr::from(4 * k * vocab),
            macs: expr("m") * Expr::from(k * vocab),
            ops: Expr::from(0),
            rate: Rate::flat(100),
            start_ns: 500,
            from: "entry.logits".to_owned(),
        })]);
        draft
    }

    /// A repeat that writes `[layer * 100 + t, t]` into the cache of each layer for the call's token `t`.
    fn append_steps(&mut self, layers: u32) -> Step {
        for layer in 0..layers {
            let x: Vec<f32> = (0..MAX_TOKENS).flat_map(|t| [(u64::from(layer) * 100 + t) as f32, t as f32]).collect();
            self.tensors.push((format!("layers.{layer}.x"), to_bytes(&x)));
        }
        let bytes = 8 * MAX_TOKENS;
        let x = self.push(Buffer {
            name: "layers.{}.x".to_owned(),
            role: Role::Weight,
            offset: self.plan.weights_bytes,
            bytes,
            rounds: layers,
            stride: bytes.next_multiple_of(64),
            is_ternary: false,
        });
        self.plan.weights_bytes += u64::from(layers) * bytes.next_multiple_of(64);
        self.plan.placement = Placement::resident(self.plan.weights_bytes);
        let (sequences, context) = (self.plan.sequences, self.plan.context);
        let cache = self.slab_buffer("layers.{}.cache", Role::State, 8 * sequences * context, layers);
        let kernel = self.kernel("kv_append_f32_f32__scalar__t1", Code::Table);
        let round = |access, buffer, stride: u64| {
            let offset = if layers == 1 { Expr::from(0) } else { expr("layer") * Expr::from(stride) };
            Arg { access, buffer, offset }
        };
        let (x_stride, cache_stride) = (self.plan.buffer(x).stride, self.plan.buffer(cache).stride);
        Step::Repeat {
            count: layers,
            reverse: false,
            steps: vec![Step::Call(Call {
                kernel,
                grid: expr("n").into(),
                args: vec![
                    round(Access::Read, x, x_stride),
                    arg(Access::Read, self.input("seq")),
                    arg(Access::Read, self.input("pos")),
                    round(Access::Update, cache, cache_stride),
                ],
                dims: vec![
                    expr("n"),
                    Expr::from(1),
                    Expr::from(2),
                    Expr::from(context),
                    Expr::from(2),
                    Expr::from(sequences),
                ],
                moves: expr("n") * Expr::from(16),
                macs: Expr::from(0),
                ops: Expr::from(0),
                rate: Rate::flat(100),
                start_ns: 500,
                from: "layer.cache".to_owned(),
            })],
        }
    }

    fn phases(&mut self, steps: Vec<Step>) {
        let phase = |name: &str, max_tokens| Phase { name: name.to_owned(), max_tokens, steps: steps.clone() };
        self.plan.phases = vec![phase("decode", 1), phase("prefill", MAX_TOKENS)];
    }

    fn push(&mut self, buffer: Buffer) -> BufferId {
        self.plan.buffers.push(buffer);
        BufferId::new(self.plan.buffers.len() - 1)
    }

    fn slab_buffer(&mut self, name: &str, role: Role, bytes: u64, rounds: u32) -> BufferId {
        let (offset, stride) = (self.plan.slab_bytes, bytes.next_multiple_of(64));
        self.plan.slab_bytes += u64::from(rounds) * stride;
        self.push(Buffer { name: name.to_owned(), role, offset, bytes, rounds, stride, is_ternary: false })
    }

    fn weight(&mut self, name: &str, values: &[f32]) -> BufferId {
        self.tensors.push((name.to_owned(), to_bytes(values)));
        let (offset, bytes) = (self.plan.weights_bytes, 4 * values.len() as u64);
        // Tensors follow each other without gaps, so each is as long as it is aligned.
        assert_eq!(bytes % 64, 0, "tests take sizes that need no padding");
        self.plan.weights_bytes += bytes;
        self.plan.placement = Placement::resident(self.plan.weights_bytes);
        self.push(Buffer {
            name: name.to_owned(),
            role: Role::Weight,
            offset,
            bytes,
            rounds: 1,
            stride: 0,
            is_ternary: false,
        })
    }

    fn kernel(&mut self, name: &str, code: Code) -> KernelId {
        self.plan.kernels.push(Kernel { name: name.to_owned(), code });
        KernelId::new(self.plan.kernels.len() - 1)
    }

    fn input(&self, name: &str) -> BufferId {
        self.plan.inputs.iter().find(|io| io.name == name).expect("there is such an input").buffer
    }

    fn find(&self, name: &str) -> BufferId {
        let position = self.plan.buffers.iter().position(|buffer| buffer.name == name);
        BufferId::new(position.expect("there is such a buffer"))
    }

    /// The buffer of this name.
    pub(crate) fn buffer(&self, name: &str) -> &Buffer {
        self.plan.buffer(self.find(name))
    }

    /// The steps of the last phase.
    pub(crate) fn steps(&mut self) -> &mut Vec<Step> {
        &mut self.plan.phases.last_mut().expect("there are phases").steps
    }

    /// The weights file: header padded to 64 bytes, then the tensors.
    pub(crate) fn weights_file(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut data: Vec<u8> = Vec::new();
        for (name, bytes) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            let entry = serde_json::json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": offsets});
            header.insert(name.clone(), entry);
            data.extend(bytes);
        }
        let json = serde_json::Value::Object(header).to_string();
        let length = (8 + json.len()).next_multiple_of(64) - 8;
        let mut file = (length as u64).to_le_bytes().to_vec();
        file.extend(format!("{json:length$}").into_bytes());
        file.extend(data);
        file
    }

    /// Writes the artifact.
    pub(crate) fn write(&self, dir: &Path) {
        let mut files = vec![
            (manifest::CODE, self.code.clone()),
            (manifest::PLAN, self.plan.to_ron().into_bytes()),
            (manifest::WEIGHTS, self.weights_file()),
        ];
        if let Some(tokenizer) = &self.tokenizer {
            files.push((manifest::TOKENIZER, tokenizer.clone().into_bytes()));
        }
        for (file, bytes) in &self.cubins {
            files.push((file, bytes.clone()));
        }
        let mut parts = Vec::new();
        for (file, bytes) in files {
            std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.join(file), &bytes).unwrap();
            parts.push(Part {
                file: file.to_owned(),
                bytes: bytes.len() as u64,
                blake3: blake3::hash(&bytes).to_hex().to_string(),
            });
        }
        let targets = vec![Compilation { target: self.plan.target.clone(), folder: String::new() }];
        let manifest = Manifest { version: VERSION, targets, parts };
        std::fs::write(dir.join(manifest::MANIFEST), manifest.to_ron()).unwrap();
    }

    /// Writes the artifact into a directory of its own.
    pub(crate) fn written(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        dir
    }
}

pub(crate) fn arg(access: Access, buffer: BufferId) -> Arg {
    Arg { access, buffer, offset: Expr::from(0) }
}

pub(crate) fn expr(text: &str) -> Expr {
    Expr::try_from(text.to_owned()).unwrap()
}

pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
