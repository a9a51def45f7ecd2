//! Decides what becomes of a server whose owner dies without a word (SIGKILL, or a process that
//! ends while a static still holds the server): a small shell outlives the owner just long enough
//! to end the server and to remove its folder. It reads a pipe; the pipe's end is the owner's.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::DatabaseError;

/// Each line names the process to end; an empty one says that there is none now.
const SCRIPT: &str = r#"
pid=
while read -r line; do pid="$line"; done
if [ -n "$pid" ]; then
    kill -s "$2" "$pid" 2>/dev/null
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
fi
rm -rf -- "$1"
"#;

/// The shell and our end of its pipe.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Watches over `folder`; the server that is named later is ended with `signal`.
    pub(crate) fn start(folder: &Path, signal: &str) -> Result<Self, DatabaseError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "unanimity-watchdog"]).arg(folder).arg(signal);
        command.process_group(0).current_dir("/").stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.spawn().map_err(DatabaseError::run("/bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// Says which process is to be ended, should we die.
    pub(crate) fn watch(&mut self, pid: Option<u32>) {
        let line = pid.map_or_else(|| "\n".to_owned(), |pid| format!("{pid}\n"));
        if let Some(pipe) = &mut self.pipe {
            // dropped: a shell that somebody has ended watches over nothing; the server still
            // works, and its owner still ends it.
            let _ = pipe.write_all(line.as_bytes()).and_then(|()| pipe.flush());
        }
    }
}

impl Drop for Watchdog {
    /// Lets the shell do its last work, the removal of the folder, and waits for it.
    fn drop(&mut self) {
        drop(self.pipe.take());
        // dropped: it cannot be waited for only if it is gone.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn when_the_owner_is_gone_the_server_ends_and_its_folder_is_removed() {
        let name = format!("unanimity-watchdog-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), "data").unwrap();
        let mut server = Command::new("sleep").arg("600").spawn().unwrap();
        let mut watchdog = Watchdog::start(&folder, "TERM").unwrap();
        watchdog.watch(Some(server.id()));
        // All that a dying owner does is to close the pipe.
        drop(watchdog.pipe.take());
        assert_eq!(server.wait().unwrap().signal(), Some(15));
        drop(watchdog);
        assert!(!folder.exists());
    }
}
