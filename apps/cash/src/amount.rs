//! Sums of money as exact values: no floating point, no silent rounding, no overflow.
//!
//! The ledger counts minor units ([`Amount`]); people write major units ([`Decimal`]). A
//! [`Currency`] knows how many decimals lie between the two.

use std::fmt;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Currencies whose minor unit is not a hundredth, with their number of decimals (ISO 4217).
const UNUSUAL_DIGITS: [(&str, u32); 25] = [
    ("BHD", 3),
    ("BIF", 0),
    ("CLF", 4),
    ("CLP", 0),
    ("DJF", 0),
    ("GNF", 0),
    ("IQD", 3),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KMF", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("LYD", 3),
    ("OMR", 3),
    ("PYG", 0),
    ("RWF", 0),
    ("TND", 3),
    ("UGX", 0),
    ("UYI", 0),
    ("UYW", 4),
    ("VND", 0),
    ("VUV", 0),
    ("XAF", 0),
    ("XOF", 0),
];

/// Decimals of every other currency.
const USUAL_DIGITS: u32 = 2;

/// The longest decimal that is read, in characters: more than an [`Amount`] can hold.
const MAX_DECIMAL_CHARS: usize = 40;

/// How many significant digits a JSON number may have: those that survive binary floating point.
const MAX_FLOAT_DIGITS: usize = 15;

/// A value that is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not three letters.
    #[error("{0:?} is not a currency: write its ISO 4217 code, three letters such as GBP")]
    Currency(String),
    /// Not a positive decimal number.
    #[error("{0:?} is not an amount: write a positive number such as 100.50, without a sign")]
    Decimal(String),
    /// A JSON number that binary floating point may have changed.
    #[error("{0} has more digits than a JSON number keeps: write the amount in quotes")]
    Inexact(String),
    /// More decimals than the currency has.
    #[error("{decimal} {currency}: {currency} has {digits} decimals")]
    TooFine {
        /// What was written.
        decimal: String,
        /// Its currency.
        currency: Currency,
        /// The decimals of that currency.
        digits: u32,
    },
    /// Larger than 64 bits of minor units.
    #[error("the amount in {0} is larger than the ledger can count")]
    Overflow(Currency),
    /// Two currencies in one sum.
    #[error("{left} and {right} cannot be added")]
    OtherCurrency {
        /// One currency.
        left: Currency,
        /// The other.
        right: Currency,
    },
}

/// A currency: three upper-case letters, as in ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// How many decimals the currency has; two, unless it is known to be otherwise.
    pub fn digits(self) -> u32 {
        UNUSUAL_DIGITS
            .iter()
            .find(|(code, _)| *code == self.as_str())
            .map_or(USUAL_DIGITS, |(_, digits)| *digits)
    }

    /// The code, such as `GBP`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency holds ASCII letters only")
    }

    fn from_bytes(bytes: [u8; 3]) -> Option<Self> {
        bytes
            .iter()
            .all(u8::is_ascii_uppercase)
            .then_some(Self(bytes))
    }
}

impl FromStr for Currency {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let bytes = text.as_bytes().try_into().ok();
        bytes
            .and_then(Self::from_bytes)
            .ok_or_else(|| AmountError::Currency(text.chars().take(MAX_DECIMAL_CHARS).collect()))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl BorshSerialize for Currency {
    fn serialize<W: Write>(&self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(&self.0)
    }
}

impl BorshDeserialize for Currency {
    fn deserialize_reader<R: Read>(reader: &mut R) -> std::io::Result<Self> {
        let bytes = <[u8; 3]>::deserialize_reader(reader)?;
        Self::from_bytes(bytes)
            .ok_or_else(|| IoError::new(ErrorKind::InvalidData, "not a currency code"))
    }
}

/// A number of minor units (pence, cents, yen) of one currency.
///
/// The type allows any number, because a contract must be able to see a bad one and refuse it.
/// Text and JSON are major units and the code: `100.50 GBP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Amount {
    /// How many minor units.
    pub quantity: i64,
    /// Of which currency.
    pub currency: Currency,
}

impl Amount {
    /// So many minor units of this currency.
    pub const fn new(quantity: i64, currency: Currency) -> Self {
        Self { quantity, currency }
    }

