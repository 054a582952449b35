//! One line for each allocator call, for `--trace`.

use std::io::{self, Write};

use crate::model::call::Call;
use crate::visible;

/// Writes a call: time since boot in seconds, process and thread, thread's name, function, and what it was
/// given and gave. Addresses are hexadecimal, sizes in bytes.
pub fn write_call(call: &Call, out: &mut impl Write) -> io::Result<()> {
    let Call {
        tgid,
        tid,
        comm,
        function,
        size,
        address,
        old_address,
        ..
    } = call;
    let (seconds, micros) = (
        call.time_ns / 1_000_000_000,
        call.time_ns / 1_000 % 1_000_000,
    );
    let (comm, function) = (visible::line(comm), visible::line(function));
    write!(
        out,
        "{seconds}.{micros:06} {tgid}/{tid} {comm} {function} size={size} addr={address:#x}"
    )?;
    if *old_address != 0 {
        write!(out, " old={old_address:#x}")?;
    }
    if call.error != 0 {
        write!(out, " error={}", call.error)?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_line() {
        let mut call = Call {
            time_ns: 12_345_678_901,
            tgid: 10,
            tid: 11,
            comm: "prog".into(),
            function: "malloc".into(),
            size: 100,
            address: 0x5000,
            old_address: 0,
            error: 0,
        };
        let line = |call: &Call| {
            let mut out = Vec::new();
            write_call(call, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            line(&call),
            "12.345678 10/11 prog malloc size=100 addr=0x5000\n"
        );
        call.function = "realloc".into();
        call.old_address = 0x4000;
        assert!(line(&call).ends_with(" realloc size=100 addr=0x5000 old=0x4000\n"));
        call.error = 12;
        assert!(line(&call).ends_with(" error=12\n"));
    }
}
