//! Recordings and logs that came compressed, by gzip or zstd, as users keep them: read with bounds on what they grow to.
//! What is in them is told by `load`.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use anyhow::{Context, Result};
use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

/// What gzip files begin with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What zstd's frames begin with.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes that compressed files may grow to.
const MOST: u64 = 16 << 30;

/// The most that zstd may look back, as a power of two: what its command takes without being asked to take more.
const WINDOW: u32 = 27;

/// The input as it was before it was compressed, if it was.
///
/// # Errors
/// When the beginning cannot be read.
pub fn decompressed(mut input: Box<dyn BufRead>) -> Result<Box<dyn BufRead>> {
    let mut start = [0; 4];
    let mut read = 0;
    // a pipe may give one byte at a time
    while read < start.len() {
        match input.read(&mut start[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let start = &start[..read];
    let (is_gzip, is_zstd) = (start.starts_with(&GZIP), start.starts_with(&ZSTD));
    let whole = BufReader::new(Cursor::new(start.to_vec()).chain(input));
    if is_gzip {
        return Ok(bounded(MultiGzDecoder::new(whole)));
    }
    if is_zstd {
        let mut decoder = Decoder::with_buffer(whole).context("it is damaged")?;
        decoder.window_log_max(WINDOW).context("it is damaged")?;
        return Ok(bounded(decoder));
    }
    Ok(Box::new(whole))
}

fn bounded(decoder: impl Read + 'static) -> Box<dyn BufRead> {
    let bounded = Bounded {
        inner: decoder,
        left: MOST,
    };
    Box::new(BufReader::with_capacity(1 << 16, bounded))
}

/// Fails where more comes than may.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it grows to more than 16 GiB"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const TEXT: &[u8] = b"one\ntwo\nthree\n";

    fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        let mut input = decompressed(Box::new(Cursor::new(bytes))).unwrap();
        input.read_to_end(&mut read).map(|_| read)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_compressed_is_read_like_what_is_not() {
        assert_eq!(read(TEXT.to_vec()).unwrap(), TEXT);
        assert_eq!(read(b"{".to_vec()).unwrap(), b"{");
        assert_eq!(read(Vec::new()).unwrap(), b"");
        assert_eq!(read(gzip(TEXT)).unwrap(), TEXT);
        let both = [gzip(TEXT), gzip(TEXT)].concat();
        assert_eq!(read(both).unwrap(), TEXT.repeat(2));
        assert_eq!(read(zstd::encode_all(TEXT, 3).unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn what_is_cut_or_damaged_fails_and_does_not_panic() {
        for whole in [gzip(TEXT), zstd::encode_all(TEXT, 3).unwrap()] {
            for end in 4..whole.len() {
                assert!(read(whole[..end].to_vec()).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn there_is_an_end_to_growing() {
        let mut bounded = Bounded {
            inner: io::repeat(0),
            left: 100_000,
        };
        let error = bounded.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("16 GiB"));
    }
}
