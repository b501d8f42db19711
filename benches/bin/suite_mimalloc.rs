//! The measured suite with the allocator that the README recommends; see [`batchnorm_benches::suite`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    batchnorm_benches::suite::main()
}
