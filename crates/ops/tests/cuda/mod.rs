//! CUDA kernels, run on the CPU by `on_cpu.h`.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use half::{bf16, f16};
use tempfile::TempDir;

/// A type of number that kernels know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
    /// Of sums only.
    F64,
}

pub(crate) const TYPES: [Type; 3] = [Type::F32, Type::F16, Type::Bf16];

impl Type {
    /// The kernel for this type.
    pub(crate) fn kernel(self, name: &str) -> String {
        format!("{name}_{self:?}").to_lowercase()
    }

    /// What a result may be off, of the largest of its kind: a few roundings.
    pub(crate) fn tolerance(self) -> f32 {
        match self {
            Self::F32 | Self::F64 => 2e-6,
            Self::F16 => 1e-3,
            Self::Bf16 => 8e-3,
        }
    }

    /// The nearest numbers of this type.
    pub(crate) fn rounded(self, xs: &[f32]) -> Vec<f32> {
        self.numbers(&self.bytes(xs))
    }

    fn bytes(self, xs: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => xs.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Bf16 => xs.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Self::F64 => xs.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn numbers(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            Self::F64 => bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x) as f32).collect(),
        }
    }
}

/// An argument of a kernel.
pub(crate) enum Arg {
    Memory(Vec<u8>),
    /// Memory that is reached through a table only: no argument.
    Held(Vec<u8>),
    /// Memory with pointers in it: where each stands, and the place of what it points to among all of these.
    Table(Vec<u8>, Vec<(usize, usize)>),
    Int(i32),
    Long(u64),
    Float(f32),
}

impl Arg {
    pub(crate) fn numbers(of: Type, xs: &[f32]) -> Self {
        Self::Memory(of.bytes(xs))
    }

    pub(crate) fn ids(xs: &[u32]) -> Self {
        Self::Memory(xs.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Memory that a kernel has to write: NaN where it does not.
    pub(crate) fn room(of: Type, count: usize) -> Self {
        Self::numbers(of, &vec![f32::NAN; count])
    }

    pub(crate) fn null() -> Self {
        Self::Memory(Vec::new())
    }
}

/// How many threads.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: (usize, usize),
    pub(crate) threads: (usize, usize),
}

/// The kernels of a file as a program.
pub(crate) struct Kernels {
    folder: TempDir,
}

/// What a launch came to.
pub(crate) enum Outcome {
    /// All memory afterwards.
    Memory(Vec<Vec<u8>>),
    /// The program stopped: a barrier that not all reach, memory that is not its own.
    Stopped(String),
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels")
}

/// The C++ compiler, and the words before its flags.
fn compiler() -> Option<Command> {
    let words = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next()?);
    command.args(words);
    Some(command)
}

/// Whether there is a C++ compiler; says so where there is none.
pub(crate) fn can_compile() -> bool {
    let there = compiler().is_some_and(|mut command| {
        command.arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if !there {
        layerwise_testkit::skipped("no C++ compiler; set CXX");
    }
    there
}

/// Whether the compiler has an address sanitizer.
fn sanitises() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let folder = TempDir::new().expect("a folder");
        let source = folder.path().join("empty.cpp");
        fs::write(&source, "int main() {}").expect("a source");
        let mut command = compiler().expect("a compiler");
        command.args(["-fsanitize=address", "-o"]).arg(folder.path().join("empty")).arg(source);
        command.output().is_ok_and(|output| output.status.success())
    })
}

