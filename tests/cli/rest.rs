//! The REST interface on TCP: who gets in, what is refused and how, and that it is what it says it is.

use std::fs;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::sandbox::Sandbox;

/// A service that listens on a port of its own.
struct Server {
    sandbox: Sandbox,
    address: String,
    token: String,
}

/// An answer, taken apart.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Server {
    fn new(name: &str) -> Server {
        let sandbox = Sandbox::new(name);
        sandbox.ok(&["start", "--listen", "127.0.0.1:0"]);
        let status = sandbox.json(&["status"]);
        let address = status["http"]["address"].as_str().expect("it listens").to_owned();
        let token = fs::read_to_string(sandbox.store().join("api.token")).expect("a token");
        let token = token.trim().to_owned();
        Server {
            sandbox,
            address,
            token,
        }
    }

    /// A request with just these headers.
    fn bare(&self, method: &str, path: &str, headers: &[String], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).expect("the service listens");
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        // A body that is too large isn't read to its end.
        let _sent = stream.write_all(format!("{head}{body}").as_bytes());
        Answer::parse(&io::read_to_string(stream).expect("an answer"))
    }

    /// A request as it should be, with more headers.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut all = vec![
            format!("Host: {}", self.address),
            format!("Authorization: Bearer {}", self.token),
        ];
        all.extend(headers.iter().map(|header| (*header).into()));
        self.bare(method, path, &all, body)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, &["Content-Type: application/json"], body)
    }
}

