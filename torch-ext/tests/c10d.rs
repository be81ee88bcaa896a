//! Ranks in processes of their own: this binary runs itself once per rank.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_ext::{Group, Seat, Store};

/// Far beyond what a busy machine needs to meet.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that plays rank `rank` of `size` in the test `scene`, on the store at `port`.
fn rank(scene: &str, rank: usize, size: usize, port: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_rank_of_another_test", "--nocapture"]).stdout(Stdio::null());
    command.env("C10D_SCENE", format!("{scene} {rank} {size} {port}")).spawn().unwrap()
}

fn join(rank: usize, size: usize, port: u16, timeout: Duration) -> Group {
    let store = Store::connect("127.0.0.1", port, PATIENCE).unwrap();
    let seat = Seat { name: "test".to_owned(), rank, size, address: "127.0.0.1".to_owned() };
    Group::join(&store, &seat, timeout).unwrap()
}

/// Not a test of its own: what the ranks of the others do. Without a scene it does nothing.
#[test]
fn a_rank_of_another_test() {
    let Some(scene) = std::env::var_os("C10D_SCENE") else { return };
    let scene = scene.into_string().unwrap();
    let words: Vec<&str> = scene.split(' ').collect();
    let [scene, rank, size, port] = words.as_slice() else { panic!("{scene}") };
    let (rank, size, port) = (rank.parse().unwrap(), size.parse().unwrap(), port.parse().unwrap());
    match *scene {
        "exchange" => exchange(&join(rank, size, port, PATIENCE)),
        "die" => {
            let group = join(rank, size, port, PATIENCE);
            group.barrier().unwrap();
            if rank == 1 {
                torch_ext::exit_now(0);
            }
            let error = group.all_reduce(&numbers(rank)).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        "hang" => {
            let group = join(rank, size, port, Duration::from_secs(3));
            group.barrier().unwrap();
            if rank == 1 {
                // Until the other has noticed.
                std::thread::sleep(Duration::from_secs(600));
            }
            group.all_gather(&numbers(rank)).unwrap_err();
            torch_ext::exit_now(0);
        }
        other => panic!("{other}"),
    }
}

fn numbers(rank: usize) -> Tensor {
    let rank = i64::try_from(rank).unwrap();
    Tensor::arange(8, (Kind::Float, Device::Cpu)).view([4, 2]) + rank * 100
}

fn exchange(group: &Group) {
    let (rank, size) = (group.rank(), i64::try_from(group.size()).unwrap());
    let sum = numbers(0) * size + 100 * (0..size).sum::<i64>();
    let reduced = numbers(rank);
    group.all_reduce(&reduced).unwrap();
    assert_eq!(reduced, sum);

    let gathered = group.all_gather(&numbers(rank)).unwrap();
    for (from, tensor) in gathered.iter().enumerate() {
        assert_eq!(*tensor, numbers(from));
    }

    let given = numbers(rank);
    group.broadcast(&given, 1).unwrap();
    assert_eq!(given, numbers(1));

    let rows = 4 / size;
    let share = group.reduce_scatter(&numbers(rank)).unwrap();
    assert_eq!(share, sum.narrow(0, i64::try_from(rank).unwrap() * rows, rows));
    group.reduce_scatter(&Tensor::zeros([3], (Kind::Float, Device::Cpu))).unwrap_err();
    group.barrier().unwrap();
}

#[track_caller]
fn check(scene: &str, size: usize) {
    let store = Store::serve(0, PATIENCE).unwrap();
    let ranks: Vec<Child> = (0..size).map(|number| rank(scene, number, size, store.port())).collect();
    for mut child in ranks {
        assert!(child.wait().unwrap().success(), "{scene}");
    }
}

#[test]
fn tensors_are_exchanged_by_two_and_by_four() {
    check("exchange", 2);
    check("exchange", 4);
}

#[test]
fn a_rank_that_died_is_an_error_on_the_others() {
    check("die", 2);
    check("die", 4);
}

#[test]
fn a_rank_that_hangs_is_an_error_within_the_timeout() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let [mut waiting, mut hanging] = [0, 1].map(|number| rank("hang", number, 2, store.port()));
    assert!(waiting.wait().unwrap().success());
    assert!(hanging.try_wait().unwrap().is_none(), "it hangs no more");
    hanging.kill().unwrap();
    hanging.wait().unwrap();
}

#[test]
fn a_rank_that_does_not_come_is_an_error() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let client = Store::connect("127.0.0.1", store.port(), PATIENCE).unwrap();
    let seat = Seat { name: "test".to_owned(), rank: 0, size: 2, address: "127.0.0.1".to_owned() };
    Group::join(&client, &seat, Duration::from_secs(1)).unwrap_err();
    drop(store);
    Store::connect("127.0.0.1", 1, Duration::from_secs(1)).unwrap_err();
}

#[test]
fn an_aborted_group_does_nothing_more() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let seat = Seat { name: "alone".to_owned(), rank: 0, size: 1, address: "127.0.0.1".to_owned() };
    let group = Group::join(&store, &seat, PATIENCE).unwrap();
    let tensor = numbers(3);
    group.all_reduce(&tensor).unwrap();
    assert_eq!(tensor, numbers(3));
    group.abort().unwrap();
}
