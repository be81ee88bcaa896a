//! What is served on what: the flags `--model` and `--device`, checked before anything starts.

use std::path::PathBuf;
use std::str::FromStr;

/// `[NAME=]DIR[,pooling=cls|mean|last][,max_tokens=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelSpec {
    /// The alias it is served under.
    pub(crate) name: String,
    /// In Hugging Face layout.
    pub(crate) directory: PathBuf,
    /// What follows the directory, with its comma; workers understand it.
    pub(crate) options: String,
}

impl ModelSpec {
    /// As a worker's flag.
    pub(crate) fn to_flag(&self) -> String {
        format!("{}={}{}", self.name, self.directory.display(), self.options)
    }
}

impl FromStr for ModelSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, options) = text.split_at(text.find(',').unwrap_or(text.len()));
        options.split(',').skip(1).try_for_each(check_option)?;
        let (name, directory) = match place.split_once('=') {
            Some((name, directory)) => (Some(name.to_owned()), PathBuf::from(directory)),
            None => (None, PathBuf::from(place)),
        };
        if directory.as_os_str().is_empty() {
            return Err("it names no directory".to_owned());
        }
        // `.` and `..` have no name until they are resolved.
        let resolved = || directory.canonicalize().unwrap_or_else(|_| directory.clone());
        let of_directory = || resolved().file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.or_else(of_directory).unwrap_or_default();
        // What workers accept; said here, it is said before anything starts.
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(format!("\"{name}\" cannot be a model's name: give one, as NAME=DIR"));
        }
        Ok(Self { name, directory, options: options.to_owned() })
    }
}

fn check_option(option: &str) -> Result<(), String> {
    match option.split_once('=') {
        Some(("pooling", "cls" | "mean" | "last")) => Ok(()),
        Some(("pooling", other)) => Err(format!("pooling is cls, mean or last, not \"{other}\"")),
        Some(("max_tokens", number)) if number.parse::<u32>().is_ok_and(|number| number > 0) => Ok(()),
        Some(("max_tokens", other)) => {
            Err(format!("max_tokens is a whole number above zero, not \"{other}\""))
        }
        Some(_) | None => Err(format!("\"{option}\" is neither pooling=… nor max_tokens=…")),
    }
}

/// `auto`, `cpu` or `cuda:K`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device(pub(crate) String);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = text.strip_prefix("cuda:").is_some_and(|number| number.parse::<u8>().is_ok());
        if cuda || text == "auto" || text == "cpu" {
            Ok(Self(text.to_owned()))
        } else {
            Err("a device is auto, cpu or cuda:K".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, flag: &str) {
        let spec: ModelSpec = text.parse().unwrap();
        assert_eq!(spec.to_flag(), flag);
    }

    #[track_caller]
    fn refuses(text: &str, fault: &str) {
        assert_eq!(text.parse::<ModelSpec>().unwrap_err(), fault);
    }

    #[test]
    fn a_model_is_a_directory_with_a_name_and_options() {
        check("/m/bge-base", "bge-base=/m/bge-base");
        check("/m/bge-base/", "bge-base=/m/bge-base/");
        check("small=bge", "small=bge");
        check("bge,pooling=cls,max_tokens=256", "bge=bge,pooling=cls,max_tokens=256");
        check("a=b=c,pooling=last", "a=b=c,pooling=last");
    }

    #[test]
    fn what_is_no_model_is_refused_with_the_reason() {
        refuses("", "it names no directory");
        refuses("x=", "it names no directory");
        refuses("a@b=/m", "\"a@b\" cannot be a model's name: give one, as NAME=DIR");
        refuses("/m/my model", "\"my model\" cannot be a model's name: give one, as NAME=DIR");
        refuses("/", "\"\" cannot be a model's name: give one, as NAME=DIR");
        refuses("m,pooling=max", "pooling is cls, mean or last, not \"max\"");
        refuses("m,max_tokens=0", "max_tokens is a whole number above zero, not \"0\"");
        refuses("m,fast", "\"fast\" is neither pooling=… nor max_tokens=…");
    }

    #[test]
    fn a_device_is_auto_cpu_or_a_numbered_gpu() {
        assert!(["auto", "cpu", "cuda:0", "cuda:7"].iter().all(|text| text.parse::<Device>().is_ok()));
        assert!(
            ["", "gpu", "cuda", "cuda:", "cuda:x", "CPU"].iter().all(|text| text.parse::<Device>().is_err())
        );
    }
}
