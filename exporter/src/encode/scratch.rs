//! What the measuring pass leaves for the writing pass, so that nothing is measured twice.
//!
//! Only what is costly to measure again is kept: the content lengths of arrays, maps, events and links, and texts that exist
//! only as a rendering. Both passes visit a message's fields in the same order, so plain lists are enough.

/// Lengths and texts, in the order in which both passes visit them.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lengths: Vec<usize>,
    texts: Vec<String>,
}

/// A place in a [`Scratch`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    length: usize,
    text: usize,
}

/// Reads a [`Scratch`] from a [`Mark`] on.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    lengths: std::slice::Iter<'a, usize>,
    texts: std::slice::Iter<'a, String>,
}

// ===== impl Scratch =====

impl Scratch {
    pub(super) fn mark(&self) -> Mark {
        Mark {
            length: self.lengths.len(),
            text: self.texts.len(),
        }
    }

    pub(super) fn replay(&self, from: Mark) -> Replay<'_> {
        Replay {
            lengths: self.lengths.get(from.length..).unwrap_or_default().iter(),
            texts: self.texts.get(from.text..).unwrap_or_default().iter(),
        }
    }

    /// Keeps the length that `measure` finds, ahead of everything that `measure` keeps itself.
    #[inline]
    pub(super) fn length(&mut self, measure: impl FnOnce(&mut Self) -> usize) -> usize {
        let place = self.lengths.len();
        self.lengths.push(0);
        let length = measure(self);
        self.lengths[place] = length;
        length
    }

    /// Keeps a text and returns its length.
    pub(super) fn text(&mut self, text: String) -> usize {
        let length = text.len();
        self.texts.push(text);
        length
    }
}

// ===== impl Replay =====

impl<'a> Replay<'a> {
    #[inline]
    pub(super) fn length(&mut self) -> usize {
        self.lengths.next().copied().unwrap_or_default()
    }

    /// The length of the text that [`Self::text`] returns next.
    pub(super) fn text_len(&self) -> usize {
        self.texts.as_slice().first().map_or(0, String::len)
    }

    pub(super) fn text(&mut self) -> &'a str {
        self.texts.next().map_or("", String::as_str)
    }
}
