//! The service's life: it is started once, stops only when it may, remembers its mounts, and nothing is half-done
//! when it or its client is killed.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sandbox::{Sandbox, assert_refused, sync, text, until};

#[test]
fn mounts_come_back_with_the_service_until_they_are_unmounted() {
    let sandbox = Sandbox::new("remember");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    sandbox.ok(&["snapshot", "create", "main@s"]);
    sandbox.ok(&["mount", "main@s", "s", "--create"]);
    sandbox.ok(&["stop"]);
    assert!(sandbox.mount_points().is_empty());
    for left in ["zenith.sock", "service.pid"] {
        assert!(!sandbox.store().join(left).exists(), "{left}");
    }
    sandbox.ok(&["start"]);
    assert_eq!(sandbox.mount_points().len(), 2);
    sandbox.ok(&["umount", "s"]);
    sandbox.ok(&["stop"]);
    sandbox.ok(&["start"]);
    assert_eq!(sandbox.mount_points(), [sandbox.path("m")]);
}

#[test]
fn a_mount_that_cannot_come_back_is_told_and_does_not_keep_the_service_from_starting() {
    let sandbox = Sandbox::new("missing");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    sandbox.ok(&["stop"]);
    File::create(sandbox.path("m/in-the-way")).expect("made");
    sandbox.refused(1, &["start"], "1 of 1 mounts did not come back", "zenith umount");
    let status = sandbox.json(&["status"]);
    assert!(
        status["mounts"][0]["error"]
            .as_str()
            .is_some_and(|why| why.contains("is not empty")),
        "{status}"
    );
    fs::remove_file(sandbox.path("m/in-the-way")).expect("removed");
    sandbox.ok(&["mount", "main", "m"]);
    sandbox.ok(&["umount", "m"]);
    assert_eq!(sandbox.json(&["status"])["mounts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_stop_is_refused_while_a_mount_is_in_use_and_then_changes_nothing() {
    let sandbox = Sandbox::new("busy");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    sandbox.ok(&["mount", "other", "o", "--create"]);
    let open = File::create(sandbox.path("m/file")).expect("made");
    sandbox.refused(4, &["stop"], "m is in use", "stop what uses it");
    sandbox.refused(4, &["umount", "m"], "m is in use", "stop what uses it");
    assert_eq!(sandbox.mount_points().len(), 2);
    fs::write(sandbox.path("o/file"), "still mounted").expect("written");
    sandbox.ok(&["stop", "--force"]);
    assert!(sandbox.mount_points().is_empty());
    assert!(open.sync_all().is_err(), "the file's service is gone");
    sandbox.ok(&["start"]);
    assert_eq!(
        fs::read_to_string(sandbox.path("o/file")).expect("readable"),
        "still mounted"
    );
    assert!(sandbox.path("m/file").exists());
}

#[test]
fn what_a_forced_stop_finds_unwritten_is_kept() {
    let sandbox = Sandbox::new("force");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    // Nobody closes the file, not even a copy of its descriptor: the kernel would write it out at once.
    let script = "exec >m/file; printf 'only in the kernel'; exec sleep 60";
    let mut writer = Command::new("sh")
        .args(["-c", script])
        .current_dir(sandbox.path(""))
        .spawn()
        .expect("it runs");
    let file = sandbox.path("m/file");
    until("it is written", || fs::metadata(&file).is_ok_and(|file| file.len() > 0));
    sandbox.ok(&["stop", "--force"]);
    sandbox.ok(&["start"]);
    assert_eq!(fs::read_to_string(&file).expect("readable"), "only in the kernel");
    writer.kill().and_then(|()| writer.wait()).expect("ended");
}

#[test]
fn after_kill_9_of_service_and_keeper_the_next_command_mounts_again() {
    let sandbox = Sandbox::new("killed");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::write(sandbox.path("m/file"), "synced").expect("written");
    sync(&sandbox.path("m/file"));
    let _open = File::open(sandbox.path("m/file")).expect("opened");
    sandbox.kill_with_keeper();
    assert!(fs::read_dir(sandbox.path("m")).is_err(), "nobody answers");
    sandbox.refused(5, &["status"], "no service runs", "zenith start");
    sandbox.ok(&["branch"]);
    assert_eq!(fs::read_to_string(sandbox.path("m/file")).expect("readable"), "synced");
    assert_eq!(sandbox.mount_points(), [sandbox.path("m")], "the dead mount is gone");
}

#[test]
fn of_many_commands_at_once_one_starts_the_service_and_all_use_it() {
    let sandbox = Sandbox::new("at-once");
    let commands: Vec<_> = (0..8)
        .map(|n| sandbox.spawn(&["branch", &format!("b{n}"), "--empty"]))
        .collect();
    for command in commands {
        let output = command.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(8));
    let log = fs::read_to_string(sandbox.store().join("service.log")).expect("readable");
    assert_eq!(log.matches("the service is up").count(), 1, "{log}");
}

#[test]
fn a_command_that_meets_a_service_that_is_ending_is_served_by_the_next_one() {
    let sandbox = Sandbox::new("ending");
    for round in 0..20 {
        sandbox.ok(&["start"]);
        let stop = sandbox.spawn(&["stop"]);
        let commands: Vec<_> = (0..12)
            .map(|n| {
                thread::sleep(Duration::from_micros(200 * n));
                sandbox.spawn(&["branch", &format!("b{round}-{n}"), "--empty"])
            })
            .collect();
        for command in commands.into_iter().chain([stop]) {
            let output = command.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(240));
}

#[test]
fn a_service_whose_store_is_deleted_ends() {
    let sandbox = Sandbox::new("deleted");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let (pid, open) = (sandbox.pid(), File::create(sandbox.path("m/file")).expect("made"));
    fs::remove_dir_all(sandbox.store()).expect("removed");
    until("it has ended", || kill(pid, None).is_err());
    assert!(sandbox.mount_points().is_empty());
    drop(open);
}

#[test]
fn a_service_that_would_run_out_of_open_files_does_not_start() {
    let sandbox = Sandbox::new("few-files");
    let started = sandbox
        .shell("ulimit -n 200; exec \"$0\" start")
        .output()
        .expect("it runs");
    assert_refused(&started, 4, "only 200 files open", "ulimit -n");
    let started = sandbox
        .shell("ulimit -n 256; exec \"$0\" start")
        .output()
        .expect("it runs");
    assert!(started.status.success(), "{started:?}");
}

#[test]
fn a_mount_for_which_too_few_open_files_are_left_is_refused_and_the_others_work() {
    const FILES: usize = 8;
    const BLOCK: usize = 4096;
    let sandbox = Sandbox::new("few-mounts");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["stop"]);
    let started = sandbox.shell("ulimit -n 256; exec \"$0\" start").output();
    assert!(started.expect("it runs").status.success());
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let file = |mount: &str, n: usize| sandbox.path(&format!("{mount}/{n}"));
    let write = |mount: &str, n: usize, block: usize, byte: u8| {
        let open = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(file(mount, n));
        open.and_then(|open| open.write_all_at(&[byte; BLOCK], (block * BLOCK) as u64))
            .expect("written");
    };
    let snapshot = |mount: &str, tag: &str| {
        fs::create_dir(sandbox.path(&format!("{mount}/.zenith/snapshot/{tag}"))).expect("taken");
    };
    for block in 0..16 {
        (0..FILES).for_each(|n| write("m", n, block, block as u8));
        snapshot("m", &block.to_string());
    }
    let mut mounts = vec!["m".to_owned()];
    let refused = loop {
        let (dir, branch) = (format!("m{}", mounts.len()), format!("b{}", mounts.len()));
        let mounted = sandbox.run(&["mount", "main@15", &dir, "--create", "--cow", &branch]);
        match mounted.status.success() {
            true => mounts.push(dir),
            false => break mounted,
        }
    };
    assert_refused(&refused, 4, "only 256 files open", "ulimit -n");
    assert!(mounts.len() > 10, "{mounts:?}");
    for round in 1..4 {
        for mount in &mounts {
            (0..FILES).for_each(|n| write(mount, n, round, 100));
            snapshot(mount, &format!("r{round}"));
        }
        for (mount, n) in mounts.iter().flat_map(|mount| (0..FILES).map(move |n| (mount, n))) {
            let bytes = fs::read(file(mount, n)).expect("read");
            let of_block = |block: usize| if (1..=round).contains(&block) { 100 } else { block as u8 };
            let is_right = |(block, bytes): (usize, &[u8])| bytes.iter().all(|byte| *byte == of_block(block));
            assert!(
                bytes.len() == 16 * BLOCK && bytes.chunks(BLOCK).enumerate().all(is_right),
                "{mount}/{n}"
            );
        }
    }
    sandbox.ok(&["umount", "m1"]);
    sandbox.ok(&["mount", "b1", "m1"]);
}

#[test]
fn a_service_does_not_hold_what_its_starter_had_open() {
    let sandbox = Sandbox::new("descriptors");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 9>held && exec \"$0\" start", env!("CARGO_BIN_EXE_zenith")]);
    let started = shell
        .env("ZENITH_DIR", sandbox.store())
        .current_dir(sandbox.path(""))
        .output();
    assert!(started.expect("it runs").status.success());
    let held = sandbox.path("held");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", sandbox.pid())).expect("listed");
    let open: Vec<_> = descriptors
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(!open.is_empty() && !open.contains(&held), "{open:?}");
}

