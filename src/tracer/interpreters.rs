//! Interpreters as the programs know them, and the code that they have seen them run: the maps between both.
//! What an interpreter is made of is found elsewhere, and so is what its frames are called.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle};

use super::skel::types::{
    code_head, code_piece_key, interpreted_loss, interpreter, language, python_loops,
};
use super::skel::{MemleakMaps, types};
use super::unwind_tables::encode;
use super::{FileId, Tracer, attach, batch};
use crate::languages::python::Loops;
use crate::languages::{InterpretedFrame, Interpreter, KeptCode, Text, function};
use crate::model::report::{Function, Language};

/// The interpreters of files, each with its row.
pub struct Interpreters {
    map: MapHandle,
    /// Row 0 stands for none.
    rows: Vec<Option<Interpreter>>,
    /// Rows of those whose code is seen to end.
    watched: BTreeSet<u16>,
}

impl Interpreters {
    /// None yet, in a map that is still empty.
    pub fn new(map: MapHandle) -> Self {
        let most = map.max_entries() as usize;
        Self {
            map,
            rows: vec![None; most],
            watched: BTreeSet::new(),
        }
    }

    /// Gives the row of one, which is added where it is new; 0 where there is no room.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn row(&mut self, interpreter: &Interpreter) -> Result<u16> {
        // another file with one that is watched is not
        let shared = (0u16..)
            .zip(&self.rows)
            .find(|(row, of)| of.as_ref() == Some(interpreter) && !self.watched.contains(row));
        if let Some((row, _)) = shared {
            return Ok(row);
        }
        let free = (1..self.rows.len()).find(|row| self.rows[*row].is_none());
        let Some(row) = free else {
            return Ok(0);
        };
        self.rows[row] = Some(interpreter.clone());
        let row = u16::try_from(row)?;
        self.publish(row)?;
        Ok(row)
    }

    fn publish(&self, row: u16) -> Result<()> {
        let Some(known) = self.get(row.into()) else {
            return Ok(());
        };
        let value = encode(|value: &mut interpreter| {
            fill(value, known);
            value.ends_seen = self.watched.contains(&row).into();
        })?;
        self.map
            .update(&u32::from(row).to_ne_bytes(), &value, MapFlags::ANY)
            .context("failed to describe an interpreter")
    }

    /// The interpreter of a row, which stays its own: code that it has run may be named long after.
    pub fn get(&self, row: u32) -> Option<&Interpreter> {
        self.rows.get(row as usize)?.as_ref()
    }
}

fn fill(value: &mut interpreter, from: &Interpreter) {
    value.language = match from.language {
        Language::Python => language::LANGUAGE_PYTHON.0,
    };
    value.tail_calls = from.tail_calls.into();
    value.loop_begin = from.loop_code.map(|code| code.begin);
    value.loop_size = from.loop_code.map(|code| code.size);
    value.runtime = from.runtime;
    value.code_type = from.code_type;
    value.text_type = from.text_type;
    value.bytes_type = from.bytes_type;
    let layout = &from.python;
    value.python = types::python_layout {
        loops: match layout.loops {
            Loops::ByCode => python_loops::PYTHON_LOOP_BY_CODE,
            Loops::Each => python_loops::PYTHON_LOOP_EACH,
            Loops::Marked => python_loops::PYTHON_LOOP_MARKED,
            Loops::Called => python_loops::PYTHON_LOOP_CALLED,
        }
        .0,
        thread_key: layout.thread_key,
        thread_id: layout.thread_id,
        thread_frame: layout.thread_frame,
        thread_loop: layout.thread_loop,
        through_loop: layout.through_loop.into(),
        loop_frame: layout.loop_frame,
        loop_caller: layout.loop_caller,
        frame_bytes: layout.frame_bytes,
        frame_caller: layout.frame_caller,
        frame_code: layout.frame_code,
        frame_position: layout.frame_position,
        frame_kind: layout.frame_kind,
        first_kind: layout.first_kind,
        code_bytes: layout.code_bytes,
        code_line: layout.code_line,
        code_file: layout.code_file,
        code_name: layout.code_name,
        code_lines: layout.code_lines,
        code_begun: layout.code_begun,
        code_instructions: layout.code_instructions,
        text_bytes: layout.text_bytes,
        wide_text_bytes: layout.wide_text_bytes,
        zero: 0,
    };
}

