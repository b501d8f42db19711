//! The measured suite with the system's allocator; see [`batchnorm_benches::suite`].

fn main() -> Result<(), Box<dyn std::error::Error>> {
    batchnorm_benches::suite::main()
}
