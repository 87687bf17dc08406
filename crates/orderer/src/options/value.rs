//! Values as Go writes them.
