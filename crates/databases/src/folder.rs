//! Decides where a server keeps its files and as whom it runs: a new folder with a short path (a
//! Unix socket's path may have about a hundred bytes), owned by a user without privileges where we
//! are root, because both servers refuse to run as root.

use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::DatabaseError;

/// Who a server runs as, where it is not the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The first of these users that exists; nobody in particular if we are not root.
    pub(crate) fn choose(names: &[&str]) -> Result<Option<Self>, DatabaseError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = Path::new("/etc/passwd");
        let text = std::fs::read_to_string(passwd).map_err(DatabaseError::folder(passwd))?;
        let user = names.iter().find_map(|name| look_up(&text, name));
        user.map(Some).ok_or_else(|| DatabaseError::UserMissing(names.join(", ")))
    }
}

/// A program that runs as `user`, in a process group of its own (so that an interrupt at the
/// terminal reaches us alone), and sees nothing of our environment.
pub(crate) fn command(program: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.process_group(0).stdin(std::process::Stdio::null()).current_dir("/");
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Makes a new folder under `base`, or under the system's for temporary files, owned by `user`.
pub(crate) fn make(base: Option<&Path>, user: Option<User>) -> Result<PathBuf, DatabaseError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("unanimity-db-{}-{number}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {
                give(&folder, user)?;
                return Ok(folder);
            }
            // Left behind by a process with our number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(DatabaseError::folder(folder)(error)),
        }
    }
}

/// Writes a file that `user` owns and nobody else can read.
pub(crate) fn write(path: &Path, text: &str, user: Option<User>) -> Result<(), DatabaseError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(DatabaseError::folder(path))?;
    give(path, user)
}

fn give(path: &Path, user: Option<User>) -> Result<(), DatabaseError> {
    let Some(User { uid, gid }) = user else { return Ok(()) };
    chown(path, Some(uid), Some(gid)).map_err(DatabaseError::folder(path))
}

/// Finds a user in the text of the file of users.
fn look_up(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
        found.then(|| Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))?
    })
}

#[cfg(test)]
mod tests {
    use super::{User, look_up};

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nmysqlx:x:7:7:::\nmysql:x:102:105::/:/bin/false\n";
        assert_eq!(look_up(passwd, "mysql"), Some(User { uid: 102, gid: 105 }));
        assert_eq!(look_up(passwd, "postgres"), None);
    }
}
