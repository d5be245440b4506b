//! What a process holds.

/// A line of `/proc/self/status` in MiB, such as `VmRSS` (held now) or `VmHWM` (the most it has held); none where the system does not tell.
#[must_use]
pub fn status_mib(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.)
}
