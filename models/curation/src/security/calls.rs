//! Python calls that are dangerous by what is called and with which arguments.

use tree_sitter::Node;

use super::{Call, Danger, Module, Rule};
use crate::judge::Severity;
use crate::python::{self, Literal};

/// A rule for calls.
#[derive(Debug)]
pub(super) struct CallRule {
    pub(super) rule: Rule,
    /// The paths that it looks at; all calls if there are none.
    paths: &'static [&'static str],
    condition: Condition,
}

#[derive(Debug, Clone, Copy)]
enum Condition {
    Always,
    /// The node at which the finding stands, if the call is one.
    If(for<'t> fn(&Call<'t, '_>, &Module<'_>) -> Option<Node<'t>>),
}

use Condition::{Always, If};
use Severity::{High, Low, Medium};

const fn rule(
    id: &'static str,
    bandit: &'static str,
    severity: Severity,
    message: &'static str,
    paths: &'static [&'static str],
    condition: Condition,
) -> CallRule {
    CallRule { rule: Rule { id, bandit, severity, message }, paths, condition }
}

const SUBPROCESS: &[&str] =
    &["subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.run"];

const SHELL: &[&str] = &[
    "os.system",
    "os.popen",
    "os.popen2",
    "os.popen3",
    "os.popen4",
    "popen2.popen2",
    "popen2.popen3",
    "popen2.popen4",
    "popen2.Popen3",
    "popen2.Popen4",
    "commands.getoutput",
    "commands.getstatusoutput",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
];

const NO_SHELL: &[&str] = &[
    "os.execl",
    "os.execle",
    "os.execlp",
    "os.execlpe",
    "os.execv",
    "os.execve",
    "os.execvp",
    "os.execvpe",
    "os.spawnl",
    "os.spawnle",
    "os.spawnlp",
    "os.spawnlpe",
    "os.spawnv",
    "os.spawnve",
    "os.spawnvp",
    "os.spawnvpe",
    "os.startfile",
];

const REQUESTS: &[&str] = &[
    "requests.get",
    "requests.options",
    "requests.head",
    "requests.post",
    "requests.put",
    "requests.patch",
    "requests.delete",
];

const HTTPX: &[&str] = &[
    "httpx.get",
    "httpx.options",
    "httpx.head",
    "httpx.post",
    "httpx.put",
    "httpx.patch",
    "httpx.delete",
    "httpx.request",
    "httpx.stream",
    "httpx.Client",
    "httpx.AsyncClient",
];

