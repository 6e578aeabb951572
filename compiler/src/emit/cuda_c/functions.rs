//! The functions that generated sources call: a fixed prelude, and those printed from [`crate::nest::math`].

use std::fmt::Write as _;

use crate::nest::math::{self, Arithmetic};

/// A function that only some sources need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Function {
    Exp,
    Log,
    Sin,
    Cos,
    F16ToF32,
    F32ToF16,
    F32ToBf16,
    FoldAcross,
}

impl Function {
    pub(super) fn name(self) -> &'static str {
        match self {
            Function::Exp => "exp_f32",
            Function::Log => "log_f32",
            Function::Sin => "sin_f32",
            Function::Cos => "cos_f32",
            Function::F16ToF32 => "f16_to_f32",
            Function::F32ToF16 => "f32_to_f16",
            Function::F32ToBf16 => "f32_to_bf16",
            Function::FoldAcross => "fold_across",
        }
    }

    /// Its definition: the operations that the arithmetic makes of it, one a line.
    pub(super) fn text(self) -> String {
        let mut print = Print { lines: String::new(), values: 1 };
        let v0 = Name(0);
        let result = match self {
            Function::Exp => math::exp(&mut print, v0),
            Function::Log => math::log(&mut print, v0),
            Function::Sin => math::sin(&mut print, v0),
            Function::Cos => math::cos(&mut print, v0),
            Function::F16ToF32 => math::f16_to_f32(&mut print, v0),
            Function::F32ToF16 => math::f32_to_f16(&mut print, v0),
            Function::F32ToBf16 => math::f32_to_bf16(&mut print, v0),
            Function::FoldAcross => return include_str!("across.cuh").to_owned(),
        };
        let parameter = if self == Function::F16ToF32 { "int" } else { "float" };
        let returned = if matches!(self, Function::F32ToF16 | Function::F32ToBf16) { "int" } else { "float" };
        format!(
            "\n__device__ {returned} {}({parameter} v0) {{\n{}    return {result};\n}}\n",
            self.name(),
            print.lines,
            result = result.text()
        )
    }
}

/// A constant that is read back as the same bits, with its value beside it where the bits do not say it.
pub(super) fn f32_literal(value: f32) -> String {
    if value.is_finite()
        && value.fract() == 0.0
        && value.abs() < 16_777_216.0
        && (value != 0.0 || value.is_sign_positive())
    {
        format!("{value:.1}f")
    } else {
        format!("__uint_as_float(0x{:08x}u) /* {value:e} */", value.to_bits())
    }
}

/// An integer constant; the least one cannot be written as a literal with a sign.
pub(super) fn i32_literal(value: i32) -> String {
    if value == i32::MIN { "(int)0x80000000u".to_owned() } else { value.to_string() }
}

/// A value of a printed function.
#[derive(Clone, Copy)]
pub(super) struct Name(u32);