impl Answer {
    fn parse(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.expect("a status"),
            head: head.to_lowercase(),
            body: body.into(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// It must be this status, told as a problem.
    fn is_problem(&self, status: u16, why: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string(), "{problem}");
        let detail = problem["detail"].as_str().expect("a sentence");
        assert!(detail.contains(why), "{detail}");
    }
}

#[test]
fn tcp_asks_for_the_stores_token_and_the_socket_does_not() {
    let server = Server::new("token");
    let file = fs::metadata(server.sandbox.store().join("api.token")).expect("a token");
    assert_eq!((file.permissions().mode() & 0o777, server.token.len()), (0o600, 64));
    let host = format!("Host: {}", server.address);
    let with = |authorization: &str| {
        let authorization = format!("Authorization: {authorization}");
        server.bare("GET", "/status", &[host.clone(), authorization], "")
    };
    let without = server.bare("GET", "/status", std::slice::from_ref(&host), "");
    without.is_problem(401, "token");
    assert_eq!(without.header("www-authenticate"), Some("bearer"));
    let wrong = server.token.replace(|digit: char| digit.is_ascii_digit(), "f");
    for wrong in [&wrong, &server.token[..63], "", &format!("{}0", server.token)] {
        with(&format!("Bearer {wrong}")).is_problem(401, "token");
    }
    with(&format!("Basic {}", server.token)).is_problem(401, "token");
    assert_eq!(with(&format!("Bearer {}", server.token)).status, 200);
    let metrics = server.bare("GET", "/metrics", std::slice::from_ref(&host), "");
    metrics.is_problem(401, "token");
    // What tells nothing of the store.
    for public in ["/healthz", "/openapi.json", "/docs/", "/docs/swagger-ui.css"] {
        let answer = server.bare("GET", public, std::slice::from_ref(&host), "");
        assert_eq!(answer.status, 200, "{public}");
    }
    assert_eq!(server.bare("GET", "/healthz", &[host], "").json()["status"], "ok");
}

#[test]
fn the_token_stays_the_same_and_one_that_others_can_read_is_not_used() {
    let server = Server::new("token-kept");
    let sandbox = &server.sandbox;
    let file = sandbox.store().join("api.token");
    let again = || {
        sandbox.ok(&["stop"]);
        sandbox.ok(&["start", "--listen", "127.0.0.1:0"]);
        sandbox.json(&["status"])["http"].clone()
    };
    again();
    assert_eq!(fs::read_to_string(&file).expect("a token").trim(), server.token);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("changed");
    let http = again();
    assert_eq!(http["address"], Value::Null);
    assert!(
        http["error"].as_str().is_some_and(|why| why.contains("api.token")),
        "{http}"
    );
}

#[test]
fn a_foreign_host_or_origin_is_refused_on_every_door() {
    let server = Server::new("foreign");
    let token = format!("Authorization: Bearer {}", server.token);
    let with = |headers: &[&str]| {
        let headers: Vec<String> = headers
            .iter()
            .map(|header| (*header).into())
            .chain([token.clone()])
            .collect();
        server.bare("GET", "/branches", &headers, "")
    };
    for host in ["localhost", "LocalHost:3000", "127.0.0.1", "[::1]:99"] {
        assert_eq!(with(&[&format!("Host: {host}")]).status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:3000", "10.0.0.1", "", "a b"] {
        with(&[&format!("Host: {host}")]).is_problem(403, "host");
    }
    with(&[]).is_problem(403, "host");
    with(&["Host: localhost", "Host: evil.example"]).is_problem(403, "host");
    assert_eq!(with(&["Host: localhost", "Origin: http://localhost:8080"]).status, 200);
    for origin in ["http://evil.example", "null", "http://localhost.evil.example"] {
        with(&["Host: localhost", &format!("Origin: {origin}")]).is_problem(403, "origin");
    }
    let socket = server
        .sandbox
        .raw("GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    Answer::parse(&socket).is_problem(403, "host");
}

#[test]
fn what_is_asked_wrongly_is_told_as_a_problem() {
    let server = Server::new("problems");
    server.get("/nothing").is_problem(404, "/nothing");
    server.get("/docs/nothing").is_problem(404, "/docs/nothing");
    server.get("/branches/none").is_problem(404, "none");
    server.get("/branches/..").is_problem(400, "..");
    server.get("/branches/%FF").is_problem(400, "UTF-8");
    server.get("/jobs/x").is_problem(400, "job");
    server.get("/snapshots?colour=red").is_problem(400, "colour");
    let wrong_method = server.ask("DELETE", "/status", &[], "");
    wrong_method.is_problem(405, "DELETE");
    assert_eq!(wrong_method.header("allow"), Some("get,head"));
    let new = r#"{"name":"a","start":"empty"}"#;
    server
        .ask("POST", "/branches", &[], new)
        .is_problem(415, "Content-Type");
    server
        .ask("POST", "/branches", &["Content-Type: text/plain"], new)
        .is_problem(415, "Content-Type");
    let large = format!(r#"{{"name":"{}"}}"#, "a".repeat(65 * 1024));
    server.post("/branches", &large).is_problem(413, "");
    server.post("/branches", "{").is_problem(400, "");
    server
        .post("/branches", r#"{"name":"-a","start":"empty"}"#)
        .is_problem(400, "-a");
    assert_eq!(server.get("/branches").json(), Value::Array(vec![]));
    let made = server.post("/branches", new);
    assert_eq!((made.status, &made.json()["name"]), (201, &"a".into()));
    server.post("/branches", new).is_problem(409, "a");
    let gone = server.ask("DELETE", "/branches/a", &[], "");
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
}

/// Every operation of the description; `{…}` in its path is something that isn't there.
fn operations(server: &Server) -> Vec<(String, String)> {
    let api = server.get("/openapi.json").json();
    let paths = api["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&String, &Value)| {
        let methods: Vec<String> = item.as_object().expect("an item").keys().cloned().collect();
        let path = path.clone();
        methods.into_iter().map(move |method| (path.clone(), method))
    };
    paths.iter().flat_map(of_path).collect()
}

#[test]
fn nothing_changes_by_get_and_the_description_has_every_route_and_method() {
    let server = Server::new("described");
    server.post("/branches", r#"{"name":"x","start":"empty"}"#);
    let before = server.get("/branches").body;
    let operations = operations(&server);
    let mut paths: Vec<&str> = operations.iter().map(|(path, _)| path.as_str()).collect();
    paths.dedup();
    let expected = [
        "/branches",
        "/branches/{name}",
        "/branches/{name}/checkout",
        "/check",
        "/healthz",
        "/jobs",
        "/jobs/{id}",
        "/jobs/{id}/events",
        "/metrics",
        "/mounts",
        "/pgs",
        "/pgs/{name}",
        "/pgs/{name}/actions",
        "/pgs/{name}/log",
        "/schedules",
        "/schedules/{name}",
        "/snapshots",
        "/snapshots/{name}",
        "/snapshots/{name}/peeks",
        "/status",
        "/stop",
        "/storages",
        "/storages/{name}",
        "/upgrade",
    ];
    assert_eq!(paths, expected);
    for path in paths {
        let real = path.replace("{name}", "x").replace("{id}", "1");
        // No resource has this method, so each tells those that it has.
        let refused = server.ask("OPTIONS", &real, &[], "");
        refused.is_problem(405, "OPTIONS");
        let mut allowed: Vec<&str> = refused.header("allow").expect("methods").split(',').collect();
        allowed.retain(|method| *method != "head");
        allowed.sort_unstable();
        let described: Vec<&str> = operations
            .iter()
            .filter(|(of, _)| of == path)
            .map(|(_, method)| method.as_str())
            .collect();
        assert_eq!(allowed, described, "{path}");
        if !described.contains(&"get") {
            server.get(&real).is_problem(405, "GET");
        } else if !path.ends_with("/events") {
            server.get(&real);
        }
    }
    assert_eq!(server.get("/branches").body, before);
    assert_eq!(server.get("/healthz").status, 200, "it still runs");
}

#[test]
fn the_description_is_sound() {
    let server = Server::new("openapi");
    let api = server.get("/openapi.json").json();
    assert!(
        api["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1")),
        "{}",
        api["openapi"]
    );
    assert_eq!(api["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let mut ids = Vec::new();
    for (path, method) in operations(&server) {
        let operation = &api["paths"][&path][&method];
        ids.push(operation["operationId"].as_str().expect("an id").to_owned());
        let statuses = operation["responses"].as_object().expect("responses");
        assert!(statuses.keys().any(|status| status.starts_with('2')), "{method} {path}");
        assert!(statuses.contains_key("403"), "{method} {path}");
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id of each");
    let text = api.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().expect("a reference");
        assert!(api.pointer(pointer).is_some(), "{pointer} is not there");
    }
}

#[test]
fn metrics_tell_the_state_and_the_requests() {
    let server = Server::new("metrics");
    server.post("/branches", r#"{"name":"a","start":"empty"}"#);
    server.post("/snapshots", r#"{"name":"a@s"}"#);
    server.get("/branches/none");
    let answer = server.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain"))
    );
    let has = |line: &str| {
        assert!(
            answer.body.lines().any(|told| told == line),
            "{line} in\n{}",
            answer.body
        )
    };
    has("zenith_branches 1");
    has("zenith_snapshots 1");
    has("zenith_mounts 0");
    has(r#"zenith_pgs{status="running"} 0"#);
    has(r#"zenith_http_requests_total{method="POST",route="/branches",status="201"} 1"#);
    has(r#"zenith_http_requests_total{method="GET",route="/branches/{name}",status="404"} 1"#);
    for name in [
        "zenith_storage_used_bytes{storage=\"local\"} ",
        "zenith_uptime_seconds ",
        "zenith_build_info{",
    ] {
        assert!(answer.body.contains(name), "{name}");
    }
    let memory = answer
        .body
        .lines()
        .find_map(|line| line.strip_prefix("zenith_resident_memory_bytes "));
    let memory: u64 = memory.and_then(|bytes| bytes.parse().ok()).expect("bytes");
    assert!(memory > 1 << 20, "{memory}");
}

#[test]
fn a_port_that_is_taken_leaves_the_service_without_tcp() {
    let first = Server::new("port-first");
    let second = Sandbox::new("port-second");
    second.ok(&["start", "--listen", &first.address]);
    let http = second.json(&["status"])["http"].clone();
    assert_eq!(
        (&http["address"], http["listen"].as_str()),
        (&Value::Null, Some(first.address.as_str()))
    );
    assert!(
        http["error"].as_str().is_some_and(|why| why.contains("in use")),
        "{http}"
    );
    assert!(
        second.ok(&["status"]).contains("not available: "),
        "people are told, too"
    );
    let log = fs::read_to_string(second.store().join("service.log")).expect("readable");
    assert!(log.contains("no HTTP on"), "{log}");
    second.refused(4, &["start", "--listen", "none"], "told to listen on", "zenith stop");
    second.ok(&["stop"]);
    second.ok(&["start", "--listen", "none"]);
    let http = second.json(&["status"])["http"].clone();
    assert_eq!((&http["address"], &http["error"]), (&Value::Null, &Value::Null));
}

#[test]
fn only_this_machine_is_listened_to() {
    let sandbox = Sandbox::new("listen");
    for mode in [&["start"][..], &["start", "--foreground"]] {
        let listen = |address| [mode, &["--listen", address]].concat();
        sandbox.refused(4, &listen("0.0.0.0:0"), "other machines", "127.0.0.1");
        sandbox.refused(2, &listen("3000"), "no address", "ADDRESS:PORT");
    }
    assert!(!sandbox.store().join("api.token").exists());
}

#[test]
fn a_job_is_answered_with_202_and_its_result_with_the_status_of_its_kind() {
    let server = Server::new("async");
    let delete = |headers: &[&str]| server.ask("DELETE", "/pgs/none", headers, "");
    delete(&[]).is_problem(404, "none");
    let begun = delete(&["Prefer: respond-async"]);
    assert_eq!(
        (begun.status, begun.json()["what"].as_str()),
        (202, Some("destroy none"))
    );
    let events = server.get(&format!("/jobs/{}/events", begun.json()["id"]));
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    assert!(events.body.contains("event: failed"), "{}", events.body);
    let job = server.get(&format!("/jobs/{}", begun.json()["id"])).json();
    assert_eq!(
        (&job["state"], &job["error"]["status"]),
        (&"failed".into(), &404.into())
    );
}
