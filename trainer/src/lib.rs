//! Fine-tuning jobs: rank processes, data, losses, checkpoints, evaluation.