impl Name {
    fn text(self) -> String {
        format!("v{}", self.0)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Arithmetic that prints what is computed.
struct Print {
    lines: String,
    values: u32,
}

impl Print {
    fn define(&mut self, ty: &str, value: impl std::fmt::Display) -> Name {
        let name = Name(self.values);
        self.values += 1;
        let _ = writeln!(self.lines, "    const {ty} {name} = {value};");
        name
    }

    fn float(&mut self, value: impl std::fmt::Display) -> Name {
        self.define("float", value)
    }

    fn int(&mut self, value: impl std::fmt::Display) -> Name {
        self.define("int", value)
    }

    fn boolean(&mut self, value: impl std::fmt::Display) -> Name {
        self.define("bool", value)
    }

    fn double(&mut self, value: impl std::fmt::Display) -> Name {
        self.define("double", value)
    }
}

impl Arithmetic for Print {
    type F32 = Name;
    type I32 = Name;
    type Bool = Name;
    type F64 = Name;

    fn f32(&mut self, value: f32) -> Name {
        self.float(f32_literal(value))
    }
    fn add(&mut self, lhs: Name, rhs: Name) -> Name {
        self.float(format_args!("{lhs} + {rhs}"))
    }
    fn sub(&mut self, lhs: Name, rhs: Name) -> Name {
        self.float(format_args!("{lhs} - {rhs}"))
    }
    fn mul(&mut self, lhs: Name, rhs: Name) -> Name {
        self.float(format_args!("{lhs} * {rhs}"))
    }
    fn div(&mut self, lhs: Name, rhs: Name) -> Name {
        self.float(format_args!("{lhs} / {rhs}"))
    }
    fn sqrt(&mut self, x: Name) -> Name {
        self.float(format_args!("__fsqrt_rn({x})"))
    }
    fn less(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} < {rhs}"))
    }
    fn less_equal(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} <= {rhs}"))
    }
    fn equal(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} == {rhs}"))
    }
    fn select(&mut self, condition: Name, lhs: Name, rhs: Name) -> Name {
        self.float(format_args!("{condition} ? {lhs} : {rhs}"))
    }

    fn i32(&mut self, value: i32) -> Name {
        self.int(i32_literal(value))
    }
    fn int_add(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("wrap_add({lhs}, {rhs})"))
    }
    fn int_sub(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("wrap_sub({lhs}, {rhs})"))
    }
    fn int_mul(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("wrap_mul({lhs}, {rhs})"))
    }
    fn int_less(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} < {rhs}"))
    }
    fn int_less_equal(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} <= {rhs}"))
    }
    fn int_equal(&mut self, lhs: Name, rhs: Name) -> Name {
        self.boolean(format_args!("{lhs} == {rhs}"))
    }
    fn int_select(&mut self, condition: Name, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("{condition} ? {lhs} : {rhs}"))
    }
    fn and(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("{lhs} & {rhs}"))
    }
    fn or(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("{lhs} | {rhs}"))
    }
    fn xor(&mut self, lhs: Name, rhs: Name) -> Name {
        self.int(format_args!("{lhs} ^ {rhs}"))
    }
    fn shift_left(&mut self, x: Name, by: u32) -> Name {
        self.int(format_args!("(int)((u32){x} << {by})"))
    }
    fn shift_right_signed(&mut self, x: Name, by: u32) -> Name {
        self.int(format_args!("{x} >> {by}"))
    }
    fn shift_right(&mut self, x: Name, by: u32) -> Name {
        self.int(format_args!("(int)((u32){x} >> {by})"))
    }

    fn f32_to_bits(&mut self, x: Name) -> Name {
        self.int(format_args!("__float_as_int({x})"))
    }
    fn bits_to_f32(&mut self, x: Name) -> Name {
        self.float(format_args!("__int_as_float({x})"))
    }
    fn int_to_f32(&mut self, x: Name) -> Name {
        self.float(format_args!("(float){x}"))
    }
    fn truncate(&mut self, x: Name) -> Name {
        self.int(format_args!("__float2int_rz({x})"))
    }

    fn f64(&mut self, value: f64) -> Name {
        self.double(format_args!("__longlong_as_double(0x{:016x}ll) /* {value:e} */", value.to_bits()))
    }
    fn widen(&mut self, x: Name) -> Name {
        self.double(format_args!("(double){x}"))
    }
    fn narrow(&mut self, x: Name) -> Name {
        self.float(format_args!("(float){x}"))
    }
    fn wide_add(&mut self, lhs: Name, rhs: Name) -> Name {
        self.double(format_args!("{lhs} + {rhs}"))
    }
    fn wide_sub(&mut self, lhs: Name, rhs: Name) -> Name {
        self.double(format_args!("{lhs} - {rhs}"))
    }
    fn wide_mul(&mut self, lhs: Name, rhs: Name) -> Name {
        self.double(format_args!("{lhs} * {rhs}"))
    }
    fn wide_flip_if_odd(&mut self, x: Name, parity: Name) -> Name {
        self.double(format_args!(
            "__longlong_as_double(__double_as_longlong({x}) ^ __double_as_longlong({parity}) << 63)"
        ))
    }

    fn round(&mut self, x: Name) -> Name {
        self.float(format_args!("rintf({x})"))
    }
    fn floor(&mut self, x: Name) -> Name {
        self.float(format_args!("floorf({x})"))
    }
}

/// What every source starts with.
pub(super) const PRELUDE: &str = include_str!("prelude.cuh");
