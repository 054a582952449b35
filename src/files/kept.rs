//! Files that stay at hand without staying open: more are known than descriptors may be had, so what was used longest ago
//! is closed, and opened again, as the very same file, when it is wanted. What is in them is read elsewhere.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::{MOST_OBJECT_BYTES, Opened, Root, open, open_mapped};

/// Files that are kept open at the most, where the limit of descriptors allows as many.
const MOST_OPEN: usize = 128;

/// The part of all descriptors that may be taken for that.
const SHARE: u64 = 4;

/// All that may be open, in no order.
static OPEN: Mutex<Vec<Weak<Kept>>> = Mutex::new(Vec::new());

/// Counts uses, so that it shows which was the last.
static USES: AtomicU64 = AtomicU64::new(0);

/// How a file is found.
#[derive(Clone, Debug)]
pub enum Way {
    /// By a name that the user or memleak itself gives.
    Named(PathBuf),
    /// By a name below a root.
    Below(Arc<Root>, PathBuf),
    /// By what a process maps, or by its name in that process's root or our own.
    Mapped {
        /// The process.
        pid: u32,
        /// Addresses of one of its mappings of the file.
        range: Range<u64>,
        /// The name.
        path: PathBuf,
    },
}

/// A file that can be had again when it is wanted.
#[derive(Debug)]
pub struct Kept(Mutex<State>);

#[derive(Debug)]
struct State {
    /// None for what can't be opened a second time.
    way: Option<Way>,
    /// The file that was opened first.
    same: Option<Sameness>,
    opened: Option<Arc<Opened>>,
    used: u64,
}

/// What no other file has, now or later: a number is given again when its file is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sameness {
    identity: (u64, u64),
    /// When it was made, which nobody can set; where file systems don't tell, when it was last written.
    time: (i64, u32),
}

impl Sameness {
    fn of(opened: &Opened) -> io::Result<Self> {
        let wanted = StatxFlags::BTIME | StatxFlags::MTIME;
        let found = statx(&opened.file, "", AtFlags::EMPTY_PATH, wanted)?;
        let has_birth = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
        let time = if has_birth {
            found.stx_btime
        } else {
            found.stx_mtime
        };
        Ok(Self {
            identity: opened.identity,
            time: (time.tv_sec, time.tv_nsec),
        })
    }
}

impl Kept {
    /// A file that was not opened yet.
    pub fn named(path: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            way: Some(Way::Named(path.into())),
            same: None,
            opened: None,
            used: 0,
        })))
    }

    /// A file that is open, and how it is found again.
    pub fn found(opened: Opened, way: Way) -> Arc<Self> {
        let kept = Arc::new(Self(Mutex::new(State {
            way: Some(way),
            same: Sameness::of(&opened).ok(),
            opened: Some(Arc::new(opened)),
            used: next_use(),
        })));
        remember(&kept);
        kept
    }

    /// A file that is only ever open: of memleak's own making.
    pub fn own(file: File) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self(Mutex::new(State {
            way: None,
            same: None,
            opened: Some(Arc::new(Opened::own(file)?)),
            used: 0,
        }))))
    }

    /// The file, open as long as what is given is held.
    ///
    /// # Errors
    /// When it is to be found no longer, or another file in its place.
    pub fn open(self: &Arc<Self>) -> io::Result<Arc<Opened>> {
        let (way, same) = {
            let mut state = self.state();
            state.used = next_use();
            match (&state.opened, &state.way) {
                (Some(opened), _) => return Ok(Arc::clone(opened)),
                (None, Some(way)) => (way.clone(), state.same),
                (None, None) => return Err(ErrorKind::NotFound.into()),
            }
        };
        let (opened, same) = match way.open(same) {
            Err(error) if is_exhausted(&error) && close_all() > 0 => way.open(same),
            found => found,
        }?;
        let opened = Arc::new(opened);
        {
            let mut state = self.state();
            state.same = Some(same);
            state.opened = Some(Arc::clone(&opened));
        }
        remember(self);
        Ok(opened)
    }

    /// Whether it is open now, so that no other file can have its device and inode.
    pub fn is_open(&self) -> bool {
        self.state().opened.is_some()
    }

    /// Device and inode, as stat(2) gives them, of the file that was opened first; opens it if none was.
    pub fn identity(self: &Arc<Self>) -> Option<(u64, u64)> {
        let known = self.state().same.map(|same| same.identity);
        known.or_else(|| Some(self.open().ok()?.identity))
    }

    /// It is found at other addresses from now on.
    pub fn moved(&self, to: Way) {
        let mut state = self.state();
        if state.way.is_some() {
            state.way = Some(to);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    /// Opens the file: the `same` as before, where there is one.
    fn open(&self, same: Option<Sameness>) -> io::Result<(Opened, Sameness)> {
        let check = |opened: Opened| {
            let found = Sameness::of(&opened)?;
            match same.is_none_or(|same| same == found) {
                true => Ok((opened, found)),
                false => Err(io::Error::other("another file has taken its place")),
            }
        };
        match self {
            Self::Named(path) => open(path, MOST_OBJECT_BYTES).and_then(check),
            Self::Below(root, path) => root.open(path, MOST_OBJECT_BYTES).and_then(check),
            Self::Mapped { pid, range, path } => {
                let in_root = |root: Root| root.open(path, MOST_OBJECT_BYTES);
                open_mapped(*pid, range, MOST_OBJECT_BYTES)
                    .and_then(check)
                    .or_else(unless_exhausted(|| {
                        Root::of(*pid).and_then(in_root).and_then(check)
                    }))
                    .or_else(unless_exhausted(|| {
                        Root::own().and_then(in_root).and_then(check)
                    }))
            }
        }
    }
}

/// Tries something else, but not for want of descriptors, which would look like a file that isn't there.
fn unless_exhausted<T>(
    other: impl FnOnce() -> io::Result<T>,
) -> impl FnOnce(io::Error) -> io::Result<T> {
    |error| match is_exhausted(&error) {
        true => Err(error),
        false => other(),
    }
}

/// Whether there was no descriptor left.
pub fn is_exhausted(error: &io::Error) -> bool {
    let no_more = [Errno::MFILE, Errno::NFILE];
    error
        .raw_os_error()
        .is_some_and(|number| no_more.iter().any(|errno| errno.raw_os_error() == number))
}

fn next_use() -> u64 {
    USES.fetch_add(1, Ordering::Relaxed)
}

/// Files that may be open now.
fn most_open() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / SHARE).map_or(MOST_OPEN, |share| share.clamp(1, MOST_OPEN))
}

