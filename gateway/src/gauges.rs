//! What Prometheus is told of names and swaps, read when it asks.

use std::fmt;
use std::sync::Arc;

use cluster::View;
use telemetry::prometheus::collector::Collector;
use telemetry::prometheus::encoding::{DescriptorEncoder, EncodeMetric as _};
use telemetry::prometheus::metrics::MetricType;
use telemetry::prometheus::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::fleet::Fleet;
use crate::show;

/// Names and swaps as this gateway sees them.
#[derive(Debug)]
pub struct Gauges {
    /// What names mean here.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// The cluster.
    pub views: watch::Receiver<Arc<View>>,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let (fleet, view) = (self.fleet.borrow().clone(), self.views.borrow().clone());
        let aliases = fleet.aliases().into_iter().flatten();
        let epochs = aliases.map(|(model, alias)| {
            ([("model", model.as_str()), ("digest", alias.digest.as_str())], alias.epoch)
        });
        family(
            &mut encoder,
            ("epoch", "How often the model's name has moved, as this gateway sees it"),
            epochs,
        )?;
        let swaps = view.swaps.iter();
        let states = swaps
            .map(|(model, swap)| ([("model", model.as_str()), ("state", show::state_name(swap.state))], 1));
        family(&mut encoder, ("swap", "1 for the state that the model's last swap is in"), states)?;
        let ready = view.swaps.iter().filter(|(_, swap)| swap.state.is_open()).map(|(model, swap)| {
            let ready = view.ready.get(&(model.clone(), swap.to.clone()));
            let count = ready.into_iter().flatten().count();
            (
                [("model", model.as_str()), ("digest", swap.to.as_str())],
                u64::try_from(count).unwrap_or(u64::MAX),
            )
        });
        family(&mut encoder, ("swap_ready_workers", "Workers that are ready for the swap under way"), ready)?;
        let leads = view.leader.iter().map(|leader| ([("gateway", leader.gateway.as_str())], 1));
        family(&mut encoder, ("leader", "1 for the gateway that carries swaps out"), leads)
    }
}

/// One gauge, with a value for each set of labels.
fn family<'a, const N: usize>(
    encoder: &mut DescriptorEncoder,
    (name, help): (&str, &str),
    values: impl Iterator<Item = ([(&'a str, &'a str); N], u64)>,
) -> Result<(), fmt::Error> {
    let name = format!("beige_gateway_{name}");
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cluster::{Gateway, GatewayId, Leader, Swap, SwapPlan};
    use telemetry::prometheus::encoding::text;
    use telemetry::prometheus::registry::Registry;

    use super::*;
    use crate::fleet::tests::view;

    #[tokio::test]
    async fn names_swaps_and_the_leader_are_shown() {
        let mut view = view(&[("m", "d", 4)]);
        let plan = SwapPlan::default();
        let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 1);
        view.swaps.insert("m".into(), swap);
        let gateway = GatewayId::parse("gw-1").unwrap();
        view.gateways.insert(gateway.clone(), Gateway::default());
        view.leader = Some(Leader { gateway, address: "127.0.0.1:8080".into() });
        let (_fleet, fleet) = watch::channel(Arc::new(Fleet::new(Some(&view.aliases), Vec::new())));
        let (_views, views) = watch::channel(Arc::new(view));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Gauges { fleet, views }));
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            r#"beige_gateway_epoch{model="m",digest="d"} 4"#,
            r#"beige_gateway_swap{model="m",state="requested"} 1"#,
            r#"beige_gateway_swap_ready_workers{model="m",digest="e"} 0"#,
            r#"beige_gateway_leader{gateway="gw-1"} 1"#,
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }
}
