//! One file per format: each turns figures into bytes on a writer.
//! Pure: no I/O of its own, no clock; equal input gives equal bytes.

pub mod html;
