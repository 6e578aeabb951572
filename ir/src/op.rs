//! The list of all ops, and what each op must say of itself.
//!
//! An op owns its meaning: signature, type rule, reference semantics and gradient stand in one file for each family, below [`mod@self`]. What a target
//! makes of it stands elsewhere. The enum [`Op`], the names of the text form and the e-graph language follow from the one list at the end
//! of this file.

pub mod elementwise;
pub mod reduce;
pub mod movement;
pub mod matmul;
pub mod ternary;
pub mod norm;
pub mod attention;
pub mod gather;
pub mod sample;
pub mod loss;
pub mod control;
pub mod straight_through;

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradients, VjpError};

/// What an op must say of itself. There are no default bodies, so that the compiler's errors are the list of what is left to write.
pub trait OpDef {
    /// The result's type, from the types of the inputs.
    ///
    /// # Errors
    ///
    /// The first rule that the inputs break.
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError>;

    /// The result by definition, in plain loops over f64: the oracle that all else is tested against. `out` is the inferred type with its
    /// symbols resolved.
    ///
    /// # Panics
    ///
    /// If the inputs do not have the types that `infer` accepted.
    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor;

    /// The gradients of the inputs, from that of the result: `inputs` and the result `y` are values of the graph in the making, `dy` is the
    /// gradient of `y`. See [`mod@crate::vjp`].
    ///
    /// # Errors
    ///
    /// If there is a gradient that the op cannot give.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError>;
}

/// An element type and constant dimensions: a [`TensorType`] whose symbols are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concrete {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
}

impl Concrete {
    /// Where the element stands that an index into a larger shape means: axes are aligned at the innermost, and 1-sized axes are repeated.
    pub(crate) fn broadcast_offset(&self, index: &[usize]) -> usize {
        let extra = index.len() - self.dims.len();
        let axes = self.dims.iter().zip(&index[extra..]);
        axes.fold(0, |offset, (&size, &at)| offset * size + if size == 1 { 0 } else { at })
    }
}

/// A real number with the order and equality of its bits, so that ops can be compared and hashed.
#[derive(Clone, Copy)]
pub struct Real(f64);

impl Real {
    /// A number.
    pub fn new(value: f64) -> Self {
        Self(value)
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// One attribute of an op, in the form that text and e-graph share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attr {
    /// A count, an axis, an offset.
    Int(i64),
    /// A real number. Always printed with a point or an exponent.
    Real(Real),
    /// An element type.
    DType(DType),
    /// Dimensions, which may be symbols.
    Shape(Shape),
    /// A list of axes.
    Axes(SmallVec<[u32; 4]>),
    /// A name, printed as `@name`.
    Name(Arc<str>),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(value) => write!(f, "{value}"),
            Attr::Real(value) => write!(f, "{value:?}"),
            Attr::DType(dtype) => write!(f, "{dtype}"),
            Attr::Shape(shape) => write!(f, "{shape}"),
            Attr::Axes(axes) => {
                f.write_str("(")?;
                for (position, axis) in axes.iter().enumerate() {
                    if position > 0 {
                        f.write_str(" ")?;
                    }
                    write!(f, "{axis}")?;
                }
                f.write_str(")")
            }
            Attr::Name(name) => write!(f, "@{name}"),
        }
    }
}

/// A Rust type that an attribute may have.
pub trait AttrValue: Sized {
    /// What to call it in an error.
    const KIND: &'static str;
    /// As an attribute.
    fn to_attr(&self) -> Attr;
    /// From an attribute, if it is of this type and in range.
    fn from_attr(attr: &Attr) -> Option<Self>;
}

macro_rules! attr_value {
    ($($ty:ty, $kind:literal, |$value:ident| $to:expr, $pattern:pat => $from:expr;)*) => {
        $(impl AttrValue for $ty {
            const KIND: &'static str = $kind;
            fn to_attr(&self) -> Attr {
                let $value = self;
                $to
            }
            fn from_attr(attr: &Attr) -> Option<Self> {
                match attr {
                    $pattern => $from,
                    _ => None,
                }
            }
        })*
    };
}

attr_value! {
    u32, "a whole number", |v| Attr::Int(i64::from(*v)), Attr::Int(value) => u32::try_from(*value).ok();
    u64, "a whole number", |v| Attr::Int(i64::try_from(*v).unwrap_or(i64::MAX)), Attr::Int(value) => u64::try_from(*value).ok();
    Real, "a real number", |v| Attr::Real(*v), Attr::Real(value) => Some(*value);
    DType, "an element type", |v| Attr::DType(*v), Attr::DType(dtype) => Some(*dtype);
    Shape, "a shape", |v| Attr::Shape(v.clone()), Attr::Shape(shape) => Some(shape.clone());
    SmallVec<[u32; 4]>, "a list of axes", |v| Attr::Axes(v.clone()), Attr::Axes(axes) => Some(axes.clone());
    Arc<str>, "a @name", |v| Attr::Name(v.clone()), Attr::Name(name) => Some(name.clone());
}

