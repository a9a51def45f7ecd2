//! The program as its users meet it: real processes, real sockets, real files. One binary, because
//! linking is what takes long.

mod actor;
mod api;
mod ask;
mod bad_input;
mod commands;
mod crashes;
mod described;
mod limits;
mod moments;
mod setup;
mod shapes;
mod starting;
mod stopping;
