//! Branches that a database itself prepares. [`name`] decides how they are called there.

pub mod name;