#[test]
fn of_many_who_want_the_same_one_gets_it_and_nothing_is_left_of_the_others() {
    let sandbox = Sandbox::new("race");
    sandbox.ok(&["branch", "main", "--empty"]);
    let dirs: Vec<String> = (0..6).map(|n| format!("d{n}")).collect();
    let commands: Vec<_> = dirs
        .iter()
        .map(|dir| sandbox.spawn(&["mount", "main", dir, "--create", "--cow", "copy"]))
        .collect();
    let outputs: Vec<_> = commands
        .into_iter()
        .map(|command| command.wait_with_output().expect("it ends"))
        .collect();
    assert_eq!(
        outputs.iter().filter(|output| output.status.success()).count(),
        1,
        "{outputs:?}"
    );
    assert_eq!(sandbox.mount_points().len(), 1);
    assert_eq!(dirs.iter().filter(|dir| sandbox.path(dir).exists()).count(), 1);
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn a_signal_stops_the_service_unless_a_mount_is_in_use_and_a_second_one_does_so_all_the_same() {
    let sandbox = Sandbox::new("signal");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let (open, pid) = (File::create(sandbox.path("m/file")).expect("made"), sandbox.pid());
    kill(pid, Signal::SIGTERM).expect("sent");
    let log = sandbox.store().join("service.log");
    until("the refusal is logged", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("not stopping"))
    });
    assert_eq!(sandbox.pid(), pid);
    kill(pid, Signal::SIGTERM).expect("sent");
    until("it has stopped", || !sandbox.store().join("service.pid").exists());
    assert!(sandbox.mount_points().is_empty());
    drop(open);
    sandbox.ok(&["start"]);
    kill(sandbox.pid(), Signal::SIGINT).expect("sent");
    until("it has stopped", || !sandbox.store().join("service.pid").exists());
}

