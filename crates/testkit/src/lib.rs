//! What tests need around the program: servers, certificates, clusters of real processes.

pub mod hostile;
pub mod postgres;
pub mod softhsm;
