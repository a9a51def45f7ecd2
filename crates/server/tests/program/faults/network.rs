//! Two hosts, as a network namespace and a pair of virtual interfaces make them, and a network
//! between them that loses, resets, crawls, and lets messages through in one direction only. In the
//! long set, because it needs the right to make such things (root).

use std::process::Command;
use std::time::Duration;

use super::ensemble::Ensemble;
use super::styles::Style;
use super::{let_pass, long};

const STYLES: [Style; 4] = [Style::TwoPhase, Style::Compensable, Style::Mixed, Style::OnePhase];

/// The other host. Gone with this value.
struct Host {
    name: String,
    /// The interface that leads there.
    link: String,
    /// The first three numbers of both addresses; this one's is 1, the other's 2.
    network: String,
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error} (cargo xtask test)"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} (it needs root): {said}");
}

impl Host {
    fn new() -> Self {
        let number = std::process::id();
        let host = Self {
            name: format!("unanimity-{number}"),
            link: format!("una{number}"),
            network: format!("10.213.{}", number % 250),
        };
        let Self { name, link, network } = &host;
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {link} type veth peer name far netns {name}"));
        run(&format!("ip addr add {network}.1/30 dev {link}"));
        run(&format!("ip link set {link} up"));
        for command in
            [&*format!("addr add {network}.2/30 dev far"), "link set far up", "link set lo up"]
        {
            run(&format!("ip -n {name} {command}"));
        }
        // The bank listens on loopback addresses only; this hands it what comes from outside.
        host.inside("tee /proc/sys/net/ipv4/conf/all/route_localnet", "1");
        host.inside("iptables -t nat -A PREROUTING -p tcp -j DNAT --to-destination 127.0.0.1", "");
        host
    }

    /// Runs something there.
    fn inside(&self, command: &str, input: &str) {
        let script = format!("set -e; echo {input} | ( {command} )");
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "bash", "-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes the network whole again.
    fn heal(&self) {
        self.inside("iptables -F INPUT; iptables -F OUTPUT", "");
        // It has a queue of its own only after `crawl`.
        drop(Command::new("tc").args(["qdisc", "del", "dev", &self.link, "root"]).output());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.name]).output());
        drop(Command::new("ip").args(["link", "del", &self.link]).output());
    }
}

/// A fault of the network: its name, and what brings it about on the other host.
const FAULTS: [(&str, &str); 5] = [
    (
        "loss of three packets in ten each way",
        "for chain in INPUT OUTPUT; do iptables -A $chain -p tcp -m statistic --mode random \
         --probability 0.3 -j DROP; done",
    ),
    ("calls do not come through", "iptables -A INPUT -p tcp -j DROP"),
    ("answers do not come through", "iptables -A OUTPUT -p tcp -j DROP"),
    ("every connection is reset", "iptables -A INPUT -p tcp -j REJECT --reject-with tcp-reset"),
    ("64 kbit a second", ""),
];

async fn under(ensemble: &mut Ensemble, host: &Host, round: usize, name: &str, fault: &str) {
    let mut running = Vec::new();
    for number in 0..6 {
        for style in STYLES {
            let id = format!("{round}-{style:?}-{number}");
            let asking = ensemble.ask_briefly(style, &id, 1_500);
            running.push((style, id, asking));
        }
        if number == 2 {
            match fault {
                "" => run(&format!(
                    "tc qdisc add dev {} root tbf rate 64kbit burst 2kb latency 400ms",
                    host.link
                )),
                fault => host.inside(fault, ""),
            }
        }
    }
    let_pass(Duration::from_secs(4)).await;
    host.heal();
    let mut committed = 0;
    for (style, id, asking) in running {
        let told = asking.await.unwrap();
        committed += usize::from(told == unanimity_sdk::api::Outcome::Commit);
        ensemble.ends(style, &id, told).await;
    }
    ensemble.judge().await;
    println!("{name}: {committed} of {} committed", 6 * STYLES.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_resets_and_partitions_between_two_hosts_leave_all_in_agreement() {
    if !long() {
        println!("in the long set only: it needs root");
        return;
    }
    let host = Host::new();
    let allow = format!("loopback,{}.0/24", host.network);
    let flags = ["--participants-allow", &allow];
    let mut ensemble = Ensemble::start(&flags).await;
    let bank = &mut ensemble.nodes[2];
    bank.kill().await;
    bank.host = format!("{}.2", host.network);
    bank.before = ["ip", "netns", "exec", &host.name].map(str::to_owned).to_vec();
    bank.start().await;
    for (round, (name, fault)) in FAULTS.iter().enumerate() {
        under(&mut ensemble, &host, round, name, fault).await;
    }
    for node in &mut ensemble.nodes {
        node.kill().await;
    }
}
