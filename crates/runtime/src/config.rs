//! To come.
pub struct Secret;