/// Why inputs do not fit an op.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// Too many or too few inputs.
    #[error("takes {expected} inputs, found {found}")]
    Arity {
        /// How many the op takes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// An input's element type does not fit.
    #[error("`{input}` must be {expected}, found {found}")]
    DType {
        /// The input's name.
        input: &'static str,
        /// What would fit.
        expected: &'static str,
        /// What it is.
        found: DType,
    },
    /// An input has too many or too few dimensions.
    #[error("`{input}` must have {expected}, found {found}")]
    Rank {
        /// The input's name.
        input: &'static str,
        /// What would fit, in words.
        expected: &'static str,
        /// The shape it has.
        found: Shape,
    },
    /// Two things that must agree do not.
    #[error("{what} must agree: {left} against {right}")]
    Mismatch {
        /// What must agree.
        what: &'static str,
        /// One side.
        left: String,
        /// The other side.
        right: String,
    },
    /// An attribute has a value that makes no sense here.
    #[error("attribute `{name}` is {found}: {reason}")]
    Attribute {
        /// The attribute's name.
        name: &'static str,
        /// Its value.
        found: String,
        /// Why that cannot be.
        reason: &'static str,
    },
}

impl TypeError {
    pub(crate) fn mismatch(what: &'static str, left: impl fmt::Display, right: impl fmt::Display) -> Self {
        TypeError::Mismatch { what, left: left.to_string(), right: right.to_string() }
    }

    pub(crate) fn attribute(name: &'static str, found: impl fmt::Display, reason: &'static str) -> Self {
        TypeError::Attribute { name, found: found.to_string(), reason }
    }
}

/// Why an op could not be made from a name and attributes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// No op has this name.
    #[error("there is no op `{0}`")]
    Unknown(String),
    /// The op takes other attributes.
    #[error("`{op}` takes the attributes {expected:?}, found {found} of them")]
    Count {
        /// The op.
        op: &'static str,
        /// Names of its attributes.
        expected: &'static [&'static str],
        /// How many were given.
        found: usize,
    },
    /// An attribute has the wrong kind of value.
    #[error("attribute `{name}` of `{op}` must be {expected}, found {found}")]
    Kind {
        /// The op.
        op: &'static str,
        /// The attribute.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// What every op type has, written by the [`op!`] macro.
pub trait OpParts: Sized {
    /// The name in the text form.
    const NAME: &'static str;
    /// Names of the inputs. An op whose last input is called `rest` takes any number from there on.
    const INPUTS: &'static [&'static str];
    /// Names of the attributes, in their order.
    const ATTRS: &'static [&'static str];
    /// The attributes, in their order.
    fn attrs(&self) -> SmallVec<[Attr; 4]>;
    /// An op from its attributes.
    ///
    /// # Errors
    ///
    /// If their number or kinds do not fit.
    fn from_attrs(attrs: &[Attr]) -> Result<Self, PartsError>;
}

/// Declares an op's type: its doc, Rust name, text name, inputs and attributes.
macro_rules! op {
    ($(#[$meta:meta])* $name:ident = $text:literal ($($input:ident),*) { $($(#[$attr_meta:meta])* $attr:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            $($(#[$attr_meta])* pub $attr: $ty,)*
        }

        impl $crate::op::OpParts for $name {
            const NAME: &'static str = $text;
            const INPUTS: &'static [&'static str] = &[$(stringify!($input)),*];
            const ATTRS: &'static [&'static str] = &[$(stringify!($attr)),*];

            fn attrs(&self) -> smallvec::SmallVec<[$crate::op::Attr; 4]> {
                smallvec::smallvec![$($crate::op::AttrValue::to_attr(&self.$attr)),*]
            }

            fn from_attrs(attrs: &[$crate::op::Attr]) -> Result<Self, $crate::op::PartsError> {
                let [$($attr),*] = attrs else {
                    return Err($crate::op::PartsError::Count { op: $text, expected: Self::ATTRS, found: attrs.len() });
                };
                Ok(Self {
                    $($attr: <$ty as $crate::op::AttrValue>::from_attr($attr).ok_or_else(|| $crate::op::PartsError::Kind {
                        op: $text,
                        name: stringify!($attr),
                        expected: <$ty as $crate::op::AttrValue>::KIND,
                        found: $attr.to_string(),
                    })?,)*
                })
            }
        }
    };
}
pub(crate) use op;

