//! A bounded cache: the entries that were set most recently, in two generations.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Keeps between `capacity` and twice as many entries. When the younger generation is full, it becomes the
/// older one, and the entries of that are dropped. So an entry costs one insert and no list of ages.
#[derive(Debug)]
pub(crate) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Hash + Eq, V: Copy> Generations<K, V> {
    /// An empty cache. A capacity of 0 counts as 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(1) }
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    pub(crate) fn set<Q: Hash + Eq + ToOwned<Owned = K> + ?Sized>(&mut self, key: &Q, value: V)
    where
        K: Borrow<Q>,
    {
        if let Some(known) = self.young.get_mut(key) {
            *known = value;
            return;
        }
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key.to_owned(), value);
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_entries_take_the_room_of_two_generations() {
        let mut cache = Generations::new(100);
        for n in 0..1_000_000 {
            cache.set(&n, n);
            cache.set(&n, n + 1);
        }
        assert_eq!(cache.young.len() + cache.old.len(), 200);
        assert_eq!(cache.get(&999_900), Some(999_901));
        assert_eq!(cache.get(&0), None);
    }

    #[test]
    fn an_entry_in_both_generations_answers_with_the_newer_value() {
        let mut cache = Generations::new(1);
        for (key, value) in [(1, 1), (2, 2), (1, 3)] {
            cache.set(&key, value);
        }
        assert_eq!(cache.get(&1), Some(3));
    }

    #[test]
    fn a_removed_entry_is_in_neither_generation() {
        let mut cache = Generations::new(1);
        for (key, value) in [(1, 1), (2, 2), (1, 3)] {
            cache.set(&key, value);
        }
        cache.remove(&1);
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(2)));
        cache.clear();
        assert_eq!(cache.get(&2), None);
    }
}
