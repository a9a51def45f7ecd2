//! One process under a fault: a coordinator or a bank, started behind whatever brings the fault
//! (strace, libfaketime, a shell), killed and started again on the same port and the same files.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::ask::{Ask, Ended, Running};
use crate::setup::{program, until};

pub struct Node {
    pub name: &'static str,
    pub port: u16,
    /// Where it is reached.
    pub host: String,
    /// What each of its starts is behind.
    pub before: Vec<String>,
    /// Files of the process; what it says goes to the test when it ends.
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    running: Option<Running>,
}

impl Node {
    pub fn new(name: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self {
            name,
            port: 0,
            host: "127.0.0.1".to_owned(),
            before: Vec::new(),
            arguments,
            environment: Vec::new(),
            running: None,
        }
    }

    /// A coordinator on these files.
    pub fn coordinator(data: &Path, flags: &[&str]) -> Self {
        let data = data.to_str().unwrap();
        Self::new("coordinator", &[&["serve", "--data-folder", data], flags].concat())
    }

    pub fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    pub fn id(&self) -> u32 {
        self.running.as_ref().expect("it runs").id()
    }

    /// An environment variable of its next starts.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn add_flags(&mut self, flags: &[&str]) {
        self.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    pub async fn start(&mut self) {
        let before = self.before.clone();
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let listens = self.start_behind(&before).await;
        listens.unwrap_or_else(|ended| panic!("{} does not start: {ended:?}", self.name));
    }

    /// Starts it as the last arguments of another program, which must turn into it or stand aside
    /// (`strace -D`). If it does not come to listen: how it ended.
    pub async fn start_behind(&mut self, before: &[&str]) -> Result<(), Ended> {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let own = program().to_str().unwrap();
        let (first, others) = before.split_first().map_or((own, &[][..]), |(one, all)| (*one, all));
        let mut command = Command::new(first);
        command.args(others);
        if !before.is_empty() {
            command.arg(own);
        }
        let serves = self.arguments[0] == "serve";
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command.arg(if serves { "--listen-address" } else { "--listen" });
        command.arg(format!("127.0.0.1:{}", self.port));
        let mut running = Running::spawn(command);
        let Some(url) = running.says_where().await else { return Err(running.ended().await) };
        let (_, port) = url.rsplit_once(':').unwrap();
        self.port = port.parse().unwrap();
        self.running = Some(running);
        Ok(())
    }

    /// Whether it runs; one that was killed is put away.
    pub async fn runs(&mut self) -> bool {
        let ended = self.has_ended().await;
        let status = ended.as_ref().map_or(-1, |ended| ended.status);
        assert_eq!(status, -1, "{} ended by itself: {ended:?}", self.name);
        ended.is_none() && self.running.is_some()
    }

    /// Whether it runs and answers; one that was killed is put away. A kill that was on its way
    /// shows in the missing answer.
    pub async fn answers(&mut self) -> bool {
        let asked = Ask::anybody(&self.url()).try_send("GET", "/livez", &[], "").await;
        if asked.is_err() {
            until("the killed process to end", async || (!self.runs().await).then_some(())).await;
        }
        asked.is_ok()
    }

    /// How it ended, if it has, by itself or by a signal.
    pub async fn has_ended(&mut self) -> Option<Ended> {
        let ended = self.running.take_if(|running| !running.runs())?;
        Some(ended.ended().await)
    }

    pub async fn signal(&self, name: &str) {
        self.running.as_ref().expect("it runs").signal(name).await;
    }

    /// Kills it as a power cut would, if it runs.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().await;
        }
    }

    /// Its threads, oldest first: the id of each and its name.
    pub fn threads(&self) -> Vec<(u32, String)> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.id()));
        let mut threads: Vec<(u32, String)> = std::fs::read_dir(tasks)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let id = entry.file_name().to_str().unwrap().parse().unwrap();
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                (id, name.trim().to_owned())
            })
            .collect();
        threads.sort();
        threads
    }

    /// The thread of this name. A thread that has just begun has none yet.
    pub async fn thread(&self, name: &str) -> u32 {
        until("a thread of this name", async || {
            let threads = self.threads();
            threads.iter().find(|(_, known)| known == name).map(|(id, _)| *id)
        })
        .await
    }
}
