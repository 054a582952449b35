//! Names for the frames of a recording that had none when it was made, from the unstripped files.
//! How a file is found and read is the resolver's business.

use std::collections::HashMap;

use crate::model::report::{Frame, Function};
use crate::model::run::Recording;

/// What a place in a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The function that was compiled to hold it.
    pub function: Function,
    /// Bytes from the function's first to the place.
    pub function_offset: u64,
    /// Functions inlined there, innermost first.
    pub inlined: Vec<Function>,
}

/// Looks places up in files that it knows by their build id.
pub trait Resolver {
    /// The place before the return address at `file_offset`, in the file whose build id is `build_id`; `None` when
    /// there is no such file, or it says nothing of that place.
    fn resolve(&mut self, build_id: &[u8], file_offset: u64) -> Option<Place>;
}

/// Names frames without a function, or without its place in the source, whose module has a build id. Returns how many got
/// their first name, and how many have none still.
pub fn resolve(recording: &mut Recording, resolver: &mut dyn Resolver) -> (usize, usize) {
    let mut known: HashMap<(Vec<u8>, u64), Option<Place>> = HashMap::new();
    let (mut named, mut unnamed) = (0, 0);
    for frame in recording
        .stacks
        .iter_mut()
        .flat_map(|stack| stack.frames.iter_mut().flatten())
    {
        let has_name = frame.function.is_some();
        if has_name && is_placed(frame) {
            continue;
        }
        let place = key(frame).and_then(|key| {
            known
                .entry(key)
                .or_insert_with_key(|(build_id, offset)| resolver.resolve(build_id, *offset))
                .clone()
        });
        match place {
            Some(place) if !has_name || place.function.location.is_some() => {
                name(frame, place);
                named += usize::from(!has_name);
            }
            _ => unnamed += usize::from(!has_name),
        }
    }
    (named, unnamed)
}

/// Whether it is known where in the source a frame is.
fn is_placed(frame: &Frame) -> bool {
    let function = frame.function.as_ref();
    function.is_some_and(|function| function.location.is_some())
}

fn key(frame: &Frame) -> Option<(Vec<u8>, u64)> {
    Some((frame.module.as_ref()?.build_id.clone()?, frame.file_offset?))
}

fn name(frame: &mut Frame, place: Place) {
    frame.function = Some(place.function);
    frame.function_offset = place.function_offset;
    frame.inlined = place.inlined;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::report::Module;
    use crate::model::run::StackRecord;
    use crate::model::snapshot::Class;

    struct Fake(usize);

    impl Resolver for Fake {
        fn resolve(&mut self, build_id: &[u8], file_offset: u64) -> Option<Place> {
            self.0 += 1;
            let function = Function {
                name: format!("at_{file_offset:x}"),
                location: None,
            };
            (build_id == [1, 2]).then_some(Place {
                function,
                function_offset: 3,
                inlined: Vec::new(),
            })
        }
    }

    #[test]
    fn frames_without_names_are_looked_up_once_each() {
        let frame = |build_id: Option<Vec<u8>>, offset| Frame {
            module: Some(Arc::new(Module {
                path: "x".into(),
                build_id,
            })),
            file_offset: Some(offset),
            ..Frame::default()
        };
        let known = Frame {
            function: Some(Function {
                name: "f".into(),
                location: None,
            }),
            ..frame(Some(vec![1, 2]), 9)
        };
        let frames = vec![
            frame(Some(vec![1, 2]), 16),
            frame(Some(vec![1, 2]), 16),
            frame(Some(vec![9]), 16),
            frame(None, 16),
            known,
        ];
        let stack = StackRecord {
            allocator: None,
            tgid: 0,
            class: Class::Heap,
            frames: Some(frames),
        };
        let mut recording = Recording {
            stacks: vec![stack],
            ..Recording::default()
        };
        let mut fake = Fake(0);
        assert_eq!(resolve(&mut recording, &mut fake), (2, 2));
        // the one that has a name is asked about for its place in the source
        assert_eq!(fake.0, 3);
        let names: Vec<Option<String>> = recording.stacks[0]
            .frames
            .iter()
            .flatten()
            .map(|frame| {
                frame
                    .function
                    .as_ref()
                    .map(|function| function.name.clone())
            })
            .collect();
        assert_eq!(
            names,
            [
                Some("at_10".into()),
                Some("at_10".into()),
                None,
                None,
                Some("f".into())
            ]
        );
    }
}