fn has_no_mounts(sandbox: &Sandbox) -> bool {
    let status = sandbox.json(&["status"]);
    status["mounts"].as_array().is_some_and(Vec::is_empty)
}

#[test]
fn a_mount_that_somebody_else_unmounts_is_forgotten() {
    let sandbox = Sandbox::new("external");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    umount(&sandbox.path("m")).expect("unmounted");
    until("it is forgotten", || has_no_mounts(&sandbox));
    sandbox.ok(&["mount", "main", "m"]);
}

#[test]
fn a_mount_that_somebody_else_covers_or_detaches_stays_until_that_is_over() {
    let sandbox = Sandbox::new("covered");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let dir = sandbox.path("m");
    let nothing = None::<&str>;
    mount(nothing, &dir, Some("tmpfs"), MsFlags::empty(), nothing).expect("mounted over it");
    sandbox.refused(4, &["umount", "m"], "has been mounted over", "`umount ");
    umount2(&dir, MntFlags::empty()).expect("taken away");
    let held = File::create(dir.join("held")).expect("a file in the mount");
    umount2(&dir, MntFlags::MNT_DETACH).expect("detached");
    sandbox.refused(
        4,
        &["umount", "m"],
        "unmounted by somebody else while it was in use",
        "end what still uses it",
    );
    drop(held);
    until("it is forgotten", || has_no_mounts(&sandbox));
}

