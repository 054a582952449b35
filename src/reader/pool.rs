//! The readers as memleak sees them: started, asked, watched, ended, and started again. Whoever ends one is asked
//! about less, and then about nothing any more.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::{Answer, Incoming, Request};
use super::{FileKey, wire};
use crate::limits;
use crate::stderr::say;

/// How often a reader at work is looked at.
const TICK: Duration = Duration::from_millis(2);

/// How often its memory is.
const MEMORY_TICK: Duration = Duration::from_millis(20);

/// Something to be found out.
pub struct Job {
    request: Request,
    files: Vec<OwnedFd>,
    key: FileKey,
    /// Bytes that the files take on a disk: so much of them can be in memory as well.
    on_disk: u64,
    /// It has ended a reader that knew other files before, which may have been to blame.
    again: bool,
}

impl Job {
    /// A request about a file, and others that go with it.
    ///
    /// # Errors
    /// When there is no file, or one can't be asked.
    pub fn new(request: Request, files: Vec<OwnedFd>) -> io::Result<Self> {
        let first = files.first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut on_disk = 0u64;
        for file in &files {
            let blocks = u64::try_from(rustix::fs::fstat(file)?.st_blocks).unwrap_or(0);
            on_disk = on_disk.saturating_add(blocks.saturating_mul(512));
        }
        Ok(Self {
            request,
            key: FileKey::of(first)?,
            files,
            on_disk,
            again: false,
        })
    }

    /// What the file is called now.
    fn name(&self) -> String {
        let descriptor = self.files.first().map_or(-1, |file| file.as_raw_fd());
        let path = fs::read_link(format!("/proc/self/fd/{descriptor}"));
        path.unwrap_or_else(|_| PathBuf::from("a file"))
            .display()
            .to_string()
    }
}

/// How a reader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It took too long.
    Time,
    /// It took too much memory.
    Memory,
    /// It crashed, or could not get memory.
    Death,
}

/// All readers, and what has become of files.
#[derive(Default)]
pub struct Pool {
    workers: Vec<Worker>,
    records: HashMap<FileKey, Record>,
    lost: BTreeSet<FileKey>,
    /// Readers can't be started.
    broken: bool,
}

/// What reading a file has cost so far.
#[derive(Clone, Copy, Default)]
struct Record {
    strikes: u32,
    spent: Duration,
}

/// A reader.
struct Worker {
    socket: UnixStream,
    /// None where it is no process.
    process: Option<Child>,
    incoming: Incoming,
    greeted: bool,
    /// Requests that it has answered.
    answered: u32,
    current: Option<Current>,
}

/// What a reader is working at.
struct Current {
    index: usize,
    job: Job,
    since: Instant,
    looked: Instant,
}

/// What came of waiting for a reader.
enum Outcome {
    Nothing,
    Answer(Answer),
    End(End),
    Broken(String),
}

impl Pool {
    /// Begins to start a reader, unless there is one.
    pub fn start(&mut self) {
        if self.workers.is_empty() {
            self.add_worker();
        }
    }

    /// The process ids of all readers.
    pub fn pids(&self) -> Vec<u32> {
        let processes = self
            .workers
            .iter()
            .filter_map(|worker| worker.process.as_ref());
        processes.map(Child::id).collect()
    }

    /// Files that could not be read, because that ended a reader.
    pub fn lost(&self) -> u64 {
        self.lost.len() as u64
    }

    /// Keeps one reader, and nothing that it has read.
    pub fn rest(&mut self) {
        self.workers.truncate(1);
        for worker in &self.workers {
            // that it has ended shows at the next request
            let _ = wire::send(&worker.socket, &Request::Rest, &[]);
        }
    }

