//! The lines of the recording file as serde sees them; docs/recording.md describes each for users.
//! Names and meanings here are a published format: change them only with a new version.

use serde::{Deserialize, Serialize};

use crate::model::losses::Losses;
use crate::model::snapshot::Look;

/// What the first line's `format` says.
pub const FORMAT: &str = "memleak-recording";

/// The version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// One line of the file, as it is written.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// Always first, once.
    Header(HeaderLine),
    /// An object that code belongs to; before the first stack that names it.
    Module(ModuleLine),
    /// A process, where there can be several; again when it is called otherwise.
    Process(ProcessLine),
    /// A stack; before the first snapshot that names it.
    Stack(StackLine),
    /// The figures of one moment.
    Snapshot(SnapshotLine),
}

/// What a line is; read before the rest, which then needs no detour through a generic value.
#[derive(Debug, Deserialize)]
pub struct Kind {
    #[serde(rename = "type")]
    pub kind: String,
}

/// Who recorded what, where and how.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HeaderLine {
    pub format: String,
    pub version: u32,
    #[serde(default)]
    pub tool: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub host: HostPart,
    #[serde(default)]
    pub target: TargetPart,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<TimePart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u64>,
}

/// A machine.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPart {
    pub name: String,
    pub kernel: String,
    pub machine: String,
}

/// What was traced.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetPart {
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub command: Vec<String>,
}

/// A wall-clock time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TimePart {
    pub unix_ns: i64,
    #[serde(default)]
    pub utc_offset_s: i32,
}

/// An object that code belongs to.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModuleLine {
    pub id: u32,
    pub path: String,
    /// Lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
}

/// What a process is called.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessLine {
    pub tgid: u32,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ns: Option<u64>,
}

/// A stack, innermost frame first.
#[derive(Debug, Serialize, Deserialize)]
pub struct StackLine {
    pub id: u32,
    pub tgid: u32,
    pub class: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<String>,
    /// `null` when the stack could not be stored.
    pub frames: Option<Vec<FramePart>>,
}

/// One frame. Addresses are strings, as many JSON readers round numbers above 2^53.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FramePart {
    pub address: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_offset: Option<Hex>,
    /// The language that an interpreter runs, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub symbol_offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inlined: Vec<InlinedPart>,
}

/// A function inlined at a frame's call site.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct InlinedPart {
    pub symbol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// The figures of one moment: columns of equal length, one place per stack.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SnapshotLine {
    pub unix_ns: i64,
    #[serde(default)]
    pub utc_offset_s: i32,
    pub elapsed_ns: u64,
    #[serde(default)]
    pub reason: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub estimated: bool,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub complete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headroom: Option<HeadroomPart>,
    #[serde(default)]
    pub losses: Losses,
    pub stack: Vec<u32>,
    pub bytes: Vec<u64>,
    pub count: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oldest_ns: Vec<Option<u64>>,
    /// Bytes and blocks lost, lost indirectly, undecided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<[u64; 6]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<Box<Look>>,
}

/// What the target can still take.
#[derive(Debug, Serialize, Deserialize)]
pub struct HeadroomPart {
    pub bytes: u64,
    pub limit: String,
}

/// A number that is written as `"0x…"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hex, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u64::from_str_radix(digits, 16)
            .map(Hex)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is no hexadecimal number")))
    }
}

/// The bytes that hexadecimal digits stand for; `None` when they are not that.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    digits
        .chunks_exact(2)
        .map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect()
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_true(value: &bool) -> bool {
    *value
}

fn yes() -> bool {
    true
}
