//! A product of few tokens with nests on both sides, as one kernel: what [`kernels::cuda::Fuses`] allows.
//!
//! Before the product of one token every block computes the activations for itself, in shared memory; behind it a thread computes a column of the result from
//! the rows of the product that belong to it. Neither changes a bit: the functions are those of the nests, and the product is that of the row.

use std::fmt::Write as _;

use kernels::Specialised;

use super::{Body, Source, c_type};
use crate::emit::writer::Writer;
use crate::nest::{Expr, ExprId, Extent, Stage, Verified, Write};

/// Words of shared memory that a nest before a product has at most: beside a record of as many columns, and the sums of the product, in the 48 KiB that
/// every device gives without being asked.
const MOST_SCRATCH: u64 = 8192;

/// A product and what is computed with it.
#[derive(Clone, Debug)]
pub struct Fused {
    /// The kernel's name, which is that of its entry.
    pub name: String,
    /// The product.
    pub special: Specialised,
    /// The nest of one unit that computes the activations.
    pub before: Option<Part>,
    /// The nest of the columns behind the product.
    pub after: Option<Part>,
}

/// A nest that shares a buffer with the product.
#[derive(Clone, Debug)]
pub struct Part {
    /// The nest. It knows no sizes at run time but `n`.
    pub nest: Verified,
    /// The buffer that is no argument of the kernel: the activations, or the product.
    pub shared: usize,
}

impl Part {
    /// The buffers that are arguments of the kernel, by their positions in the nest.
    pub fn arguments(&self) -> impl Iterator<Item = usize> {
        (0..self.nest.buffers.len()).filter(|position| *position != self.shared)
    }
}

impl Fused {
    /// The source.
    pub fn source(&self) -> String {
        let mut source = Source::default();
        let mut defines = String::new();
        let mut chunk = 1;
        if let Some(part) = &self.before {
            let registers = self.special.registers().unwrap_or(64);
            let body = Body::in_block(&part.nest, self.special.desc.launch.threads, registers);
            let body = source.add(&part.nest, body, Body::unit);
            chunk = body.chunk.min(MOST_SCRATCH);
            let names = part.nest.buffers.iter().enumerate();
            let names = names.map(|(position, buffer)| if position == part.shared { "record" } else { &buffer.name });
            let arguments: Vec<&str> = names.chain(part.nest.dims.iter().map(String::as_str)).collect();
            let parameters = own(&body.buffers(), part).join(", ");
            let _ = writeln!(defines, "#define BEFORE_PARAMETERS {parameters}");
            let call = format!("{}_unit<THREADS>({}, 0, scratch, wait)", part.nest.name, arguments.join(", "));
            let _ = writeln!(defines, "#define BEFORE(record, scratch, wait) {call}");
        }
        if let Some(part) = &self.after {
            let [Stage::Store { len: Extent::Const(columns), writes }] = &part.nest.stages[..] else {
                unreachable!("the schedule puts only functions of columns behind a product");
            };
            let rows = self.special.constant("m").unwrap_or(0) as u64;
            let parts = rows / columns;
            let mut body = Body::new(&part.nest);
            body.kept.clear();
            body.product = Some((part.shared, *columns));
            let body = source.add(&part.nest, body, |body, w| body.after(w, part, parts, writes));
            let parameters = own(&body.buffers(), part).join(", ");
            let arguments: Vec<&str> =
                part.arguments().map(|position| part.nest.buffers[position].name.as_str()).collect();
            let _ = writeln!(defines, "#define PARTS {parts}");
            let _ = writeln!(defines, "#define AFTER_PARAMETERS {parameters}");
            let _ = writeln!(defines, "#define AFTER_ARGUMENTS {}", arguments.join(", "));
        }
        source.code += "\n";
        source.code += &defines;
        source.code += &self.special.text(&self.name, self.before.is_some());
        source.finish(chunk)
    }
}

/// The parameters for the buffers that are arguments of the kernel.
fn own(buffers: &[String], part: &Part) -> Vec<String> {
    part.arguments().map(|position| buffers[position].clone()).collect()
}

impl Body<'_> {
    /// What is read for a column, and what is stored for it once the product is there.
    fn after(&mut self, w: &mut Writer, part: &Part, parts: u64, writes: &[Write]) {
        let nest = self.nest;
        let roots: Vec<ExprId> = nest.stages.iter().flat_map(Stage::roots).collect();
        let needed = nest.reachable(&roots);
        let is_product = |id: &ExprId| matches!(nest.exprs[*id], Expr::Load { buffer, .. } if buffer == part.shared);
        let is_read = |id: &ExprId| {
            matches!(nest.exprs[*id], Expr::Load { .. } | Expr::LoadRow { .. })
                && !nest.reachable(&[*id]).iter().any(is_product)
        };
        let read: Vec<ExprId> = needed.iter().copied().filter(is_read).collect();
        let first = nest.reachable(&read);
        let parameters =
            ["i64 i0".to_owned(), "i64 j".to_owned(), "i64 n".to_owned()].into_iter().chain(own(&self.buffers(), part));
        let parameters = parameters.collect::<Vec<_>>().join(", ");
        w.line("");
        w.block("struct After {", "};", |w| {
            for &id in &read {
                w.line(format!("{} of_{id};", c_type(nest.type_of(id))));
            }
            w.block(format!("static __device__ __forceinline__ After load({parameters}) {{"), "}", |w| {
                for &id in &first {
                    self.define(w, id);
                }
                let fields: Vec<String> = read.iter().map(ToString::to_string).collect();
                w.line(format!("return {{{}}};", fields.join(", ")));
            });
            let product = format!("const float (&product)[{parts}], {parameters}");
            w.block(format!("__device__ __forceinline__ void store({product}) const {{"), "}", |w| {
                for &id in &needed {
                    match read.contains(&id) {
                        true => w.line(format!("const {} {id} = of_{id};", c_type(nest.type_of(id)))),
                        false => self.define(w, id),
                    }
                }
                for write in writes {
                    self.store(w, write);
                }
            });
        });
    }
}
