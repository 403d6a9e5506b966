//! Where a training run stands, on disk: a node that dies in the middle of a round goes on from there.
//!
//! One file, of the job that ran last, in a folder that only the node's owner can read. It holds an adapter
//! that is still being trained on the device's own texts, so it never travels. Used by
//! [`super::language_trainer`]; steps of the other learners are over before a file is written.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::safetensors::{decode, encode, read_bytes};
use super::weights_error::WeightsError;
use crate::ids::Digest;
use crate::learn::{Tensor, TensorSet, Texts, TrainJob};

/// Where runs are kept, and how often.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    every: NonZeroU32,
    base: Digest,
}

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Midway {
    /// Of the steps so far, in nats.
    pub(super) losses: Vec<f32>,
    /// The adapter's flat buffer.
    pub(super) flat: Vec<f32>,
    /// The optimiser's running mean of the gradient.
    pub(super) mean: Vec<f32>,
    /// That of its square.
    pub(super) square: Vec<f32>,
}

impl Checkpoints {
    /// Keeps runs on the base of this digest in `folder`, after every so many steps.
    pub fn new(folder: PathBuf, every: NonZeroU32, base: Digest) -> Self {
        Self { folder, every, base }
    }

    /// Whether a run is to be kept after so many steps.
    pub(super) fn due(&self, steps: usize) -> bool {
        steps.is_multiple_of(self.every.get() as usize)
    }

    /// What makes a job this one and no other; `config` is what else the learner was told.
    ///
    /// Class targets aren't in it: a job that is to follow them is refused. Its lesson is told in `config`.
    pub(super) fn job(&self, job: &TrainJob, texts: &Texts, config: &str) -> Digest {
        let mut bytes = self.base.0.to_vec();
        bytes.extend((job.start.tensors().len() as u64).to_le_bytes());
        for tensor in job.start.tensors() {
            bytes.extend(format!("{} {:?};", tensor.name, tensor.shape).bytes());
            bytes.extend(tensor.data.iter().flat_map(|value| value.to_le_bytes()));
        }
        for number in [job.steps, job.batch_size] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [job.learning_rate, job.prox_mu] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(job.seed.to_le_bytes());
        // Whether a number is there is said, too, or one could stand for the other.
        for optional in [job.final_rate.map(f32::to_le_bytes), job.epochs.map(u32::to_le_bytes)] {
            bytes.push(optional.is_some().into());
            bytes.extend(optional.unwrap_or_default());
        }
        for list in [&texts.lengths, &texts.tokens] {
            bytes.extend((list.len() as u64).to_le_bytes());
            bytes.extend(list.iter().flat_map(|number| number.to_le_bytes()));
        }
        bytes.extend(config.bytes());
        Digest::of(&bytes)
    }

    /// The run of this job; nothing where there is none or its file is damaged.
    pub(super) fn read(&self, job: &Digest) -> Option<Midway> {
        let path = self.path(job);
        if !path.exists() {
            return None;
        }
        let read = read_bytes(&path, MAX_BYTES).and_then(|bytes| parse(&bytes));
        read.inspect_err(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "a checkpoint can't be used: the round's training begins anew");
        })
        .ok()
    }

    /// Keeps a run in the place of the one before. Training goes on where that fails, with a warning.
    pub(super) fn write(&self, job: &Digest, midway: Midway) {
        let path = self.path(job);
        let written = bytes_of(midway).and_then(|bytes| {
            self.replace(&path, &bytes)
                .map_err(|source| WeightsError::Io { path: path.display().to_string(), source })
        });
        if let Err(error) = written {
            tracing::warn!(%error, "a checkpoint can't be written: a crash would cost the round's steps");
        }
    }

    fn path(&self, job: &Digest) -> PathBuf {
        self.folder.join(format!("{job}.{EXTENSION}"))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let unfinished = self.folder.join("unfinished");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        for entry in fs::read_dir(&self.folder)? {
            let other = entry?.path();
            if other != path && other.extension().is_some_and(|found| found == EXTENSION) {
                fs::remove_file(other)?;
            }
        }
        Ok(())
    }
}

