//! Texts to values: sizes, durations, percentages, `${NAME}`; and the guess at what a misspelled word was meant to be.

use std::time::Duration;

use strsim::osa_distance;
use url::Url;

use super::environment::Environment;
use super::model::{FileHost, MinFree};
use super::problem::Fault;
pub(super) use crate::secrets::HIDDEN;
use crate::secrets::hidden;

/// What is longer than this is a mistake, and would overflow dates when added to one.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

const DURATION_HINT: &str = "write a number of seconds, or a number with ms, s, m, h or d, such as 90s";
const SIZE_HINT: &str =
    "write a number of bytes, or a number with KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB";

/// `1500ms`, `30s`, `5m`, `1.5h`, `7d`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let (number, unit) = split(text, DURATION_HINT)?;
    let nanos: u128 = match unit {
        "ms" => 1_000_000,
        "" | "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        "d" => 86_400 * 1_000_000_000,
        _ => return Err(Fault::new(format!("{unit:?} is no unit of time")).hint(DURATION_HINT)),
    };
    let nanos = number.times(nanos).filter(|n| *n <= MAX_DURATION.as_nanos());
    // The bound leaves less than 2^64 nanoseconds.
    let nanos = nanos.and_then(|n| u64::try_from(n).ok());
    nanos
        .map(Duration::from_nanos)
        .ok_or_else(|| Fault::new("longer than 100 years"))
}

/// Bytes, or with a unit; `KB` is 1000, `KiB` is 1024.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    let (number, unit) = split(text, SIZE_HINT)?;
    let bytes: u128 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(Fault::new(format!("{unit:?} is no unit of size")).hint(SIZE_HINT)),
    };
    // File systems and SQL count in signed 64 bits.
    let bytes = number
        .times(bytes)
        .and_then(|n| i64::try_from(n).ok())
        .and_then(|n| u64::try_from(n).ok());
    bytes.ok_or_else(|| Fault::new("larger than 8 EiB"))
}

/// A size, or a percentage of the file system.
pub(super) fn min_free(text: &str) -> Result<MinFree, Fault> {
    let Some(percent) = text.strip_suffix('%') else {
        return size(text).map(MinFree::Bytes).map_err(|fault| Fault {
            hint: Some("write a percentage of the file system, such as 5%, or a size, such as 10GB".to_owned()),
            ..fault
        });
    };
    let hint = "write a percentage from 0% to 100%";
    // `parse` alone would accept "1e1" and "inf" too.
    let (_, rest) = split(percent, hint)?;
    match percent.trim().parse::<f64>() {
        Ok(percent) if rest.is_empty() && (0.0..=100.0).contains(&percent) => Ok(MinFree::Percent(percent)),
        _ => Err(Fault::new("not a percentage").hint(hint)),
    }
}

/// A decimal number, exactly.
struct Decimal {
    digits: u128,
    /// Of the digits, how many stand behind the point.
    places: u32,
}

impl Decimal {
    fn times(&self, unit: u128) -> Option<u128> {
        Some(self.digits.checked_mul(unit)? / 10u128.checked_pow(self.places)?)
    }
}

fn split<'t>(text: &'t str, hint: &str) -> Result<(Decimal, &'t str), Fault> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(Fault::new("must not be negative").hint(hint));
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(Fault::new("not a number").hint(hint));
    }
    // More digits than this are beyond any bound below.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let digits = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| Fault::new("the number is too large"))?;
    Ok((
        Decimal {
            digits,
            places: u32::try_from(fraction.len()).unwrap_or(9),
        },
        unit.trim_start(),
    ))
}

/// A text with `${NAME}` filled in.
pub(super) struct Interpolated {
    pub text: String,
    /// Whether anything was taken from the environment.
    pub changed: bool,
}

