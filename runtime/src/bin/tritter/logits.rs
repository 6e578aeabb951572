//! `tritter logits`: the scores of every id after every token of given sequences, as a file.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::ui::{self, ModelArgs, Progress, Unit};

/// Write the logits of given tokens.
///
/// Reads `input_ids`, i32 or i64 of shape (B, L), and writes `logits`, f32 of shape (B, L, vocabulary). Each row of B is a sequence of its
/// own.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter logits model.tritter --tokens ids.safetensors -o logits.safetensors
  tritter logits model.tritter --tokens ids.safetensors -o logits.safetensors --step-by-step")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A safetensors file with `input_ids`.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// The safetensors file to write; it appears when it is complete.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Take the tokens one by one, as generation does, instead of in chunks.
    #[arg(long, conflicts_with = "chunk")]
    step_by_step: bool,
    /// Tokens of a call; the most that the artifact was compiled for by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,
    /// Rows of B in one call, up to the sequences that the artifact was compiled for. Results do not depend on it.
    #[arg(long, value_name = "N", default_value = "1")]
    batch: NonZeroUsize,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let rows = read_ids(&args.tokens)?;
    let length = rows.first().map_or(0, Vec::len);
    let mut session = args.model.open()?;
    let vocab = session.vocab();
    let chunk = if args.step_by_step { args.batch.get() } else { ui::chunk(&session, args.chunk) };
    let lists: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();

    let mut file = ui::create_beside(&args.output)?;
    let context = || format!("cannot write {}", args.output.display());
    let shape = [rows.len(), length, vocab];
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let header = header(shape);
    writer.write_all(&header).with_context(context)?;

    let start = std::time::Instant::now();
    let mut progress = Progress::new("logits", Unit::Tokens);
    let total = (rows.len() * length) as u64;
    let (mut done, mut failure) = (0_u64, None);
    // Rows of several lists alternate, and each goes to its own place.
    let mut at = 0;
    session
        .score(&lists, chunk, args.batch.get(), &mut |list, position, logits| {
            let row = list * length + position;
            let written = write_row(&mut writer, header.len() + row * vocab * 4, at == row, logits);
            at = row + 1;
            done += 1;
            progress.set(done, total);
            match written {
                Ok(()) => ui::flow(),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
        .map_err(|error| match failure.take() {
            Some(failure) => anyhow::Error::new(failure).context(context()),
            None => error.into(),
        })?;
    writer.flush().with_context(context)?;
    drop(writer);
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    file.persist(&args.output).map_err(|error| error.error).with_context(context)?;

    if args.json {
        let tokens_per_s = total as f64 / seconds;
        return ui::print_json(&json!({
            "output": args.output.display().to_string(),
            "shape": shape,
            "seconds": seconds,
            "tokens_per_s": tokens_per_s,
        }));
    }
    ui::message(&format!("wrote logits {shape:?} to {} in {seconds:.2} s", args.output.display()));
    Ok(())
}

/// The header of a safetensors file with this one tensor; its data starts at a multiple of 64.
fn header(shape: [usize; 3]) -> Vec<u8> {
    let bytes = shape.iter().product::<usize>() * 4;
    let json = json!({"logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}}).to_string();
    let length = (8 + json.len()).next_multiple_of(64) - 8;
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(format!("{json:length$}").into_bytes());
    header
}

fn write_row(writer: &mut (impl Write + Seek), offset: usize, is_next: bool, row: &[f32]) -> std::io::Result<()> {
    if !is_next {
        writer.seek(SeekFrom::Start(offset as u64))?;
    }
    for value in row {
        writer.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

/// The rows of `input_ids`, all of one length.
fn read_ids(path: &Path) -> Result<Vec<Vec<u32>>> {
    let bytes = ui::read(path)?;
    let file =
        SafeTensors::deserialize(&bytes).with_context(|| format!("{} is no safetensors file", path.display()))?;
    let names: Vec<&str> = file.names().into_iter().collect();
    let tensor = file
        .tensor("input_ids")
        .with_context(|| format!("{} has no tensor `input_ids`, it has: {}", path.display(), names.join(", ")))?;
    let &[rows, length] = tensor.shape() else {
        bail!("`input_ids` has shape {:?}, it must be (B, L)", tensor.shape());
    };
    if rows == 0 || length == 0 {
        bail!("`input_ids` has shape ({rows}, {length}), there is nothing to do");
    }
    let data = tensor.data();
    let values: Vec<i64> = match tensor.dtype() {
        Dtype::I32 => data.as_chunks::<4>().0.iter().map(|&bytes| i64::from(i32::from_le_bytes(bytes))).collect(),
        Dtype::I64 => data.as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
        other => bail!("`input_ids` is {other:?}, it must be I32 or I64"),
    };
    let id = |(position, &value): (usize, &i64)| {
        let (row, column) = (position / length, position % length);
        u32::try_from(value).with_context(|| format!("`input_ids` has {value} at row {row}, column {column}"))
    };
    let ids: Vec<u32> = values.iter().enumerate().map(id).collect::<Result<_>>()?;
    Ok(ids.chunks(length).map(<[u32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_safetensors_file() {
        let mut file = std::io::Cursor::new(header([2, 1, 3]));
        let start = file.get_ref().len();
        write_row(&mut file, start + 12, false, &[4.0, 5.0, 6.0]).unwrap();
        write_row(&mut file, start, false, &[1.0, 2.0, 3.0]).unwrap();
        let bytes = file.into_inner();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor("logits").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape(), start % 64), (Dtype::F32, &[2, 1, 3][..], 0));
        let values: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