/// Adds a file to those that are open, and closes the one that was used longest ago if there are too many.
fn remember(kept: &Arc<Kept>) {
    let mut open = all_open();
    let alone = |kept: &Weak<Kept>| -> Option<u64> {
        let kept = kept.upgrade()?;
        let state = kept.state();
        // what somebody has in hand stays open all the same
        let unused = state
            .opened
            .as_ref()
            .is_some_and(|opened| Arc::strong_count(opened) == 1);
        unused.then_some(state.used)
    };
    open.retain(|kept| kept.upgrade().is_some_and(|kept| kept.is_open()));
    while open.len() >= most_open() {
        let first = (0..open.len())
            .filter_map(|place| Some((alone(&open[place])?, place)))
            .min();
        let Some((_, place)) = first else {
            break;
        };
        close(&open.swap_remove(place));
    }
    open.push(Arc::downgrade(kept));
}

/// Closes all that nobody has in hand; tells how many were closed.
fn close_all() -> usize {
    let mut open = all_open();
    open.iter().for_each(close);
    let count = open.len();
    open.clear();
    count
}

fn close(kept: &Weak<Kept>) {
    if let Some(kept) = kept.upgrade() {
        kept.state().opened = None;
    }
}

fn all_open() -> MutexGuard<'static, Vec<Weak<Kept>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn kept(folder: &Path, name: &str) -> Arc<Kept> {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        Kept::named(path)
    }

    #[test]
    fn many_files_take_few_descriptors_and_stay_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<Arc<Kept>> = (0..3 * MOST_OPEN)
            .map(|number| kept(folder.path(), &number.to_string()))
            .collect();
        for _ in 0..2 {
            for (number, file) in files.iter().enumerate() {
                let opened = file.open().unwrap();
                let text = io::read_to_string(opened.file()).unwrap();
                assert!(text == number.to_string() || text.is_empty(), "{text}");
                assert_eq!(file.identity(), Some(opened.identity));
            }
            let open = files.iter().filter(|file| file.is_open()).count();
            assert!(open <= MOST_OPEN, "{open}");
        }
    }

    #[test]
    fn what_is_in_hand_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let file = kept(folder.path(), "held");
        let held = file.open().unwrap();
        for number in 0..2 * MOST_OPEN {
            kept(folder.path(), &number.to_string()).open().unwrap();
        }
        assert!(file.is_open());
        assert_eq!(io::read_to_string(held.file()).unwrap(), "held");
    }

    #[test]
    fn another_file_under_the_same_name_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = kept(folder.path(), "a");
        let identity = file.identity();
        file.state().opened = None;
        assert!(file.open().is_ok());
        file.state().opened = None;
        fs::remove_file(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a"), "other").unwrap();
        assert!(file.open().is_err());
        assert_eq!(file.identity(), identity);
    }
}
