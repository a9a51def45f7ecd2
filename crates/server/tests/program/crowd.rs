//! Ten thousand connections that say nothing, or one byte now and then, beside honest clients:
//! these are served all the same, and the others are closed when their time is over. How much
//! slower the honest are is measured by the long set alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::actor::Actor;
use crate::ask::{Ask, Coordinator, JSON, request};
use crate::setup::until;

const CROWD: usize = 10_000;
/// Between two bytes of one that drips.
const DRIP: Duration = Duration::from_secs(1);

/// Each end of 10,000 connections is a descriptor. A process may raise its limit up to the hard
/// one, and root that one too.
fn raise_descriptors() {
    let wanted = 2 * CROWD as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit { current: Some(wanted), maximum };
    setrlimit(Resource::Nofile, raised).expect("20,000 descriptors, or the right to have them");
}

/// What is said at first, and then one byte at a time.
#[derive(Clone, Copy)]
enum Member {
    Silent,
    Headers,
    Body,
    Idle,
}

impl Member {
    const fn of(number: usize) -> Self {
        match number % 4 {
            0 => Self::Silent,
            1 => Self::Headers,
            2 => Self::Body,
            _ => Self::Idle,
        }
    }

    const fn first(self) -> &'static [u8] {
        match self {
            Self::Silent => b"",
            Self::Headers => b"GET /livez HTTP/1.1\r\nhost: h\r\nx: ",
            Self::Body => {
                b"POST /v1/transactions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
                content-length: 100000\r\n\r\n{"
            }
            Self::Idle => b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n",
        }
    }

    /// Holds one connection until the other side closes it. One that is silent says something at
    /// the very end: where the queue of connections to be accepted was full, the system has
    /// thrown its connection away without a word, and tells it only now.
    async fn hold(self, address: &str, crowd: &Crowd) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let come_again = &crowd.come_again;
        let _open = Counted::new(&crowd.open);
        stream.write_all(self.first()).await?;
        let (mut reader, mut writer) = stream.split();
        let drip = async {
            let mut beat = tokio::time::interval(DRIP);
            loop {
                beat.tick().await;
                let quiet = matches!(self, Self::Silent) && come_again.load(Ordering::SeqCst)
                    || matches!(self, Self::Idle);
                if !quiet && writer.write_all(b" ").await.is_err() {
                    return;
                }
            }
        };
        let mut bytes = [0; 1024];
        tokio::select! {
            () = drip => {}
            () = async { while reader.read(&mut bytes).await.is_ok_and(|count| count > 0) {} } => {}
        }
        Ok(())
    }
}

