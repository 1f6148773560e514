//! Sizes as people write them: `10GiB`, `10GB`, `10G`, `4096`.
//!
//! `hafsctl` reads `--size` with [`parse`] and prints with [`display`]; the API itself speaks bytes only. Binary units
//! are powers of 1024, decimal units powers of 1000, and a bare letter is the binary unit, as in lvcreate(8) and
//! fallocate(1). The crates for this (bytesize, parse-size) read `10G` as decimal, or `10GB` as binary.

/// Units by name, in bytes. Names are compared without regard to case.
const UNITS: [(&str, u64); 19] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
    ("e", 1 << 60),
    ("eib", 1 << 60),
];

/// Most digits after the point; more would be read past what a `u64` of bytes can say.
const FRACTION_DIGITS_MAX: usize = 9;

/// Why a size was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or a unit that is none of ours.
    #[error("`{0}` is not a size: write a number and a unit, such as 10GiB, 10GB or 512MiB")]
    Malformed(String),
    /// More than 2^64-1 bytes.
    #[error("`{0}` is more than 16 EiB")]
    TooBig(String),
}

/// Bytes that `text` stands for. A fraction is cut to whole bytes: `1.5KiB` is 1536.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let trimmed = text.trim();
    let number_len = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(number_len);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(malformed)?;

    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(malformed()),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') || fraction.len() > FRACTION_DIGITS_MAX {
        return Err(malformed());
    }
    let too_big = || SizeError::TooBig(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| too_big())?;
    let bytes = whole.checked_mul(*factor).ok_or_else(too_big)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).expect("at most nine digits"));
    let part = fraction.parse::<u128>().map_err(|_| malformed())? * u128::from(*factor) / scale;
    let part = u64::try_from(part).expect("a fraction of a unit is below the unit");
    bytes.checked_add(part).ok_or_else(too_big)
}

/// A size for people: the largest binary unit of which there is at least one, with at most one digit after the point.
pub fn display(bytes: u64) -> String {
    const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < NAMES.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let factor = 1u128 << (10 * unit);
    let tenths = u128::from(bytes) * 10 / factor;
    if tenths.is_multiple_of(10) || unit == 0 {
        format!("{} {}", tenths / 10, NAMES[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, NAMES[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_binary_decimal_and_bare() {
        assert_eq!(parse("10GiB"), Ok(10 << 30));
        assert_eq!(parse("10GB"), Ok(10_000_000_000));
        assert_eq!(parse("10G"), Ok(10 << 30));
        assert_eq!(parse("10g"), Ok(10 << 30));
        assert_eq!(parse("512 MiB"), Ok(512 << 20));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("4096B"), Ok(4096));
        assert_eq!(parse("1.5KiB"), Ok(1536));
        assert_eq!(parse("0.5kB"), Ok(500));
        assert_eq!(parse("15EiB"), Ok(15 << 60));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            "10X",
            "-1G",
            "1.G",
            ".5G",
            "1.2.3G",
            "1e9",
            "0x10",
            "10 G B",
            "1.0000000001G",
        ] {
            assert!(
                matches!(parse(text), Err(SizeError::Malformed(_))),
                "{text:?}: {:?}",
                parse(text)
            );
        }
        for text in ["16EiB", "18446744073709551616", "99999999999999999999G"] {
            assert!(matches!(parse(text), Err(SizeError::TooBig(_))), "{text:?}");
        }
    }

    #[test]
    fn shown_in_the_largest_unit() {
        assert_eq!(display(0), "0 B");
        assert_eq!(display(1023), "1023 B");
        assert_eq!(display(1024), "1 KiB");
        assert_eq!(display(1536), "1.5 KiB");
        assert_eq!(display(10 << 30), "10 GiB");
        assert_eq!(display(u64::MAX), "15.9 EiB");
    }
}
