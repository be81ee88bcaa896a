//! Where models run, and in which kind of number.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use tch::{Kind, Tensor};
use torch_ext::{Activation, DeviceMemory, PackedLinear};

use crate::error::{DeviceError, LoadError};

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl Device {
    /// `cpu`, `cuda`, `cuda:1`; `auto` takes the first CUDA device where there is one.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`].
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" if Path::new("/dev/nvidia0").exists() => Ok(Self::Cuda(0)),
            "auto" | "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }

    /// For people: the processor and its instruction sets, or the CUDA device.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Cpu => format!("cpu ({}, {})", processor(), Instructions::detect()),
            Self::Cuda(_) => self.to_string(),
        }
    }

    /// Its own memory; none of a processor, which shares that of the machine, and where the device does not tell.
    #[must_use]
    pub fn memory(self) -> Option<DeviceMemory> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => torch_ext::cuda_memory(number)
                .inspect_err(|error| tracing::warn!(device = %self, %error, "memory is not told"))
                .ok(),
        }
    }

    /// As libtorch has it.
    #[must_use]
    pub fn torch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(number) => tch::Device::Cuda(number),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Readies the process for `device`: threads, and CUDA's half of libtorch. Call it once, before any model is loaded.
///
/// # Errors
/// [`DeviceError::Unusable`].
pub fn prepare(device: Device, threads: usize) -> Result<(), DeviceError> {
    set_threads(threads);
    tch::set_num_interop_threads(1);
    reach(device)
}

/// Sees that `device` is there, and loads CUDA's half of libtorch for one that needs it.
///
/// # Errors
/// [`DeviceError::Unusable`].
pub fn reach(device: Device) -> Result<(), DeviceError> {
    let Device::Cuda(number) = device else { return Ok(()) };
    let unusable = |reason: String| DeviceError::Unusable { device: device.to_string(), reason };
    torch_ext::load_cuda().map_err(|error| unusable(error.to_string()))?;
    match tch::Cuda::device_count() {
        count if usize::try_from(count).is_ok_and(|count| number < count) => Ok(()),
        count => Err(unusable(format!("there is no such device, libtorch finds {count} of CUDA"))),
    }
}

/// Spreads what the calling thread computes over so many threads, itself among them. Other threads that have computed
/// before keep theirs; to be sure, each says its own.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1).max(1));
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bf16 where the device is faster with it and the checkpoint stays true in it, else f32.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            other => Err(DeviceError::Precision(format!("dtype is auto, f32, bf16 or f16, not {other:?}"))),
        }
    }
}

/// Whether models run on `device` in the kind of number asked for.
///
/// # Errors
/// [`DeviceError::Precision`].
pub fn supports(device: Device, precision: Precision) -> Result<(), DeviceError> {
    candidates(device, precision, Instructions::detect()).map(drop)
}

/// The kinds of number to try, the preferred one first; the first is kept if the checkpoint stays true in it.
pub(crate) fn candidates(
    device: Device,
    precision: Precision,
    instructions: Instructions,
) -> Result<Vec<Kind>, DeviceError> {
    let refuse = |kind: &str, why: &str| {
        Err(DeviceError::Precision(format!("{kind} was asked for, but {why}: use f32 or auto")))
    };
    match (device, precision) {
        (Device::Cuda(_), Precision::Auto | Precision::Bf16) => Ok(vec![Kind::BFloat16]),
        (Device::Cuda(_), Precision::F16) => Ok(vec![Kind::Half]),
        (Device::Cpu, Precision::Auto) if instructions.bf16 => Ok(vec![Kind::BFloat16, Kind::Float]),
        (_, Precision::F32) | (Device::Cpu, Precision::Auto) => Ok(vec![Kind::Float]),
        (Device::Cpu, Precision::Bf16) if instructions.bf16 => Ok(vec![Kind::BFloat16]),
        (Device::Cpu, Precision::Bf16) => refuse(
            "bf16",
            "this processor has no bf16 dot products and runs it at a tenth of the speed of f32",
        ),
        (Device::Cpu, Precision::F16) => refuse("f16", "processors run it slower than f32"),
    }
}

/// Instruction sets that decide how fast a kind of number is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// 256-bit integers and floats.
    pub avx2: bool,
    /// 512-bit floats.
    pub avx512: bool,
    /// bf16 dot products.
    pub bf16: bool,
}

impl Instructions {
    /// Of this processor.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            Self {
                avx2: is_x86_feature_detected!("avx2"),
                avx512: is_x86_feature_detected!("avx512f"),
                bf16: is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::default()
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.avx2, "avx2"), (self.avx512, "avx512"), (self.bf16, "avx512_bf16")];
        let there: Vec<_> = named.into_iter().filter_map(|(there, name)| there.then_some(name)).collect();
        if there.is_empty() { f.write_str("no vector extensions") } else { f.write_str(&there.join(" ")) }
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Billions of floating-point operations per second of one linear layer `[rows, input] x [input, output]`, run as
/// models here run it, on the threads set by [`prepare`]. The best of `repetitions`.
///
/// # Errors
/// [`LoadError::Torch`] where the device cannot multiply this kind.
pub fn gemm_rate(
    precision: Precision,
    [rows, input, output]: [i64; 3],
    repetitions: usize,
) -> Result<f64, LoadError> {
    let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let random = |shape: &[i64]| {
        Tensor::f_randn(shape, (Kind::Float, tch::Device::Cpu)).and_then(|tensor| tensor.f_to_kind(kind))
    };
    let layer = PackedLinear::pack(&random(&[output, input])?, random(&[output])?, rows)?;
    let x = random(&[rows, input])?;
    drop(layer.forward(&x, Activation::None)?);
    let mut best = f64::INFINITY;
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        drop(layer.forward(&x, Activation::None)?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let operations = 2.0 * (rows * input * output) as f64;
    Ok(operations / best / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(device: Device, precision: Precision, bf16: bool, expected: Result<&[Kind], &str>) {
        let found = candidates(device, precision, Instructions { bf16, ..Instructions::default() });
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn the_kind_follows_the_processor() {
        check(Device::Cpu, Precision::Auto, false, Ok(&[Kind::Float]));
        check(Device::Cpu, Precision::Auto, true, Ok(&[Kind::BFloat16, Kind::Float]));
        check(Device::Cpu, Precision::Bf16, true, Ok(&[Kind::BFloat16]));
        check(Device::Cpu, Precision::Bf16, false, Err("no bf16 dot products"));
        check(Device::Cpu, Precision::F16, true, Err("slower than f32"));
        check(Device::Cpu, Precision::F32, true, Ok(&[Kind::Float]));
        check(Device::Cuda(0), Precision::Auto, false, Ok(&[Kind::BFloat16]));
        check(Device::Cuda(0), Precision::F16, false, Ok(&[Kind::Half]));
    }

    #[test]
    fn devices_are_named_as_torch_names_them() {
        assert_eq!(Device::parse("cpu"), Ok(Device::Cpu));
        assert_eq!(Device::parse("cuda:3"), Ok(Device::Cuda(3)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            assert_eq!(Device::parse(text), Err(DeviceError::Unknown(text.to_owned())));
        }
    }
}