#[test]
fn a_cluster_whose_client_is_killed_is_finished() {
    let sandbox = Sandbox::bare("client-killed");
    let initdb = Initdb::fake(
        &sandbox,
        "sleep 1; for dir; do :; done; touch \"$dir/postgresql.conf\"; echo 15 >\"$dir/PG_VERSION\"",
    );
    let mut client = sandbox.spawn(&["init", "--pg-bin", initdb.dir()]);
    initdb.begun();
    client.kill().and_then(|()| client.wait()).expect("killed");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    assert_eq!(
        fs::read_to_string(sandbox.path("m/PG_VERSION")).expect("readable"),
        "15\n"
    );
}

#[test]
fn a_cluster_whose_service_is_killed_is_taken_away() {
    let sandbox = Sandbox::bare("service-killed");
    let initdb = Initdb::fake(&sandbox, "exec sleep 60");
    let mut client = sandbox.spawn(&["init", "--pg-bin", initdb.dir()]);
    let child = initdb.begun();
    client.kill().and_then(|()| client.wait()).expect("killed");
    let dir = sandbox.unfinished().expect("a directory");
    assert!(dir.exists());
    sandbox.kill_service();
    kill(child, Signal::SIGKILL).expect("killed");
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(0));
    assert!(!dir.exists(), "{}", dir.display());
}

#[test]
fn an_init_whose_service_is_killed_leaves_nothing() {
    let sandbox = Sandbox::bare("init-killed");
    let initdb = Initdb::fake(&sandbox, "exec sleep 60");
    let client = sandbox.spawn(&["init", "--pg-bin", initdb.dir()]);
    let child = initdb.begun();
    sandbox.kill_service();
    kill(child, Signal::SIGKILL).expect("killed");
    let output = client.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!sandbox.store().exists(), "{output:?}");
}

/// A stand-in for initdb that says when it runs.
struct Initdb {
    bin: PathBuf,
    pid: PathBuf,
}