/// Digest of the rest, then safetensors.
fn bytes_of(midway: Midway) -> Result<Vec<u8>, WeightsError> {
    let Midway { losses, flat, mean, square } = midway;
    let named = [("flat", flat), ("losses", losses), ("mean", mean), ("square", square)];
    let tensor = |(name, data): (&str, Vec<f32>)| Tensor {
        name: name.into(),
        shape: vec![data.len()],
        data,
    };
    let body = encode(&TensorSet::new(named.map(tensor).into())?)?;
    let mut bytes = Digest::of(&body).0.to_vec();
    bytes.extend(body);
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Midway, WeightsError> {
    let damaged = |what: &str| WeightsError::Malformed(what.to_owned());
    let (digest, body) = bytes.split_first_chunk().ok_or_else(|| damaged("it is cut short"))?;
    if Digest::of(body).0 != *digest {
        return Err(damaged("its bytes have another digest"));
    }
    let set = decode(body)?;
    let [flat, losses, mean, square] = set.tensors() else {
        return Err(damaged("it isn't a training run"));
    };
    let data = |tensor: &Tensor| tensor.data.clone();
    let (losses, flat) = (data(losses), data(flat));
    Ok(Midway { losses, flat, mean: data(mean), square: data(square) })
}

const EXTENSION: &str = "run";
/// Three buffers of the largest adapter that travels, with room to spare.
const MAX_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn midway(value: f32) -> Midway {
        let buffer = vec![value; 5];
        Midway {
            losses: vec![2.0, 1.5],
            flat: buffer.clone(),
            mean: buffer.clone(),
            square: buffer,
        }
    }

    fn at(folder: &Path) -> Checkpoints {
        Checkpoints::new(folder.join("training"), NonZeroU32::new(2).unwrap(), Digest([1; 32]))
    }

    #[test]
    fn the_last_run_is_kept_and_those_of_other_jobs_go() {
        let folder = tempfile::tempdir().unwrap();
        let kept = at(folder.path());
        let (one, two) = (Digest([1; 32]), Digest([2; 32]));
        assert_eq!(kept.read(&one), None);
        kept.write(&one, midway(0.5));
        kept.write(&one, midway(0.25));
        assert_eq!(kept.read(&one), Some(midway(0.25)));
        kept.write(&two, midway(4.0));
        assert_eq!((kept.read(&one), kept.read(&two)), (None, Some(midway(4.0))));
        assert_eq!(fs::read_dir(folder.path().join("training")).unwrap().count(), 1);
        assert!((1..6).filter(|steps| kept.due(*steps)).eq([2, 4]));
    }

    #[test]
    fn each_number_of_a_job_makes_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let kept = at(folder.path());
        let job = TrainJob::plain(TensorSet::default(), 4, 2, 0.5, 1);
        let bits = 0x3f00_0000;
        let falling = Some(f32::from_bits(bits));
        let jobs = [
            TrainJob { steps: 5, ..job.clone() },
            TrainJob { batch_size: 3, ..job.clone() },
            TrainJob { learning_rate: 0.25, ..job.clone() },
            TrainJob { prox_mu: 0.1, ..job.clone() },
            TrainJob { seed: 2, ..job.clone() },
            TrainJob { final_rate: falling, ..job.clone() },
            TrainJob { epochs: Some(bits), ..job.clone() },
            TrainJob { final_rate: falling, epochs: Some(bits), ..job.clone() },
            // Around the seed these two have the same sixteen bytes, if nothing says which is which.
            TrainJob { final_rate: falling, seed: 9 << 32 | 7, ..job.clone() },
            TrainJob { seed: 7 << 32 | u64::from(bits), epochs: Some(9), ..job.clone() },
            job,
        ];
        let texts = Texts { tokens: vec![1, 2], lengths: vec![2], chars: 2 };
        let ids: Vec<Digest> = jobs.iter().map(|job| kept.job(job, &texts, "config")).collect();
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[at + 1..].contains(id), "job {at}");
            assert_ne!(*id, kept.job(&jobs[at], &texts, "another"));
        }
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, job) = (at(folder.path()), Digest([1; 32]));
        kept.write(&job, midway(0.5));
        let path = kept.path(&job);
        let good = fs::read(&path).unwrap();
        for flipped in [0, 40, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[flipped] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(kept.read(&job), None, "byte {flipped}");
        }
        for len in [0, 31, 32, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            assert_eq!(kept.read(&job), None, "{len} bytes");
        }
        fs::write(&path, good).unwrap();
        assert_eq!(kept.read(&job), Some(midway(0.5)));
    }
}
