//! Dropout: how much falls, that it is drawn from libtorch's generator and from nothing else, and its gradients.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};
use torch_ext::{TorchError, dropout};

/// All draws of this process are made with it.
static GENERATOR: Mutex<()> = Mutex::new(());

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).unwrap()
}

/// What `of` makes of the process's generator, seeded; nobody else draws meanwhile.
fn seeded(seed: i64, of: impl Fn() -> Tensor) -> Tensor {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    of()
}

#[test]
fn a_share_falls_and_the_others_grow() {
    let ones = Tensor::ones([300, 1001], OPTIONS);
    for share in [0.0, 0.1, 0.5] {
        let found = numbers(&seeded(1, || dropout(&ones, share, None).unwrap()));
        let kept: Vec<f32> = found.iter().copied().filter(|number| *number != 0.0).collect();
        #[allow(clippy::cast_precision_loss)]
        let fell = 1.0 - kept.len() as f64 / found.len() as f64;
        // Five standard deviations of a share of 300,300 draws.
        assert!((fell - share).abs() <= 5.0 * (share * (1.0 - share) / 300_300.0).sqrt(), "{fell} {share}");
        #[allow(clippy::cast_possible_truncation)]
        let grown = (1.0 / (1.0 - share)) as f32;
        // Shares are of 65,536.
        assert!(kept.iter().all(|number| (number / grown - 1.0).abs() < 2e-5), "{grown}");
    }
}

#[test]
fn neighbours_fall_independently() {
    let ones = Tensor::ones([64 * 4096], OPTIONS);
    let fallen = seeded(2, || dropout(&ones, 0.5, None).unwrap()).eq(0.0).to_kind(Kind::Double) - 0.5;
    // Of lags within a block of random bits, over its words, and over blocks.
    for lag in [1, 2, 15, 16, 17, 32, 63, 64, 65, 128] {
        let count = 64 * 4096 - lag;
        let both = fallen.narrow(0, 0, count) * fallen.narrow(0, lag, count);
        let correlation = 4.0 * both.mean(Kind::Double).double_value(&[]);
        assert!(correlation.abs() < 5.0 / 512.0, "{lag}: {correlation}"); // 1 / sqrt(64 * 4096)
    }
}

#[test]
fn the_seed_alone_says_which_fall() {
    // More than libtorch gives one thread, and not a whole number of blocks.
    let input = seeded(5, || Tensor::rand([77, 1333], OPTIONS) + 1.0);
    let with = |seed, threads| {
        tch::set_num_threads(threads);
        numbers(&seeded(seed, || dropout(&input, 0.3, None).unwrap()))
    };
    let (alone, shared, other) = (with(7, 1), with(7, 3), with(8, 1));
    tch::set_num_threads(1);
    assert!(alone == shared);
    assert!(alone != other);
    let twice = seeded(7, || {
        let _ = dropout(&input, 0.3, None).unwrap();
        dropout(&input, 0.3, None).unwrap()
    });
    assert!(alone != numbers(&twice));
}

#[test]
fn gradients_go_where_numbers_went() {
    let leaf = |seed| seeded(seed, || Tensor::rand([37, 53], OPTIONS) + 1.0).set_requires_grad(true);
    let (input, rest) = (leaf(1), leaf(2));
    let found = seeded(3, || dropout(&input, 0.4, Some(&rest)).unwrap());
    let by = seeded(4, || Tensor::randn([53, 37], OPTIONS)).transpose(0, 1);
    (&found * &by).sum(Kind::Float).backward();
    let mask = (&found - &rest).detach() / input.detach(); // 0 or about 1 / 0.6
    assert!(input.grad().allclose(&(&mask * &by), 1e-4, 1e-6, false));
    assert!(rest.grad().allclose(&by, 0.0, 0.0, false));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (two, three) = (Tensor::ones([2], OPTIONS), Tensor::ones([3], OPTIONS));
    assert!(matches!(dropout(&two, 0.1, Some(&three)), Err(TorchError::Failed(_))));
    assert!(matches!(dropout(&two, 1.0, None), Err(TorchError::Failed(_))));
}
