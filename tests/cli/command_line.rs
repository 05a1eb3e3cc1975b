//! The command line itself, whatever the command: forms of answers and errors, colours, help, trying without doing.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, assert_refused, text};

const ESC: char = '\u{1b}';

#[test]
fn programs_get_errors_as_json_or_yaml_with_the_same_exit_code() {
    let sandbox = Sandbox::new("error-forms");
    sandbox.ok(&["branch", "main", "--empty"]);
    for (code, arguments) in [
        (2, &["branch", "--nonsense"] as &[&str]),
        (2, &["pg"]),
        (2, &["branch", "a/b"]),
        (3, &["mount", "none", "m"]),
        (4, &["branch", "main", "--empty"]),
    ] {
        let error = json_error(&sandbox.run(&[arguments, &["--json"]].concat()));
        assert_eq!(error["exit_code"], code, "{error}");
        assert!(error["error"].is_string() && error["hint"].is_string(), "{error}");
        let yaml = sandbox.run(&[arguments, &["-o", "yaml"]].concat());
        assert_eq!(yaml.status.code(), Some(code), "{yaml:?}");
        let said = text(&yaml.stderr);
        assert!(
            said.starts_with("error: ") && said.contains(&format!("\nexit_code: {code}\n")),
            "{said}"
        );
    }
}

/// The one JSON object on stderr, with the exit code that the command had.
fn json_error(output: &Output) -> Value {
    let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert_eq!(error["exit_code"].as_i64(), output.status.code().map(i64::from));
    assert!(output.stdout.is_empty(), "{output:?}");
    error
}

#[test]
fn without_a_command_there_is_help_and_exit_code_2() {
    let sandbox = Sandbox::bare("no-command");
    for arguments in [&[] as &[&str], &["pg"], &["snapshot"], &["storage"]] {
        let output = sandbox.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("\nCommands:\n"), "{output:?}");
    }
}

#[test]
fn quiet_commands_say_nothing_of_what_they_did_but_answer_what_was_asked() {
    let sandbox = Sandbox::bare("quiet");
    for doing in [
        &["init", "--empty", "-q"] as &[&str],
        &["branch", "main", "--empty", "-q"],
        &["snapshot", "create", "main@s", "-q"],
        &["mount", "main", "m", "--create", "-q"],
        &["umount", "m", "-q"],
        &["snapshot", "destroy", "main@s", "-yq"],
    ] {
        assert_eq!(sandbox.ok(doing), "", "{doing:?}");
    }
    assert!(sandbox.ok(&["branch", "-q"]).contains("main"));
    assert_eq!(sandbox.json(&["branch", "test", "-q"])["name"], "test");
    assert_eq!(sandbox.json(&["branch", "-d", "test", "-yq"]), json!({}));
}

