//! Compiles the CUDA kernels to PTX, if they are asked for.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    // New files, too.
    println!("cargo::rerun-if-changed=src/cuda/kernels");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    cudaforge::KernelBuilder::new()
        .source_glob("src/cuda/kernels/*.cu")
        .watch(["src/cuda/kernels/common.cuh", "src/cuda/kernels/dropout.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .expect("nvcc compiles src/cuda/kernels")
        .write(out.join("ptx.rs"))
        .expect("OUT_DIR can be written");
}