/// Destructures the inputs of an op whose arity is fixed, or returns [`TypeError::Arity`].
pub(crate) fn arity<'a, 'b, const N: usize>(
    inputs: &'a [&'b TensorType],
) -> Result<&'a [&'b TensorType; N], TypeError> {
    inputs.try_into().map_err(|_| TypeError::Arity { expected: N, found: inputs.len() })
}

/// Checks that the input named `input` is of type f32, the one float type that ops compute on.
pub(crate) fn expect_f32(input: &'static str, ty: &TensorType) -> Result<(), TypeError> {
    match ty.dtype {
        DType::F32 => Ok(()),
        found => Err(TypeError::DType { input, expected: "f32", found }),
    }
}

/// Checks that the input named `input` is a matrix, and returns its two dimensions.
pub(crate) fn expect_matrix<'a>(
    input: &'static str,
    ty: &'a TensorType,
) -> Result<(&'a crate::Dim, &'a crate::Dim), TypeError> {
    match ty.shape.dims() {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(TypeError::Rank { input, expected: "2 dimensions", found: ty.shape.clone() }),
    }
}

macro_rules! ops {
    ($($family:ident: $($name:ident)+;)+) => {
        /// Any op.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $($(#[doc = concat!("See [`", stringify!($family), "::", stringify!($name), "`].")]
            $name($family::$name),)+)+
        }

        $($(impl From<$family::$name> for Op {
            fn from(op: $family::$name) -> Self {
                Op::$name(op)
            }
        })+)+

        impl Op {
            /// Names of all ops, in the order of the list.
            pub const NAMES: &'static [&'static str] = &[$($(<$family::$name as OpParts>::NAME,)+)+];

            /// The name in the text form.
            pub fn name(&self) -> &'static str {
                match self { $($(Op::$name(_) => <$family::$name as OpParts>::NAME,)+)+ }
            }

            /// Names of the inputs; the last is `rest` where any number may follow.
            pub fn inputs(&self) -> &'static [&'static str] {
                match self { $($(Op::$name(_) => <$family::$name as OpParts>::INPUTS,)+)+ }
            }

            /// Names of the attributes.
            pub fn attr_names(&self) -> &'static [&'static str] {
                match self { $($(Op::$name(_) => <$family::$name as OpParts>::ATTRS,)+)+ }
            }

            /// Names of the inputs and of the attributes of the op called `name`.
            pub fn signature(name: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
                $($(if name == <$family::$name as OpParts>::NAME {
                    return Some((<$family::$name as OpParts>::INPUTS, <$family::$name as OpParts>::ATTRS));
                })+)+
                None
            }

            /// The attributes, in the order of their names.
            pub fn attrs(&self) -> SmallVec<[Attr; 4]> {
                match self { $($(Op::$name(op) => op.attrs(),)+)+ }
            }

            /// The op of this name and these attributes.
            ///
            /// # Errors
            ///
            /// If there is no such op, or it takes other attributes.
            pub fn from_parts(name: &str, attrs: &[Attr]) -> Result<Self, PartsError> {
                $($(if name == <$family::$name as OpParts>::NAME {
                    return <$family::$name as OpParts>::from_attrs(attrs).map(Op::from);
                })+)+
                Err(PartsError::Unknown(name.to_owned()))
            }
        }

        impl OpDef for Op {
            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
                match self { $($(Op::$name(op) => op.infer(inputs),)+)+ }
            }

            fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
                match self { $($(Op::$name(op) => op.reference(inputs, out),)+)+ }
            }

            fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
                match self { $($(Op::$name(op) => op.vjp(b, inputs, y, dy),)+)+ }
            }
        }
    };
}

ops! {
    elementwise: Add Sub Mul Div Minimum Maximum Less Select Neg Abs Exp Log Sqrt Rsqrt Sin Cos Round Relu Relu2 Sigmoid Silu Cast Relu2Mul;
    reduce: Sum Mean Max Argmax Softmax SumTo;
    movement: Reshape Permute Slice Concat Broadcast;
    matmul: Matmul QuantizedMatmul Gemm;
    ternary: Ternarise TernaryScale RowThreshold Unpack UnpackInCall Quantize QuantizeGroups Dequantize TernaryMatmul TernaryMatmulBase3 TernaryMatmulTransposed;
    norm: RmsNorm LayerNorm RmsNormQuantize AddRmsNorm AddLayerNorm;
    attention: Rope KvAppend KvRows Attention AttentionLse AttentionQueryGradient AttentionCacheGradient;
    gather: Gather ScatterAdd;
    loss: CrossEntropy CrossEntropyGradient;
    sample: Sample;
    control: Repeat Scan Stacked;
}