/// Lets time pass: it sets a pace, and no test waits for something by it.
async fn pause(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// One of a number, while it exists.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(number: &'a AtomicUsize) -> Self {
        number.fetch_add(1, Ordering::SeqCst);
        Self(number)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The ten thousand.
#[derive(Clone, Default)]
struct Crowd {
    come_again: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Crowd {
    /// Waits until all have tried to come, and so many are there at once.
    async fn came(&self, at_once: usize) {
        until("the crowd", async || {
            let opened = self.opened.load(Ordering::SeqCst);
            (opened >= CROWD && self.open.load(Ordering::SeqCst) >= at_once).then_some(())
        })
        .await;
    }

    /// `again`: how long one that was closed waits before it comes again.
    fn gather(address: &str, again: Duration) -> (Self, JoinSet<()>) {
        let crowd = Self::default();
        crowd.come_again.store(true, Ordering::SeqCst);
        let mut members = JoinSet::new();
        for number in 0..CROWD {
            let (crowd, address) = (crowd.clone(), address.to_owned());
            members.spawn(async move {
                loop {
                    crowd.opened.fetch_add(1, Ordering::SeqCst);
                    let _ = Member::of(number).hold(&address, &crowd).await;
                    if !crowd.come_again.load(Ordering::SeqCst) {
                        return;
                    }
                    pause(again).await;
                }
            });
        }
        (crowd, members)
    }
}

/// Commits a transaction, asking again as a client does whose connection broke.
async fn commit(ask: &Ask, actor: &Actor, id: &str) -> usize {
    for attempt in 0..20 {
        let body = request(id, &actor.two()).to_string();
        match ask.try_send("POST", "/v1/transactions", &JSON, body).await {
            Ok(answer) => {
                assert_eq!(answer.json()["outcome"], "commit", "{}", answer.text());
                return attempt;
            }
            Err(error) => println!("{id}: {error}"),
        }
    }
    panic!("{id}: no answer to any of 20 attempts");
}

/// Every honest client commits, on old connections and on new ones.
async fn honest_clients_commit(coordinator: &Coordinator, actor: &Actor, name: &str) {
    let mut running = JoinSet::new();
    for client in 0..8 {
        let (ask, actor) = (coordinator.ask.clone(), actor.clone());
        let (url, name) = (coordinator.url.clone(), name.to_owned());
        running.spawn(async move {
            let mut repeated = 0;
            for number in 0..25 {
                let own = Ask::anybody(&url);
                let ask = if number % 2 == 0 { &own } else { &ask };
                repeated += commit(ask, &actor, &format!("{name}-{client}-{number}")).await;
            }
            repeated
        });
    }
    let repeated: usize = running.join_all().await.into_iter().sum();
    println!("{name}: 200 transactions, {repeated} requests repeated");
}

async fn a_crowd_does_not_lock_honest_clients_out(name: &str, places: usize) {
    raise_descriptors();
    let places_text = places.to_string();
    let mut flags = vec!["--connections-max", &places_text, "--idle-timeout-ms", "20000"];
    flags.extend(["--header-timeout-ms", "20000", "--body-timeout-ms", "20000"]);
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let address = coordinator.url.trim_start_matches("http://").to_owned();
    let (crowd, members) = Crowd::gather(&address, Duration::from_secs(1));
    crowd.came(places.min(CROWD * 9 / 10)).await;
    honest_clients_commit(&coordinator, &actor, name).await;
    crowd.come_again.store(false, Ordering::SeqCst);
    // However they drip: each is closed, by nobody but the coordinator.
    until("all of the crowd to be closed", async || {
        (crowd.open.load(Ordering::SeqCst) == 0).then_some(())
    })
    .await;
    members.join_all().await;
    honest_clients_commit(&coordinator, &actor, &format!("{name}-after")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_clients_are_served_beside_10_000_slow_ones_that_all_have_a_place() {
    a_crowd_does_not_lock_honest_clients_out("roomy", 12_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_clients_are_served_beside_10_000_slow_ones_where_there_are_4_096_places() {
    a_crowd_does_not_lock_honest_clients_out("full", 4_096).await;
}

/// Transactions a second, over some seconds.
async fn throughput(coordinator: &Coordinator, actor: &Actor, name: &str) -> f64 {
    let (began, running) = (Instant::now(), Arc::new(AtomicBool::new(true)));
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let (ask, actor, running) = (coordinator.ask.clone(), actor.clone(), Arc::clone(&running));
        let name = name.to_owned();
        clients.spawn(async move {
            let mut count = 0_u32;
            while running.load(Ordering::SeqCst) {
                commit(&ask, &actor, &format!("{name}-{client}-{count}")).await;
                count += 1;
            }
            count
        });
    }
    pause(Duration::from_secs(10)).await;
    running.store(false, Ordering::SeqCst);
    let count: u32 = clients.join_all().await.into_iter().sum();
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// What a process has used of the processors, in seconds.
fn processor_s(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// A measurement, and so no part of the ordinary set: it depends on what else the machine does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_slower_honest_clients_are_beside_10_000_slow_ones() {
    if std::env::var_os("LONG_TESTS").is_none() {
        return;
    }
    raise_descriptors();
    for (connections_max, again_s) in [("12000", 1), ("4096", 10), ("4096", 1)] {
        let flags = ["--connections-max", connections_max];
        let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
        throughput(&coordinator, &actor, "warm").await;
        let alone = throughput(&coordinator, &actor, "alone").await;
        let address = coordinator.url.trim_start_matches("http://").to_owned();
        let (crowd, mut members) = Crowd::gather(&address, Duration::from_secs(again_s));
        crowd.came(CROWD * 4 / 10).await;
        let opened = crowd.opened.load(Ordering::SeqCst);
        let processor = [coordinator.id(), std::process::id()].map(processor_s);
        let beside = throughput(&coordinator, &actor, "beside").await;
        let [used, of_the_crowd] = [coordinator.id(), std::process::id()].map(processor_s);
        println!(
            "10 s beside the crowd: the coordinator took {:.1} s of the processors, the crowd and \
            the honest clients {:.1} s",
            used - processor[0],
            of_the_crowd - processor[1]
        );
        let came = crowd.opened.load(Ordering::SeqCst) - opened;
        println!(
            "{connections_max} places: {alone:.0} transactions/s alone, {beside:.0} beside \
            {CROWD} slow connections that came again {came} times: {:.2} times as many",
            beside / alone
        );
        members.shutdown().await;
    }
}
