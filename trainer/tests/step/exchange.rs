//! Gradients of several ranks become their sum, whatever of it is exchanged.

use tch::{Kind, Tensor};
use trainer::exchange::sum_gradients;

use crate::threads::on_ranks;

/// What ranks make of the gradients that each is given, and how many numbers it exchanged for them.
fn summed(given: impl Fn(u32) -> Vec<Tensor> + Copy + Send + 'static) -> Vec<(Vec<Tensor>, usize)> {
    on_ranks(move |rank, world| {
        let named: Vec<(&str, Tensor)> = given(rank).into_iter().map(|gradient| ("", gradient)).collect();
        sum_gradients(world, &named).unwrap();
        (named.into_iter().map(|(_, gradient)| gradient).collect(), world.exchanged.get())
    })
}

#[test]
fn gradients_are_summed_whatever_their_size_and_layout() {
    fn given(rank: u32) -> Vec<Tensor> {
        let count = |n: i64| Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) + i64::from(rank) * 1_000;
        // Large, small, large and not contiguous, small, large, a table of which every row is there.
        let turned = count(300 * 250).view([300, 250]).transpose(0, 1);
        let table = count(1_100 * 64).view([1_100, 64]);
        vec![count(70_000), count(3), turned, count(1), count(1 << 16).view([256, 256]), table]
    }
    for (found, _) in summed(given) {
        for (found, first) in found.iter().zip(given(0)) {
            assert_eq!(*found, first * 3 + 3_000);
        }
    }
}

const ROWS: i64 = 9_000;
const COLUMNS: i64 = 16;

/// A table in which `rows` are `value`.
fn table(rows: &[i64], value: f64) -> Tensor {
    let table = Tensor::zeros([ROWS, COLUMNS], (Kind::Float, tch::Device::Cpu));
    for &row in rows {
        let _ = table.get(row).fill_(value);
    }
    table
}

#[test]
fn of_a_table_the_rows_are_exchanged_that_any_rank_has() {
    // Row 7 is one rank's, row 8,999 another's, row 20 all three's; the third has nothing else.
    fn given(rank: u32) -> Vec<Tensor> {
        let rows: &[i64] = match rank {
            0 => &[7, 20],
            1 => &[20, 8_999],
            _ => &[20],
        };
        vec![table(rows, f64::from(rank + 1))]
    }
    let expected = table(&[7], 1.0) + table(&[20], 6.0) + table(&[8_999], 2.0);
    for (found, exchanged) in summed(given) {
        assert_eq!(found, [expected.shallow_clone()]);
        assert_eq!(exchanged, usize::try_from(ROWS + 3 * COLUMNS).unwrap());
    }
}

#[test]
fn a_table_of_zeros_stays_one() {
    for (found, _) in summed(|_| vec![table(&[], 0.0)]) {
        assert_eq!(found, [table(&[], 0.0)]);
    }
}

#[test]
fn numbers_that_are_none_reach_every_rank() {
    for (found, _) in summed(|rank| vec![if rank == 1 { table(&[5], f64::NAN) } else { table(&[6], 1.0) }]) {
        assert!(found[0].get(5).isnan().all().int64_value(&[]) == 1);
        assert_eq!(found[0].get(6), table(&[6], 2.0).get(6));
    }
}
