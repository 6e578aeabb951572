//! Any config.json with any safetensors file is a checkpoint whose every tensor can be read, or a list of errors.
//!
//! The input is the configuration, a zero byte, and the file.

#![no_main]

use compiler::weights::{Checkpoint, WeightSource};
use libfuzzer_sys::fuzz_target;
use models::import::import;

fuzz_target!(|data: &[u8]| {
    let split = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (config, file) = (String::from_utf8_lossy(&data[..split]), &data[(split + 1).min(data.len())..]);
    let directory = tempfile::tempdir().expect("there is room for a directory");
    std::fs::write(directory.path().join("model.safetensors"), file).expect("there is room for a file");
    let Ok(checkpoint) = Checkpoint::open(directory.path()) else {
        // Without tensors the configuration is still judged.
        assert!(import(&config, &[]).is_err());
        return;
    };
    if let Ok(imported) = import(&config, &checkpoint.headers()) {
        let checkpoint = checkpoint.bind(imported.params.clone());
        for param in &imported.params {
            for round in 0..param.rounds {
                let key = param.key_of(round);
                let tensor = checkpoint.tensor(&key).unwrap_or_else(|error| panic!("{key} was imported: {error}"));
                assert_eq!(tensor.dims, param.dims());
            }
        }
    }
});
