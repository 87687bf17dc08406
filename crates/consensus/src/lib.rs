//! Replicated logs: many Raft groups over one shared durable log.