#[test]
fn verbose_commands_tell_each_request() {
    let sandbox = Sandbox::new("verbose");
    sandbox.ok(&["start"]);
    let output = sandbox.run(&["branch", "-v", "--json"]);
    let said = text(&output.stderr);
    let words: Vec<&str> = said.split_whitespace().collect();
    let ["GET", "/branches", "200", time, "ms"] = words.as_slice() else {
        panic!("not one request: {said}");
    };
    assert!(time.parse::<f64>().is_ok_and(|time| time > 0.0), "{time}");
    assert_eq!(text(&output.stdout), "[]\n");
    let refused = sandbox.run(&["snapshot", "show", "main@x", "-v"]);
    assert!(
        text(&refused.stderr).starts_with("GET /snapshots/main%40x 404 "),
        "{refused:?}"
    );
    sandbox.ok(&["stop"]);
    let alone = text(&sandbox.run(&["status", "-v"]).stderr);
    assert!(alone.starts_with("GET /status no answer "), "{alone}");
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them_never_for_programs() {
    let sandbox = Sandbox::new("colours");
    sandbox.ok(&["branch", "main", "--empty"]);
    let coloured = |arguments: &[&str]| {
        let output = sandbox.run(arguments);
        text(&[output.stdout, output.stderr].concat()).contains(ESC)
    };
    for plain in [
        &["branch"] as &[&str],
        &["--help"],
        &["branch", "--nonsense"],
        &["mount", "none", "m"],
    ] {
        assert!(!coloured(plain), "{plain:?}");
        assert!(coloured(&[&["--color=always"], plain].concat()), "{plain:?}");
    }
    for program in [
        &["branch", "--json"] as &[&str],
        &["branch", "-o", "yaml"],
        &["mount", "none", "m", "--json"],
    ] {
        assert!(!coloured(&[program, &["--color=always"]].concat()), "{program:?}");
    }
    let on_terminal =
        |arguments: &str, environment: &[(&str, &str)]| on_terminal(&sandbox, arguments, environment, "").contains(ESC);
    assert!(on_terminal("branch", &[]));
    assert!(on_terminal("mount none m", &[]));
    assert!(!on_terminal("branch --json", &[]));
    assert!(!on_terminal("branch --color never", &[]));
    assert!(!on_terminal("--help --color=never", &[]));
    assert!(!on_terminal("branch", &[("NO_COLOR", "1")]));
    assert!(!on_terminal("branch", &[("CLICOLOR", "0")]));
    assert!(on_terminal("branch --color=always", &[("NO_COLOR", "1")]));
}

#[test]
fn a_server_that_runs_is_shown_in_green() {
    let sandbox = Sandbox::new("green");
    sandbox.ok(&["pg", "create", "-n", "shop"]);
    let lists = [
        &["pg", "list", "--color=always"] as &[&str],
        &["pg", "list"],
        &["pg", "show", "shop", "--color=always"],
    ];
    let [list, plain, shown] = lists.map(|arguments| sandbox.ok(arguments));
    sandbox.ok(&["pg", "stop", "shop"]);
    let stopped = sandbox.ok(lists[0]);
    let green = format!("{ESC}[32mrunning{ESC}[0m");
    assert!(list.contains(&green) && shown.contains(&green), "{list}{shown}");
    assert!(plain.contains("  running\n") && !plain.contains(ESC), "{plain}");
    assert!(stopped.contains("stopped") && !stopped.contains("[32m"), "{stopped}");
}

/// What a command shows on a terminal where somebody types.
fn on_terminal(sandbox: &Sandbox, arguments: &str, environment: &[(&str, &str)], typed: &str) -> String {
    let input = sandbox.path("typed");
    fs::write(&input, typed).expect("written");
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_zenith"));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm");
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        script.env_remove(variable);
    }
    script
        .env("ZENITH_DIR", sandbox.store())
        .envs(environment.iter().copied());
    script
        .current_dir(sandbox.path(""))
        .stdin(fs::File::open(input).expect("opened"));
    text(&script.output().expect("script runs").stdout)
}

#[test]
fn on_a_terminal_commands_ask_before_they_destroy() {
    let sandbox = Sandbox::new("asks");
    sandbox.ok(&["branch", "main", "--empty"]);
    let no = on_terminal(&sandbox, "branch -d main", &[], "n\n");
    assert!(
        no.contains("Delete the branch main") && no.contains("nothing was done"),
        "{no}"
    );
    assert_eq!(branches(&sandbox), 1);
    let yes = on_terminal(&sandbox, "branch -d main", &[], "y\n");
    assert!(yes.contains("branch main is deleted"), "{yes}");
    assert_eq!(branches(&sandbox), 0);
}

fn branches(sandbox: &Sandbox) -> usize {
    sandbox.json(&["branch"]).as_array().map_or(0, Vec::len)
}

