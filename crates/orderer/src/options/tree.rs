//! The tree of a configuration file.