/// Every rule for calls. Severities are ours: what bandit gives by the harm that it can do, here is by whether the code is a fault to learn from.
#[rustfmt::skip]
pub(super) const RULES: &[CallRule] = &[
    rule("exec", "B102", High, "runs text as code", &["exec"], Always),
    rule("eval", "B307", High, "runs text as code; ast.literal_eval reads data", &["eval"], Always),
    rule("permissive-mode", "B103", Medium, "others may write or run the file", &[], If(permissive_mode)),
    rule("request-timeout", "B113", Low, "waits for ever if nobody answers", &[], If(request_timeout)),
    rule("debug-server", "B201", High, "whoever reaches the server runs code in its debugger", &[], If(debug_server)),
    rule("unpack-archive", "B202", Medium, "members of the archive may lie outside the folder; filter=\"data\" refuses them", &[], If(unpack_archive)),
    rule("unpickle", "B301", Medium, "reading a pickle runs what its writer chose", &[
        "pickle.loads", "pickle.load", "pickle.Unpickler", "dill.loads", "dill.load", "dill.Unpickler", "shelve.open", "shelve.DbfilenameShelf",
        "jsonpickle.decode", "jsonpickle.unpickler.decode", "jsonpickle.unpickler.Unpickler", "pandas.read_pickle",
    ], Always),
    rule("unmarshal", "B302", Medium, "marshal reads what must be trusted", &["marshal.load", "marshal.loads"], Always),
    rule("broken-hash", "B303", Medium, "the hash is broken", &[
        "Crypto.Hash.MD2.new", "Crypto.Hash.MD4.new", "Crypto.Hash.MD5.new", "Crypto.Hash.SHA.new", "Cryptodome.Hash.MD2.new", "Cryptodome.Hash.MD4.new",
        "Cryptodome.Hash.MD5.new", "Cryptodome.Hash.SHA.new", "cryptography.hazmat.primitives.hashes.MD5", "cryptography.hazmat.primitives.hashes.SHA1",
    ], Always),
    rule("broken-hash-function", "B324", Medium, "the hash is broken; usedforsecurity=False says that it does not matter", &[], If(broken_hash)),
    rule("broken-cipher", "B304", High, "the cipher is broken or too small", &[
        "Crypto.Cipher.ARC2.new", "Crypto.Cipher.ARC4.new", "Crypto.Cipher.Blowfish.new", "Crypto.Cipher.DES.new", "Crypto.Cipher.XOR.new",
        "Cryptodome.Cipher.ARC2.new", "Cryptodome.Cipher.ARC4.new", "Cryptodome.Cipher.Blowfish.new", "Cryptodome.Cipher.DES.new",
        "Cryptodome.Cipher.XOR.new", "cryptography.hazmat.primitives.ciphers.algorithms.ARC4",
        "cryptography.hazmat.primitives.ciphers.algorithms.Blowfish", "cryptography.hazmat.primitives.ciphers.algorithms.CAST5",
        "cryptography.hazmat.primitives.ciphers.algorithms.IDEA", "cryptography.hazmat.primitives.ciphers.algorithms.SEED",
        "cryptography.hazmat.primitives.ciphers.algorithms.TripleDES",
    ], Always),
    rule("cipher-mode", "B305", High, "equal blocks have equal ciphers", &["cryptography.hazmat.primitives.ciphers.modes.ECB"], Always),
    rule("temporary-name", "B306", High, "another process can take the name before the file is made; tempfile.mkstemp makes it", &["tempfile.mktemp"], Always),
    rule("mark-safe", "B308", Low, "text goes into the page as markup", &["django.utils.safestring.mark_safe"], Always),
    rule("any-scheme", "B310", Low, "opens files too, if the address says so", &[
        "urllib.request.urlopen", "urllib.request.urlretrieve", "urllib.request.URLopener", "urllib.request.FancyURLopener",
        "six.moves.urllib.request.urlopen", "six.moves.urllib.request.urlretrieve", "six.moves.urllib.request.URLopener",
        "six.moves.urllib.request.FancyURLopener",
    ], Always),
    rule("guessable-random", "B311", Low, "can be guessed: no source of keys; the module secrets is one", &[
        "random.Random", "random.random", "random.randrange", "random.randint", "random.choice", "random.choices", "random.uniform",
        "random.triangular", "random.randbytes", "random.sample", "random.getrandbits",
    ], Always),
    rule("telnet", "B312", Medium, "sends passwords as they are", &["telnetlib.Telnet"], Always),
    rule("xml-celementtree", "B313", Low, "expands entities without end; defusedxml does not", &[
        "xml.etree.cElementTree.parse", "xml.etree.cElementTree.iterparse", "xml.etree.cElementTree.fromstring", "xml.etree.cElementTree.XMLParser",
    ], Always),
    rule("xml-elementtree", "B314", Low, "expands entities without end; defusedxml does not", &[
        "xml.etree.ElementTree.parse", "xml.etree.ElementTree.iterparse", "xml.etree.ElementTree.fromstring", "xml.etree.ElementTree.XMLParser",
    ], Always),
    rule("xml-expatreader", "B315", Low, "expands entities without end; defusedxml does not", &["xml.sax.expatreader.create_parser"], Always),
    rule("xml-expatbuilder", "B316", Low, "expands entities without end; defusedxml does not", &["xml.dom.expatbuilder.parse", "xml.dom.expatbuilder.parseString"], Always),
    rule("xml-sax", "B317", Low, "expands entities without end; defusedxml does not", &["xml.sax.parse", "xml.sax.parseString", "xml.sax.make_parser"], Always),
    rule("xml-minidom", "B318", Low, "expands entities without end; defusedxml does not", &["xml.dom.minidom.parse", "xml.dom.minidom.parseString"], Always),
    rule("xml-pulldom", "B319", Low, "expands entities without end; defusedxml does not", &["xml.dom.pulldom.parse", "xml.dom.pulldom.parseString"], Always),
    rule("ftp", "B321", Medium, "sends passwords as they are", &["ftplib.FTP"], Always),
    rule("unverified-context", "B323", High, "takes any certificate", &["ssl._create_unverified_context"], Always),
    rule("unverified-request", "B501", High, "takes any certificate", &[], If(unverified_request)),
    rule("broken-tls", "B502", High, "the version of TLS is broken", &[], If(broken_tls)),
    rule("default-tls", "B504", Medium, "takes broken versions of TLS too", &["ssl.wrap_socket"], If(default_tls)),
    rule("small-key", "B505", High, "the key can be broken", &[], If(small_key)),
    rule("yaml-load", "B506", High, "makes any object that the text names; yaml.safe_load makes data", &["yaml.load"], If(yaml_load)),
    rule("unverified-host", "B507", High, "takes any host's key", &[], If(unverified_host)),
    rule("old-snmp", "B508", Medium, "sends the community as it is", &["pysnmp.hlapi.CommunityData"], If(old_snmp)),
    rule("open-snmp", "B509", Medium, "is not encrypted", &["pysnmp.hlapi.UsmUserData"], If(open_snmp)),
    rule("remote-command", "B601", Low, "gives the command to the host's shell", &[], If(remote_command)),
    rule("subprocess-shell", "B602", High, "gives the command to a shell", SUBPROCESS, If(subprocess_shell)),
    rule("subprocess", "B603", Low, "runs a program: are its arguments from outside?", SUBPROCESS, If(subprocess)),
    rule("other-shell", "B604", Medium, "gives the command to a shell", &[], If(other_shell)),
    rule("shell", "B605", High, "gives the command to a shell; subprocess.run takes its parts", SHELL, If(with_arguments)),
    rule("replace-process", "B606", Low, "runs a program: are its arguments from outside?", NO_SHELL, Always),
    rule("partial-path", "B607", Low, "runs what the search path has first", &[], If(partial_path)),
    rule("wildcard", "B609", High, "a file can be named like an option", &[], If(wildcard)),
    rule("django-extra", "B610", Medium, "puts text into SQL", &[], If(django_extra)),
    rule("raw-sql", "B611", Medium, "puts text into SQL", &[], If(raw_sql)),
    rule("listen-for-logging", "B612", Medium, "runs the configuration that anybody sends", &["logging.config.listen"], If(unverified_listen)),
    rule("torch-load", "B614", Medium, "runs what the file's writer chose; weights_only=True reads weights", &["torch.load", "torch.serialization.load"], If(torch_load)),
    rule("unpinned-download", "B615", Low, "takes what the repository has today; a revision pins it", &[], If(unpinned_download)),
    rule("unescaped-template", "B701", High, "puts text into the page as markup; autoescape=True escapes it", &[], If(unescaped_template)),
    rule("mako-template", "B702", Low, "puts text into the page as markup", &[], If(mako_template)),
    rule("markup", "B704", Low, "puts text into the page as markup", &["markupsafe.Markup", "flask.Markup"], If(markup)),
];

