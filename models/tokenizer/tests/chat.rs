//! Chat templates as models have them give the text that transformers gives.

use serde_json::json;
use tritter_tokenizer::TokenizerError;
use tritter_tokenizer::chat::{ChatOptions, ChatTemplate, Message};

/// The template of Llama 3, which BitNet 2B4T's is like.
const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// In the manner of Mistral's: namespaces, methods of Python's strings, exceptions, blocks on lines of their own.
const STRICT: &str = "{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {% if message.content.startswith('/') %}
        {%- continue %}
    {% endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '[' ~ message.role.upper() ~ '] ' ~ message.content.strip() ~ eos_token }}
{%- endfor %}
{{ ns.turns }}{% if tools %} {{ tools | tojson }}{% endif %}";

fn messages(texts: &[(&str, &str)]) -> Vec<Message> {
    let message =
        |(role, content): &(&str, &str)| json!({"role": role, "content": content}).as_object().unwrap().clone();
    texts.iter().map(message).collect()
}

fn config(template: &serde_json::Value) -> String {
    json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}})
        .to_string()
}

#[test]
fn templates_write_messages() {
    let template = ChatTemplate::from_config(&config(&json!(LLAMA3))).unwrap().unwrap();
    let text = messages(&[("system", " Be brief. "), ("user", "{{ 1 }}\n")]);
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    assert_eq!(
        template.render(&text, &options).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{{ 1 }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let named = json!([{"name": "tool_use", "template": ""}, {"name": "default", "template": STRICT}]);
    let template = ChatTemplate::from_config(&config(&named)).unwrap().unwrap();
    let text = messages(&[("user", " a "), ("assistant", "b"), ("user", "/c")]);
    let options = ChatOptions { tools: vec![json!({"name": "f", "b": 1, "a": [true]})], ..ChatOptions::default() };
    assert_eq!(
        template.render(&text, &options).unwrap(),
        "[USER] a</s>[ASSISTANT] b</s>2 [{\"name\": \"f\", \"b\": 1, \"a\": [true]}]"
    );
}

#[test]
fn what_templates_raise_is_an_error() {
    let template = ChatTemplate::from_config(&config(&json!(STRICT))).unwrap().unwrap();
    let result = template.render(&messages(&[("assistant", "a")]), &ChatOptions::default());
    assert!(
        matches!(&result, Err(TokenizerError::Template(error)) if error.contains("roles must alternate")),
        "{result:?}"
    );
    assert!(ChatTemplate::from_config(&config(&json!("{% for %}"))).is_err());
    assert!(ChatTemplate::from_config("{").is_err());
    assert!(ChatTemplate::from_config("{}").unwrap().is_none());
}

/// A date comes from the caller and never from the clock.
#[test]
fn dates_are_given() {
    let template =
        ChatTemplate::new("{{ strftime_now('%d %b %Y') }}".to_owned(), String::new(), String::new()).unwrap();
    let options = ChatOptions { date: Some("26 Jul 2024".to_owned()), ..ChatOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "26 Jul 2024");
    assert!(template.render(&[], &ChatOptions::default()).is_err());
}