    /// The sum.
    ///
    /// # Errors
    /// If the currencies differ or the sum is too large.
    pub fn checked_add(self, other: Self) -> Result<Self, AmountError> {
        self.combine(other, i64::checked_add)
    }

    /// The difference.
    ///
    /// # Errors
    /// If the currencies differ or the difference is too large.
    pub fn checked_sub(self, other: Self) -> Result<Self, AmountError> {
        self.combine(other, i64::checked_sub)
    }

    fn combine(
        self,
        other: Self,
        operation: fn(i64, i64) -> Option<i64>,
    ) -> Result<Self, AmountError> {
        if self.currency != other.currency {
            return Err(AmountError::OtherCurrency {
                left: self.currency,
                right: other.currency,
            });
        }
        let quantity = operation(self.quantity, other.quantity);
        let quantity = quantity.ok_or(AmountError::Overflow(self.currency))?;
        Ok(Self::new(quantity, self.currency))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.currency.digits();
        let unit = 10_u64.pow(digits);
        let minor = self.quantity.unsigned_abs();
        let sign = if self.quantity < 0 { "-" } else { "" };
        write!(f, "{sign}{}", minor / unit)?;
        if digits > 0 {
            write!(f, ".{:0width$}", minor % unit, width = digits as usize)?;
        }
        write!(f, " {}", self.currency)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let (decimal, currency) = text
            .split_once(' ')
            .ok_or_else(|| AmountError::Decimal(text.chars().take(MAX_DECIMAL_CHARS).collect()))?;
        let (sign, decimal) = match decimal.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, decimal),
        };
        let quantity = minor_units(decimal, currency.parse()?)?;
        Ok(Self::new(sign * quantity, currency.parse()?))
    }
}

/// A positive sum in major units, as a person writes it: `100.50`, without its currency.
///
/// In JSON it is a number or a string; a number with more than 15 significant digits is refused,
/// because binary floating point may have changed it on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal(String);

impl Decimal {
    /// This many of the currency's minor units.
    ///
    /// # Errors
    /// If it has more decimals than the currency, or is too large.
    pub fn of(&self, currency: Currency) -> Result<Amount, AmountError> {
        Ok(Amount::new(minor_units(&self.0, currency)?, currency))
    }
}

impl FromStr for Decimal {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refused = || AmountError::Decimal(text.chars().take(MAX_DECIMAL_CHARS).collect());
        let positive = text.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
        if text.len() > MAX_DECIMAL_CHARS || !positive {
            return Err(refused());
        }
        split(text).ok_or_else(refused)?;
        Ok(Self(text.to_owned()))
    }
}

/// The decimal of a positive amount.
impl From<Amount> for Decimal {
    fn from(amount: Amount) -> Self {
        let text = amount.to_string();
        Self(text.split(' ').next().unwrap_or_default().to_owned())
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digits before and after the point; `None` unless both are digits only.
fn split(text: &str) -> Option<(&str, &str)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(fraction)).then_some((whole, fraction))
}