/// Code whose names were asked for, by number.
#[derive(Default)]
pub struct CodeNames(HashMap<u32, Option<Rc<KnownCode>>>);

struct KnownCode {
    interpreter: Interpreter,
    code: KeptCode,
}

/// An interpreted frame with its names, and its language.
pub struct NamedFrame {
    /// What runs it; none where its code was not kept.
    pub language: Option<Language>,
    /// The function, and the line that it is at.
    pub function: Option<Function>,
}

impl Tracer<'_> {
    /// Whether frames that interpreters run are followed.
    pub fn walks_interpreters(&self) -> bool {
        let rodata = &self.skel.maps.rodata_data;
        rodata
            .as_ref()
            .is_some_and(|rodata| rodata.walk_interpreters)
    }

    /// Where in a file the interpreter that it holds ends code, in bytes, if its frames are followed and that is known.
    pub fn code_end(&self, file: FileId) -> Option<u64> {
        let row = self.tables.interpreter_row(file);
        let interpreter = self.tables.interpreters().get(row.into())?;
        interpreter.code_end.filter(|_| self.walks_interpreters())
    }

    /// Watches where the interpreter that a file holds ends code, in the one process that is traced: what is known of code
    /// need not be looked at again until some has ended. A file without one is no error.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn watch_code_ends(&mut self, file: FileId, path: &Path, pid: u32) -> Result<()> {
        let Some(offset) = self.code_end(file) else {
            return Ok(());
        };
        let programs = &self.skel.progs;
        self.guarded(Some(pid), || {
            let link = attach::attach_code_end(programs, pid, path, offset)?;
            Ok(vec![link])
        })?;
        let row = self.tables.interpreter_row(file);
        let interpreters = self.tables.interpreters_mut();
        interpreters.watched.insert(row);
        interpreters.publish(row)
    }

    /// Whether a file, given by device and inode, holds an interpreter whose frames are followed.
    pub fn is_interpreter(&self, file: FileId) -> bool {
        self.tables.is_interpreter(file)
    }

    /// The languages whose interpreters were found so far.
    pub fn languages(&self) -> Vec<Language> {
        let mut languages: Vec<Language> = self
            .tables
            .interpreters()
            .rows
            .iter()
            .flatten()
            .map(|interpreter| interpreter.language)
            .collect();
        languages.dedup();
        languages
    }

    /// Takes the interpreters that were found since the last time and whose frames are not followed: where, which, and
    /// why.
    pub fn take_refused_interpreters(&mut self) -> Vec<String> {
        self.tables.take_refused()
    }

    /// Names a frame that an interpreter runs.
    ///
    /// # Errors
    /// Fails when what was kept of its code can't be read.
    pub fn name_interpreted(&mut self, frame: InterpretedFrame) -> Result<NamedFrame> {
        let known = match self.code_names.0.get(&frame.code) {
            Some(known) => known.clone(),
            None => {
                let known = self.read_code(frame.code)?.map(Rc::new);
                self.code_names.0.insert(frame.code, known.clone());
                known
            }
        };
        Ok(NamedFrame {
            language: known.as_ref().map(|known| known.interpreter.language),
            function: known.map(|known| function(&known.interpreter, &known.code, frame.position)),
        })
    }

    fn read_code(&self, number: u32) -> Result<Option<KnownCode>> {
        let Some(head) = self.read_piece(number, 0)? else {
            return Ok(None);
        };
        let Ok(head) = plain::from_bytes::<code_head>(&head) else {
            return Ok(None);
        };
        let Some(interpreter) = self.tables.interpreters().get(head.interpreter) else {
            return Ok(None);
        };
        let mut code = KeptCode {
            first_line: head.first_line,
            name: text(head.name, &head.name_bytes, false),
            file: text(head.file, &head.file_bytes, true),
            ..KeptCode::default()
        };
        let wanted = head.lines_bytes as usize;
        for piece in 1.. {
            if code.lines.len() >= wanted {
                break;
            }
            let Some(bytes) = self.read_piece(number, piece)? else {
                break;
            };
            code.lines.extend(bytes);
        }
        code.has_all_lines = code.lines.len() >= wanted && wanted < MOST_LINES;
        code.lines.truncate(wanted);
        Ok(Some(KnownCode {
            interpreter: interpreter.clone(),
            code,
        }))
    }

    fn read_piece(&self, code: u32, piece: u32) -> Result<Option<Vec<u8>>> {
        self.skel
            .maps
            .code_pieces
            .lookup(&piece_key(code, piece), MapFlags::ANY)
            .context("failed to read what interpreted code is called")
    }

    /// Stacks that lack frames of an interpreter's so far, and why.
    pub fn interpreted_losses(&self) -> Vec<(u64, &'static str)> {
        let lost = self.skel.maps.bss_data.as_deref();
        let lost = lost.map(|data| data.interpreted_lost).unwrap_or_default();
        let reason = |loss: interpreted_loss| match loss {
            interpreted_loss::INTERPRETED_NO_THREAD => "whose thread's state was not found",
            interpreted_loss::INTERPRETED_UNREADABLE => "with frames or code that can't be read",
            interpreted_loss::INTERPRETED_NO_CODE => "with frames of what is no code",
            interpreted_loss::INTERPRETED_NO_ROOM => "with more code than there is room for",
            _ => "with calls of the interpreter that none of its frames belongs to",
        };
        (0u32..)
            .zip(lost)
            .filter(|(_, count)| *count > 0)
            .map(|(loss, count)| (count, reason(interpreted_loss(loss))))
            .collect()
    }
}

