//! `unanimity check` against participants in another language: the one in Python's standard library
//! stands every rule, also with kills between the phases, and the one without a guard does not.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ask::{run, soon};
use crate::setup::Folder;

/// A Python program that is started again whenever it ends, at the same port.
struct Supervised {
    url: String,
    pid: PathBuf,
    task: JoinHandle<()>,
    _folder: Folder,
}

impl Supervised {
    async fn start(program: &'static str) -> Self {
        let folder = Folder::new();
        let (database, pid) = (folder.path().join("stock.db"), folder.path().join("pid"));
        let (told, mut url) = watch::channel(String::new());
        let (files, pid_file) = (database.clone(), pid.clone());
        let task = tokio::spawn(async move {
            loop {
                let known = told.borrow().clone();
                let port = known.rsplit_once(':').map_or("0", |(_, port)| port);
                let mut child = Command::new("python3")
                    .arg(example(program))
                    .arg(port)
                    .arg(&files)
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
                    .expect("python3 is needed: apt-get install python3");
                let mut line = String::new();
                let mut stdout = BufReader::new(child.stdout.take().unwrap());
                stdout.read_line(&mut line).await.unwrap();
                let at = line.trim().strip_prefix("listening on ").expect("it listens").to_owned();
                // In one piece: somebody may be reading it.
                let new = pid_file.with_extension("new");
                std::fs::write(&new, child.id().unwrap().to_string()).unwrap();
                std::fs::rename(&new, &pid_file).unwrap();
                told.send_replace(at);
                child.wait().await.unwrap();
            }
        });
        let url = soon(url.wait_for(|url| !url.is_empty())).await.unwrap().clone();
        Self { url: format!("{url}/stock"), pid, task, _folder: folder }
    }

    /// A shell command that kills it and ends when another runs in its place.
    fn restart(&self) -> String {
        let pid = self.pid.display();
        format!("old=$(cat {pid}); kill -9 $old; while [ \"$(cat {pid})\" = \"$old\" ]; do :; done")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python").join(name)
}

#[tokio::test]
async fn the_participant_in_python_stands_every_rule() {
    let python = Supervised::start("participant.py").await;
    let (payload, restart) = (example("payload.json"), python.restart());
    let payload = payload.to_str().unwrap();
    let check = ["check", &python.url, "--payload", payload, "--observe", &python.url];
    let ended = run(&[&check[..], &["--restart", &restart]].concat()).await;
    assert_eq!((ended.status, &*ended.stderr), (0, ""), "{ended:?}");
    assert!(ended.stdout.ends_with("  all 15 rules hold\n"), "{ended:?}");
    // Without it, what is missing is said, and nothing has failed.
    let ended = run(&check).await;
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.stdout.contains("  not played  a restart between prepare and commit"));
    assert!(ended.stdout.contains("--restart COMMAND"), "{ended:?}");
    assert!(ended.stdout.ends_with("  13 of 15 rules hold, 2 not played\n"), "{ended:?}");
    // A command that fails is told, and is a failure.
    let ended = run(&[&check[..], &["--restart", "exit 7"]].concat()).await;
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.stdout.contains("`exit 7` ended with exit status: 7"), "{ended:?}");
}

#[tokio::test]
async fn a_participant_without_a_guard_is_shown_with_what_was_said() {
    let naive = Supervised::start("naive_participant.py").await;
    let payload = example("payload.json");
    let payload = payload.to_str().unwrap();
    let check = ["check", &naive.url, "--payload", payload, "--observe", &naive.url];
    let ended = run(&check).await;
    assert_eq!((ended.status, &*ended.stderr), (1, ""), "{ended:?}");
    let text = &ended.stdout;
    assert!(text.contains("  holds  a prepare votes yes, and a rollback is acknowledged\n"));
    assert!(text.ends_with("  8 of 15 rules fail, 2 not played\n"), "{text}");
    let (_, failed) =
        text.split_once("  fails  a prepare after the rollback is refused\n").unwrap();
    let lines: Vec<&str> = failed.lines().take(3).map(str::trim).collect();
    assert!(lines[0].starts_with("prepare answered 200: {\"bolt\": "), "{text}");
    for (line, start, end) in [
        (lines[1], "rollback (", "attempt 1) -> 200"),
        (lines[2], "prepare (", "attempt 2) -> 200"),
    ] {
        assert!(line.starts_with(start) && line.contains(end), "{line}");
    }
    let json = run(&[&check[..], &["--json"]].concat()).await;
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let verdicts: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == "fails").count(), 8, "{report}");
    assert_eq!(verdicts[13..], ["not_played", "not_played"]);
}
