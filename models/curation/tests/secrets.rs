//! Every rule for credentials finds its own positive examples and none of its negative ones; placeholders, checksums and redaction.

use tritter_curation::Secrets;
use tritter_curation::secrets::{ALLOW, entropy, redact};

/// Fills in a template. `<class count>` without the space is that many random characters of a class, the same ones for the same seed:
/// `an` letters and digits, `u` base64url, `al` letters, `lo` lower-case letters and digits, `up` upper-case ones, `hex`, `dig`, `bt` base32, `bech` bech32,
/// `uuid36` a UUID, or the start of one, `pem` the base64 of a DER sequence in lines, `jwt100` a token with a header, `basic` a user and a password in base64;
/// `crc6` and `crchex8` are the checksums of the token before them.
fn fill(template: &str, seed: &str) -> String {
    let mut random = Random::new(seed);
    let mut text = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('<') {
        text.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let close = after.find('>').unwrap_or(0);
        let class = after[..close].trim_end_matches(|c: char| c.is_ascii_digit());
        match after[class.len()..close].parse::<usize>() {
            Ok(count) => {
                let part = random.part(class, count, &text);
                text.push_str(&part);
                rest = &after[close + 1..];
            }
            // Not a class: a placeholder of somebody's documentation.
            Err(_) => {
                text.push('<');
                rest = after;
            }
        }
    }
    text + rest
}

struct Random(blake3::OutputReader);