impl Kernels {
    /// Kernels of `file`, by name; `changed`: where another text stands in the place of one in the sources.
    pub(crate) fn compiled(file: &str, names: &BTreeSet<&str>, changed: Option<(&str, &str)>) -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut found = false;
        for entry in fs::read_dir(sources()).expect("the sources") {
            let path = entry.expect("a source").path();
            let name = path.file_name().expect("a name").to_owned();
            if !path.extension().is_some_and(|ext| ext == "cu" || ext == "cuh") {
                continue;
            }
            let mut text = fs::read_to_string(&path).expect("a source");
            if let Some((from, to)) = changed
                .filter(|_| name == file || name != *file && path.extension().is_some_and(|e| e == "cuh"))
            {
                found |= text.contains(from);
                text = text.replacen(from, to, 1);
            }
            fs::write(folder.path().join(name), text).expect("a copy");
        }
        assert!(found || changed.is_none(), "{file} has no {changed:?}");
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
        let tries: String = names.iter().map(|name| format!("TRY({name}) ")).collect();
        let output = compiler()
            .expect("a compiler")
            .args(["-std=c++17", "-O1", "-w", "-ffp-contract=off"])
            .args(sanitises().then_some("-fsanitize=address"))
            .arg(format!("-I{}", folder.path().display()))
            .arg(format!("-DFILE_OF_KERNELS=\"{file}\""))
            .arg(format!("-DKERNELS={tries}"))
            .arg(shim.join("on_cpu.cpp"))
            .arg("-o")
            .arg(folder.path().join("on_cpu"))
            .output()
            .expect("the compiler runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Launches a kernel; `reverse`: the last warp first.
    pub(crate) fn launch(&self, name: &str, grid: Grid, reverse: bool, args: &[Arg]) -> Outcome {
        let Grid { blocks, threads } = grid;
        let sizes = [blocks.0, blocks.1, threads.0, threads.1, usize::from(reverse)];
        let mut child = Command::new(self.folder.path().join("on_cpu"))
            .arg(name)
            .args(sizes.map(|size| size.to_string()))
            // Fibers are no leak.
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut bytes = Vec::new();
        let mut lengths = Vec::new();
        let mut add = |kind: u8, value: &[u8]| {
            bytes.push(kind);
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value);
        };
        for (at, arg) in args.iter().enumerate() {
            let (kind, value) = match arg {
                Arg::Memory(memory) => {
                    lengths.push(memory.len());
                    (b'b', memory.clone())
                }
                Arg::Held(memory) => {
                    lengths.push(memory.len());
                    (b'h', memory.clone())
                }
                Arg::Table(table, pointers) => {
                    for &(offset, to) in pointers {
                        add(b'p', &[at, offset, to].map(|x| (x as u64).to_le_bytes()).concat());
                    }
                    (b't', table.clone())
                }
                Arg::Int(x) => (b'i', x.to_le_bytes().to_vec()),
                Arg::Long(x) => (b'l', x.to_le_bytes().to_vec()),
                Arg::Float(x) => (b'f', x.to_le_bytes().to_vec()),
            };
            add(kind, &value);
        }
        let mut stdin = child.stdin.take().expect("piped");
        let output = std::thread::scope(|scope| {
            // A program that stops early does not read on.
            scope.spawn(move || drop(stdin.write_all(&bytes)));
            child.wait_with_output().expect("the program ends")
        });
        if !output.status.success() {
            return Outcome::Stopped(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let mut left = output.stdout.as_slice();
        let mut parts = Vec::new();
        for length in lengths {
            let (part, behind) = left.split_at_checked(length).expect("all memory");
            parts.push(part.to_vec());
            left = behind;
        }
        assert!(left.is_empty(), "{name}: no such kernel");
        Outcome::Memory(parts)
    }
}

/// The largest difference, in units of what the type rounds; more than 1 is too much, and so is a NaN where there should be none.
pub(crate) fn off(of: Type, got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().filter(|x| x.is_finite()).fold(1e-3f32, |most, x| most.max(x.abs()));
    let one = |(got, want): (&f32, &f32)| match (got.is_nan(), want.is_nan()) {
        (true, true) => 0.,
        (false, false) if got == want => 0.,
        (false, false) => (got - want).abs() / scale / of.tolerance(),
        _ => f32::INFINITY,
    };
    got.iter().zip(want).map(one).fold(0., f32::max)
}
