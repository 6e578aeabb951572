//! What can be recomputed from a credential without asking anybody: checksums that issuers put into their tokens, and structure that must decode.

use serde::Deserialize;

/// How a rule verifies what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The last six characters are the CRC-32 of what stands between the first `_` and them, in base 62 (GitHub, npm).
    Crc32Base62,
    /// What follows the last `_` is the CRC-32 of all before it, in hexadecimal (Grafana).
    Crc32Hex,
    /// The first part is base64 of a JSON object that names an algorithm other than `none`.
    Jwt,
    /// What stands between the armour decodes, and starts as a DER sequence or as OpenSSH's magic.
    Pem,
    /// Base64 of a user's name, a colon, and a password that is no example.
    Basic,
}

impl Check {
    /// Whether the secret is what it looks like.
    pub fn passes(self, secret: &str) -> bool {
        match self {
            Check::Crc32Base62 => crc32_base62(secret),
            Check::Crc32Hex => secret
                .rsplit_once('_')
                .is_some_and(|(body, sum)| u32::from_str_radix(sum, 16) == Ok(crc32(body.as_bytes()))),
            Check::Jwt => jwt(secret),
            Check::Pem => pem(secret),
            Check::Basic => basic(secret),
        }
    }
}

fn crc32_base62(secret: &str) -> bool {
    let Some((_, token)) = secret.split_once('_') else { return false };
    let Some((body, sum)) = token.len().checked_sub(6).and_then(|at| token.split_at_checked(at)) else { return false };
    base62(crc32(body.as_bytes())) == sum.as_bytes()
}

/// Six digits, the most significant first: 0-9, A-Z, a-z.
fn base62(mut number: u32) -> [u8; 6] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    digits
}

/// The CRC-32 of IEEE 802.3, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    });
    !sum
}

fn jwt(secret: &str) -> bool {
    let Some(header) = secret.split('.').next().and_then(base64) else { return false };
    let Ok(header) = serde_json::from_slice::<serde_json::Value>(&header) else { return false };
    header
        .get("alg")
        .and_then(serde_json::Value::as_str)
        .is_some_and(|algorithm| !algorithm.eq_ignore_ascii_case("none"))
}

fn pem(secret: &str) -> bool {
    // In sources the lines of a key end in `\n` as an escape, and are quoted and joined.
    let secret = secret.replace("\\n", "\n").replace("\\r", "");
    let Some((_, body)) = secret.split_once("-----BEGIN").and_then(|(_, rest)| rest.split_once("KEY-----")) else {
        return false;
    };
    let Some((body, _)) = body.split_once("-----END") else { return false };
    // Headers of the encrypted form stand before an empty line.
    let body = match body.split_once("DEK-Info:") {
        Some((_, rest)) => rest.split_once('\n').map_or("", |(_, body)| body),
        None => body,
    };
    let packed: String = body.chars().filter(|c| !c.is_whitespace() && !"\"'+,".contains(*c)).collect();
    let encrypted = secret.contains("DEK-Info:");
    // A `+` at a line's end joins strings in some languages and is a digit of base64 in all: only then is the text decoded with it.
    let with_plus: String = body.chars().filter(|c| !c.is_whitespace() && !"\"',".contains(*c)).collect();
    [packed, with_plus].iter().filter_map(|text| base64(text)).any(|bytes| {
        32 <= bytes.len() && (encrypted || bytes.starts_with(&[0x30]) || bytes.starts_with(b"openssh-key-v1"))
    })
}

fn basic(secret: &str) -> bool {
    let Some(decoded) = base64(secret).and_then(|bytes| String::from_utf8(bytes).ok()) else { return false };
    let Some((user, password)) = decoded.split_once(':') else { return false };
    let printable = decoded.bytes().all(|byte| byte.is_ascii_graphic());
    let example = ["password", "secret", "opensesame", "foo", "bar", "test", "pass", "xxx", "example"];
    !user.is_empty() && printable && 8 <= password.len() && !example.iter().any(|word| password.contains(word))
}

/// Decodes both alphabets of base64, padded or not; `None` if anything else is in it.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut n_bits) = (0_u32, 0);
    for byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(digit);
        n_bits += 6;
        if 8 <= n_bits {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn base64_takes_both_alphabets_and_refuses_others() {
        assert_eq!(base64("aGk_").as_deref(), Some(&b"hi?"[..]));
        assert_eq!(base64("aGk=").as_deref(), Some(&b"hi"[..]));
        assert_eq!(base64("a"), None);
        assert_eq!(base64("a b="), None);
    }
}
