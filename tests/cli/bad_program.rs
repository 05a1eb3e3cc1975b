//! A program that says it is zenith and does not serve. What it does instead its own name says: `exit-N`, `abort`, `hang`, or `ready`, which says
//! that it is up and ends then.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::{env, process, thread};

fn main() {
    if env::args().nth(1).as_deref() == Some("version") {
        return println!("zenith 9.9");
    }
    let program = env::current_exe().expect("a program");
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
    match name.split_once('-').map_or((name, ""), |parts| parts) {
        ("exit", code) => process::exit(code.parse().expect("a number")),
        ("hang", _) => loop {
            thread::park();
        },
        ("ready", _) => {
            tell_ready();
            process::exit(1);
        }
        _ => process::abort(),
    }
}

fn tell_ready() {
    let name = env::var("NOTIFY_SOCKET").expect("a keeper");
    let address = SocketAddr::from_abstract_name(name.trim_start_matches('@')).expect("an address");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.send_to_addr(b"READY=1", &address).expect("told");
}