fn minor_units(decimal: &str, currency: Currency) -> Result<i64, AmountError> {
    let (whole, fraction) = split(decimal)
        .ok_or_else(|| AmountError::Decimal(decimal.chars().take(MAX_DECIMAL_CHARS).collect()))?;
    let fraction = fraction.trim_end_matches('0');
    let digits = currency.digits();
    if fraction.len() > digits as usize {
        return Err(AmountError::TooFine {
            decimal: decimal.to_owned(),
            currency,
            digits,
        });
    }
    // Digits only, so what cannot be parsed is too large.
    let minor = format!("{whole}{fraction:0<width$}", width = digits as usize);
    minor.parse().map_err(|_| AmountError::Overflow(currency))
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serde_as_text!(Amount, Currency, Decimal);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl serde::de::Visitor<'_> for NumberOrText {
            type Value = Decimal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive number such as 100.50")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Decimal, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Decimal, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Decimal, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Decimal, E> {
                // The shortest text that reads back as the same number: what the client wrote.
                let text = number.to_string();
                let digits = text.trim_matches(|c: char| c == '0' || c == '.').bytes();
                if digits.filter(u8::is_ascii_digit).count() > MAX_FLOAT_DIGITS {
                    return Err(E::custom(AmountError::Inexact(text)));
                }
                self.visit_str(&text)
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minor(json: &str, currency: &str) -> Result<i64, String> {
        let decimal: Decimal = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let currency = currency.parse().map_err(|e: AmountError| e.to_string())?;
        let amount = decimal.of(currency).map_err(|e| e.to_string())?;
        Ok(amount.quantity)
    }

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        let good = [
            ("100.50", "GBP", 10_050),
            ("100.5", "GBP", 10_050),
            ("\"100.50\"", "GBP", 10_050),
            ("\"0.01\"", "GBP", 1),
            ("100", "GBP", 10_000),
            ("1.10", "GBP", 110),
            ("8.20", "GBP", 820),
            ("100", "JPY", 100),
            ("100.0", "JPY", 100),
            ("1.234", "KWD", 1_234),
            ("7", "XYZ", 700),
            ("\"007\"", "GBP", 700),
            ("9007199254740993", "JPY", 9_007_199_254_740_993),
            ("\"92233720368547758.07\"", "GBP", i64::MAX),
        ];
        for (json, currency, expected) in good {
            assert_eq!(minor(json, currency), Ok(expected), "{json} {currency}");
        }
        let bad = [
            ("0", "GBP", "positive"),
            ("0.00", "GBP", "positive"),
            ("-1", "GBP", "without a sign"),
            ("-1.5", "GBP", "without a sign"),
            ("\"\"", "GBP", "positive"),
            ("\".5\"", "GBP", "positive"),
            ("\"5.\"", "GBP", "positive"),
            ("\"1e3\"", "GBP", "positive"),
            ("\"1,000\"", "GBP", "positive"),
            ("\"+1\"", "GBP", "positive"),
            ("\"١\"", "GBP", "positive"),
            ("true", "GBP", "positive number"),
            ("100.505", "GBP", "GBP has 2 decimals"),
            ("1.5", "JPY", "JPY has 0 decimals"),
            ("1234567890123.4567", "CLF", "in quotes"),
            ("\"92233720368547758.08\"", "GBP", "larger than"),
            ("1e300", "GBP", "positive"),
            ("1", "gbp", "three letters"),
            ("1", "GB", "three letters"),
            ("1", "POUNDS", "three letters"),
            ("1", "£££", "three letters"),
        ];
        for (json, currency, reason) in bad {
            let error = minor(json, currency).expect_err(json);
            assert!(error.contains(reason), "{json} {currency}: {error}");
        }
    }

    #[test]
    fn amounts_are_shown_with_the_decimals_of_their_currency() {
        for (quantity, currency, text) in [
            (10_050, "GBP", "100.50 GBP"),
            (5, "GBP", "0.05 GBP"),
            (-5, "GBP", "-0.05 GBP"),
            (1_500, "JPY", "1500 JPY"),
            (1_500, "KWD", "1.500 KWD"),
        ] {
            let amount = Amount::new(quantity, currency.parse().unwrap());
            assert_eq!(amount.to_string(), text);
            assert_eq!(text.parse(), Ok(amount));
        }
    }

    #[test]
    fn sums_neither_overflow_nor_mix_currencies() {
        let gbp = |quantity| Amount::new(quantity, "GBP".parse().unwrap());
        let usd = Amount::new(1, "USD".parse().unwrap());
        assert_eq!(gbp(1).checked_add(gbp(2)), Ok(gbp(3)));
        assert!(gbp(i64::MAX).checked_add(gbp(1)).is_err());
        assert!(gbp(i64::MIN).checked_sub(gbp(1)).is_err());
        assert!(gbp(1).checked_add(usd).is_err());
    }

    proptest! {
        #[test]
        fn text_reads_back(quantity in (i64::MIN + 1)..=i64::MAX, code in "GBP|JPY|KWD|CLF|XYZ") {
            let amount = Amount::new(quantity, code.parse().unwrap());
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }

        #[test]
        fn nonsense_does_not_panic(text in ".{0,60}") {
            let _ = text.parse::<Amount>();
            let _ = text.parse::<Decimal>();
            let _ = text.parse::<Currency>();
            let _ = serde_json::from_str::<Decimal>(&text);
        }
    }
}
