//! The `zenith` program from outside: each test has a store and a service of its own.

mod bad_input;
mod check;
mod command_line;
mod commands;
mod manager;
mod packs;
#[path = "../support/service.rs"]
mod processes;
mod rest;
mod sandbox;
mod schedules;
mod service;
mod storages;
