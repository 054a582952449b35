//! Pointers that only the kernel keeps for a program: the data of what epoll watches, and the values of timers.
//! Read from /proc, which shows both in text.

use std::fs;

/// Descriptors that are looked at, at the most.
const MAX_DESCRIPTORS: usize = 65_536;

/// The values that the kernel will hand back to a process.
pub fn read(pid: i32) -> Vec<u64> {
    let mut values = Vec::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    for descriptor in descriptors
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_DESCRIPTORS)
    {
        let number = descriptor.file_name();
        let link = fs::read_link(format!("/proc/{pid}/fd/{}", number.display()));
        if link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]") {
            let info = fs::read(descriptor.path()).unwrap_or_default();
            values.extend(epoll_data(&info));
        }
    }
    let timers = fs::read(format!("/proc/{pid}/timers")).unwrap_or_default();
    values.extend(timer_values(&timers));
    values
}

/// "tfd:        5 events:       19 data:     55d0c0ffee0  pos:0 …", a line for each file that is watched.
fn epoll_data(info: &[u8]) -> Vec<u64> {
    let info = String::from_utf8_lossy(info);
    let data = info.lines().filter_map(|line| {
        let (_, data) = line.strip_prefix("tfd:")?.split_once("data:")?;
        u64::from_str_radix(data.split_whitespace().next()?, 16).ok()
    });
    data.collect()
}

/// "signal: 60/00007fff86e452a8", of each timer.
fn timer_values(timers: &[u8]) -> Vec<u64> {
    let timers = String::from_utf8_lossy(timers);
    let values = timers.lines().filter_map(|line| {
        let (_, value) = line.strip_prefix("signal:")?.split_once('/')?;
        u64::from_str_radix(value.trim(), 16).ok()
    });
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_epoll_and_timers_carry_is_read() {
        let info = b"pos:\t0\nflags:\t02\nmnt_id:\t15\ntfd:        5 events:       19 data:     55d0c0ffee0  pos:0 ino:8 sdev:9\n\
            tfd: x data: zz\n";
        assert_eq!(epoll_data(info), [0x55d_0c0f_fee0]);
        let timers = b"ID: 0\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n";
        assert_eq!(timer_values(timers), [0x7fff_86e4_52a8]);
    }
}
