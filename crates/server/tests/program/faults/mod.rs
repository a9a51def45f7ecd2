//! Real faults on real processes: kills at every system call, disks that fail or fill up, processes
//! that stand still, clocks that jump, networks that lose. This file decides what of it runs in an
//! ordinary run and what with `cargo xtask test --long`; the faults are in the modules.

mod clock;
mod disk;
mod ensemble;
mod kills;
mod node;
mod room;
mod strace;
mod styles;

/// Whether the long set runs.
pub fn long() -> bool {
    std::env::var_os("LONG_TESTS").is_some_and(|value| !value.is_empty())
}
