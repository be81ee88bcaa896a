//! The pickles of `torch.save`: dictionaries of tensors, and nothing that runs.
//!
//! Of the language as Python has it, this reads what PyTorch writes for a state dict, as `torch.load(weights_only=True)`
//! does; whatever else a pickle asks for is an error. Source: Lib/pickletools.py of `CPython`, protocol 2.

use std::rc::Rc;

use safetensors::tensor::Dtype;

/// Bytes of a pickle that are read; tensors are not among them.
const BYTES: usize = 1 << 20;

/// Where the numbers of a tensor lie in the file around the pickle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    /// Name of the record that holds them, and maybe those of others.
    pub(crate) storage: String,
    /// Numbers of that record.
    pub(crate) stored: usize,
    pub(crate) dtype: Dtype,
    /// The first one's place, in numbers.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// Steps between numbers along each dimension.
    pub(crate) strides: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Value {
    Nothing,
    Number(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>),
    Dict(Vec<(Value, Value)>),
    /// A function or a class by its module and name, called by nobody.
    Name(Rc<str>),
    Storage {
        key: Rc<str>,
        dtype: Dtype,
        numbers: usize,
    },
    Tensor(Described),
    Mark,
}

/// The tensors of a dictionary, by name.
///
/// # Errors
/// A sentence.
pub(crate) fn read(pickle: &[u8]) -> Result<Vec<(String, Described)>, String> {
    if pickle.len() > BYTES {
        return Err(format!("its pickle has {} bytes, at most {BYTES} are read", pickle.len()));
    }
    let Value::Dict(entries) = Machine { left: pickle, stack: Vec::new(), memo: Vec::new() }.run()? else {
        return Err("it holds no dictionary".to_owned());
    };
    let tensor = |entry| match entry {
        (Value::Text(name), Value::Tensor(described)) => Ok((name.to_string(), described)),
        (name, _) => Err(format!("{name:?} is no name of a tensor")),
    };
    entries.into_iter().map(tensor).collect()
}