/// Finds the calls of a tree.
pub(super) fn find(nodes: &[Node<'_>], module: &Module<'_>, found: &mut Vec<Danger>) {
    for call in nodes.iter().filter_map(|node| Call::of(*node, module)) {
        for rule in RULES {
            if !rule.paths.is_empty() && !rule.paths.contains(&call.path.as_str()) {
                continue;
            }
            let at = match rule.condition {
                Always => Some(call.node),
                If(condition) => condition(&call, module),
            };
            found.extend(at.map(|at| Danger::at(&rule.rule, at)));
        }
    }
}

fn is_true(node: Node<'_>) -> bool {
    node.kind() == "true"
}

/// A constant of falsehood.
fn is_false(value: Node<'_>, source: &str) -> bool {
    match value.kind() {
        "false" | "none" => true,
        "integer" | "float" => python::text(value, source).parse() == Ok(0.0),
        "list" | "dictionary" | "tuple" => value.named_child_count() == 0,
        "string" => Literal::plain(value, source).is_some_and(|text| text.is_empty()),
        _ => false,
    }
}

/// The last part of a name or a path.
fn last<'s>(node: Node<'_>, source: &'s str) -> &'s str {
    match node.kind() {
        "identifier" => python::text(node, source),
        "attribute" => node.child_by_field_name("attribute").map_or("", |name| python::text(name, source)),
        _ => "",
    }
}

/// What a path, or the text of a literal, names: bandit takes `method="SSLv3"` and `method=ssl.SSLv3` alike.
fn named(node: Node<'_>, source: &str) -> String {
    Literal::plain(node, source).unwrap_or_else(|| last(node, source).to_owned())
}

/// The value of an integer as Python writes it.
pub(super) fn integer(node: Node<'_>, source: &str) -> Option<u64> {
    if node.kind() != "integer" {
        return None;
    }
    let text = python::text(node, source).replace('_', "").to_ascii_lowercase();
    let digits = |prefix, radix| text.strip_prefix(prefix).map(|digits| u64::from_str_radix(digits, radix).ok());
    // Old octal numbers start with a zero alone.
    let old =
        || text.strip_prefix('0').filter(|rest| !rest.is_empty()).map(|digits| u64::from_str_radix(digits, 8).ok());
    digits("0x", 16)
        .or_else(|| digits("0o", 8))
        .or_else(|| digits("0b", 2))
        .or_else(old)
        .unwrap_or_else(|| text.parse().ok())
}

fn permissive_mode<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    // Write for the group, run for the group, write or run for all.
    const DANGEROUS: u64 = 0o20 | 0o10 | 0o2 | 0o1;
    let is_mode = call.name.contains("chmod") && call.positional.len() == 2;
    let mode = if is_mode { integer(call.positional[1], module.source)? } else { return None };
    (mode & DANGEROUS != 0).then_some(call.node)
}