    /// Has the jobs done, by several readers where there are several jobs; gives the answers in their order, none where
    /// there is none to be had. `tick` is called every few milliseconds, and told how many are
    /// done and how long that took.
    pub fn run(
        &mut self,
        jobs: Vec<Option<Job>>,
        tick: &mut dyn FnMut(usize, Duration),
    ) -> Vec<Option<Answer>> {
        let mut answers: Vec<Option<Answer>> = jobs.iter().map(|_| None).collect();
        let mut waiting: VecDeque<(usize, Job)> = jobs
            .into_iter()
            .enumerate()
            .filter_map(|(index, job)| Some((index, job?)))
            .collect();
        let all = waiting.len();
        let most =
            thread::available_parallelism().map_or(1, |count| count.get().min(limits::READERS));
        while self.workers.len() < most.min(all) && self.add_worker() {}
        let (mut done, begun) = (0, Instant::now());
        loop {
            self.distribute(&mut waiting);
            if self.workers.iter().all(|worker| worker.current.is_none()) {
                return answers;
            }
            self.wait();
            for at in (0..self.workers.len()).rev() {
                match self.workers[at].look() {
                    Outcome::Nothing => {}
                    Outcome::Answer(answer) => {
                        let worker = &mut self.workers[at];
                        worker.answered += 1;
                        if let Some(current) = worker.current.take() {
                            self.book(&current);
                            answers[current.index] = Some(answer);
                        }
                        done += 1;
                    }
                    Outcome::End(end) => {
                        let mut worker = self.workers.remove(at);
                        let end = worker.kill(end);
                        if let Some(current) = worker.current.take() {
                            waiting.extend(self.judge(current, end, worker.answered > 0));
                        }
                    }
                    Outcome::Broken(why) => {
                        let mut worker = self.workers.remove(at);
                        worker.kill(End::Death);
                        self.give_up(&why);
                    }
                }
            }
            tick(done, begun.elapsed());
        }
    }

    /// Gives readers that have nothing to do something to do.
    fn distribute(&mut self, waiting: &mut VecDeque<(usize, Job)>) {
        while let Some((index, mut job)) = waiting.pop_front() {
            let record = self.records.get(&job.key).copied().unwrap_or_default();
            if self.broken || record.strikes >= limits::STRIKES {
                continue;
            }
            if let (Request::Names(places), true) = (&mut job.request, record.strikes > 0) {
                places.simplify();
                job.files.truncate(1);
            }
            if self.workers.is_empty() && !self.add_worker() {
                continue;
            }
            let Some(worker) = self
                .workers
                .iter_mut()
                .find(|worker| worker.current.is_none())
            else {
                waiting.push_front((index, job));
                return;
            };
            worker.begin(index, job);
        }
    }

    /// Waits until a reader has something to say, or a tick has passed.
    fn wait(&self) {
        let busy = self
            .workers
            .iter()
            .filter(|worker| worker.current.is_some());
        let mut descriptors: Vec<PollFd<'_>> = busy
            .map(|worker| PollFd::new(&worker.socket, PollFlags::IN))
            .collect();
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        // whatever happens, the readers are looked at next
        let _ = poll(&mut descriptors, Some(&tick));
    }

    /// Takes note of what an answer has cost.
    fn book(&mut self, current: &Current) {
        let took = current.since.elapsed();
        if took < limits::QUICK {
            return;
        }
        let record = self.records.entry(current.job.key).or_default();
        record.spent += took;
        if record.spent > limits::TIME_OF_FILE && record.strikes < limits::STRIKES {
            record.strikes = limits::STRIKES;
            self.lost.insert(current.job.key);
            say!(
                "warning: reading {} takes too long: what is not known of it by now stays unknown",
                current.job.name()
            );
        }
    }

    /// Decides what becomes of a job that has ended a reader: it may be done again.
    fn judge(&mut self, current: Current, end: End, knew_others: bool) -> Option<(usize, Job)> {
        let Current { index, mut job, .. } = current;
        if end == End::Death && knew_others && !job.again {
            job.again = true;
            return Some((index, job));
        }
        let record = self.records.entry(job.key).or_default();
        record.strikes += 1;
        let first = record.strikes < limits::STRIKES;
        let simpler =
            first && matches!(&job.request, Request::Names(places) if !places.is_simple());
        self.lost.insert(job.key);
        let why = match end {
            End::Time => "takes too long",
            End::Memory => "takes too much memory",
            End::Death => "ends the process that reads it",
        };
        let cost = match &job.request {
            _ if simpler => "its debug information is not used",
            Request::Code => "stacks through it may end early",
            Request::Functions(_) => "what it allocates is not seen",
            _ => "its functions have no names",
        };
        say!("warning: reading {} {why}: {cost}", job.name());
        simpler.then_some((index, job))
    }

