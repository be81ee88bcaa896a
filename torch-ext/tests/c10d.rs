//! Ranks in processes of their own: this binary runs itself once per rank.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_ext::{Group, Seat, Store};

/// Far beyond what a busy machine needs to meet.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that plays rank `rank` of `size` in the test `scene`, on the store at `port`. Scenes `cuda-..` are played on
/// CUDA devices.
fn rank(scene: &str, rank: usize, size: usize, port: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_rank_of_another_test", "--nocapture"]).stdout(Stdio::null());
    command.env("C10D_SCENE", format!("{scene} {rank} {size} {port}")).spawn().unwrap()
}

fn join(seat: &Seat, port: u16, timeout: Duration) -> Group {
    let store = Store::connect("127.0.0.1", port, PATIENCE).unwrap();
    Group::join(&store, seat, timeout).unwrap()
}

fn seat(rank: usize, size: usize) -> Seat {
    let (name, address) = ("test".to_owned(), "127.0.0.1".to_owned());
    Seat { name, rank, size, address, device: Device::Cpu }
}

#[test]
fn a_reserved_port_is_served_on_by_who_asks_for_it_and_given_to_no_one_else() {
    let reserved: BTreeSet<u16> = (0..20).map(|_| Store::reserve_port().unwrap()).collect();
    assert_eq!(reserved.len(), 20);
    for port in reserved {
        assert_eq!(Store::serve(port, PATIENCE).unwrap().port(), port);
    }
}

/// Not a test of its own: what the ranks of the others do. Without a scene it does nothing.
#[test]
fn a_rank_of_another_test() {
    let Some(scene) = std::env::var_os("C10D_SCENE") else { return };
    let scene = scene.into_string().unwrap();
    let words: Vec<&str> = scene.split(' ').collect();
    let [scene, rank, size, port] = words.as_slice() else { panic!("{scene}") };
    let (rank, size, port) = (rank.parse().unwrap(), size.parse().unwrap(), port.parse().unwrap());
    // On a CUDA device a rank that died is one that hangs, and the first call may take its time.
    let (scene, device, [death, hanging]) = match scene.strip_prefix("cuda-") {
        Some(scene) => (scene, Device::Cuda(rank), [Duration::from_secs(20); 2]),
        None => (*scene, Device::Cpu, [PATIENCE, Duration::from_secs(3)]),
    };
    let seat = Seat { device, ..seat(rank, size) };
    match scene {
        "exchange" => exchange(&join(&seat, port, PATIENCE)),
        "die" => {
            let group = join(&seat, port, death);
            group.barrier().unwrap();
            if rank == 1 {
                torch_ext::exit_now(0);
            }
            let error = group.all_reduce(&numbers(rank, device)).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        "hang" => {
            // One may have come much later than the other: it is from here on that they wait so short a time.
            let meeting = Seat { name: "meeting".to_owned(), device: Device::Cpu, ..seat.clone() };
            let meeting = join(&meeting, port, PATIENCE);
            meeting.barrier().unwrap();
            let group = join(&seat, port, hanging);
            group.barrier().unwrap();
            if rank == 1 {
                // Until the other has noticed.
                std::thread::sleep(Duration::from_secs(600));
            }
            group.all_gather(&numbers(rank, device)).unwrap_err();
            torch_ext::exit_now(0);
        }
        other => panic!("{other}"),
    }
}

fn numbers(rank: usize, device: Device) -> Tensor {
    let rank = i64::try_from(rank).unwrap();
    Tensor::arange(8, (Kind::Float, device)).view([4, 2]) + rank * 100
}

fn exchange(group: &Group) {
    let (rank, size, device) = (group.rank(), i64::try_from(group.size()).unwrap(), group.device());
    let numbers = |rank| numbers(rank, device);
    let sum = numbers(0) * size + 100 * (0..size).sum::<i64>();
    let reduced = numbers(rank);
    group.all_reduce(&reduced).unwrap();
    assert_eq!(reduced, sum);

    let gathered = group.all_gather(&numbers(rank)).unwrap();
    for (from, tensor) in gathered.iter().enumerate() {
        assert_eq!(*tensor, numbers(from));
    }

    let (given, last) = (numbers(rank), group.size() - 1);
    group.broadcast(&given, last).unwrap();
    assert_eq!(given, numbers(last));

    let rows = 4 / size;
    let share = group.reduce_scatter(&numbers(rank)).unwrap();
    assert_eq!(share, sum.narrow(0, i64::try_from(rank).unwrap() * rows, rows));
    if size > 1 {
        group.reduce_scatter(&Tensor::zeros([3], (Kind::Float, device))).unwrap_err();
    }
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
    check_hang("hang");
}

#[track_caller]
fn check_hang(scene: &str) {
    let store = Store::serve(0, PATIENCE).unwrap();
    let [mut waiting, mut hanging] = [0, 1].map(|number| rank(scene, number, 2, store.port()));
    assert!(waiting.wait().unwrap().success());
    assert!(hanging.try_wait().unwrap().is_none(), "it hangs no more");
    hanging.kill().unwrap();
    hanging.wait().unwrap();
}

#[test]
fn a_rank_that_does_not_come_is_an_error() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let client = Store::connect("127.0.0.1", store.port(), PATIENCE).unwrap();
    Group::join(&client, &seat(0, 2), Duration::from_secs(1)).unwrap_err();
    drop(store);
    Store::connect("127.0.0.1", 1, Duration::from_secs(1)).unwrap_err();
}

