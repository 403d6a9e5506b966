//! Checks of this machine: disk, clock, files and their permissions, libtorch.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Check;
#[cfg(feature = "torch")]
use crate::data::Cache;
use crate::settings::{LearnerName, LinkSettings, Settings};
use crate::telemetry::disk_space;

/// Looks at everything that needs no network.
pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    #[expect(clippy::disallowed_methods, reason = "the machine's clock is what is examined")]
    let now = SystemTime::now();
    let mut checks = vec![
        disk(&settings.paths.store, settings.limits.disk_full_percent),
        clock(now, &settings.paths.store),
        folder("keys folder", &settings.paths.keys),
        keyring(&settings.paths.keyring),
        learner(settings),
    ];
    checks.extend(key_files(&settings.paths.keys));
    checks.extend(link_files("bus.site", &settings.bus.site));
    if let Some(link) = &settings.bus.parent {
        checks.extend(link_files("bus.parent", link));
    }
    checks
}

fn disk(store: &Path, full_percent: u8) -> Check {
    let name = "disk";
    match disk_space(store) {
        Ok(space) => {
            let free = format!(
                "{} MiB free, {} % used, of the disk of {}",
                space.free_bytes / MIB,
                space.used_percent(),
                store.display()
            );
            if space.used_percent() >= u64::from(full_percent) {
                let advice = format!(
                    "make room, or set paths.store elsewhere: from {full_percent} % on \
                     (limits.disk_full_percent) new work is refused"
                );
                Check::bad(name, free, advice)
            } else if space.free_bytes < LEAST_FREE_BYTES {
                Check::bad(name, free, format!("make room for {} MiB", LEAST_FREE_BYTES / MIB))
            } else {
                Check::good(name, free)
            }
        }
        Err(error) => Check::bad(name, error.to_string(), "set paths.store to a folder that works"),
    }
}

/// A clock is doubtful before this program was written, far beyond it, or before our own files.
fn clock(now: SystemTime, store: &Path) -> Check {
    let name = "clock";
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let found = format!("{seconds} s since 1970");
    let advice = "set the clock (timedatectl set-ntp true): expiry and the audit log tell its time";
    if !(EARLIEST_SECONDS..LATEST_SECONDS).contains(&seconds) {
        return Check::bad(name, format!("{found}: not between 2025 and 2100"), advice);
    }
    let written = store.metadata().and_then(|metadata| metadata.modified());
    if written.is_ok_and(|written| written > now + CLOCK_TOLERANCE) {
        let found = format!("{found}: {} was changed later than that", store.display());
        return Check::bad(name, found, advice);
    }
    Check::good(name, found)
}

fn folder(name: &str, path: &Path) -> Check {
    match path.symlink_metadata() {
        Err(error) => Check::bad(
            name,
            format!("{}: {error}", path.display()),
            format!("make it: install -d -m 700 {}", path.display()),
        ),
        Ok(metadata) if !metadata.is_dir() => {
            Check::bad(name, format!("{} is no folder", path.display()), "set paths.keys")
        }
        Ok(metadata) => private(name, path, metadata.permissions().mode(), "700"),
    }
}

fn keyring(path: &Path) -> Check {
    if path.is_file() {
        return Check::good("keyring", path.display().to_string());
    }
    let advice = "copy the federation's keyring to this path; without one nobody is trusted";
    Check::bad("keyring", format!("{} isn't there", path.display()), advice)
}

/// Every file in the keys folder but public ones.
fn key_files(folder: &Path) -> Vec<Check> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let holds_secret = |path: &Path| {
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        suffix.is_some_and(|suffix| ["key", "password"].contains(&suffix))
            || std::fs::read_to_string(path).is_ok_and(|text| text.contains("PRIVATE KEY-----"))
    };
    let secrets = paths.iter().filter(|path| path.is_file() && holds_secret(path));
    secrets.map(|path| secret_file("key file", path)).collect()
}

/// The files that a link names.
fn link_files(section: &str, link: &LinkSettings) -> Vec<Check> {
    let public = [("tls.ca", &link.tls.ca), ("tls.cert", &link.tls.cert)];
    let secret = [("tls.key", &link.tls.key), ("password_file", &link.password_file)];
    let public = public.iter().filter_map(|(key, path)| {
        let path = path.as_ref()?;
        let name = format!("{section}.{key}");
        Some(match std::fs::read(path) {
            Ok(_) => Check::good(name, path.display().to_string()),
            Err(error) => {
                Check::bad(name, format!("{}: {error}", path.display()), "put the file there")
            }
        })
    });
    let secret = secret
        .iter()
        .filter_map(|(key, path)| Some(secret_file(&format!("{section}.{key}"), path.as_ref()?)));
    public.chain(secret).collect()
}

