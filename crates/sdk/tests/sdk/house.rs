//! A service that can be stopped and started again at the same address, for the battery.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use unanimity_sdk::axum::{self, Router};
use unanimity_sdk::battery::{Options, Restart};

/// What a service's router is made from, whenever it starts.
type Start = Arc<dyn Fn() -> Router + Send + Sync>;

/// What stops a service, and the task that ends then.
type Running = (oneshot::Sender<()>, tokio::task::JoinHandle<()>);

/// A service that can be stopped and started again at the same address.
#[derive(Clone)]
pub struct House {
    start: Start,
    /// Held while the service is stopped too: nobody else may get its port meanwhile.
    listener: Arc<TcpListener>,
    pub running: Arc<Mutex<Option<Running>>>,
}

impl House {
    pub async fn open(start: impl Fn() -> Router + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = Arc::new(listener);
        let house = Self { start: Arc::new(start), listener, running: Arc::default() };
        house.restart().await.unwrap();
        house
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listener.local_addr().unwrap())
    }

    pub async fn restart(&self) -> Result<(), String> {
        let running = self.running.lock().unwrap().take();
        if let Some((stop, task)) = running {
            drop(stop);
            task.await.unwrap();
        }
        let listener = self.listener.try_clone().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let app = (self.start)();
        let task = tokio::spawn(async move {
            tokio::select! {
                served = async { axum::serve(listener, app).await } => served.unwrap(),
                _ = stopped => {}
            }
        });
        *self.running.lock().unwrap() = Some((stop, task));
        Ok(())
    }

    pub fn options(&self, compensable: bool) -> Options {
        let house = self.clone();
        let restart = Restart::new(move || {
            let house = house.clone();
            async move { house.restart().await }
        });
        let observe = Some(self.url("/stock"));
        Options { compensable, observe, restart: Some(restart), ..Options::default() }
    }
}
