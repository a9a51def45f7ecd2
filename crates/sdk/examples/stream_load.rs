//! Measures transactions over streams: `participant PORT` serves an empty service to be dialed,
//! `load COORDINATOR TRANSACTIONS CONCURRENCY PARTICIPANT...` runs whole transactions over one
//! initiators' stream, and says how many committed in a second and how long each took.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use unanimity_sdk::stream::{self, BeginRequest, BranchRequest, StreamClient};
use unanimity_sdk::{
    BranchContext, MemoryParticipant, MemoryService, ServiceError, ServiceResult, Vote,
};

struct Empty;

impl MemoryService for Empty {
    fn prepare(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        Ok(Vote::Yes)
    }

    fn commit(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn rollback(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), ServiceError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["participant", port] => {
            let router = stream::router(Arc::new(MemoryParticipant::new(Empty)));
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
            println!("participant grpc://{}/empty", listener.local_addr()?);
            Ok(axum::serve(listener, router).await?)
        }
        ["load", coordinator, transactions, concurrency, participants @ ..] => {
            load(coordinator, transactions.parse()?, concurrency.parse()?, participants).await
        }
        _ => {
            Err("participant PORT, or load COORDINATOR TRANSACTIONS CONCURRENCY PARTICIPANT..."
                .into())
        }
    }
}

async fn load(
    coordinator: &str,
    transactions: usize,
    concurrency: usize,
    participants: &[&str],
) -> Result<(), ServiceError> {
    let client = StreamClient::new(coordinator, None)?;
    let branches = participants.iter().enumerate().map(|(place, participant)| BranchRequest {
        name: format!("b{place}"),
        participant: (*participant).to_owned(),
        payload: r#"{"amount":100,"account":"A-17"}"#.to_owned(),
        ..BranchRequest::default()
    });
    let request = BeginRequest { branches: branches.collect(), ..BeginRequest::default() };
    let left = Arc::new(AtomicUsize::new(transactions));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (client, request, left) = (client.clone(), request.clone(), Arc::clone(&left));
        tasks.spawn(async move {
            let (mut committed, mut latencies_us) = (0_usize, Vec::new());
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                let asked = Instant::now();
                let answer = client.begin(request.clone()).await;
                latencies_us.push(asked.elapsed().as_micros());
                match answer {
                    Ok(shown) => committed += usize::from(shown.decided().is_some()),
                    Err(error) => return Err(error),
                }
            }
            Ok((committed, latencies_us))
        });
    }
    let (mut committed, mut latencies_us) = (0, Vec::new());
    while let Some(joined) = tasks.join_next().await {
        let (more, took) = joined??;
        committed += more;
        latencies_us.extend(took);
    }
    let seconds = began.elapsed().as_secs_f64();
    latencies_us.sort_unstable();
    let at = |percent: usize| latencies_us.get(latencies_us.len() * percent / 100).unwrap_or(&0);
    println!(
        "{committed} decided in {seconds:.2} s: {:.0}/s; p50 {} us, p99 {} us",
        committed as f64 / seconds,
        at(50),
        at(99)
    );
    Ok(())
}
