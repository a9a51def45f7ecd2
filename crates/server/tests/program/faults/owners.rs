//! Two coordinators that want the same journal, under whatever name, and a copy of a folder. (The
//! plain case, one folder twice, is in `starting.rs`.)

use std::path::Path;

use serde_json::json;

use crate::actor::Actor;
use crate::ask::{Coordinator, request, run, with};
use crate::setup::Folder;

/// What a coordinator that wants this folder says when it cannot have it.
async fn refused(data: &Path, code: &str) {
    let data = data.to_str().unwrap();
    let ended = run(&["serve", "--data-folder", data, "--listen-address", "127.0.0.1:0"]).await;
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.stderr.contains(code) && !ended.stderr.contains("panicked"), "{ended:?}");
    assert_eq!(ended.stdout, "");
}

async fn commits(coordinator: &Coordinator, actor: &Actor, id: &str) {
    let asked = with(request(id, &actor.two()), &[("wait", json!("completed"))]);
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
}

#[tokio::test]
async fn a_journal_has_one_coordinator_under_whatever_name() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    commits(&coordinator, &actor, "before").await;
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let data = coordinator.data();
    std::os::unix::fs::symlink(&data, path("linked")).unwrap();
    refused(&path("linked"), "data_in_use").await;
    // Another folder, and in it the same journal.
    for (name, link) in [("soft", true), ("hard", false)] {
        std::fs::create_dir(path(name)).unwrap();
        let (from, to) = (data.join("journal-0.log"), path(name).join("journal-0.log"));
        match link {
            true => std::os::unix::fs::symlink(from, to).unwrap(),
            false => std::fs::hard_link(from, to).unwrap(),
        }
        refused(&path(name), "journal_in_use").await;
    }
    commits(&coordinator, &actor, "after").await;
}

#[tokio::test]
async fn a_copy_of_a_folder_has_one_coordinator_too() {
    let (actor, mut original) = (Actor::start().await, Coordinator::start(&[]).await);
    commits(&original, &actor, "before").await;
    assert_eq!(original.stop().await.status, 0);
    let folder = Folder::new();
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(original.data()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    // As after a move: it knows what the original knew, and one coordinator has it.
    let moved = Coordinator::start_in(folder, &copy, "", &[]).await;
    assert_eq!(moved.ask.shown("before").await["outcome"], "commit");
    refused(&copy, "data_in_use").await;
    commits(&moved, &actor, "after").await;
}