fn secret_file(name: &str, path: &Path) -> Check {
    match path.symlink_metadata() {
        Err(error) => Check::bad(
            name,
            format!("{}: {error}", path.display()),
            "put the file there, mode 0600",
        ),
        Ok(metadata) if metadata.is_symlink() => Check::bad(
            name,
            format!("{} is a symbolic link", path.display()),
            "put the file itself there: a link can be turned elsewhere",
        ),
        Ok(metadata) => match std::fs::File::open(path) {
            Err(error) => Check::bad(
                name,
                format!("{}: {error}", path.display()),
                format!("make this node's user its owner: chown $USER {}", path.display()),
            ),
            Ok(_) => private(name, path, metadata.permissions().mode(), "600"),
        },
    }
}

fn private(name: &str, path: &Path, mode: u32, wanted: &str) -> Check {
    let found = format!("{} (mode {:04o})", path.display(), mode & 0o777);
    if mode & 0o077 != 0 {
        return Check::bad(name, found, format!("chmod {wanted} {}", path.display()));
    }
    Check::good(name, found)
}

fn learner(settings: &Settings) -> Check {
    let name = "learner";
    let has_torch = cfg!(feature = "torch");
    match (settings.model.learner, &settings.model.base) {
        (LearnerName::Softmax, _) => Check::good(name, "softmax, needs no libtorch"),
        (LearnerName::TextSoftmax, _) => Check::good(name, "text-softmax, needs no libtorch"),
        (_, _) if !has_torch => Check::bad(
            name,
            "the learner is libtorch's, but this program was built without libtorch",
            "build it with the feature torch (make build), or set model.learner = \"softmax\"",
        ),
        #[cfg(feature = "torch")]
        (LearnerName::Language | LearnerName::TextEncoder, Some(base))
            if crate::torch::shipped::instead_of(base).is_some() =>
        {
            built_in(base, settings)
        }
        (_, Some(base)) if !base.is_file() => Check::bad(
            name,
            format!("the base model {} isn't there", base.display()),
            "set model.base to the card of the base that the cloud has",
        ),
        (_, Some(base)) if !base.with_extension("sig").is_file() => Check::bad(
            name,
            format!("nobody signed the base model {}: there is no .sig beside it", base.display()),
            "fetch it from where the base came from, or sign it: gaisnet model sign",
        ),
        (LearnerName::SignalTransformer, _) => Check::good(name, "signal-transformer on libtorch"),
        (LearnerName::Language, _) => Check::good(name, "language model on libtorch"),
        (LearnerName::TextEncoder, _) => Check::good(name, "text-encoder on libtorch"),
    }
}

/// A base whose card comes with the program: are its weights here?
#[cfg(feature = "torch")]
fn built_in(base: &Path, settings: &Settings) -> Check {
    use crate::torch::card::Card;
    let name = "learner";
    let cache =
        settings.data.cache.clone().map_or_else(Cache::from_env, |root| Ok(Cache::at(root)));
    let card = crate::torch::shipped::instead_of(base).map(|shipped| Card::parse(shipped.card));
    let (Some(Ok(Card::Adopted(card))), Ok(cache)) = (card, cache) else {
        return Check::bad(name, "there is no cache of models", "set data.cache, or HOME");
    };
    match card.place(base, &cache.models()) {
        Ok(_) => Check::good(name, format!("language model on libtorch, {} built in", card.name)),
        Err(error) => match &settings.node.parent {
            Some(parent) if settings.model.from_parent => Check::good(
                name,
                format!("{error}; gaisnet run will fetch it from {parent} (model.from_parent)"),
            ),
            _ => Check::bad(name, error.to_string(), format!("gaisnet model fetch {}", card.name)),
        },
    }
}

const MIB: u64 = 1024 * 1024;

/// The outbox and a database that is being compacted fit into it.
const LEAST_FREE_BYTES: u64 = 512 * MIB;

/// 2025-01-01 and 2100-01-01.
const EARLIEST_SECONDS: u64 = 1_735_689_600;
const LATEST_SECONDS: u64 = 4_102_444_800;

