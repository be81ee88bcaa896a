//! PyTorch's own process groups: ranks in processes of their own exchange tensors.
//!
//! A [`Group`] is Gloo's on processors and NCCL's on CUDA devices, over a [`Store`] that one of the ranks serves. Every
//! call blocks until all ranks have made it and its result is there, and no longer than the group's timeout: a rank that
//! died or hangs is an error on the others, never a wait without end. After an error a group is of no more use; ranks
//! start anew under another name.
//!
//! NCCL comes with the feature `nccl`, which links CUDA's half of libtorch.

use std::ffi::{CString, c_char, c_int};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ptr::NonNull;
use std::time::Duration;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{TorchError, check};

#[repr(C)]
struct RawStore {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RawGroup {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn beige_store_open(
        host: *const c_char,
        port: u16,
        serves: i32,
        timeout_ms: i64,
        out: *mut *mut RawStore,
    ) -> c_int;
    fn beige_store_port(store: *const RawStore) -> u16;
    fn beige_store_close(store: *mut RawStore);
    fn beige_group_join(
        store: *const RawStore,
        name: *const c_char,
        address: *const c_char,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        device: i8,
        out: *mut *mut RawGroup,
    ) -> c_int;
    fn beige_group_abort(group: *const RawGroup) -> c_int;
    fn beige_group_leave(group: *mut RawGroup);
    fn beige_group_barrier(group: *const RawGroup) -> c_int;
    fn beige_group_broadcast(group: *const RawGroup, tensor: *const C_tensor, root: i64) -> c_int;
    fn beige_group_all_reduce(group: *const RawGroup, tensor: *const C_tensor) -> c_int;
    fn beige_group_reduce_scatter(group: *const RawGroup, out: *mut C_tensor, tensor: *mut C_tensor)
    -> c_int;
    fn beige_group_all_gather(
        group: *const RawGroup,
        tensor: *const C_tensor,
        out: *const *const C_tensor,
        size: i64,
    ) -> c_int;
}

/// Where ranks find each other: a few keys behind a TCP port.
#[derive(Debug)]
pub struct Store(NonNull<RawStore>);

// SAFETY: the store has a lock of its own around its connection.
unsafe impl Send for Store {}

impl Store {
    /// A port of this machine that another process may serve one on soon.
    ///
    /// A connection is made to it and closed by the end that listens, which leaves the port waiting out its last packets
    /// for a minute: the kernel hands it to no one, but who asks for it by number gets it.
    ///
    /// # Errors
    /// Where the system has no port.
    pub fn reserve_port() -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let mut client = TcpStream::connect(address)?;
        drop(listener.accept()?);
        client.read_to_end(&mut Vec::new())?;
        Ok(address.port())
    }

    /// Serves one on `port` of all addresses; 0 takes any free port.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when the port is taken.
    pub fn serve(port: u16, timeout: Duration) -> Result<Self, TorchError> {
        Self::open("127.0.0.1", port, true, timeout)
    }

    /// Connects to the one at `host` and `port`, waiting for it up to `timeout`.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when it is not to be reached.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, TorchError> {
        Self::open(host, port, false, timeout)
    }

    fn open(host: &str, port: u16, serves: bool, timeout: Duration) -> Result<Self, TorchError> {
        let (host, mut out) = (text(host)?, std::ptr::null_mut());
        // SAFETY: `host` is a C string that outlives the call, and `out` has room for a pointer.
        check(unsafe {
            beige_store_open(host.as_ptr(), port, serves.into(), milliseconds(timeout), &raw mut out)
        })?;
        NonNull::new(out).map(Self).ok_or_else(no_object)
    }

    /// The port that it serves or is connected to.
    #[must_use]
    pub fn port(&self) -> u16 {
        // SAFETY: the pointer is to a live store.
        unsafe { beige_store_port(self.0.as_ptr()) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours, and not used again.
        unsafe { beige_store_close(self.0.as_ptr()) }
    }
}

/// A rank's place in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The group's name: ranks that join the same one at the same store meet.
    pub name: String,
    /// From 0.
    pub rank: usize,
    /// Ranks of the group.
    pub size: usize,
    /// This host, by the name or address under which other ranks reach it. NCCL finds its way itself.
    pub address: String,
    /// Where the tensors are that it exchanges: the processor, or one CUDA device for each rank.
    pub device: Device,
}

/// Ranks that exchange tensors. All ranks make the same calls in the same order.
#[derive(Debug)]
pub struct Group {
    raw: NonNull<RawGroup>,
    rank: usize,
    size: usize,
    device: Device,
}

// SAFETY: groups queue work under locks of their own; nothing in them belongs to a thread.
unsafe impl Send for Group {}

impl Group {
    /// Whether this build has groups on CUDA devices.
    pub const HAS_NCCL: bool = cfg!(feature = "nccl");