fn request_timeout<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    let timeout = call.keyword("timeout");
    let is_none = timeout.is_some_and(|value| value.kind() == "none");
    let is_request = REQUESTS.contains(&call.path.as_str());
    (is_request && (timeout.is_none() || is_none) || HTTPX.contains(&call.path.as_str()) && is_none)
        .then_some(call.node)
}

fn debug_server<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let is_server = call.name == "run" && call.path.ends_with(".run") && module.imports("flask");
    call.keyword("debug").filter(|value| is_server && is_true(*value))
}

fn unpack_archive<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let is_archive = call.name.contains("extractall") && module.imports("tarfile");
    let filter = call.keyword("filter").and_then(|filter| Literal::plain(filter, module.source));
    (is_archive && filter.as_deref() != Some("data")).then_some(call.node)
}

fn broken_hash<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    const WEAK: &[&str] = &["md4", "md5", "sha", "sha1"];
    const WEAK_CRYPT: &[&str] = &["METHOD_CRYPT", "METHOD_MD5", "METHOD_BLOWFISH"];
    let mut parts = call.path.split('.');
    if parts.clone().any(|part| part == "hashlib") {
        let is_weak = match call.name {
            "new" => {
                let name = call.argument("name", 0).and_then(|name| Literal::plain(name, module.source));
                name.is_some_and(|name| WEAK.contains(&name.to_ascii_lowercase().as_str()))
            }
            name => WEAK.contains(&name),
        };
        let matters = call.keyword("usedforsecurity").is_none_or(is_true);
        return (is_weak && matters).then_some(call.node);
    }
    let method = match call.name {
        "crypt" => call.argument("salt", 1),
        "mksalt" => call.argument("method", 0),
        _ => None,
    };
    let is_weak = parts.any(|part| part == "crypt")
        && method.is_some_and(|method| WEAK_CRYPT.contains(&last(method, module.source)));
    is_weak.then_some(call.node)
}

fn unverified_request<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    let path = call.path.as_str();
    let verify = call.keyword("verify").filter(|value| value.kind() == "false");
    verify.filter(|_| REQUESTS.contains(&path) || HTTPX.contains(&path))
}

