//! A program that says it is zenith and does not serve: it ends as its own name says, `exit-N` or `abort`.

use std::{env, process};

fn main() {
    if env::args().nth(1).as_deref() == Some("version") {
        return println!("zenith 9.9");
    }
    let program = env::current_exe().expect("a program");
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
    match name.strip_prefix("exit-").and_then(|code| code.parse().ok()) {
        Some(code) => process::exit(code),
        None => process::abort(),
    }
}
