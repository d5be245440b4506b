/// A model that was read from a folder, and how well it and the folder's tensors fit each other.
#[derive(Clone, Debug)]
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// Tensors of the checkpoint that the model has no use for, sorted.
    pub unexpected: Vec<String>,
    /// Parameters that start at random because the caller asked for it.
    pub fresh: Vec<String>,
}