/// Versions of TLS that are broken, by the names of ssl and of pyOpenSSL.
pub(super) const BROKEN_TLS: &[&str] = &[
    "PROTOCOL_SSLv2",
    "SSLv2_METHOD",
    "SSLv23_METHOD",
    "PROTOCOL_SSLv3",
    "PROTOCOL_TLSv1",
    "SSLv3_METHOD",
    "TLSv1_METHOD",
    "PROTOCOL_TLSv1_1",
    "TLSv1_1_METHOD",
];

fn broken_tls<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let names: &[&str] = match call.path.as_str() {
        "ssl.wrap_socket" => &["ssl_version"],
        "pyOpenSSL.SSL.Context" => &["method"],
        _ => &["method", "ssl_version"],
    };
    let mut values = names.iter().filter_map(|name| call.keyword(name));
    values.find(|value| BROKEN_TLS.contains(&named(*value, module.source).as_str()))
}

fn default_tls<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    call.keyword("ssl_version").is_none().then_some(call.node)
}

fn small_key<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    const SMALL_CURVES: &[&str] = &["SECP192R1", "SECT163K1", "SECT163R2"];
    let size = |name, at| {
        let argument = call.argument(name, at);
        argument.map_or(Some(2048), |size| integer(size, module.source))
    };
    let is_small = match call.path.as_str() {
        "cryptography.hazmat.primitives.asymmetric.dsa.generate_private_key" => size("key_size", 0)? < 2048,
        "cryptography.hazmat.primitives.asymmetric.rsa.generate_private_key" => size("key_size", 1)? < 2048,
        "Crypto.PublicKey.DSA.generate"
        | "Crypto.PublicKey.RSA.generate"
        | "Cryptodome.PublicKey.DSA.generate"
        | "Cryptodome.PublicKey.RSA.generate" => size("bits", 0)? < 2048,
        "cryptography.hazmat.primitives.asymmetric.ec.generate_private_key" => {
            let curve = call.argument("curve", 0)?;
            SMALL_CURVES.contains(&last(curve, module.source))
        }
        _ => false,
    };
    is_small.then_some(call.node)
}

fn yaml_load<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let is_safe = |loader| ["SafeLoader", "CSafeLoader"].contains(&last(loader, module.source));
    (!call.argument("Loader", 1).is_some_and(is_safe)).then_some(call.node)
}

fn unverified_host<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    if call.name != "set_missing_host_key_policy" || !module.imports("paramiko") {
        return None;
    }
    let policy = *call.positional.first()?;
    let policy = if policy.kind() == "call" { policy.child_by_field_name("function")? } else { policy };
    ["AutoAddPolicy", "WarningPolicy"].contains(&last(policy, module.source)).then_some(call.node)
}

fn old_snmp<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let model = call.keyword("mpModel").and_then(|model| integer(model, module.source));
    model.filter(|model| *model <= 1).map(|_| call.node)
}

fn open_snmp<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    (call.positional.len() < 3).then_some(call.node)
}

fn remote_command<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    (call.name == "exec_command" && module.imports("paramiko")).then_some(call.node)
}

/// The value of `shell`, unless it is a constant of falsehood.
fn shell<'t>(call: &Call<'t, '_>, source: &str) -> Option<Node<'t>> {
    call.keyword("shell").filter(|value| !is_false(*value, source))
}

fn subprocess_shell<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    shell(call, module.source).filter(|_| !call.positional.is_empty())
}

fn subprocess<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let is_shell = shell(call, module.source).is_some();
    (!is_shell).then(|| call.keyword("shell").unwrap_or(call.node))
}

fn other_shell<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    shell(call, module.source).filter(|_| !SUBPROCESS.contains(&call.path.as_str()))
}

fn with_arguments<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    (!call.positional.is_empty()).then_some(call.node)
}

fn starts_process(call: &Call<'_, '_>) -> bool {
    [SUBPROCESS, SHELL, NO_SHELL].iter().any(|paths| paths.contains(&call.path.as_str()))
}

fn partial_path<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let first = *call.positional.first().filter(|_| starts_process(call))?;
    let program = if first.kind() == "list" { python::bare(first.named_child(0)?) } else { first };
    let program = Literal::plain(program, module.source)?;
    let is_drive = program.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && program[1..].starts_with(':');
    (!program.starts_with(['\\', '/', '.']) && !is_drive).then_some(call.node)
}