/// Bytes of lines that are kept at the most: as many can be less than there are.
const MOST_LINES: usize = 128 * size_of::<types::code_piece>();

/// `is_end`: what was kept of a longer one is its end.
fn text(is: types::code_text, kept: &[u8], is_end: bool) -> Text {
    let width = (is.state >> 2 & 7).clamp(1, 4) as usize;
    let bytes = (is.length as usize).saturating_mul(width).min(kept.len());
    let bytes = match is_end {
        // whole characters, from the first one that is whole
        true => &kept[bytes % width..bytes],
        false => &kept[..bytes - bytes % width],
    };
    Text {
        length: is.length,
        state: is.state,
        bytes: bytes.to_vec(),
    }
}

fn piece_key(code: u32, piece: u32) -> [u8; size_of::<code_piece_key>()] {
    let mut key = [0; size_of::<code_piece_key>()];
    key[..4].copy_from_slice(&code.to_ne_bytes());
    key[4..].copy_from_slice(&piece.to_ne_bytes());
    key
}

/// Removes what was kept of the code of processes that have ended.
///
/// # Errors
/// When a map can't be read or written.
pub fn clear(
    maps: &MemleakMaps<'_>,
    names: &mut CodeNames,
    ended: &BTreeMap<u32, u64>,
) -> Result<()> {
    let mut gone = Vec::new();
    batch::for_each(&maps.code_numbers, |key: &types::code_key, number: &u32| {
        if ended.contains_key(&key.tgid) {
            gone.push((*key, *number));
        }
    })?;
    for (key, number) in gone {
        names.0.remove(&number);
        delete(&maps.code_numbers, &key_bytes(&key))?;
        for piece in 0.. {
            if !delete(&maps.code_pieces, &piece_key(number, piece))? {
                break;
            }
        }
    }
    Ok(())
}

fn key_bytes(key: &types::code_key) -> [u8; size_of::<types::code_key>()] {
    let mut bytes = [0; size_of::<types::code_key>()];
    bytes[..8].copy_from_slice(&key.code.to_ne_bytes());
    bytes[8..16].copy_from_slice(&key.fingerprint.to_ne_bytes());
    bytes[16..20].copy_from_slice(&key.tgid.to_ne_bytes());
    bytes
}

/// Whether there was something to delete.
fn delete(map: &impl libbpf_rs::MapCore, key: &[u8]) -> Result<bool> {
    match map.delete(key) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("failed to clear away the code of an ended process"),
        Ok(()) => Ok(true),
    }
}
