//! Variants that a user asks for, before any tuning or rule.

use crate::{Error, Result};
use std::collections::BTreeMap;

/// Variants to force: "choice=candidate", separated by commas.
const VARIABLE: &str = "DEMIST_VARIANT";

/// Which candidate to take wherever a choice can take it: by choice, as in
/// "conv2d=tile4x8,attention=rows2x1".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forced(BTreeMap<String, String>);

impl Forced {
    /// Reads "choice=candidate" pairs, separated by commas. Whether there are such
    /// choices and candidates is known when a network is planned.
    ///
    /// # Errors
    /// [`Error::Config`] if an entry is no pair.
    pub fn parse(text: &str) -> Result<Forced> {
        let mut forced = Forced::default();
        for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            let (choice, candidate) = entry
                .split_once('=')
                .ok_or_else(|| Error::Config(format!("variant: `{entry}` is no choice=variant")))?;
            forced.set(choice.trim(), candidate.trim());
        }
        Ok(forced)
    }

    /// What the environment variable `DEMIST_VARIANT` asks for; nothing if it is not set.
    ///
    /// # Errors
    /// As [`Forced::parse`].
    pub fn from_env() -> Result<Forced> {
        match std::env::var(VARIABLE) {
            Ok(text) => Forced::parse(&text).map_err(|e| Error::Config(format!("{VARIABLE}: {e}"))),
            Err(_) => Ok(Forced::default()),
        }
    }

    /// Takes `candidate` wherever `choice` can.
    pub fn set(&mut self, choice: &str, candidate: &str) {
        self.0.insert(choice.into(), candidate.into());
    }

    /// What is forced for `choice`.
    pub fn get(&self, choice: &str) -> Option<&str> {
        self.0.get(choice).map(String::as_str)
    }

    /// All pairs of choice and candidate, in order of the choices' names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(choice, candidate)| (choice.as_str(), candidate.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::Forced;

    #[test]
    fn pairs_are_read_and_other_text_is_refused() {
        let forced = Forced::parse(" conv2d = tile4x8,,attention=rows2x1, ").unwrap();
        let pairs: Vec<_> = forced.iter().collect();
        assert_eq!(pairs, [("attention", "rows2x1"), ("conv2d", "tile4x8")]);
        assert_eq!((forced.get("conv2d"), forced.get("gemm")), (Some("tile4x8"), None));
        let error = Forced::parse("conv2d=tile4x8,attention").unwrap_err().to_string();
        assert!(error.contains("`attention`"), "{error}");
    }
}
