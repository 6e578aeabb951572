//! Reads a spec's file, and tells everything that is wrong with it at once.
//!
//! A field that cannot be read is reported and gets a placeholder, so that the rest can be read and judged too. A rule that such a field
//! takes part in is then not judged: each slip is reported once.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Problem, SpecCause};
use super::syntax::{At, Field, Group, Node, Value, parse};
use super::{
    Activation, Activations, Attention, Block, Choice, FeedForward, Float, Head, KvFormat, Linear, Norm, Place, Scale,
    Spec, TokenizerKind, Weights,
};
use crate::error::{SpecError, SpecErrors};

const SPEC: &[&str] = &[
    "name",
    "vocab",
    "hidden",
    "layers",
    "context",
    "rope_theta",
    "embedding",
    "norm",
    "linear",
    "blocks",
    "final_norm",
    "head",
    "kv",
    "tokenizer",
];
const LINEAR: &[&str] = &["weights", "scale", "activations", "scaled_biases"];
const NORM: &[&str] = &["eps", "dtype"];
const ATTENTION: &[&str] = &["heads", "kv_heads", "head_dim", "qk_norm", "window", "sinks", "biases", "norms"];
const FEED_FORWARD: &[&str] = &["width", "activation", "gated", "biases", "norms"];

/// Reads a spec.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the text.
pub fn read(text: &str) -> Result<Spec, SpecErrors> {
    let mut errors = Vec::new();
    let root = parse(text, &mut errors);
    let mut reader = Reader { errors, places: BTreeMap::new(), faulty: BTreeSet::new() };
    let spec = reader.spec(&root);
    for problem in spec.problems() {
        reader.judge(problem);
    }
    if reader.errors.is_empty() {
        return Ok(spec);
    }
    reader.errors.sort_by_key(|(at, _)| *at);
    let errors = reader.errors.into_iter();
    Err(SpecErrors(errors.map(|(at, cause)| SpecError { line: at.line, col: at.col, cause }).collect()))
}

struct Reader {
    errors: Vec<(At, SpecCause)>,
    /// Where each field stands, by its path; where its group stands, if it was left out.
    places: BTreeMap<String, At>,
    /// Paths of the fields that hold placeholders.
    faulty: BTreeSet<String>,
}

/// The fields of one group, by name.
struct Fields<'a> {
    of: &'static str,
    path: String,
    at: At,
    fields: BTreeMap<&'a str, &'a Field>,
}

impl Fields<'_> {
    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

impl Reader {
    fn report(&mut self, at: At, cause: SpecCause) {
        self.errors.push((at, cause));
    }

