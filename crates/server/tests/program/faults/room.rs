//! A disk that is nearly full: new transactions are refused first, and what is open can end.

use serde_json::json;

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, request, with};
use crate::setup::{Folder, until};
use crate::starting::Mounted;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nearly_full_disk_takes_nothing_new_and_lets_what_is_open_end() {
    let folder = Folder::new();
    let data = folder.path().join("small");
    let Some(mounted) = Mounted::new(data.clone(), &["-t", "tmpfs", "-o", "size=12m", "tmpfs"])
    else {
        // The test below refuses for want of room without a small disk.
        return;
    };
    let flags = ["--disk-reserve-bytes", "6291456"];
    let (actor, coordinator) =
        (Actor::start().await, Coordinator::start_in(folder, &data, "", &flags).await);
    let ask = &coordinator.ask;
    actor.hold(Hold::Everybody);
    let fields = [("wait", json!("accepted")), ("prepare_timeout_ms", json!(600_000))];
    let held = |number: usize| with(request(&format!("held-{number}"), &actor.two()), &fields);
    for number in 0..20 {
        assert_eq!(ask.begin(&held(number)).await.status, 202);
    }
    ask.open("open", &json!({"open_timeout_ms": 600_000})).await;
    let ballast = data.join("ballast");
    std::fs::write(&ballast, vec![1; 8 * MIB]).unwrap();
    let mut asked = 0;
    let refused = until("a refusal", async || {
        asked += 1;
        let answer =
            ask.begin(&with(request(&format!("new-{asked}"), &actor.two()), &fields)).await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    assert_eq!((refused.status, &*refused.problem().0), (503, "disk_nearly_full"));
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(ask.get("/readyz").await.status, 200);
    // Who is known may ask again, enlist, commit, and end.
    assert_eq!(ask.begin(&held(7)).await.status, 202);
    for (name, participant) in ["a", "b"].iter().zip(actor.two()) {
        let branch = json!({"name": name, "participant": participant});
        assert!(ask.about("open", "branches", &branch).await.status < 300);
    }
    actor.hold(Hold::Nobody);
    ask.about("open", "commit", &json!({})).await;
    assert_eq!(ask.ended("open").await["outcome"], "commit");
    for number in 0..20 {
        assert_eq!(ask.ended(&format!("held-{number}")).await["outcome"], "commit");
    }
    // Room again, and it goes on by itself.
    std::fs::remove_file(ballast).unwrap();
    let fields = [("wait", json!("completed"))];
    let begun = until("a beginning", async || {
        let answer = ask.begin(&with(request("again", &actor.two()), &fields)).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(begun.json()["outcome"], "commit");
    drop(coordinator);
    drop(mounted);
}

#[tokio::test]
async fn a_reserve_that_is_not_there_refuses_beginnings_only() {
    let actor = Actor::start().await;
    let mut coordinator = Coordinator::start(&[]).await;
    actor.hold(Hold::Operation("commit"));
    let asked = request("before", &actor.two());
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
    coordinator.kill().await;
    let everything = (1_u64 << 50).to_string();
    coordinator.add_flags(&["--disk-reserve-bytes", &everything]);
    coordinator.start_again().await;
    let refused = coordinator.ask.begin(&request("new", &actor.two())).await;
    assert_eq!((refused.status, &*refused.problem().0), (503, "disk_nearly_full"));
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
    actor.hold(Hold::Nobody);
    assert_eq!(coordinator.ask.ended("before").await["outcome"], "commit");
    let metrics = coordinator.ask.get("/metrics").await.text();
    assert!(metrics.contains("\nunanimity_disk_free_bytes "), "{metrics}");
}