#[test]
fn a_dry_run_is_refused_like_the_real_thing_and_does_nothing() {
    let sandbox = Sandbox::new("dry-run");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["snapshot", "create", "main@used"]);
    sandbox.ok(&["snapshot", "create", "main@kept", "--protect"]);
    sandbox.ok(&["snapshot", "create", "main@free"]);
    sandbox.ok(&["branch", "copy", "main@used"]);
    sandbox.ok(&["branch", "other", "--empty"]);
    sandbox.ok(&["mount", "other", "m", "--create"]);
    for refused in [
        &["snapshot", "destroy", "main@used"] as &[&str],
        &["snapshot", "destroy", "main@kept"],
        &["snapshot", "destroy", "main@none"],
        &["branch", "-d", "main"],
        &["branch", "-d", "other"],
        &["branch", "-d", "none"],
        &["storage", "detach", "local"],
        &["storage", "detach", "none"],
    ] {
        let dry = sandbox.run(&[refused, &["--dry-run"]].concat());
        let real = sandbox.run(&[refused, &["--yes"]].concat());
        assert!(!real.status.success(), "{refused:?}");
        assert_eq!((dry.status, text(&dry.stderr)), (real.status, text(&real.stderr)));
        assert!(dry.stdout.is_empty(), "{dry:?}");
    }
    for (possible, would) in [
        (
            &["snapshot", "destroy", "main@free"] as &[&str],
            "would destroy main@free\n",
        ),
        (&["branch", "-d", "copy"], "would delete the branch copy\n"),
    ] {
        assert_eq!(sandbox.ok(&[possible, &["--dry-run"]].concat()), would);
        sandbox.ok(&[possible, &["--yes"]].concat());
    }
    sandbox.refused(2, &["branch", "new", "--dry-run"], "--dry-run is for deleting", "-d");
    assert_eq!(branches(&sandbox), 2);
}

#[test]
fn a_dry_run_tells_whether_a_pg_or_its_storage_could_go() {
    let sandbox = Sandbox::new("dry-run-pg");
    let path = sandbox.path("fast");
    let option = format!("path={}", path.display());
    sandbox.ok(&["storage", "attach", "-n", "fast", "-c", &option]);
    assert_eq!(
        sandbox.ok(&["storage", "detach", "fast", "--dry-run"]),
        "would detach fast\n"
    );
    sandbox.ok(&["pg", "create", "-n", "shop", "-s", "fast", "--no-start"]);
    sandbox.refused(
        4,
        &["storage", "detach", "fast", "--dry-run"],
        "shop lies in",
        "attach it again",
    );
    sandbox.refused(4, &["branch", "-d", "shop", "--dry-run"], "shop is a pg", "pg destroy");
    assert_eq!(
        sandbox.ok(&["pg", "destroy", "shop", "--dry-run"]),
        "would destroy shop\n"
    );
    sandbox.ok(&["snapshot", "create", "shop@s", "--protect"]);
    sandbox.refused(
        4,
        &["pg", "destroy", "shop", "--dry-run"],
        "shop@s is protected",
        "--off",
    );
    sandbox.refused(
        3,
        &["pg", "destroy", "shpo", "--dry-run"],
        "no pg named shpo",
        "did you mean shop?",
    );
    sandbox.ok(&["pg", "show", "shop"]);
    let log = sandbox.json(&["pg", "logs", "shop"]);
    assert!(log["text"].is_string(), "{log}");
    let endless = json_error(&sandbox.run(&["pg", "logs", "shop", "-f", "--json"]));
    assert_eq!(endless["exit_code"], 2, "{endless}");
    sandbox.ok(&["snapshot", "protect", "shop@s", "--off"]);
    let looked_at = std::fs::read_to_string(sandbox.path("shop/.zenith/snapshot/s/PG_VERSION"));
    assert!(looked_at.is_ok(), "{looked_at:?}");
    sandbox.ok(&["pg", "destroy", "shop", "--yes"]);
}

#[test]
fn a_name_that_is_nearly_right_is_offered() {
    let sandbox = Sandbox::new("near");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["snapshot", "create", "main@before"]);
    sandbox.refused(
        3,
        &["mount", "mian", "m"],
        "no branch named mian",
        "HINT: did you mean main? the branches",
    );
    sandbox.refused(
        3,
        &["snapshot", "show", "main@befroe"],
        "no snapshot named main@befroe",
        "HINT: did you mean main@before? ",
    );
    sandbox.refused(
        3,
        &["snapshot", "show", "main@x"],
        "no snapshot named",
        "HINT: the snapshots",
    );
    sandbox.refused(
        3,
        &["storage", "show", "locla"],
        "no storage named locla",
        "HINT: did you mean local? ",
    );
    sandbox.refused(
        3,
        &["storage", "show", "x"],
        "no storage named x",
        "HINT: the storages are: local",
    );
}

