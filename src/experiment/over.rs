//! A figure over several seeds.

use serde::{Deserialize, Serialize};

/// A figure over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Over {
    /// One a seed, in their order.
    pub each: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Half of Student's interval of 95 %; none with one seed.
    pub plus_minus: Option<f64>,
}

/// Mean and interval of one figure a seed.
#[expect(clippy::cast_precision_loss, reason = "a handful of seeds")]
pub fn over(each: Vec<f64>) -> Over {
    let n = each.len();
    let mean = each.iter().sum::<f64>() / n.max(1) as f64;
    let squares: f64 = each.iter().map(|x| (x - mean).powi(2)).sum();
    let t = n.checked_sub(2).and_then(|at| STUDENT.get(at));
    let plus_minus = t.map(|t| t * (squares / (n as f64 - 1.0)).sqrt() / (n as f64).sqrt());
    Over { each, mean, plus_minus }
}

/// What each seed differs by.
pub fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// 97.5 % points of Student's distribution for 1, 2, ... degrees of freedom.
const STUDENT: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        let three = over(vec![0.1, 0.2, 0.3]);
        assert!((three.mean - 0.2).abs() < 1e-12);
        // sd 0.1, so 4.303 x 0.1 / sqrt(3).
        assert!((three.plus_minus.unwrap() - 0.248_434).abs() < 1e-5);
        assert!(over(vec![0.5]).plus_minus.is_none());
        assert_eq!(less(&[1.0, 2.0], &[0.5, 3.0]), [0.5, -1.0]);
    }
}
