//! Telling somebody how far a long job is.

/// Whoever is told. Nothing that it does changes what is built.
pub trait Progress {
    /// The next stage begins: a few words, such as "unpack".
    fn stage(&self, name: &str);
    /// How many steps the present stage has, where that is known; about as many will do.
    fn total(&self, steps: u64);
    /// One more piece of the present stage is done, such as a file.
    fn step(&self, piece: &str);
    /// So many steps of the present stage are done.
    fn reached(&self, steps: u64);
}