/// File systems round, network ones have clocks of their own.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;

    fn settings(assignments: &[&str]) -> Settings {
        let mut layers = Layers::new();
        layers.set("node.name=n").set("node.site=s");
        for assignment in assignments {
            layers.set(assignment);
        }
        layers.load().into_settings().unwrap()
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_with_the_key_that_decides() {
        let folder = tempfile::tempdir().unwrap();
        let check = disk(folder.path(), 0);
        assert!(!check.ok && check.what_to_do.unwrap().contains("limits.disk_full_percent"));
    }

    #[test]
    fn clocks_of_1970_of_2100_and_before_our_own_files_are_doubtful() {
        let folder = tempfile::tempdir().unwrap();
        let written = folder.path().metadata().unwrap().modified().unwrap();
        assert!(clock(written, folder.path()).ok);
        assert!(!clock(UNIX_EPOCH, folder.path()).ok);
        assert!(!clock(UNIX_EPOCH + Duration::from_secs(LATEST_SECONDS), folder.path()).ok);
        let check = clock(written - Duration::from_secs(3600), folder.path());
        assert!(!check.ok && check.found.contains("was changed later"), "{check:?}");
    }

    #[test]
    fn secrets_that_others_can_read_are_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let (open, tight) = (folder.path().join("a.key"), folder.path().join("b.key"));
        write(&open, "x", 0o640);
        write(&tight, "x", 0o600);
        write(&folder.path().join("node.pem"), "-----BEGIN PRIVATE KEY-----", 0o644);
        write(&folder.path().join("node.pub"), "-----BEGIN PUBLIC KEY-----", 0o644);
        std::os::unix::fs::symlink(&tight, folder.path().join("c.key")).unwrap();
        let checks = key_files(folder.path());
        let verdicts: Vec<bool> = checks.iter().map(|check| check.ok).collect();
        assert_eq!(verdicts, [false, true, false, false], "{checks:?}");
        assert_eq!(checks[0].what_to_do, Some(format!("chmod 600 {}", open.display())));
        assert!(checks[2].found.contains("symbolic link"));
    }

    #[test]
    fn a_fresh_node_lacks_its_keyring_and_nothing_else_locally() {
        let folder = tempfile::tempdir().unwrap();
        let at = |key: &str, name: &str| format!("{key}={}/{name}", folder.path().display());
        std::fs::create_dir(folder.path().join("keys")).unwrap();
        let keys = folder.path().join("keys");
        std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o700)).unwrap();
        let settings = settings(&[
            &at("paths.store", "store"),
            &at("paths.keys", "keys"),
            &at("paths.keyring", "keys/keyring"),
            "limits.disk_full_percent=99",
        ]);
        let failed: Vec<String> = examine(&settings)
            .into_iter()
            .filter(|check| !check.ok && check.name != "disk")
            .map(|check| check.name)
            .collect();
        assert_eq!(failed, ["keyring"]);
    }

    #[test]
    fn files_of_a_link_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("p");
        write(&password, "secret\n", 0o644);
        let settings = settings(&[
            "bus.site.username=u",
            &format!("bus.site.password_file={}", password.display()),
            "bus.site.tls.ca=/nowhere/ca.pem",
        ]);
        let checks = link_files("bus.site", &settings.bus.site);
        let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["bus.site.tls.ca", "bus.site.password_file"]);
        assert!(checks.iter().all(|check| !check.ok));
    }

    #[test]
    fn a_transformer_needs_libtorch_and_its_base() {
        assert!(learner(&settings(&[])).ok);
        let transformer = ["model.learner=signal-transformer", "model.base=/nowhere/base"];
        let check = learner(&settings(&transformer));
        assert!(!check.ok && check.what_to_do.is_some());
    }

    #[cfg(feature = "torch")]
    #[test]
    fn a_built_in_base_needs_no_file_of_its_card_but_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let cache = format!("data.cache={}", folder.path().display());
        let built_in = ["model.learner=language", "model.base=/nowhere/smollm2-135m", &cache];
        let check = learner(&settings(&built_in));
        let told = check.what_to_do.as_deref().unwrap_or_default();
        assert!(!check.ok && told == "gaisnet model fetch smollm2-135m", "{check:?}");
        let unknown = ["model.learner=language", "model.base=/nowhere/smollm3", &cache];
        assert!(learner(&settings(&unknown)).found.contains("isn't there"));
    }

    #[cfg(feature = "torch")]
    #[test]
    fn a_base_without_a_signature_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let card = folder.path().join("base.toml");
        let base = format!("model.base={}", card.display());
        let check = || learner(&settings(&["model.learner=signal-transformer", &base]));
        write(&card, "", 0o644);
        assert!(check().found.contains("nobody signed"), "{:?}", check());
        write(&card.with_extension("sig"), "", 0o644);
        assert!(check().ok);
    }
}