fn wildcard<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    const PROGRAMS: &[&str] = &["chown", "chmod", "tar", "rsync"];
    let shell = call.keyword("shell").filter(|value| SUBPROCESS.contains(&call.path.as_str()) && is_true(*value));
    let first = *call.positional.first().filter(|_| shell.is_some() || SHELL.contains(&call.path.as_str()))?;
    let parts = if first.kind() == "list" { python::named_children(first) } else { vec![first] };
    let command: Vec<String> = parts.into_iter().filter_map(|part| Literal::plain(part, module.source)).collect();
    let command = command.join(" ");
    let is_one = command.contains('*') && PROGRAMS.iter().any(|program| command.contains(program));
    is_one.then(|| shell.unwrap_or(call.node))
}

fn django_extra<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    if call.name != "extra" {
        return None;
    }
    let is_text = |node: &Node<'_>| Literal::plain(*node, module.source).is_some();
    let are_texts = |node: Node<'_>| node.kind() == "list" && python::named_children(node).iter().all(is_text);
    let pairs_are_texts = |node: Node<'_>| {
        let pairs = python::named_children(node);
        let is_text = |pair: &Node<'_>| python::named_children(*pair).iter().all(is_text);
        node.kind() == "dictionary" && pairs.iter().all(is_text)
    };
    let is_safe = call.argument("where", 1).is_none_or(are_texts)
        && call.argument("tables", 3).is_none_or(are_texts)
        && call.argument("select", 0).is_none_or(pairs_are_texts);
    (!is_safe).then_some(call.node)
}

fn raw_sql<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    if call.name != "RawSQL" || !module.imports("django.db.models") {
        return None;
    }
    let sql = call.positional.first().copied().or_else(|| call.keyword("sql"))?;
    Literal::plain(sql, module.source).is_none().then_some(call.node)
}

fn unverified_listen<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    call.keyword("verify").is_none().then_some(call.node)
}

fn torch_load<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    (!call.keyword("weights_only").is_some_and(is_true)).then_some(call.node)
}

fn unpinned_download<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let from = match call.name {
        "from_pretrained" => "transformers",
        "load_dataset" => "datasets",
        "hf_hub_download" | "snapshot_download" => "huggingface_hub",
        _ => return None,
    };
    if !call.path.split('.').any(|part| part == from) {
        return None;
    }
    let is_pinned = ["revision", "commit_id"].into_iter().filter_map(|name| call.keyword(name)).any(|revision| {
        match Literal::plain(revision, module.source) {
            Some(text) => 7 <= text.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
            // What is computed may be a hash; what is none is none.
            None => revision.kind() != "none",
        }
    });
    let is_local = call.positional.first().and_then(|name| Literal::plain(*name, module.source));
    let is_local = is_local.is_some_and(|path| ["./", "/", "../"].iter().any(|start| path.starts_with(start)));
    (!is_pinned && !is_local).then_some(call.node)
}

fn unescaped_template<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    if call.name != "Environment" || !call.path.split('.').any(|part| part == "jinja2") {
        return None;
    }
    let escapes = |value: Node<'_>| {
        let callee = value.child_by_field_name("function");
        is_true(value) || callee.is_some_and(|callee| last(callee, module.source) == "select_autoescape")
    };
    (!call.keyword("autoescape").is_some_and(escapes)).then_some(call.node)
}

fn mako_template<'t>(call: &Call<'t, '_>, _: &Module<'_>) -> Option<Node<'t>> {
    (call.name == "Template" && call.path.split('.').any(|part| part == "mako")).then_some(call.node)
}

fn markup<'t>(call: &Call<'t, '_>, module: &Module<'_>) -> Option<Node<'t>> {
    let first = *call.positional.first()?;
    let is_constant = matches!(first.kind(), "integer" | "float" | "true" | "false" | "none")
        || Literal::of(first, module.source).is_some_and(|literal| !literal.is_formatted);
    (!is_constant).then_some(call.node)
}