#[test]
fn an_aborted_group_does_nothing_more() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let group = Group::join(&store, &seat(0, 1), PATIENCE).unwrap();
    let tensor = numbers(3, Device::Cpu);
    group.all_reduce(&tensor).unwrap();
    assert_eq!(tensor, numbers(3, Device::Cpu));
    group.abort().unwrap();
    let broken = "was broken off";
    for error in [
        group.all_reduce(&tensor).unwrap_err(),
        group.broadcast(&tensor, 0).unwrap_err(),
        group.all_gather(&tensor).unwrap_err(),
        group.reduce_scatter(&tensor).unwrap_err(),
        group.barrier().unwrap_err(),
    ] {
        assert!(error.to_string().contains(broken), "{error}");
    }
    group.abort().unwrap();
}

#[test]
fn a_device_that_nothing_is_exchanged_on_is_named() {
    let store = Store::serve(0, PATIENCE).unwrap();
    let elsewhere = |device| Seat { name: format!("on {device:?}"), device, ..seat(0, 1) };
    let error = |device| Group::join(&store, &elsewhere(device), PATIENCE).unwrap_err().to_string();
    assert!(error(Device::Mps).contains("not on Mps"), "{}", error(Device::Mps));
    // Either this build has no NCCL, or this machine no such device.
    let named = if Group::HAS_NCCL { "cuda:99" } else { "--features nccl" };
    assert!(error(Device::Cuda(99)).contains(named), "{}", error(Device::Cuda(99)));
}

#[cfg(all(feature = "cuda-tests", feature = "nccl"))]
mod cuda {
    use super::*;

    /// Whether there are so many; says so where there are not.
    fn has_devices(wanted: i64) -> bool {
        let found = tch::Cuda::device_count();
        if found < wanted {
            eprintln!("not run: it wants {wanted} CUDA devices, and there are {found}");
        }
        found >= wanted
    }

    #[test]
    fn a_device_alone_exchanges_with_itself() {
        if has_devices(1) {
            check("cuda-exchange", 1);
        }
    }

    #[test]
    fn a_group_takes_tensors_of_its_device_alone() {
        if !has_devices(1) {
            return;
        }
        let store = Store::serve(0, PATIENCE).unwrap();
        let seat = Seat { name: "device".to_owned(), device: Device::Cuda(0), ..seat(0, 1) };
        let group = Group::join(&store, &seat, PATIENCE).unwrap();
        let error = group.all_reduce(&numbers(0, Device::Cpu)).unwrap_err().to_string();
        assert!(error.contains("a tensor is on Cpu"), "{error}");
        group.all_reduce(&numbers(0, Device::Cuda(0))).unwrap();
        group.abort().unwrap();
        group.all_reduce(&numbers(0, Device::Cuda(0))).unwrap_err();
    }

    #[test]
    fn tensors_are_exchanged_by_two_devices() {
        if has_devices(2) {
            check("cuda-exchange", 2);
        }
    }

    #[test]
    fn a_rank_that_died_is_an_error_on_the_other() {
        if has_devices(2) {
            check("cuda-die", 2);
        }
    }

    #[test]
    fn a_rank_that_hangs_is_an_error_too() {
        if has_devices(2) {
            check_hang("cuda-hang");
        }
    }
}