/// Replaces `${NAME}` by the variable's value and `$$` by a dollar. A lone `$` is itself.
pub(super) fn interpolate(text: &str, env: &Environment) -> Result<Interpolated, Fault> {
    let mut result = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let name = after
                .find('}')
                .map(|end| &after[..end])
                .filter(|name| is_variable_name(name));
            let Some(name) = name else {
                return Err(Fault::new("`${` is not followed by a variable's name and `}`")
                    .hint("write `${NAME}` for a variable, or `$${` for the characters themselves"));
            };
            match env.get(name)? {
                Some(value) => result.push_str(value),
                None => {
                    return Err(
                        Fault::new(format!("the environment variable {name} is not set (or empty)")).hint(format!(
                            "set {name}, or write `$${{{name}}}` for the characters themselves"
                        )),
                    );
                }
            }
            changed = true;
            rest = &after[name.len() + 1..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    Ok(Interpolated { text: result, changed })
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Of `known`, the word that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // Longer than any known word by more than the distance allows; also keeps the table small.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase().replace(['-', ' '], "_");
    let allowed = |known: &str| (known.len() / 3).max(1);
    let near = known
        .iter()
        .filter(|known| known.len().abs_diff(word.len()) <= allowed(known));
    let distances = near.map(|known| (osa_distance(&word, known), *known));
    let best = distances
        .filter(|(distance, known)| *distance <= allowed(known))
        .min_by_key(|(distance, _)| *distance);
    best.map(|(_, known)| known)
}

/// The value of the option that `text` names.
pub(super) fn choice<T: Copy>(text: &str, options: &[(&'static str, T)]) -> Result<T, Fault> {
    if let Some((_, value)) = options.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&'static str> = options.iter().map(|(name, _)| *name).collect();
    let fault = Fault::new(format!("must be one of {}", names.join(", ")));
    Err(match nearest(text, &names) {
        Some(near) => fault.hint(format!("did you mean {near}?")),
        None => fault,
    })
}

/// A text without what stands before the `@` of a URL.
pub(super) fn mask(text: &str) -> String {
    match text.rfind('@') {
        Some(end) => {
            let start = text[..end].find("://").map_or(0, |scheme| scheme + 3);
            format!("{}{HIDDEN}{}", &text[..start], &text[end..])
        }
        None => text.to_owned(),
    }
}

/// A text for a message: quoted, shortened, and masked.
pub(super) fn shown(text: &str) -> String {
    let mut text = hidden(&mask(text)).into_owned();
    if let Some((cut, _)) = text.char_indices().nth(80) {
        text.truncate(cut);
        text.push('…');
    }
    format!("{text:?}")
}

/// A URL as it is shown.
pub(super) fn shown_url(url: &Url) -> String {
    hidden(url.as_str()).into_owned()
}

/// A host as the file names it.
pub(super) fn shown_host(host: &FileHost) -> String {
    match host.port {
        Some(port) => format!("{}://{}:{port}", host.scheme, host.host),
        None => format!("{}://{}", host.scheme, host.host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let of = |text| duration(text).ok();
        assert_eq!(of("0"), Some(Duration::ZERO));
        assert_eq!(of("3600"), Some(Duration::from_secs(3600)));
        assert_eq!(of("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(of("5 s"), Some(Duration::from_secs(5)));
        assert_eq!(of("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(of("7d"), Some(Duration::from_secs(7 * 86_400)));
        for bad in [
            "",
            "-1",
            "h",
            "5x",
            "1..2",
            ".5",
            "5.",
            "1e3",
            "0x10",
            "99999999999d",
            "1 2",
            "１",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration(&"9".repeat(100)).is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(size("50GB"), Ok(50_000_000_000));
        assert_eq!(size("256 MiB"), Ok(256 << 20));
        assert_eq!(size("1.5KiB"), Ok(1536));
        assert_eq!(size("7"), Ok(7));
        for bad in ["10G", "9999999TB", "-1", "five", ""] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(min_free("5%"), Ok(MinFree::Percent(5.0)));
        assert_eq!(min_free("2.5 %"), Ok(MinFree::Percent(2.5)));
        assert_eq!(min_free("10GB"), Ok(MinFree::Bytes(10_000_000_000)));
        for bad in ["101%", "-1%", "%", "NaN%", "1e1%"] {
            assert!(min_free(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn interpolation() {
        let env: Environment = [("A", "x$Ay"), ("EMPTY", "")].into_iter().collect();
        let of = |text| interpolate(text, &env).map(|i| i.text);
        assert_eq!(of("1${A}2${A}").as_deref(), Ok("1x$Ay2x$Ay"));
        assert_eq!(of("$$ $ $A $${A} cost$").as_deref(), Ok("$ $ $A ${A} cost$"));
        assert!(of("${NONE}").is_err_and(|f| f.message.contains("NONE")));
        assert!(of("${EMPTY}").is_err());
        for bad in ["${", "${}", "${1}", "${a-b}", "${A"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_word() {
        let known = ["base_url", "immutable_patterns", "mutable_patterns", "proxy"];
        assert_eq!(nearest("base-url", &known), Some("base_url"));
        assert_eq!(nearest("mutable_pattern", &known), Some("mutable_patterns"));
        assert_eq!(nearest("porxy", &known), Some("proxy"));
        assert_eq!(nearest("completely_else", &known), None);
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(shown("http://u:p@h/x"), r#""http://***@h/x""#);
        assert_eq!(shown("u:p@ss@h"), r#""***@h""#);
        assert_eq!(shown("http://h/x?token=p"), r#""http://h/x?token=***""#);
    }
}
