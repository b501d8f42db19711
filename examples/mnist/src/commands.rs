//! What each command does: glue between the command line and the modules.

use std::sync::OnceLock;

use burn::train::Interrupter;
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::cli::{Cli, Command, CompareArgs, DevicesArgs, EvalArgs, NetworkArgs, PredictArgs};
use crate::compare::{self, Plan};
use crate::config::{FORMAT, RunConfig, TrainingConfig};
use crate::data::Source;
use crate::device::{self, NamedDevice};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, NormKind};
use crate::report::line;
use crate::{evaluation, predict, report, run};

/// Runs the command and prints its result on standard output.
pub fn execute(cli: Cli) -> Result<()> {
    match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => {
            let summary = run::train(&args, &interrupter())?;
            let table = format!(
                "{}\n{}\nwritten to {}: model.bpk, model.safetensors, config.json, summary.json, metrics.csv,\n  {}, {}\n",
                summary.model,
                report::training_table(&summary),
                args.out.display(),
                Artifacts::CURVES,
                Artifacts::CONFUSION,
            );
            print(args.json, &summary, || table)
        }
        Command::Eval(args) => eval(args),
        Command::Predict(args) => predict(args),
        Command::Compare(args) => compare(args),
        Command::Devices(args) => devices(args),
    }
}

fn eval(args: EvalArgs) -> Result<()> {
    let data = args.data.as_deref().map(Source::from);
    let (report, config) = evaluation::run(&args.model, data, args.device.as_deref())?;
    print(args.json, &report, || {
        format!(
            "{}\n{}",
            config.model.describe(),
            report::eval_table(&report)
        )
    })
}

fn predict(args: PredictArgs) -> Result<()> {
    let predictions = predict::run(
        &args.model,
        &args.images,
        args.invert,
        args.top,
        args.device.as_deref(),
    )?;
    print(args.json, &predictions, || predict::table(&predictions))
}

fn compare(args: CompareArgs) -> Result<()> {
    let artifacts = Artifacts::new(&args.out);
    let device = device::resolve(args.network.device.as_deref().unwrap_or("auto"))?;
    let source = Source::from(args.network.data.as_deref().unwrap_or("embedded")).absolute()?;
    let data = source.load()?;
    let base = config(
        &args.network,
        NormKind::Batch,
        &source,
        &device,
        &data.class_names,
    );
    let plan = Plan {
        base,
        norms: args.norms,
        learning_rates: args.lrs,
        seeds: args.seeds,
        target: args.target,
    };
    plan.check()?;
    // Before the work, not after it.
    std::fs::create_dir_all(&args.out).map_err(Error::io("create the folder", &args.out))?;
    let comparison = compare::compare(&plan, &data, &device, &interrupter(), |note| {
        eprintln!("{note}")
    })?;
    comparison.save(&artifacts)?;
    print(args.json, &comparison, || {
        format!(
            "{}\nwritten to {}: {}, {}, {}\n",
            comparison.table(),
            args.out.display(),
            compare::PICTURE,
            compare::TABLE,
            compare::JSON
        )
    })
}

fn devices(args: DevicesArgs) -> Result<()> {
    let devices = device::list();
    print(args.json, &devices, || {
        let mut text = String::new();
        for device in &devices {
            line(
                &mut text,
                format_args!("{:<10} {:<20} {}", device.name, device.kind, device.adapter),
            );
        }
        let auto =
            device::resolve("auto").map_or_else(|error| error.to_string(), |device| device.name);
        line(&mut text, format_args!("auto is {auto}"));
        text
    })
}

/// The settings of a new run.
pub(crate) fn config(
    args: &NetworkArgs,
    norm: NormKind,
    source: &Source,
    device: &NamedDevice,
    class_names: &[String],
) -> RunConfig {
    let default = TrainingConfig::default();
    RunConfig {
        format: FORMAT,
        data: source.to_string(),
        device: device.name.clone(),
        model: ModelConfig {
            input: args.input.unwrap_or(784),
            hidden: args.hidden.unwrap_or(50),
            norm,
            bn_before_activation: args.bn_before_activation,
        },
        training: TrainingConfig {
            epochs: args.epochs.unwrap_or(default.epochs),
            batch_size: args.batch_size.unwrap_or(default.batch_size),
            seed: args.seed.unwrap_or(default.seed),
            validation: args.validation.unwrap_or(default.validation),
            ..default
        },
        class_names: class_names.to_vec(),
    }
}

/// Prints JSON, or text that is only made if it is wanted.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    use std::io::Write;
    let output = match json {
        true => serde_json::to_string_pretty(value)
            .map_err(std::io::Error::other)
            .map(|text| text + "\n"),
        false => Ok(text()),
    };
    let written = output.and_then(|output| std::io::stdout().lock().write_all(output.as_bytes()));
    match written {
        // `mnist devices | head -1` closes the pipe early, which is nobody's fault.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::io("write to", "standard output")),
    }
}

/// Stops training at Ctrl-C after the current step; a second Ctrl-C ends the program at once.
fn interrupter() -> Interrupter {
    static INTERRUPTER: OnceLock<Interrupter> = OnceLock::new();
    let made = INTERRUPTER.get_or_init(|| {
        let interrupter = Interrupter::new();
        let inside = interrupter.clone();
        let handler = ctrlc::set_handler(move || {
            if inside.should_stop() {
                std::process::exit(130);
            }
            inside.stop(Some("Ctrl-C"));
        });
        if let Err(error) = handler {
            eprintln!("note: Ctrl-C will end the program at once: {error}");
        }
        interrupter
    });
    made.clone()
}