struct Machine<'a> {
    left: &'a [u8],
    stack: Vec<Value>,
    memo: Vec<Value>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Result<Value, String> {
        loop {
            match self.bytes(1)?[0] {
                0x80 => drop(self.bytes(1)?), // PROTO
                b'.' => return self.pop(),    // STOP
                b'}' => self.stack.push(Value::Dict(Vec::new())),
                b')' => self.stack.push(Value::Tuple(Rc::new([]))),
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::Nothing),
                0x88 => self.stack.push(Value::Number(1)), // NEWTRUE
                0x89 => self.stack.push(Value::Number(0)), // NEWFALSE
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => self.number(4)?,
                0x8a => {
                    let width = self.bytes(1)?[0]; // LONG1
                    self.number(width.into())?;
                }
                b'X' => {
                    let length = self.length(4)?; // BINUNICODE
                    let text = std::str::from_utf8(self.bytes(length)?).map_err(|error| error.to_string())?;
                    self.stack.push(Value::Text(text.into()));
                }
                b'c' => {
                    let name = format!("{} {}", self.line()?, self.line()?); // GLOBAL
                    self.stack.push(Value::Name(name.into()));
                }
                b'q' => self.remember(1)?,
                b'r' => self.remember(4)?,
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b't' => {
                    let parts = self.since_mark()?;
                    self.stack.push(Value::Tuple(parts.into()));
                }
                width @ 0x85..=0x87 => {
                    let at = self.stack.len().checked_sub(usize::from(width - 0x84)); // TUPLE1 to TUPLE3
                    let parts = self.stack.split_off(at.ok_or("a tuple lacks its parts")?);
                    self.stack.push(Value::Tuple(parts.into()));
                }
                b'Q' => {
                    let storage = storage(&self.pop()?)?; // BINPERSID
                    self.stack.push(storage);
                }
                b'R' => {
                    let (given, function) = (self.pop()?, self.pop()?); // REDUCE
                    self.stack.push(call(&function, &given)?);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?); // SETITEM
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.since_mark()?; // SETITEMS
                    self.set(items)?;
                }
                // BUILD: what is beside a dictionary's entries tells nothing of tensors.
                b'b' => drop(self.pop()?),
                other => return Err(format!("its pickle has the operation {other:#04x}, which is not read")),
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, left) = self.left.split_at_checked(count).ok_or("its pickle ends early")?;
        self.left = left;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.left.iter().position(|byte| *byte == b'\n').ok_or("its pickle ends early")?;
        let line = &self.bytes(end + 1)?[..end];
        std::str::from_utf8(line).map_err(|error| error.to_string())
    }

    /// A whole number of `width` bytes, the lowest first.
    fn length(&mut self, width: usize) -> Result<usize, String> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.bytes(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|error| error.to_string())
    }

    fn number(&mut self, width: usize) -> Result<(), String> {
        if width > 8 {
            return Err(format!("its pickle has a number of {width} bytes"));
        }
        let length = self.length(width)?;
        let number = i64::try_from(length).map_err(|error| error.to_string())?;
        self.stack.push(Value::Number(number));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "its pickle takes what is not there".to_owned())
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let parts = self.stack.split_off(mark.ok_or("its pickle lacks a mark")? + 1);
        self.pop()?;
        Ok(parts)
    }

    /// PyTorch counts what it remembers from 0, one by one.
    fn remember(&mut self, width: usize) -> Result<(), String> {
        let place = self.length(width)?;
        let last = self.stack.last().ok_or("its pickle remembers nothing")?.clone();
        if place != self.memo.len() {
            return Err(format!("its pickle remembers {place} out of turn"));
        }
        self.memo.push(last);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let place = self.length(width)?;
        match self.memo.get(place) {
            // It may have got entries since.
            Some(Value::Dict(_)) => Err("its pickle names a dictionary twice".to_owned()),
            Some(value) => {
                self.stack.push(value.clone());
                Ok(())
            }
            None => Err(format!("its pickle recalls {place}, which it does not remember")),
        }
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(entries)) = self.stack.last_mut() else {
            return Err("its pickle puts entries into what is no dictionary".to_owned());
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Ok(())
    }
}

/// What a persistent name stands for: `("storage", torch.FloatStorage, key, place, numbers)`.
fn storage(name: &Value) -> Result<Value, String> {
    let unknown = || format!("{name:?} is no storage");
    let Value::Tuple(parts) = name else { return Err(unknown()) };
    let [Value::Text(tag), Value::Name(kind), Value::Text(key), _, Value::Number(numbers)] = &parts[..]
    else {
        return Err(unknown());
    };
    let dtype = match &**kind {
        "torch FloatStorage" => Dtype::F32,
        "torch HalfStorage" => Dtype::F16,
        "torch BFloat16Storage" => Dtype::BF16,
        other => return Err(format!("it has numbers of {other}; float, half and bfloat16 are read")),
    };
    if &**tag != "storage" {
        return Err(unknown());
    }
    let numbers = usize::try_from(*numbers).map_err(|error| error.to_string())?;
    Ok(Value::Storage { key: key.clone(), dtype, numbers })
}