#[test]
fn a_store_on_another_disk_is_found_through_a_link() {
    let sandbox = Sandbox::bare("elsewhere").with_store("disk/zenith");
    let run = |arguments: &[&str]| {
        let mut command = sandbox.command(arguments);
        command.env_remove("ZENITH_DIR").output().expect("runs")
    };
    let link = sandbox.path(".zenith");
    fs::create_dir(sandbox.path("disk")).expect("made");
    let failed = run(&["init", "--storage_dest=disk/zenith", "--", "--encoding=nonsense"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(
        link.symlink_metadata().is_err() && !sandbox.store().exists(),
        "{failed:?}"
    );
    let tmpfs = run(&["init", "--empty", "--storage_dest=/dev/shm/zenith-test-elsewhere"]);
    assert_refused(&tmpfs, 4, "can't hold a store", "ext4");
    assert!(link.symlink_metadata().is_err());
    assert!(
        run(&["init", "--empty", "--storage-dest", "disk/zenith"])
            .status
            .success()
    );
    assert_eq!(fs::read_link(&link).expect("a link"), sandbox.store());
    assert!(run(&["branch", "main", "--empty"]).status.success());
    let again = run(&["init", "--empty", "--storage_dest=disk/other"]);
    assert_refused(&again, 4, ".zenith exists already", "another directory");
    assert!(!sandbox.path("disk/other").exists());
    assert_eq!(branches(&sandbox), 1);
    fs::remove_file(&link).expect("removed");
    symlink("nowhere", &link).expect("made");
    let dangling = run(&["init", "--empty", "--storage_dest=disk/other"]);
    assert_refused(&dangling, 4, ".zenith exists already", "");
    assert_eq!(fs::read_link(&link).expect("it stays").to_str(), Some("nowhere"));
}

#[test]
fn the_version_tells_programs_of_the_store_and_its_service() {
    let sandbox = Sandbox::new("version");
    let version = env!("CARGO_PKG_VERSION");
    let told = |service: Value| json!({"version": version, "store_format": 1, "service": service});
    sandbox.ok(&["stop"]);
    assert_eq!(sandbox.json(&["version"]), told(Value::Null));
    sandbox.ok(&["start"]);
    assert_eq!(sandbox.json(&["version"]), told(version.into()));
    assert_eq!(sandbox.ok(&["version"]), format!("zenith {version}\n"));
    assert_eq!(sandbox.ok(&["--version"]), format!("zenith {version}\n"));
    assert_eq!(sandbox.json(&["version", "--store", "none"]), told(Value::Null));
}

#[test]
fn every_shell_gets_its_completion() {
    let sandbox = Sandbox::bare("completion");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.ok(&["completion", shell]);
        for word in ["snapshot", "storage_dest", "promote"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let asked = "eval \"$(\"$0\" completion bash)\"; COMP_WORDS=(zenith snapshot cr) COMP_CWORD=2; _zenith zenith cr snapshot; echo \"${COMPREPLY[@]}\"";
    let bash = Command::new("bash")
        .args(["-c", asked, env!("CARGO_BIN_EXE_zenith")])
        .output()
        .expect("bash runs");
    assert_eq!(text(&bash.stdout), "create\n", "{bash:?}");
    assert_eq!(sandbox.run(&["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_its_page_in_the_manual() {
    let sandbox = Sandbox::bare("man");
    assert!(sandbox.ok(&["man"]).starts_with(".ie"), "roff");
    sandbox.ok(&["man", "deep/man1"]);
    let page = |name: &str| fs::read_to_string(sandbox.path(&format!("deep/man1/{name}.1"))).expect(name);
    for (name, says) in [
        ("zenith", "zenith\\-snapshot(1)"),
        ("zenith-pg-create", "Examples:"),
        ("zenith-snapshot-destroy", "dry"),
        ("zenith-completion", "shell"),
    ] {
        assert!(page(name).contains(says), "{name}");
    }
    fs::write(sandbox.path("file"), "").expect("written");
    assert_eq!(sandbox.run(&["man", "file/man1"]).status.code(), Some(1));
}
