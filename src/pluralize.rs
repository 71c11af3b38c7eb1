//! A number with what it counts, as people write it.

/// `1 event`, `2 events`. For nouns that take an `s`.
pub fn pluralize(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::pluralize;

    #[test]
    fn one_is_told_in_the_singular_and_every_other_number_in_the_plural() {
        assert_eq!(pluralize(0, "event"), "0 events");
        assert_eq!(pluralize(1, "parked event"), "1 parked event");
        assert_eq!(pluralize(2, "event"), "2 events");
    }
}
