//! The program as its users meet it: real processes, real sockets, real files. One binary, because
//! linking is what takes long.

mod api;
mod bad_input;
mod crashes;
mod limits;
mod moments;
mod setup;
mod starting;
