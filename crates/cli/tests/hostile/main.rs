//! An orderer among clients that mean it ill: slow, silent, too large, too many, speaking nonsense on every port.
//!
//! While they do what they do, somebody else is served soon; the process holds no more memory than it should; nothing in it
//! panics. [`Victim`] is the orderer and what is demanded of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod frames;
#[path = "../orderer/support/mod.rs"]
mod support;
mod victim;

mod floods;
mod nonsense;
mod slow;
