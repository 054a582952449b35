//! Reads hash maps in batches: one system call for thousands of elements, each bucket under its lock, so
//! that no element is seen twice or half-written. Knows nothing of what the maps hold.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use libbpf_rs::MapCore;
use plain::Plain;

/// Elements to ask for at a time. The kernel gives whole buckets only, so this must be above any bucket's
/// length; where it is not, more are asked for.
const BATCH: usize = 4096;

/// Calls `visit` with each element of a hash map.
///
/// # Errors
/// Fails when the kernel refuses to read the map, or when the map's key and value are of other sizes.
pub fn for_each<K, V>(map: &impl MapCore, mut visit: impl FnMut(&K, &V)) -> Result<()>
where
    K: Plain + Default + Copy,
    V: Plain + Default + Copy,
{
    let name = map.name().display().to_string();
    anyhow::ensure!(
        map.key_size() as usize == size_of::<K>() && map.value_size() as usize == size_of::<V>(),
        "the map `{name}` holds elements of another size"
    );
    let mut keys = vec![K::default(); BATCH];
    let mut values = vec![V::default(); BATCH];
    let mut position: Option<u32> = None;
    loop {
        let (next, count, end) = match lookup(map, position, &mut keys, &mut values) {
            Ok(read) => read,
            // a bucket is longer than the batch
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                let longer = keys.len() * 2;
                keys.resize(longer, K::default());
                values.resize(longer, V::default());
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("failed to read the map `{name}`"));
            }
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(key, value);
        }
        if end {
            return Ok(());
        }
        position = Some(next);
    }
}

/// Reads the batch at a position; gives the next position, the number of elements, and whether it was the
/// last batch.
#[allow(unsafe_code)] // libbpf-rs's own batches allocate twice for every element
fn lookup<K: Plain, V: Plain>(
    map: &impl MapCore,
    position: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(u32, usize, bool)> {
    let mut position = position;
    let mut next = 0u32;
    let mut count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    let from = match &mut position {
        Some(position) => std::ptr::from_mut(position).cast::<c_void>(),
        None => std::ptr::null_mut(),
    };
    // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, which the caller has
    // compared with K and V; both are plain data, so any bytes are valid. A hash map's position is a u32.
    let result = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_fd().as_raw_fd(),
            from,
            std::ptr::from_mut(&mut next).cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &raw mut count,
            std::ptr::null(),
        )
    };
    if result == 0 {
        return Ok((next, count as usize, false));
    }
    let error = io::Error::from_raw_os_error(-result);
    match error.kind() {
        io::ErrorKind::NotFound => Ok((next, count as usize, true)),
        _ => Err(error),
    }
}
