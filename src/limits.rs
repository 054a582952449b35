//! What reading one file of another's may cost: every cap of the reader, and nothing else.
//! They are far above what compilers and linkers write, so that only files that were made to hurt meet them.

use std::time::Duration;

/// CPU time for one request, in seconds: the kernel ends the reader then.
pub const CPU_SECONDS: u64 = 5;

/// Time for one request by the clock, whoever has the processors meanwhile or however long a disk takes.
pub const TIME: Duration = Duration::from_secs(15);

/// Requests that take less are not added up.
pub const QUICK: Duration = Duration::from_millis(500);

/// Time by the clock for all requests of a file that are not quick.
pub const TIME_OF_FILE: Duration = Duration::from_secs(20);

/// Memory that the reader may take for itself, in bytes.
pub const MEMORY: u64 = 300 << 20;

/// Its stack, in bytes; what recurses deeper ends it.
pub const STACK: u64 = 8 << 20;

/// A file that it may not open is copied, if it has no more bytes than this.
pub const COPY: u64 = 200 << 20;

/// Files that it keeps open for the next request.
pub const OPEN_FILES: usize = 128;

/// Bytes of an answer.
pub const ANSWER: usize = 64 << 20;

/// Files that go with one request.
pub const FILES: usize = 8;

/// Bytes of the name of a function or of a source file.
pub const NAME: usize = 4 << 10;

/// Functions that are inlined at one place.
pub const INLINED: usize = 64;

/// Bytes of a section with unwind information.
pub const FRAME_SECTION: u64 = 64 << 20;

/// Bytes that the symbol table which a stripped object carries compressed may inflate to.
pub const MINI_DEBUG_INFO: usize = 64 << 20;

/// Pages of 64 KiB of code that one file has unwind rows for: 1 GiB.
pub const CODE_PAGES: u64 = 16 << 10;

/// Readers that work at the same time.
pub const READERS: usize = 4;

/// Requests in one file that may end the reader before the file is left alone.
pub const STRIKES: u32 = 2;
