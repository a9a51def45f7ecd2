//! A stretch of wire between the coordinator and a server that can be cut at a chosen word: before
//! the server has read it, or after it and before its answer comes back.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where the wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never reads the word.
    Before,
    /// The server reads it, and its answer is lost.
    After,
}

type Wanted = Arc<Mutex<Option<(&'static str, Cut)>>>;

/// The stretch of wire.
pub struct Proxy {
    port: u16,
    wanted: Wanted,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let wanted = Wanted::default();
        let cuts = Arc::clone(&wanted);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(carry(client, server, Arc::clone(&cuts)));
            }
        });
        Self { port: own, wanted }
    }

    /// The same place by way of this wire.
    pub fn url(&self, url: &str) -> String {
        let (head, rest) = url.rsplit_once(':').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        format!("{head}:{}/{database}", self.port)
    }

    /// Cuts the next connection that says this word, once.
    pub fn cut(&self, word: &'static str, cut: Cut) {
        *self.wanted.lock().unwrap() = Some((word, cut));
    }

    /// Whether the cut has been made.
    pub fn has_cut(&self) -> bool {
        self.wanted.lock().unwrap().is_none()
    }
}

/// Carries both ways until either side ends, or the wire is cut.
async fn carry(mut client: TcpStream, mut server: TcpStream, wanted: Wanted) {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                let text = String::from_utf8_lossy(&asked[..count]).into_owned();
                let cut = {
                    let mut wanted = wanted.lock().unwrap();
                    match *wanted {
                        Some((word, cut)) if text.contains(word) => {
                            *wanted = None;
                            Some(cut)
                        }
                        _ => None, // Nothing is wanted, or not this.
                    }
                };
                if cut == Some(Cut::Before) {
                    return;
                }
                if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
                if cut == Some(Cut::After) {
                    // Its answer shows that it was done; nobody is told.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
