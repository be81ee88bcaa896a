//! The verbs and the help that goes for all of them.

use clap::{Parser, Subcommand};

/// Serve, embed, rerank: the command line of Beige.
#[derive(Debug, Parser)]
#[command(name = "beige", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Beige {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
Exit codes:
  0   done
  1   refused by the server, or failed
  2   wrong usage
  69  the server is not reachable

Environment:
  BEIGE_TARGET    the gateway, where --target is not given
  BEIGE_KEY       the API key, where --key is not given
  BEIGE_CA        as --ca; likewise BEIGE_CERT and BEIGE_CERT_KEY
  BEIGE_CACHE     where `up` looks for the default model
  TRACEPARENT     a W3C trace parent, sent with each call

Examples:
  beige up
  beige embed \"What is the BGE family?\"
  beige embed --input passages.jsonl --output passages.npy
  beige rerank --query \"who wrote it?\" --input passages.txt --top-n 3
  beige models publish ./bge-base-tuned --alias bge-base --promote
  beige train submit my-job job.yaml
  beige status";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a whole cluster on this machine: etcd, a gateway, workers, a trainer
    Up(crate::up::UpArgs),
    /// Turn texts into vectors
    Embed(crate::embed::EmbedArgs),
    /// Order documents by how well they answer a query
    Rerank(crate::rerank::RerankArgs),
    /// List the models the cluster serves, publish checkpoints, change what names mean
    Models(crate::models::ModelsArgs),
    /// Fine-tune models: submit jobs, watch them, report on them
    Train(crate::train::TrainArgs),
    /// Make API keys
    Keys(crate::keys::KeysArgs),
    /// Show the workers: state, device, models, queue, speed
    Status(crate::status::StatusArgs),
    /// Show the tokens a model reads in texts
    Tokens(crate::tokens::TokensArgs),
    /// Load the cluster and measure throughput and latency
    Bench(crate::bench::BenchArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Beige::command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples_in_its_help() {
        for verb in Beige::command().get_subcommands().filter(|verb| verb.get_name() != "help") {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has none", verb.get_name());
        }
    }
}
