//! Chat templates: how a model wants messages written as one text.
//!
//! They are Jinja, in the `chat_template` of a `tokenizer_config.json` or in a file of its own, and are rendered as Hugging Face's transformers do.
//! Nothing depends on the clock: a template that asks for the date is told the one that was given.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::TokenizerError;

/// How a model wants messages written.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    bos_token: String,
    eos_token: String,
}

/// Who says what. Further keys of a message are given to the template as they are.
pub type Message = serde_json::Map<String, serde_json::Value>;

/// What a template is asked for, beside the messages.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// Whether the text ends where the answer begins.
    pub add_generation_prompt: bool,
    /// The date for templates that ask for it, as it is to be written.
    pub date: Option<String>,
    /// Descriptions of tools that the model may call.
    pub tools: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(token: Option<Self>) -> String {
        match token {
            Some(Self::Text(text) | Self::Added { content: text }) => text,
            None => String::new(),
        }
    }
}

impl ChatTemplate {
    /// The template of a `tokenizer_config.json`; of several the one named `default`. `None` if it has none.
    ///
    /// # Errors
    ///
    /// If the file is none, or the template is not well formed.
    pub fn from_config(json: &str) -> Result<Option<Self>, TokenizerError> {
        let config: Config = serde_json::from_str(json).map_err(|error| TokenizerError::Json(error.to_string()))?;
        let source = match config.chat_template {
            None => None,
            Some(Templates::One(template)) => Some(template),
            Some(Templates::Named(named)) => {
                named.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        };
        let Some(source) = source else { return Ok(None) };
        Self::new(source, Token::text(config.bos_token), Token::text(config.eos_token)).map(Some)
    }

    /// A template by itself, with the texts of the tokens that start and end one.
    ///
    /// # Errors
    ///
    /// If it is not well formed.
    pub fn new(source: String, bos_token: String, eos_token: String) -> Result<Self, TokenizerError> {
        environment(None).template_from_str(&source).map_err(|error| wrong(&error))?;
        Ok(Self { source, bos_token, eos_token })
    }

    /// The text of some messages, for [`Tokenizer::encode_with_special`](crate::Tokenizer::encode_with_special).
    ///
    /// # Errors
    ///
    /// What the template raises, such as for roles that do not alternate, or why it cannot be rendered.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, TokenizerError> {
        let environment = environment(options.date.clone());
        let template = environment.template_from_str(&self.source).map_err(|error| wrong(&error))?;
        let tools = if options.tools.is_empty() { Value::from(()) } else { Value::from(Serde(&options.tools)) };
        let values = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
            tools => tools,
        };
        template.render(values).map_err(|error| wrong(&error))
    }
}

fn wrong(error: &Error) -> TokenizerError {
    TokenizerError::Template(error.to_string())
}

fn environment(date: Option<String>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the syntax is Jinja's"),
    );
    environment.add_filter("tojson", to_json);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |_format: String| -> Result<String, Error> {
        date.clone().ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, "the template asks for the date, and none was given")
        })
    });
    environment
}

/// JSON as Python writes it: with blanks, or indented, and without escapes for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let wrong = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut json, Spaced)).map_err(wrong)?,
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter)).map_err(wrong)?;
        }
    }
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// JSON on one line, with a blank after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