    fn add_worker(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match Worker::start() {
            Ok(worker) => self.workers.push(worker),
            Err(error) => self.give_up(&error.to_string()),
        }
        !self.broken
    }

    fn give_up(&mut self, why: &str) {
        if !self.broken {
            say!("failed to start the process that reads files: {why}");
        }
        self.broken = true;
    }
}

impl Worker {
    #[cfg(not(test))]
    fn start() -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        use std::process::{Command, Stdio};

        let (socket, other) = UnixStream::pair()?;
        // a compromised reader must not keep memleak waiting
        socket.set_write_timeout(Some(limits::TIME))?;
        let process = Command::new("/proc/self/exe")
            .arg0(super::NAME)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self::new(socket, Some(process)))
    }

    /// Unit tests have no main function that could become a reader.
    #[cfg(test)]
    fn start() -> io::Result<Self> {
        let (socket, other) = UnixStream::pair()?;
        thread::spawn(move || {
            let hello: Result<(), String> = Ok(());
            wire::reply(&other, &hello).unwrap();
            super::child::serve(&other, PathBuf::from("/proc/self/fd"));
        });
        Ok(Self::new(socket, None))
    }

    fn new(socket: UnixStream, process: Option<Child>) -> Self {
        Self {
            socket,
            process,
            incoming: Incoming::default(),
            greeted: false,
            answered: 0,
            current: None,
        }
    }

    /// Sends a job. That it could not be sent shows when the reader is looked at.
    fn begin(&mut self, index: usize, job: Job) {
        let files: Vec<BorrowedFd<'_>> = job.files.iter().map(|file| file.as_fd()).collect();
        let _ = wire::send(&self.socket, &job.request, &files);
        let now = Instant::now();
        self.current = Some(Current {
            index,
            job,
            since: now,
            looked: now,
        });
    }

    /// What has become of the job.
    fn look(&mut self) -> Outcome {
        let Some(current) = &mut self.current else {
            return Outcome::Nothing;
        };
        if !self.greeted {
            match self.incoming.take::<Result<(), String>>(&self.socket) {
                Ok(None) if current.since.elapsed() < limits::TIME => return Outcome::Nothing,
                Ok(None) => return Outcome::Broken("it does not begin".into()),
                Ok(Some(Ok(()))) => self.greeted = true,
                Ok(Some(Err(why))) => return Outcome::Broken(why),
                Err(error) => return Outcome::Broken(error.to_string()),
            }
        }
        match self.incoming.take(&self.socket) {
            Ok(Some(answer)) => return Outcome::Answer(answer),
            Ok(None) => {}
            Err(_) => return Outcome::End(End::Death),
        }
        if current.since.elapsed() > limits::TIME {
            return Outcome::End(End::Time);
        }
        if current.looked.elapsed() > MEMORY_TICK {
            current.looked = Instant::now();
            let most = limits::MEMORY.saturating_add(current.job.on_disk);
            let process = self.process.as_ref();
            if process.is_some_and(|process| resident(process.id()) > most) {
                return Outcome::End(End::Memory);
            }
        }
        Outcome::Nothing
    }

    /// Ends the reader, unless it has ended; gives how.
    fn kill(&mut self, end: End) -> End {
        let Some(process) = &mut self.process else {
            return end;
        };
        let _ = process.kill();
        // one that waits for a disk that is gone does not end: nobody waits for it
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match process.try_wait() {
                Ok(Some(status)) if status.signal() == Some(libc::SIGXCPU) => return End::Time,
                Ok(None) if Instant::now() < deadline => thread::sleep(TICK),
                _ => return end,
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill(End::Death);
    }
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages
        .unwrap_or(0)
        .saturating_mul(rustix::param::page_size() as u64)
}
