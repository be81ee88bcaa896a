//! Measures what the gateway adds to one small call: the same text, in turn through the gateway and straight to a
//! worker behind it.
//!
//! `gateway_hop http://127.0.0.1:8080 MODEL [CALLS]` prints the medians in milliseconds and their difference.

#![allow(clippy::print_stdout)] // A program for people.

use std::error::Error;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::{EmbedRequest, GetModelRequest, ListWorkersRequest};
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{EmbedShard, ShardOrigin};
use tonic::transport::Endpoint;

const TEXT: &str = "Who painted the door green?";
/// Between calls, so that each finds everything idle.
const PAUSE: Duration = Duration::from_millis(2);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, target, model, rest @ ..] = arguments.as_slice() else {
        return Err("usage: gateway_hop TARGET MODEL [CALLS]".into());
    };
    let calls: usize = rest.first().map_or(Ok(1000), |calls| calls.parse())?;
    let gateway = Endpoint::from_shared(target.clone())?.tcp_nodelay(true).connect().await?;
    let workers =
        ClusterClient::new(gateway.clone()).list_workers(ListWorkersRequest {}).await?.into_inner().workers;
    let address = &workers.first().ok_or("no worker")?.address;
    let worker = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
    let known =
        ModelsClient::new(gateway.clone()).get(GetModelRequest { name: model.clone() }).await?.into_inner();
    let digest = known.checkpoint.ok_or("no checkpoint")?.digest;

    let request =
        EmbedRequest { model: model.clone(), inputs: vec![TEXT.to_owned()], ..EmbedRequest::default() };
    let origin = ShardOrigin { digest, ..ShardOrigin::default() };
    let shard = EmbedShard { origin: Some(origin), request: Some(request.clone()) };
    let (mut through, mut straight) = (EmbeddingsClient::new(gateway), WorkerClient::new(worker));
    let mut times = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
    for call in 0..calls + 20 {
        let start = Instant::now();
        through.embed(request.clone()).await?;
        let by_gateway = start.elapsed();
        tokio::time::sleep(PAUSE).await;
        let start = Instant::now();
        straight.embed(shard.clone()).await?;
        let by_worker = start.elapsed();
        tokio::time::sleep(PAUSE).await;
        // The first few warm the way.
        if call >= 20 {
            for (histogram, time) in times.iter_mut().zip([by_gateway, by_worker]) {
                histogram.record(u64::try_from(time.as_micros())?)?;
            }
        }
    }
    let [through, straight] =
        times.map(|histogram| f64::from(u32::try_from(histogram.value_at_quantile(0.5)).unwrap_or(0)) / 1e3);
    println!(
        "p50 of {calls} calls: {through:.3} ms through the gateway, {straight:.3} ms straight to a worker"
    );
    println!("the gateway adds {:.3} ms", through - straight);
    Ok(())
}
