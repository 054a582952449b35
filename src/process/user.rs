//! The user that a command runs as, where it is not memleak's own: who that is, and how a process becomes it.
//! Who may ask for it is the kernel's to say.

use std::ffi::{CString, OsString};
use std::io;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{Gid, Uid, getgrouplist, setgid, setgroups, setuid};
use rustix::process::geteuid;

/// A user of this system, with the rights that belong to it.
pub struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    environment: [(&'static str, OsString); 4],
}

impl User {
    /// The user of this name.
    ///
    /// # Errors
    /// When there is none, or memleak does not run as root.
    pub fn find(name: &str) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "failed to run the command as {name}: only root may run it as somebody"
        );
        let found = nix::unistd::User::from_name(name).with_context(|| failed(name))?;
        let Some(found) = found else {
            bail!("{}: there is no such user", failed(name));
        };
        let c_name = CString::new(name).with_context(|| failed(name))?;
        let groups = getgrouplist(&c_name, found.gid).with_context(|| failed(name))?;
        let shell = match found.shell.as_os_str().is_empty() {
            true => OsString::from("/bin/sh"),
            false => found.shell.into_os_string(),
        };
        Ok(Self {
            uid: found.uid,
            gid: found.gid,
            groups,
            environment: [
                ("HOME", found.dir.into_os_string()),
                ("SHELL", shell),
                ("USER", name.into()),
                ("LOGNAME", name.into()),
            ],
        })
    }

    /// Lets a command see the user in its environment, as runuser(1) does.
    pub fn introduce(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// Makes a process between fork and exec the user's. Makes only async-signal-safe calls.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn become_it(&self) -> io::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        Ok(setuid(self.uid)?)
    }
}

fn failed(name: &str) -> String {
    format!("failed to run the command as {name}")
}
