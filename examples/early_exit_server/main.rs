//! A trained model behind HTTP, and clients that load it. See the README beside this file.

mod clients;
mod http;
mod load;
mod prepare;
mod requests;
mod server;
mod soak;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use layerwise_example_common::run_main;

layerwise_example_common::fast_allocator!();

const NAME: &str = "early_exit_server";

/// Serves a trained model whose samples leave early, and loads it.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers images or texts over HTTP on this machine, until Ctrl-C.
    Serve(server::ServeFlags),
    /// Asks a running server from many connections at once, with and without exits, and reports throughput and latency.
    Load(load::LoadFlags),
    /// Asks a running server for a long time, with bad requests, clients that go away and clients that are slow among the good ones, and
    /// checks that nothing is lost.
    Soak(soak::SoakFlags),
}

fn main() -> ExitCode {
    match Flags::parse().command {
        Command::Serve(flags) => run_main(&flags.common, |device| server::serve(&flags, &device)),
        Command::Load(flags) => run_main(&flags.common, |device| load::load(&flags, &device)),
        Command::Soak(flags) => run_main(&flags.common, |device| soak::soak(&flags, &device)),
    }
}
