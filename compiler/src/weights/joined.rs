//! Weights out of several sources, such as a checkpoint and adapters beside it.

use super::{SourceTensor, WeightError, WeightSource};

/// Sources that know different parameters.
pub struct JoinedWeights(pub Vec<Box<dyn WeightSource>>);

impl WeightSource for JoinedWeights {
    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError> {
        first_that_knows(key, self.0.iter().map(|source| source.tensor(key)))
    }

    fn check(&self, key: &str) -> Result<(), WeightError> {
        first_that_knows(key, self.0.iter().map(|source| source.check(key)))
    }
}

fn first_that_knows<T>(key: &str, mut answers: impl Iterator<Item = Result<T, WeightError>>) -> Result<T, WeightError> {
    let known = answers.find(|answer| !matches!(answer, Err(WeightError::Unbound { .. })));
    known.unwrap_or_else(|| Err(WeightError::Unbound { key: key.to_owned() }))
}
