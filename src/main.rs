//! The `gaisnet` program; the commands are in `cli/`.

fn main() {}
