//! Serves one directory to a VM over vhost-user (virtio-fs): the `virtiofsd` crate in a jail of our
//! own.
//!
//! Takes a subset of virtiofsd's command line, so that the two can stand in for each other. Serves
//! one connection and ends with it, and with its parent.

mod jail;
mod listener;
mod options;
mod serve;
mod stderr_log;

use std::process::ExitCode;

use anyhow::Context;

use options::Options;

fn main() -> ExitCode {
    let options = Options::from_command_line();
    stderr_log::init(options.log_level);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    jail::die_with_parent()?;
    let listener = listener::open(options)?;
    let guest_fd_limit = serve::raise_file_limit(options.thread_pool_size)?;
    let view = jail::enter(options.sandbox, &options.shared_dir, options.readonly)
        .with_context(|| format!("cannot shut itself into {}", options.shared_dir.display()))?;
    // No thread has been started yet, and all that will be inherit both.
    jail::drop_capabilities()?;
    jail::filter_system_calls(options.seccomp)?;
    serve::serve(options, listener, view, guest_fd_limit)
}