impl Random {
    fn new(seed: &str) -> Random {
        Random(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    fn of(&mut self, alphabet: &str, count: usize) -> String {
        let alphabet = alphabet.as_bytes();
        let mut bytes = vec![0_u8; count * 4];
        self.0.fill(&mut bytes);
        let pick = |word: &[u8]| u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize % alphabet.len();
        bytes.chunks_exact(4).map(|word| alphabet[pick(word)] as char).collect()
    }

    fn part(&mut self, class: &str, count: usize, before: &str) -> String {
        const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
        const DIGITS: &str = "0123456789";
        match class {
            "an" => self.of(&[UPPER, LOWER, DIGITS].concat(), count),
            // The ends are letters and digits, so that the token ends where it ends.
            "u" => {
                let ends = [UPPER, LOWER, DIGITS].concat();
                let middle = self.of(&[&ends, "-_"].concat(), count - 2);
                format!("{}{middle}{}", self.of(&ends, 1), self.of(&ends, 1))
            }
            "al" => self.of(&[UPPER, LOWER].concat(), count),
            "lo" => self.of(&[LOWER, DIGITS].concat(), count),
            "up" => self.of(&[UPPER, DIGITS].concat(), count),
            "hex" => self.of("0123456789abcdef", count),
            "dig" => self.of("123456789", count),
            "bt" => self.of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", count),
            "bech" => self.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", count),
            "uuid" => {
                let hex = self.of("0123456789abcdef", 32);
                let uuid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
                uuid[..count].to_owned()
            }
            "pem" => {
                let body = format!("MII{}", self.of(&[UPPER, LOWER, DIGITS].concat(), count - 3));
                let lines: Vec<&str> =
                    body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
                lines.join("\n")
            }
            "jwt" => {
                format!("eyJhbGciOiJIUzI1NiJ9.eyJ{}.{}", self.of(LOWER, 40), self.of(&[LOWER, DIGITS].concat(), 43))
            }
            // `admin:` and further characters, in base64: groups of digits that decode to three printable ones.
            "basic" => {
                let groups = (0..count / 4)
                    .map(|_| format!("{}{}{}", self.of("TUVWX", 2), self.of("VZdhlp", 1), self.of(LOWER, 1)));
                format!("YWRtaW46{}", groups.collect::<String>())
            }
            "crc" => {
                let token = before.rsplit(['"', '=', ' ']).next().unwrap_or_default();
                checksum62(token.split_once('_').map_or("", |(_, body)| body))
            }
            "crchex" => {
                let token = before.rsplit(['"', '=', ' ']).next().unwrap_or_default();
                format!("{:08x}", crc32(token.trim_end_matches('_')))
            }
            other => panic!("`<{other}{count}>` is no class"),
        }
    }
}

fn crc32(text: &str) -> u32 {
    let mut sum = u32::MAX;
    for byte in text.bytes() {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}

fn checksum62(body: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = crc32(body) as usize;
    let mut digits = Vec::new();
    for _ in 0..6 {
        digits.push(DIGITS[number % 62] as char);
        number /= 62;
    }
    digits.iter().rev().collect()
}

fn count_tokens(text: &str) -> usize {
    tiktoken_rs::cl100k_base_singleton().encode_ordinary(text).len()
}

fn found(secrets: &Secrets, text: &str) -> Vec<String> {
    secrets.find(text.as_bytes(), &count_tokens).iter().map(|secret| secret.rule.id.clone()).collect()
}

#[test]
fn every_rule_finds_its_positive_examples_and_no_negative_one() {
    let all = Secrets::built_in().expect("the built-in rules are well formed");
    let mut wrong = Vec::new();
    for rule in all.rules() {
        assert!(!rule.positive.is_empty() && !rule.negative.is_empty(), "{} has no examples", rule.id);
        let alone = Secrets::new(vec![rule.clone()], ALLOW).expect("a built-in rule is well formed");
        for (index, template) in rule.positive.iter().enumerate() {
            let text = fill(template, &format!("{} {index}", rule.id));
            if found(&alone, &text).is_empty() {
                wrong.push(format!("{}: does not find {template}", rule.id));
            }
            // In the company of all rules something still finds it; which one may differ, where formats are part of one another.
            if found(&all, &text).is_empty() {
                wrong.push(format!("{}: is lost among all rules: {template}", rule.id));
            }
        }
        for (index, template) in rule.negative.iter().enumerate() {
            let text = fill(template, &format!("{} {index}", rule.id));
            if !found(&alone, &text).is_empty() {
                wrong.push(format!("{}: finds {template}", rule.id));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(250 <= all.rules().count(), "{} rules", all.rules().count());
}

#[test]
fn a_published_github_token_passes_its_checksum_and_its_neighbour_does_not() {
    let all = Secrets::built_in().expect("the built-in rules are well formed");
    // From GitHub's description of the format, in two parts, so that scanners of sources leave it alone.
    let token = ["ghp_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat();
    assert_eq!(found(&all, &format!("token: {token}")), ["github-classic-token"]);
    assert!(found(&all, &format!("token: {}", token.replace("17", "18"))).is_empty());
}

#[test]
fn places_are_lines_and_columns_and_redaction_leaves_the_rest() {
    let all = Secrets::built_in().expect("the built-in rules are well formed");
    let token = fill("hf_<al34>", "redaction");
    let text = format!("import os\n\nkey = \"{token}\"  # mine\n");
    let secrets = all.find(text.as_bytes(), &count_tokens);
    assert_eq!(secrets.len(), 1);
    assert_eq!((secrets[0].line, secrets[0].column), (3, 8));
    assert_eq!(secrets[0].preview(text.as_bytes()), format!("{}***", &token[..4]));
    let redacted = String::from_utf8(redact(text.as_bytes(), &secrets)).unwrap();
    assert_eq!(redacted, "import os\n\nkey = \"[secret:huggingface-token]\"  # mine\n");
    assert!(found(&all, &redacted).is_empty());
}

#[test]
fn placeholders_are_no_secrets() {
    let all = Secrets::built_in().expect("the built-in rules are well formed");
    for text in [
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "password = \"changeme123456\"",
        "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "MASK0123456789abcdef0123456789abcdef",
        "api_key = \"${API_KEY_FROM_ENVIRONMENT}\"",
        "model.eval()",
    ] {
        assert!(found(&all, text).is_empty(), "{text}");
    }
}

#[test]
fn gitleaks_files_are_read_as_they_are() {
    let file = "title = \"x\"\n[[rules]]\nid = \"acme\"\ndescription = \"Acme\"\nregex = '''\\b(acme_[a-f0-9]{32})\\b'''\nentropy = 3\nkeywords = [\"acme_\"]\ntags = [\"a\"]\n[[rules.allowlists]]\nregexes = ['''x''']\n[[rules]]\nid = \"by-path\"\npath = '''\\.p12$'''\n";
    let rules = Secrets::read_rules("gitleaks.toml", file).expect("it reads");
    assert_eq!(rules.len(), 1);
    let secrets = Secrets::new(rules, ALLOW).expect("its rules are well formed");
    assert_eq!(found(&secrets, &fill("x = acme_<hex32>", "acme")), ["acme"]);
}

#[test]
fn entropy_is_shannons() {
    assert_eq!(entropy(b"aaaa"), 0.0);
    assert_eq!(entropy(b"abcd"), 2.0);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        static ALL: std::sync::LazyLock<Secrets> = std::sync::LazyLock::new(|| Secrets::built_in().expect("well formed"));
        let secrets = ALL.find(&bytes, &|_| 1);
        let _ = redact(&bytes, &secrets);
    }
}
