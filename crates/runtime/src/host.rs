//! The machine a process runs on: its name, and its request to stop.

use std::io;

/// The machine's host name: what `machineName` and the log file's name default to.
///
/// # Errors
/// The machine has no name, or one that is not text. Whoever needs the name must then be told one, because two
/// machines that share a made-up name could not be told apart.
pub fn host_name() -> io::Result<String> {
    let uname = rustix::system::uname();
    match uname.nodename().to_str() {
        Ok(name) if !name.is_empty() => Ok(name.to_owned()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "this machine has no host name",
        )),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this machine's host name is not valid UTF-8",
        )),
    }
}

/// Waits until the operating system or a person asks this process to stop, and tells how: `SIGTERM` or `SIGINT`.
///
/// # Errors
/// The signal handlers cannot be installed.
pub async fn termination_signal() -> io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_a_name() {
        assert!(!super::host_name().unwrap().is_empty());
    }
}