impl Initdb {
    fn fake(sandbox: &Sandbox, script: &str) -> Initdb {
        let (bin, pid) = (sandbox.path("bin"), sandbox.path("bin/pid"));
        fs::create_dir(&bin).expect("made");
        fs::set_permissions(&bin, fs::Permissions::from_mode(0o777)).expect("open to the server's user");
        let initdb = format!("#!/bin/sh\necho $$ >{}\n{script}\n", pid.display());
        for (name, text) in [
            ("initdb", initdb.as_str()),
            ("postgres", "#!/bin/sh\necho postgres 15.0\n"),
        ] {
            let program = bin.join(name);
            fs::write(&program, text).expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        Initdb { bin, pid }
    }

    fn dir(&self) -> &str {
        self.bin.to_str().expect("UTF-8")
    }

    /// Waits until it runs.
    fn begun(&self) -> Pid {
        let pid = || read_pid(&self.pid);
        until("initdb runs", || pid().is_some());
        Pid::from_raw(pid().expect("it runs"))
    }
}

fn read_pid(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn a_mount_outlives_its_service_and_whoever_uses_it_sees_a_pause() {
    let sandbox = Sandbox::new("outlives");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let path = sandbox.path("m/file");
    let mut file = File::create(&path).expect("made");
    file.write_all(b"before").expect("written");
    fs::remove_file(&path).expect("removed");
    for _ in 0..5 {
        let before = sandbox.pid();
        sandbox.kill_service();
        file.write_all(b" after").expect("written on");
        file.sync_all().expect("synced");
        fs::create_dir(sandbox.path("m/dir")).expect("made");
        fs::remove_dir(sandbox.path("m/dir")).expect("removed");
        assert_ne!(sandbox.pid(), before);
    }
    let open = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let text = fs::read_to_string(open).expect("the file is there while it is open");
    assert_eq!(text, format!("before{}", " after".repeat(5)));
    drop(file);
    sandbox.ok(&["umount", "m"]);
    sandbox.ok(&["stop"]);
    assert!(sandbox.mount_points().is_empty());
}

#[test]
fn a_file_without_a_name_ends_when_it_was_closed_while_no_service_ran() {
    let sandbox = Sandbox::new("closed-meanwhile");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let path = sandbox.path("m/file");
    let file = File::create(&path).expect("made");
    file.set_len(1 << 20).expect("grown");
    (&file).write_all(&[1; 4096]).expect("written");
    file.sync_all().expect("synced");
    fs::remove_file(&path).expect("removed");
    let backing_files = || {
        let layers = fs::read_dir(sandbox.store().join("layers")).expect("listed");
        layers
            .map(|layer| fs::read_dir(layer.expect("a layer").path()).expect("listed").count())
            .sum::<usize>()
    };
    assert_eq!(backing_files(), 1);
    sandbox.kill_service();
    drop(file);
    sandbox.ok(&["status"]);
    until("its blocks are gone", || backing_files() == 0);
}

#[test]
fn an_upgrade_changes_the_program_under_a_mount_in_use() {
    let sandbox = Sandbox::new("upgrade");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let mut file = File::create(sandbox.path("m/file")).expect("made");
    let (program, pid) = (sandbox.path("another-zenith"), sandbox.pid());
    fs::copy(env!("CARGO_BIN_EXE_zenith"), &program).expect("copied");
    for bad in ["/bin/true", "/nowhere"] {
        sandbox.refused(
            4,
            &["upgrade", "--program", bad],
            "can't be the next service",
            "zenith program",
        );
    }
    let slow = sandbox.path("slow");
    fs::write(&slow, "#!/bin/sh\nexec sleep 60\n").expect("written");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("made a program");
    sandbox.refused(4, &["upgrade", "--program", "slow"], "timed out", "zenith program");
    assert_eq!(sandbox.pid(), pid);
    sandbox.ok(&["upgrade", "--program", "another-zenith"]);
    file.write_all(b"goes on").expect("written");
    let exe = fs::read_link(format!("/proc/{}/exe", sandbox.pid())).expect("a process");
    assert_eq!(exe, program);
    sandbox.kill_service();
    let exe = fs::read_link(format!("/proc/{}/exe", sandbox.pid())).expect("a process");
    assert_eq!(exe, program, "the next one is of the new version too");
    drop(file);
    sandbox.ok(&["stop"]);
    sandbox.refused(5, &["upgrade"], "no service runs", "zenith start");
}

#[test]
fn a_program_that_does_not_come_up_leaves_the_mounts_to_the_one_before() {
    let sandbox = Sandbox::new("downgrade");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let mut file = File::create(sandbox.path("m/file")).expect("made");
    let bad = sandbox.path("bad");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/bad_program.rs");
    let compiled = Command::new("rustc").arg(&source).arg("-o").arg(&bad).status();
    assert!(compiled.expect("rustc runs").success());
    for name in ["exit-0", "exit-1", "exit-75", "abort", "ready", "hang"] {
        fs::hard_link(&bad, sandbox.path(name)).expect("named");
        let pid = sandbox.pid();
        sandbox.refused(1, &["upgrade", "--program", name], "is not the service", "service.log");
        assert_ne!(sandbox.pid(), pid);
        file.write_all(b"goes on").expect("written");
    }
    drop(file);
    sandbox.ok(&["umount", "m"]);
    sandbox.ok(&["stop"]);
}

#[test]
fn commands_wait_for_the_service_that_takes_over() {
    let sandbox = Sandbox::new("meanwhile");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    for _ in 0..5 {
        sandbox.kill_service();
        let commands = [
            &["status"][..],
            &["branch"],
            &["snapshot", "list"],
            &["storage", "list"],
        ];
        let running: Vec<_> = commands.iter().map(|command| sandbox.spawn(command)).collect();
        for command in running {
            let output = command.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
    let log = fs::read_to_string(sandbox.store().join("service.log")).expect("readable");
    assert_eq!(log.matches("goes on").count(), 5, "{log}");
}

#[test]
fn an_upgrade_is_refused_when_the_keeper_is_gone() {
    let sandbox = Sandbox::new("keeperless");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let pid = sandbox.pid();
    assert!(!sandbox.ok(&["status"]).contains("WARNING   the keeper"));
    sandbox.kill_keeper();
    assert!(sandbox.ok(&["status"]).contains("WARNING   the keeper"));
    sandbox.refused(4, &["upgrade"], "nobody stands behind", "zenith stop");
    fs::write(sandbox.path("m/file"), "goes on").expect("written");
    assert_eq!(sandbox.pid(), pid);
    sandbox.ok(&["umount", "m"]);
    sandbox.ok(&["stop"]);
}
