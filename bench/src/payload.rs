//! What the jobs carry: 1 KiB of text, no two alike, so that nothing can be answered from a cache.

const BYTES: usize = 1024;
const FILLER: &str = "the quick brown fox jumps over the lazy dog and runs on along the river ";

/// The prompt with this number: plain ASCII with nothing that JSON would escape.
pub(crate) fn prompt(number: usize) -> String {
    let mut text = format!("prompt {number:010} ");
    while text.len() < BYTES {
        let missing = BYTES - text.len();
        text.push_str(&FILLER[..missing.min(FILLER.len())]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_one_kibibyte_and_differ() {
        assert_eq!(prompt(0).len(), BYTES);
        assert_ne!(prompt(0), prompt(1));
    }
}
