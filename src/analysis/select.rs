//! Which stacks the user wants to see: by a function or a module that they pass through, or a slab cache.
//! Patterns are globs: `*` stands for anything, `?` for one character.

use wildmatch::WildMatch;

use crate::model::report::Frame;

/// What `kmalloc` allocates from, whichever of its caches that is.
pub const KMALLOC: &str = "kmalloc";

/// The patterns; what is not given does not limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// A frame's function, or one inlined in it.
    pub function: Option<WildMatch>,
    /// A frame's module: its file name, or the name that brackets enclose.
    pub module: Option<WildMatch>,
    /// The slab cache.
    pub cache: Option<WildMatch>,
}

impl Selection {
    /// Whether all stacks are wanted.
    pub fn is_empty(&self) -> bool {
        self.function.is_none() && self.module.is_none() && self.cache.is_none()
    }

    /// Whether a stack is wanted. One that was not stored passes through nothing.
    pub fn wants(&self, frames: &[Frame], cache: Option<&str>) -> bool {
        let any = |pattern: &Option<WildMatch>, of: fn(&WildMatch, &Frame) -> bool| {
            pattern
                .as_ref()
                .is_none_or(|pattern| frames.iter().any(|frame| of(pattern, frame)))
        };
        any(&self.function, passes_function)
            && any(&self.module, passes_module)
            && self
                .cache
                .as_ref()
                .is_none_or(|pattern| cache.is_some_and(|cache| pattern.matches(cache)))
    }
}

fn passes_function(pattern: &WildMatch, frame: &Frame) -> bool {
    frame
        .function
        .iter()
        .chain(&frame.inlined)
        .any(|function| pattern.matches(&function.name))
}

fn passes_module(pattern: &WildMatch, frame: &Frame) -> bool {
    frame.module.as_ref().is_some_and(|module| {
        let name = module.name();
        pattern.matches(&name) || pattern.matches(name.trim_matches(['[', ']']))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::report::{Function, Module};

    fn frame(function: &str, module: &str) -> Frame {
        Frame {
            module: Some(Arc::new(Module {
                path: module.into(),
                build_id: None,
            })),
            function: Some(Function {
                name: function.into(),
                location: None,
            }),
            ..Frame::default()
        }
    }

    fn stack() -> Vec<Frame> {
        vec![
            frame("ext4_alloc_inode", "[ext4]"),
            frame("do_open", "[kernel]"),
            frame("main", "/usr/bin/prog"),
        ]
    }

    fn pattern(text: &str) -> Option<WildMatch> {
        Some(WildMatch::new(text))
    }

    #[test]
    fn functions_and_modules_of_any_frame_match_whole() {
        for (function, module, wanted) in [
            (None, None, true),
            (pattern("ext4_*"), None, true),
            (pattern("ext4"), None, false),
            (pattern("do_ope?"), pattern("kernel"), true),
            (None, pattern("[ext4]"), true),
            (None, pattern("prog"), true),
            (None, pattern("xfs"), false),
            (pattern("do_open"), pattern("xfs"), false),
        ] {
            let selection = Selection {
                function,
                module,
                cache: None,
            };
            assert_eq!(selection.wants(&stack(), None), wanted, "{selection:?}");
            assert_eq!(selection.wants(&[], None), selection.is_empty());
        }
    }

    #[test]
    fn a_cache_is_wanted_only_where_it_is_known() {
        let selection = Selection {
            cache: pattern("*inode*"),
            ..Selection::default()
        };
        assert!(selection.wants(&stack(), Some("ext4_inode_cache")));
        assert!(!selection.wants(&stack(), Some("dentry")));
        assert!(!selection.wants(&stack(), None));
    }
}