    /// Joins, waiting for the others up to `timeout`, which is that of every later call too. A CUDA device becomes that
    /// of the calling thread.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when a rank does not come; where the device is not there, or is one that this build
    /// exchanges nothing on.
    pub fn join(store: &Store, seat: &Seat, timeout: Duration) -> Result<Self, TorchError> {
        let Seat { name, rank, size, address, device } = seat;
        let wire_device = number_of(*device)?;
        let number = |n: &usize| i32::try_from(*n).map_err(|_| TorchError::Failed("too many ranks".into()));
        let (wire_rank, wire_size) = (number(rank)?, number(size)?);
        let (name, address, mut out) = (text(name)?, text(address)?, std::ptr::null_mut());
        let timeout = milliseconds(timeout);
        // SAFETY: the store is live, the texts are C strings that outlive the call, and `out` has room for a pointer.
        check(unsafe {
            beige_group_join(
                store.0.as_ptr(),
                name.as_ptr(),
                address.as_ptr(),
                wire_rank,
                wire_size,
                timeout,
                wire_device,
                &raw mut out,
            )
        })?;
        let raw = NonNull::new(out).ok_or_else(no_object)?;
        Ok(Self { raw, rank: *rank, size: *size, device: *device })
    }

    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks of the group.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where the tensors are that it takes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when a rank is gone or late.
    pub fn barrier(&self) -> Result<(), TorchError> {
        // SAFETY: the pointer is to a live group.
        check(unsafe { beige_group_barrier(self.raw.as_ptr()) })
    }

    /// Overwrites `tensor` with that of rank `root`. It is contiguous, and of one shape and kind on all ranks.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when a rank is gone or late, or the tensor is on another device.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), TorchError> {
        self.check_device(tensor)?;
        let root = i64::try_from(root).map_err(|_| TorchError::Failed("too many ranks".into()))?;
        // SAFETY: the pointers are to a live group and a live tensor, of which the shim keeps no more than a reference.
        check(unsafe { beige_group_broadcast(self.raw.as_ptr(), tensor.as_ptr(), root) })
    }

    /// Overwrites `tensor` with the sum over ranks, the same to the bit on all of them. It is contiguous, and of one
    /// shape and kind on all ranks.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<(), TorchError> {
        self.check_device(tensor)?;
        // SAFETY: as for `broadcast`.
        check(unsafe { beige_group_all_reduce(self.raw.as_ptr(), tensor.as_ptr()) })
    }

    /// This rank's share of the sum over ranks: of `[size * n, ..]` the rows `rank * n ..`, `[n, ..]`.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when rows do not divide among ranks; as [`Group::broadcast`].
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Tensor, TorchError> {
        self.check_device(tensor)?;
        let mut shape = tensor.size();
        let ranks = i64::try_from(self.size).unwrap_or(i64::MAX);
        match shape.first_mut() {
            Some(rows) if *rows % ranks == 0 => *rows /= ranks,
            _ => return Err(TorchError::Failed(format!("{shape:?} does not divide among {ranks} ranks"))),
        }
        let out = empty(tensor, &shape)?;
        // SAFETY: as for `broadcast`; the sum is written into `out` alone.
        check(unsafe {
            beige_group_reduce_scatter(self.raw.as_ptr(), out.as_ptr().cast_mut(), tensor.as_ptr().cast_mut())
        })?;
        Ok(out)
    }

    /// Every rank's `tensor`, by rank. It is contiguous, and of one shape and kind on all ranks; no gradient goes
    /// through.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        self.check_device(tensor)?;
        let outputs = (0..self.size).map(|_| empty(tensor, &tensor.size())).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const C_tensor> = outputs.iter().map(Tensor::as_ptr).collect();
        let size = i64::try_from(self.size).unwrap_or(i64::MAX);
        // SAFETY: as for `broadcast`; `pointers` has `size` of them.
        check(unsafe {
            beige_group_all_gather(self.raw.as_ptr(), tensor.as_ptr(), pointers.as_ptr(), size)
        })?;
        Ok(outputs)
    }

    /// Has calls fail from now on. What another thread waits for is broken off on a CUDA device; on a processor it ends by
    /// itself, or with the group's timeout.
    ///
    /// # Errors
    /// [`TorchError::Failed`] as c10d has it.
    pub fn abort(&self) -> Result<(), TorchError> {
        // SAFETY: the pointer is to a live group.
        check(unsafe { beige_group_abort(self.raw.as_ptr()) })
    }

    fn check_device(&self, tensor: &Tensor) -> Result<(), TorchError> {
        let (found, wanted) = (tensor.device(), self.device);
        if found == wanted {
            return Ok(());
        }
        Err(TorchError::Failed(format!(
            "a tensor is on {found:?}, and its group exchanges those on {wanted:?}"
        )))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours, and not used again.
        unsafe { beige_group_leave(self.raw.as_ptr()) }
    }
}

/// Of a CUDA device; -1 for the processor.
fn number_of(device: Device) -> Result<i8, TorchError> {
    let failed = |reason: String| Err(TorchError::Failed(reason));
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(_) if !Group::HAS_NCCL => failed(
            "ranks on CUDA devices meet by NCCL, and this build has none: build it with `--features nccl`"
                .into(),
        ),
        Device::Cuda(number) => {
            i8::try_from(number).or_else(|_| failed(format!("there is no cuda:{number}")))
        }
        other @ (Device::Mps | Device::Vulkan) => {
            failed(format!("ranks exchange tensors on processors and CUDA devices, not on {other:?}"))
        }
    }
}

fn empty(like: &Tensor, shape: &[i64]) -> Result<Tensor, TorchError> {
    Tensor::f_empty(shape, (like.kind(), like.device()))
        .map_err(|error| TorchError::Failed(error.to_string()))
}

fn text(text: &str) -> Result<CString, TorchError> {
    CString::new(text).map_err(|error| TorchError::Failed(error.to_string()))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn no_object() -> TorchError {
    TorchError::Failed("c10d made nothing".into())
}
