//! What the process uses of its machine: processor time, memory, disk. Linux only.

use std::path::{Path, PathBuf};

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// The same of child processes that have ended and were waited for, in whole ticks of usually 10 ms.
    pub children_cpu_seconds: f64,
    /// Largest resident set so far.
    pub peak_rss_bytes: u64,
}

impl Usage {
    /// Largest resident set so far, in MiB.
    pub fn peak_rss_mib(&self) -> f64 {
        mib(self.peak_rss_bytes)
    }
}

/// Bytes in MiB, as a figure to show.
#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The machine in a few words: its processor, and cores that may be used.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    format!("{}, {cores} cores", model.unwrap_or("unknown processor").trim())
}

/// Room on the file system of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Taken by files.
    pub used_bytes: u64,
    /// What this process may still write; the system may keep more for itself.
    pub free_bytes: u64,
}

impl DiskSpace {
    /// Fill as `df` tells it, 0 to 100, of what can be written at all; rounded up, so that 100 means
    /// nothing is left to write.
    pub fn used_percent(&self) -> u64 {
        let used = u128::from(self.used_bytes);
        let all = used + u128::from(self.free_bytes);
        let percent = (used * 100).div_ceil(all.max(1));
        u64::try_from(percent).unwrap_or(100)
    }
}

/// The system didn't say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// A file or file system can't be asked.
    #[error("{path}: {message}")]
    Io {
        /// What was asked.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// A file of `/proc` looks different from what Linux documents.
    #[error("{path} has no {field}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        field: &'static str,
    },
}

impl ResourceError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "resource_io",
            Self::Format { .. } => "resource_format",
        }
    }
}

/// Usage of this process.
///
/// # Errors
/// [`ResourceError`] where there is no Linux `/proc`.
pub fn usage() -> Result<Usage, ResourceError> {
    let stat = Path::new("/proc/self/stat");
    let children = children_cpu_ticks(&read(stat)?)
        .ok_or_else(|| ResourceError::Format { path: stat.into(), field: "processor time" })?;
    let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let peak_rss_bytes = peak_rss_bytes_at(Path::new("/proc/self/status"))?;
    #[expect(clippy::cast_precision_loss, reason = "2^53 ticks are millions of years")]
    let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    #[expect(clippy::cast_precision_loss, reason = "likewise")]
    Ok(Usage {
        cpu_seconds: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
        children_cpu_seconds: seconds(children),
        peak_rss_bytes,
    })
}

/// Largest resident set so far of a process of ours.
///
/// # Errors
/// [`ResourceError`] when it is gone.
pub fn peak_rss_bytes_of(process: u32) -> Result<u64, ResourceError> {
    peak_rss_bytes_at(&Path::new("/proc").join(process.to_string()).join("status"))
}

/// Memory that a new process may take without others being swapped out, as the kernel estimates it.
///
/// # Errors
/// [`ResourceError`] where there is no Linux `/proc`.
pub fn available_memory_bytes() -> Result<u64, ResourceError> {
    let path = Path::new("/proc/meminfo");
    let kib = kib_of("MemAvailable:", &read(path)?)
        .ok_or_else(|| ResourceError::Format { path: path.into(), field: "MemAvailable" })?;
    Ok(kib.saturating_mul(1024))
}

/// Room where `path` is, or will be: a path that isn't there yet is asked for its nearest parent.
///
/// # Errors
/// [`ResourceError::Io`].
pub fn disk_space(path: &Path) -> Result<DiskSpace, ResourceError> {
    let there = path.ancestors().find(|parent| parent.exists());
    let there = there.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let space = rustix::fs::statvfs(there)
        .map_err(|error| ResourceError::Io { path: there.into(), message: error.to_string() })?;
    Ok(DiskSpace {
        used_bytes: space.f_blocks.saturating_sub(space.f_bfree).saturating_mul(space.f_frsize),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
    })
}

fn read(path: &Path) -> Result<String, ResourceError> {
    std::fs::read_to_string(path)
        .map_err(|error| ResourceError::Io { path: path.into(), message: error.to_string() })
}

/// User plus system time of a process's dead children in clock ticks: fields 16 and 17 of `/proc/<pid>/stat`
/// as in proc(5). The second field is a program name in brackets that may itself hold spaces and brackets.
fn children_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(13);
    let mut next = || -> Option<u64> { fields.next()?.parse().ok() };
    Some(next()? + next()?)
}

fn peak_rss_bytes_at(status: &Path) -> Result<u64, ResourceError> {
    let peak_kib = kib_of("VmHWM:", &read(status)?)
        .ok_or_else(|| ResourceError::Format { path: status.into(), field: "VmHWM" })?;
    Ok(peak_kib.saturating_mul(1024))
}

/// A line of kibibytes in a file of `/proc`.
fn kib_of(field: &str, text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_program_name() {
        let stat = "42 (a) b (c) R 1 42 42 0 -1 4194304 100 0 0 0 17 5 3 1 20 0 1 0";
        assert_eq!(children_cpu_ticks(stat), Some(4));
        assert_eq!(children_cpu_ticks("42 (gaisnet) R 1"), None);
        assert_eq!(children_cpu_ticks(""), None);
    }

    #[test]
    fn peak_memory_is_the_high_water_mark() {
        let status = "VmPeak:\t  9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 5 kB\n";
        assert_eq!(kib_of("VmHWM:", status), Some(2048));
        assert_eq!(kib_of("VmHWM:", "VmPeak:\t  9 kB\n"), None);
    }

    #[test]
    fn available_memory_is_the_kernels_line() {
        let text = "MemTotal:       16384 kB\nMemFree:         100 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(kib_of("MemAvailable:", text), Some(8_192));
        assert_eq!(kib_of("MemAvailable:", "MemTotal: 1 kB\n"), None);
        assert!(available_memory_bytes().unwrap() > 0);
    }

    #[test]
    fn fill_is_rounded_up() {
        let fill = |used_bytes, free_bytes| DiskSpace { used_bytes, free_bytes }.used_percent();
        assert_eq!(fill(0, 1000), 0);
        assert_eq!(fill(1, 999), 1);
        assert_eq!(fill(1000, 0), 100);
        assert_eq!(fill(0, 0), 0);
        assert_eq!(fill(u64::MAX, 0), 100);
    }

    #[test]
    fn this_process_uses_memory_and_stands_on_a_disk() {
        let before = usage().unwrap();
        assert!(before.peak_rss_bytes > 1 << 20);
        assert!(usage().unwrap().cpu_seconds > before.cpu_seconds, "finer than a tick");
        let folder = tempfile::tempdir().unwrap();
        let space = disk_space(&folder.path().join("not/there/yet")).unwrap();
        assert!(space.used_bytes + space.free_bytes > 0);
        assert!(disk_space(Path::new("relative/not/there")).is_ok());
    }
}