fn call(function: &Value, given: &Value) -> Result<Value, String> {
    let (Value::Name(name), Value::Tuple(given)) = (function, given) else {
        return Err("its pickle calls what is no function".to_owned());
    };
    match (&**name, &given[..]) {
        ("collections OrderedDict", []) => Ok(Value::Dict(Vec::new())),
        ("torch._utils _rebuild_tensor_v2", [storage, Value::Number(offset), shape, strides, ..]) => {
            let Value::Storage { key, dtype, numbers } = storage else {
                return Err("a tensor has no storage".to_owned());
            };
            let offset = usize::try_from(*offset).map_err(|error| error.to_string())?;
            let (shape, strides) = (sizes(shape)?, sizes(strides)?);
            let (storage, stored) = (key.to_string(), *numbers);
            Ok(Value::Tensor(Described { storage, stored, dtype: *dtype, offset, shape, strides }))
        }
        ("torch._utils _rebuild_parameter", [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        _ => Err(format!(
            "its pickle calls {}, which a dictionary of tensors does not",
            name.replace(' ', ".")
        )),
    }
}

fn sizes(tuple: &Value) -> Result<Vec<usize>, String> {
    let Value::Tuple(parts) = tuple else { return Err(format!("{tuple:?} is no shape")) };
    let size = |part: &Value| {
        let Value::Number(size) = part else { return Err(format!("{part:?} is no size")) };
        usize::try_from(*size).map_err(|error| error.to_string())
    };
    parts.iter().map(size).collect()
}

/// The pickle of an ordered dictionary of contiguous tensors of single precision, each of its own storage: the first's
/// record is `0`, and so on.
pub(crate) fn write<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Vec<u8> {
    const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = [b"\x80\x02", ORDERED_DICT, b"("].concat();
    for (place, (name, shape)) in tensors.into_iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &place.to_string());
        text(&mut out, "cpu");
        number(&mut out, shape.iter().product());
        out.extend(b"tQ");
        number(&mut out, 0);
        tuple(&mut out, shape.iter().copied());
        tuple(&mut out, strides(shape).into_iter());
        out.push(0x89); // NEWFALSE: it asks for no gradient.
        out.extend(ORDERED_DICT); // No hooks.
        out.extend(b"tR");
    }
    out.extend(b"u.");
    out
}

/// Steps between numbers along each dimension of what lies row by row.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|from| shape[from..].iter().product()).collect()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}

fn tuple(out: &mut Vec<u8>, numbers: impl Iterator<Item = usize>) {
    out.push(b'(');
    numbers.for_each(|size| number(out, size));
    out.push(b't');
}

/// A LONG1 of eight bytes, of which the highest bit is the sign.
fn number(out: &mut Vec<u8>, size: usize) {
    out.extend([0x8a, 8]);
    out.extend((size as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let written = write([("weight", [2, 3].as_slice()), ("bias", &[2])]);
        let described = |storage: &str, stored, shape: &[usize], steps: &[usize]| Described {
            storage: storage.to_owned(),
            stored,
            dtype: Dtype::F32,
            offset: 0,
            shape: shape.to_vec(),
            strides: steps.to_vec(),
        };
        let weight = ("weight".to_owned(), described("0", 6, &[2, 3], &[3, 1]));
        let bias = ("bias".to_owned(), described("1", 2, &[2], &[1]));
        assert_eq!(read(&written), Ok(vec![weight, bias]));
    }

    #[test]
    fn what_is_no_dictionary_of_tensors_is_an_error() {
        #[track_caller]
        fn check(pickle: &[u8], part: &str) {
            let reason = read(pickle).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
        check(b"", "ends early");
        check(b"\x80\x02K\x01.", "no dictionary");
        check(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "calls os.system");
        check(b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "calls torch._utils._rebuild_tensor_v2");
        check(b"}X\x01\0\0\0aK\x01s.", "no name of a tensor");
        check(b"}q\0h\0.", "a dictionary twice");
        check(b"\x8a\x09", "a number of 9 bytes");
        check(b"\x86", "lacks its parts");
        check(b"X\xff\xff\xff\xff", "ends early");
        check(b"q\0", "remembers nothing");
        check(b"K\x01u", "lacks a mark");
        check(&vec![b'N'; BYTES + 1], "at most");
        let written = write([("weight", [2, 3].as_slice())]);
        for cut in 0..written.len() {
            assert!(read(&written[..cut]).is_err(), "{cut}");
        }
        // Whatever its bytes are, it is a dictionary or an error.
        for place in 0..written.len() {
            for byte in [0, b'(', b'}', b'R', b'Q', b'.', 0x8a, 0xff] {
                let mut changed = written.clone();
                changed[place] = byte;
                let _ = read(&changed);
            }
        }
    }
}
