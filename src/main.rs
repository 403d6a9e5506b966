//! The `gaisnet` program; the commands are in `cli/`.

use std::process::ExitCode;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "cli")]
fn main() -> ExitCode {
    gaisnet::cli::main(std::env::args_os(), &mut std::io::stdout().lock())
}

#[cfg(not(feature = "cli"))]
#[expect(clippy::print_stderr, reason = "there is no command line to say it")]
fn main() -> ExitCode {
    eprintln!("this gaisnet was built without its command line: build it with --features cli");
    ExitCode::from(2)
}