    /// Reports a broken rule, unless a field that it is about could not be read.
    fn judge(&mut self, problem: Problem) {
        let is_within = |path: &str, whole: &str| {
            path.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let unread = |path: &String| self.faulty.iter().any(|whole| is_within(path, whole) || is_within(whole, path));
        if problem.fields.iter().any(unread) {
            return;
        }
        let at = problem.fields.iter().find_map(|path| self.places.get(path)).copied();
        self.report(at.unwrap_or(At { line: 1, col: 1 }), problem.cause);
    }

    fn kind<T>(&mut self, path: &str, node: &Node, expected: &'static str) -> Option<T> {
        if !matches!(node.value, Value::Broken) {
            let cause = SpecCause::Kind { field: path.to_owned(), expected, found: node.value.to_string() };
            self.report(node.at, cause);
        }
        None
    }

    /// The fields of a group; reports those that do not exist and those given twice.
    fn fields<'a>(
        &mut self,
        path: &str,
        of: &'static str,
        known: &'static [&'static str],
        at: At,
        group: &'a Group,
    ) -> Fields<'a> {
        let mut fields: BTreeMap<&str, &Field> = BTreeMap::new();
        for field in &group.fields {
            if !known.contains(&field.name.as_str()) {
                self.report(field.at, SpecCause::UnknownField { field: field.name.clone(), of, known });
            } else if fields.insert(&field.name, field).is_some() {
                self.report(field.at, SpecCause::DuplicateField { field: field.name.clone() });
            }
        }
        for node in &group.values {
            if !matches!(node.value, Value::Broken) {
                let cause = SpecCause::Unexpected { expected: "a field and a colon", found: node.value.to_string() };
                self.report(node.at, cause);
            }
        }
        Fields { of, path: path.to_owned(), at, fields }
    }

    fn required<T>(
        &mut self,
        fields: &Fields<'_>,
        field: &'static str,
        placeholder: T,
        read: impl FnOnce(&mut Self, &str, &Node) -> Option<T>,
    ) -> T {
        if !fields.fields.contains_key(field) {
            self.report(fields.at, SpecCause::MissingField { field, of: fields.of });
            self.faulty.insert(fields.path_of(field));
        }
        self.optional(fields, field, placeholder, read)
    }

    fn optional<T>(
        &mut self,
        fields: &Fields<'_>,
        field: &'static str,
        default: T,
        read: impl FnOnce(&mut Self, &str, &Node) -> Option<T>,
    ) -> T {
        let path = fields.path_of(field);
        let found = fields.fields.get(field);
        self.places.insert(path.clone(), found.map_or(fields.at, |field| field.value.at));
        let Some(found) = found else { return default };
        match read(self, &path, &found.value) {
            Some(value) => value,
            None => {
                self.faulty.insert(path);
                default
            }
        }
    }

    fn count(&mut self, path: &str, node: &Node) -> Option<u32> {
        match node.value {
            Value::Integer(value) => match u32::try_from(value) {
                Ok(value) => Some(value),
                Err(_) => self.kind(path, node, "a whole number from 0 to 4294967295"),
            },
            _ => self.kind(path, node, "a whole number"),
        }
    }

    fn real(&mut self, path: &str, node: &Node) -> Option<f64> {
        match node.value {
            Value::Integer(value) => Some(value as f64),
            Value::Real(value) => Some(value),
            _ => self.kind(path, node, "a number"),
        }
    }

    fn flag(&mut self, path: &str, node: &Node) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => self.kind(path, node, "`true` or `false`"),
        }
    }

    fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Text(value) => Some(value.clone()),
            _ => self.kind(path, node, "a text in double quotes"),
        }
    }

    fn unknown_name<T>(&mut self, path: &str, node: &Node, known: &[&'static str]) -> Option<T> {
        if !matches!(node.value, Value::Broken) {
            let (field, found) = (path.to_owned(), node.value.to_string());
            self.report(node.at, SpecCause::UnknownName { field, known: known.to_vec(), found });
        }
        None
    }

    fn choice<T: Choice>(&mut self, path: &str, node: &Node) -> Option<T> {
        let found = match &node.value {
            Value::Name(name) => T::ALL.iter().find(|(known, _)| known == name),
            _ => None,
        };
        if let Some((_, value)) = found {
            return Some(*value);
        }
        let known: Vec<&'static str> = T::ALL.iter().map(|(name, _)| *name).collect();
        self.unknown_name(path, node, &known)
    }

    /// `None`, `Some(value)`, or a value.
    fn maybe<T>(
        &mut self,
        path: &str,
        node: &Node,
        read: impl FnOnce(&mut Self, &str, &Node) -> Option<T>,
    ) -> Option<Option<T>> {
        match &node.value {
            Value::Name(name) if name == "None" => Some(None),
            Value::Group(Group { name: Some(name), values, .. }) if name == "Some" && values.len() == 1 => {
                read(self, path, &values[0]).map(Some)
            }
            _ => read(self, path, node).map(Some),
        }
    }

    /// `name(float)` or, where `bare` lists it, `name`: the name and the element type.
    fn named_float(
        &mut self,
        path: &str,
        node: &Node,
        with_float: &[&'static str],
        bare: &[&'static str],
    ) -> Option<(&'static str, Option<Float>)> {
        let known: Vec<&'static str> = with_float.iter().chain(bare).copied().collect();
        let find = |names: &[&'static str], name: &str| names.iter().find(|known| **known == name).copied();
        match &node.value {
            Value::Name(name) => match find(bare, name) {
                Some(name) => Some((name, None)),
                None if find(with_float, name).is_some() => {
                    self.kind(path, node, "followed by how the numbers are stored, as in `name(bf16)`")
                }
                None => self.unknown_name(path, node, &known),
            },
            Value::Group(Group { name: Some(name), fields, values }) => match (find(with_float, name), &values[..]) {
                (Some(name), [value]) if fields.is_empty() => self.choice(path, value).map(|float| (name, Some(float))),
                (Some(_), _) => self.kind(path, node, "one element type in parentheses, as in `name(bf16)`"),
                (None, _) if find(bare, name).is_some() => self.kind(path, node, "a name without parentheses"),
                (None, _) => self.unknown_name(path, node, &known),
            },
            _ => self.unknown_name(path, node, &known),
        }
    }

    fn spec(&mut self, root: &Node) -> Spec {
        let group = match &root.value {
            Value::Group(group) if matches!(group.name.as_deref(), None | Some("Spec")) => group,
            _ => {
                self.kind::<()>("the file", root, "a group of fields `(..)`");
                return placeholder();
            }
        };
        let fields = self.fields("", "a spec", SPEC, root.at, group);
        let default = placeholder();
        Spec {
            name: self.required(&fields, "name", default.name, Self::text),
            vocab: self.required(&fields, "vocab", default.vocab, Self::count),
            hidden: self.required(&fields, "hidden", default.hidden, Self::count),
            layers: self.required(&fields, "layers", default.layers, Self::count),
            context: self.required(&fields, "context", default.context, Self::count),
            rope_theta: self.required(&fields, "rope_theta", default.rope_theta, Self::real),
            embedding: self.required(&fields, "embedding", default.embedding, Self::choice),
            norm: self.required(&fields, "norm", default.norm, Self::norm),
            linear: self.required(&fields, "linear", default.linear, Self::linear),
            blocks: self.required(&fields, "blocks", default.blocks, Self::blocks),
            final_norm: self.required(&fields, "final_norm", default.final_norm, Self::flag),
            head: self.required(&fields, "head", default.head, Self::head),
            kv: self.optional(&fields, "kv", default.kv, Self::choice),
            tokenizer: self.required(&fields, "tokenizer", default.tokenizer, Self::choice),
        }
    }

    fn norm(&mut self, path: &str, node: &Node) -> Option<Norm> {
        let Value::Group(group) = &node.value else { return self.unknown_name(path, node, &["rms(..)", "layer(..)"]) };
        let of = match group.name.as_deref() {
            Some("rms") => "an RMS norm",
            Some("layer") => "a layer norm",
            _ => return self.unknown_name(path, node, &["rms(..)", "layer(..)"]),
        };
        let fields = self.fields(path, of, NORM, node.at, group);
        let eps = self.required(&fields, "eps", 1e-5, Self::real);
        let dtype = self.required(&fields, "dtype", Float::F32, Self::choice);
        Some(if group.name.as_deref() == Some("rms") { Norm::Rms { eps, dtype } } else { Norm::Layer { eps, dtype } })
    }

    fn linear(&mut self, path: &str, node: &Node) -> Option<Linear> {
        let Value::Group(group @ Group { name: None, .. }) = &node.value else {
            return self.kind(path, node, "a group of fields `(..)`");
        };
        let fields = self.fields(path, "`linear`", LINEAR, node.at, group);
        let default = placeholder().linear;
        Some(Linear {
            weights: self.required(&fields, "weights", default.weights, Self::weights),
            scale: self.required(&fields, "scale", default.scale, Self::scale),
            activations: self.required(&fields, "activations", Activations::F32, Self::choice),
            scaled_biases: self.optional(&fields, "scaled_biases", false, Self::flag),
        })
    }

    fn weights(&mut self, path: &str, node: &Node) -> Option<Weights> {
        Some(match self.named_float(path, node, &["absmean", "threshold_row"], &["packed"])? {
            ("absmean", Some(float)) => Weights::Absmean(float),
            (_, Some(float)) => Weights::ThresholdRow(float),
            (_, None) => Weights::Packed,
        })
    }

    fn scale(&mut self, path: &str, node: &Node) -> Option<Scale> {
        Some(match self.named_float(path, node, &["multiplies", "divides", "row"], &["derived"])? {
            ("multiplies", Some(float)) => Scale::Multiplies(float),
            ("divides", Some(float)) => Scale::Divides(float),
            (_, Some(float)) => Scale::Row(float),
            (_, None) => Scale::Derived,
        })
    }

    fn head(&mut self, path: &str, node: &Node) -> Option<Head> {
        Some(match self.named_float(path, node, &["untied"], &["tied", "ternary"])? {
            (_, Some(float)) => Head::Untied(float),
            ("tied", None) => Head::Tied,
            (_, None) => Head::Ternary,
        })
    }

    fn blocks(&mut self, path: &str, node: &Node) -> Option<Vec<Block>> {
        let Value::List(nodes) = &node.value else { return self.kind(path, node, "a list of blocks `[..]`") };
        let mut blocks = Vec::with_capacity(nodes.len());
        for (position, node) in nodes.iter().enumerate() {
            let path = format!("{path}[{position}]");
            self.places.insert(path.clone(), node.at);
            match self.block(&path, node) {
                Some(block) => blocks.push(block),
                None => {
                    // Keeps the positions of the others, so that their paths stay right.
                    self.faulty.insert(path);
                    blocks.push(Block::FeedForward(placeholder_feed_forward()));
                }
            }
        }
        Some(blocks)
    }

    fn block(&mut self, path: &str, node: &Node) -> Option<Block> {
        let known = &["attention(..)", "feed_forward(..)"];
        let Value::Group(group) = &node.value else { return self.unknown_name(path, node, known) };
        match group.name.as_deref() {
            Some("attention") => {
                let fields = self.fields(path, "attention", ATTENTION, node.at, group);
                Some(Block::Attention(Attention {
                    heads: self.required(&fields, "heads", 1, Self::count),
                    kv_heads: self.required(&fields, "kv_heads", 1, Self::count),
                    head_dim: self
                        .optional(&fields, "head_dim", None, |this, path, node| this.maybe(path, node, Self::count)),
                    qk_norm: self.optional(&fields, "qk_norm", false, Self::flag),
                    window: self
                        .optional(&fields, "window", None, |this, path, node| this.maybe(path, node, Self::count)),
                    sinks: self.optional(&fields, "sinks", 0, Self::count),
                    biases: self.biases(&fields),
                    norms: self.optional(&fields, "norms", Vec::new(), Self::norms),
                }))
            }
            Some("feed_forward") => {
                let fields = self.fields(path, "feed_forward", FEED_FORWARD, node.at, group);
                let default = placeholder_feed_forward();
                Some(Block::FeedForward(FeedForward {
                    width: self.required(&fields, "width", default.width, Self::count),
                    activation: self.required(&fields, "activation", default.activation, Self::choice),
                    gated: self.required(&fields, "gated", default.gated, Self::flag),
                    biases: self.biases(&fields),
                    norms: self.optional(&fields, "norms", Vec::new(), Self::norms),
                }))
            }
            _ => self.unknown_name(path, node, known),
        }
    }

    fn biases(&mut self, fields: &Fields<'_>) -> Option<Float> {
        self.optional(fields, "biases", None, |this, path, node| this.maybe(path, node, Self::choice))
    }

    fn norms(&mut self, path: &str, node: &Node) -> Option<Vec<Place>> {
        let Value::List(nodes) = &node.value else { return self.kind(path, node, "a list of places `[..]`") };
        let mut places = Vec::with_capacity(nodes.len());
        for (position, node) in nodes.iter().enumerate() {
            let path = format!("{path}[{position}]");
            self.places.insert(path.clone(), node.at);
            places.push(self.choice(&path, node));
        }
        places.into_iter().collect()
    }
}

/// A spec that breaks no rule, for the places of fields that could not be read.
fn placeholder() -> Spec {
    Spec {
        name: "placeholder".to_owned(),
        vocab: 264,
        hidden: 2,
        layers: 1,
        context: 1,
        rope_theta: 1.0,
        embedding: Float::F32,
        norm: Norm::Rms { eps: 1e-5, dtype: Float::F32 },
        linear: Linear {
            weights: Weights::Packed,
            scale: Scale::Row(Float::F32),
            activations: Activations::F32,
            scaled_biases: false,
        },
        blocks: vec![Block::FeedForward(placeholder_feed_forward())],
        final_norm: true,
        head: Head::Tied,
        kv: KvFormat::F32,
        tokenizer: TokenizerKind::Bytes,
    }
}

fn placeholder_feed_forward() -> FeedForward {
    FeedForward { width: 1, activation: Activation::Relu2, gated: true, biases: None, norms: Vec::new() }
}
