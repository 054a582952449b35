//! What memleak and its reader say to each other, and how it goes through their socket, open files included.
//! What is done with it is the business of both ends. Neither end trusts the other's lengths.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::debuginfo::{Facts, NamedPlace, Places};
use crate::languages::Interpreter;
use crate::limits;
use crate::probes::{Inspection, Question};
use crate::unwind;

/// What is to be found out about the files that go with it. The first is the one that it is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// What the headers say: [`Answer::Facts`].
    Facts,
    /// The CRC of all bytes: [`Answer::Checksum`].
    Checksum,
    /// Its unwind rows, and the interpreter that it holds: [`Answer::Code`].
    Code,
    /// Which functions it has that are to be probed, and where: [`Answer::Functions`]. A second file has its symbols.
    Functions(Question),
    /// What is at places of its code: [`Answer::Names`]. Other files have its debug information.
    Names(Places),
    /// What was read is not needed any more. There is no answer.
    Rest,
}

/// What was found out.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// None if it is no ELF file.
    Facts(Option<Facts>),
    /// None if it can't be read.
    Checksum(Option<u32>),
    /// Unwind rows, or why there are none; the interpreter, if it has one, or why it is not followed.
    Code(
        Result<unwind::Table, String>,
        Result<Option<Box<Interpreter>>, String>,
    ),
    /// Or why it can't be read.
    Functions(Result<Inspection, String>),
    /// For each place, what is known of it.
    Names(Vec<Option<NamedPlace>>),
}

/// Bytes of a length.
const HEADER: usize = 4;

/// Bytes of a request.
const REQUEST: usize = 1 << 20;

/// Sends a request with its files.
///
/// # Errors
/// When the reader has ended.
pub fn send(socket: &UnixStream, request: &Request, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = postcard::to_stdvec(request).map_err(io::Error::other)?;
    let header = length(&body)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&header)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent != HEADER {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut socket = socket;
    socket.write_all(&body)
}

/// Waits for the next request and its files; none when memleak has ended.
///
/// # Errors
/// When what comes is no request.
pub fn receive(socket: &UnixStream) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    match received.bytes {
        0 => return Ok(None),
        HEADER => {}
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    let length = u32::from_ne_bytes(header) as usize;
    if length > REQUEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    let mut socket = socket;
    socket.read_exact(&mut body)?;
    let request = postcard::from_bytes(&body).map_err(io::Error::other)?;
    Ok(Some((request, files)))
}

/// Sends something back.
///
/// # Errors
/// When memleak has ended.
pub fn reply(socket: &UnixStream, answer: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(answer).map_err(io::Error::other)?;
    let mut socket = socket;
    socket.write_all(&length(&body)?)?;
    socket.write_all(&body)
}

fn length(body: &[u8]) -> io::Result<[u8; HEADER]> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok(length.to_ne_bytes())
}

/// What has come of a reply so far.
#[derive(Default)]
pub struct Incoming(Vec<u8>);

impl Incoming {
    /// Takes what is there to be read without waiting; gives the reply when it is whole.
    ///
    /// # Errors
    /// When the reader has ended, or does not keep to what is agreed.
    pub fn take<T: DeserializeOwned>(&mut self, socket: &UnixStream) -> io::Result<Option<T>> {
        let mut part = [0; 1 << 16];
        loop {
            // more than one reply can have come
            if let Some(reply) = self.whole()? {
                return Ok(Some(reply));
            }
            match recv(socket, &mut part, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => self.0.extend_from_slice(&part[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn whole<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((header, body)) = self.0.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_ne_bytes(*header) as usize;
        if length > limits::ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if body.len() < length {
            return Ok(None);
        }
        let reply = postcard::from_bytes(&body[..length]).map_err(io::Error::other);
        self.0.drain(..HEADER + length);
        reply.map(Some)
    }
}
