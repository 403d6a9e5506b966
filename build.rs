//! Tells the linker where the programs find libtorch when they run.
//!
//! `$ORIGIN/../lib/gaisnet` first, so that an installed copy carries its own; then the place that
//! torch-sys was built against.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    // Set by torch-sys, which is a dependency only with the feature `torch`.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/gaisnet:{}", lib.display());
    if lib.join("libtorch_cuda.so").exists() {
        // No symbol of it is named by us; without this the linker drops it and its kernels never
        // register.
        println!("cargo::rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    }
}
