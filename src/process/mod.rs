//! Who is traced: a running process or a command that is started held, and what it maps over time.
//! Nothing here knows of BPF, probes or symbols.

pub mod cgroups;
mod command;
mod events;
mod handle;
pub mod inherited;
mod linked;
mod mapping_events;
mod mappings;
pub mod memory;
mod names;
pub mod translators;
mod user;
mod vdso;

pub use command::HeldCommand;
pub use events::{Event, What};
pub use handle::{
    Process, descendants, is_kernel_thread, memory_of, name, named, running, start_time,
    thread_group,
};
pub use linked::objects_of_command;
pub use mapping_events::MappingEvents;
pub use mappings::{Mapping, MappingRecord, Mappings, ObjectFile, maps_file_at};
pub use names::Names;
pub use user::User;

/// How a traced program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ending {
    /// What a shell would report: the exit code, or 128 and the signal's number.
    pub fn shell_status(self) -> u8 {
        match self {
            Ending::Exited(code) => (code & 0xff) as u8,
            Ending::Signaled(signal) => 128u8.wrapping_add((signal & 0x7f) as u8),
        }
    }
}
